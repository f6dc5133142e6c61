"""The two text formats of sparse features, "l1,l2 f:v f:v" a line: XMC-repository files and svmlight.

XMC files begin with a line "N D K"; a line that begins with a blank has no labels. svmlight has no header, may have
negative labels, blank lines and "# comments". Ids count from 0. Both are parsed by one kernel, a block of lines at a
time; it answers an error by a code and a position, which become a message here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from machxc.compiled import ZERO, inline, kernel, part
from machxc.data.options import ReadOptions
from machxc.data.raw import RawBatch, RawLabels, tidy_features
from machxc.data.source import Mark, Source, line_blocks, n_lines
from machxc.errors import DataError
from machxc.samples import MAX_LABELS, Array, Features, Int64

_MAX_FEATURES = 2**32
_MAX_INTEGER = 10**18  # numbers of more digits are reported, not read
_HEADER = re.compile(rb"[ \t]*(\d{1,18})[ \t]+(\d{1,18})[ \t]+(\d{1,18})[ \t\r]*")

_OK, _BAD_LABEL, _LABEL_RANGE, _BAD_FEATURE, _FEATURE_RANGE, _BAD_VALUE, _TOO_MANY = range(7)
_TEN = np.array([10.0**i for i in range(23)])  # exact


def read_xmc(source: Source, options: ReadOptions, mark: Mark | None = None) -> Iterator[RawBatch]:
    """The samples of an XMC-repository file."""
    parser: _Parser | None = None
    if mark is not None:
        parser = _Parser(source, *mark.state["header"], n_read=mark.state["read"])
    for line, block, rest in line_blocks(source, mark):
        cut = 0
        if parser is None:
            cut = block.find(b"\n") + 1 or len(block)
            parser = _Parser(source, *_header(source, block[:cut]))
        yield from parser.batches(line + (cut > 0), block[cut:], rest)
    assert parser is not None
    parser.check_end()


def read_svmlight(source: Source, options: ReadOptions, mark: Mark | None = None) -> Iterator[RawBatch]:
    """The samples of an svmlight file; D is the largest feature id + 1."""
    parser = _Parser(source)
    for line, block, rest in line_blocks(source, mark):
        yield from parser.batches(line, block, rest)


def _header(source: Source, line: bytes) -> tuple[int, int, int]:
    match = _HEADER.fullmatch(line.rstrip(b"\n"))
    if match is None:
        raise source.error(
            "expected three numbers, of samples, features and labels (an XMC-repository file), "
            f"got {_shown(line.strip())}; say which format it is, if it is another",
            1,
        )
    n_samples, n_features, n_labels = map(int, match.groups())
    if n_samples == 0:
        raise source.error("the header says 0 samples; expected at least one", 1)
    if not 1 <= n_features <= _MAX_FEATURES:
        raise source.error(f"the header says {n_features} features; expected a number in [1, 2**32]", 1)
    if not 1 <= n_labels <= MAX_LABELS:
        raise source.error(f"the header says {n_labels} labels; expected a number in [1, 2**32)", 1)
    return n_samples, n_features, n_labels


class _Parser:
    """Blocks of lines to batches. Without a header: svmlight."""

    def __init__(
        self,
        source: Source,
        n_samples: int = -1,
        n_features: int | None = None,
        n_labels: int | None = None,
        *,
        n_read: int = 0,
    ) -> None:
        self._source, self._n_read = source, n_read
        self._n_features, self._n_labels, self._n_samples = n_features, n_labels, n_samples

    def check_end(self) -> None:
        """DataError when the header says that there is more."""
        if self._n_read < self._n_samples:
            raise self._source.error(
                f"the header says {self._n_samples} samples, the file has {self._n_read}; "
                "it is cut off, or the header is wrong",
                1,
            )

    def batches(self, line: int, block: bytes, rest: int) -> Iterator[RawBatch]:
        """The samples of ``block``, which begins at ``line``: one batch, or none where there is no sample.

        ``rest``: how many bytes of the line that follows were read.
        """
        data = np.frombuffer(block, np.uint8)
        left = -1 if self._n_samples < 0 else self._n_samples - self._n_read
        n_features = _MAX_FEATURES if self._n_features is None else self._n_features
        arrays = _room(data)
        outcome = parse_rows(data, n_features, -1 if self._n_labels is None else self._n_labels, left, *arrays)
        code, at, n_rows, n_labels, n_values = (int(number) for number in outcome)
        if code != _OK:
            raise self._error(code, line, block, at)
        if n_rows:
            self._n_read += n_rows
            header = [self._n_samples, self._n_features, self._n_labels]
            mark = self._source.mark(rest, line + n_lines(block), header=header, read=self._n_read)
            yield replace(self._batch(line, arrays, n_rows, n_labels, n_values), mark=mark)

    def _batch(self, line: int, arrays: tuple[Array, ...], n_rows: int, n_labels: int, n_values: int) -> RawBatch:
        lines, label_indptr, labels, indptr, ids, values = arrays
        n_features = self._n_features or (int(ids[:n_values].max()) + 1 if n_values else 0)
        features = Features(indptr[: n_rows + 1], ids[:n_values], values[:n_values], n_features)
        raw = RawLabels(label_indptr[: n_rows + 1], labels[:n_labels])
        tidy = tidy_features(features)
        batch = RawBatch(self._source.name, lines[:n_rows] + line, raw, None, tidy, n_labels=self._n_labels)
        bad = np.flatnonzero(~np.isfinite(tidy.values))
        if len(bad):
            row = int(np.searchsorted(tidy.indptr, bad[0], side="right")) - 1
            raise batch.error("the values of one feature add up to more than fits", row)
        return batch

    def _error(self, code: int, line: int, block: bytes, at: int) -> DataError:
        end = re.compile(rb"[ \t\r\n]|\Z").search(block, at)
        token = _shown(block[at : end.start() if end else len(block)])
        expected = {
            _BAD_LABEL: "expected integer labels separated by commas, or a blank for none, before the features",
            _LABEL_RANGE: f"the label is out of range: expected ids in [0, {self._n_labels}), as the header says"
            if self._n_labels
            else "the label is out of range: expected at most 18 digits",
            _BAD_FEATURE: 'expected a feature as "id:value"',
            _FEATURE_RANGE: f"the feature is out of range: expected ids in [0, {self._n_features or 2**32})"
            + (", as the header says" if self._n_features else ""),
            _BAD_VALUE: "expected a finite number as the value of a feature",
            _TOO_MANY: f"the header says {self._n_samples} samples, here is one more; correct the header",
        }[code]
        return self._source.error(f"{expected}; got {token}", line + block.count(b"\n", 0, at))


def _room(data: Array) -> tuple[Array, ...]:
    """Arrays that hold all that ``data`` can: lines, label indptr, labels, feature indptr, ids, values."""
    n_rows = np.count_nonzero(data == ord("\n")) + 1
    n_labels = np.count_nonzero(data == ord(",")) + n_rows
    n_values = np.count_nonzero(data == ord(":"))
    label_indptr, indptr = np.zeros(n_rows + 1, np.int64), np.zeros(n_rows + 1, np.int64)
    lines: Int64 = np.empty(n_rows, np.int64)
    ids, values = np.empty(n_values, np.uint32), np.empty(n_values, np.float32)
    return lines, label_indptr, np.empty(n_labels, np.int64), indptr, ids, values


def _shown(token: bytes) -> str:
    text = token.decode("utf-8", "replace")
    return repr(text if len(text) <= 60 else text[:57] + "...")


@inline
def _is_blank(char: int) -> bool:
    return char == 32 or char == 9 or char == 13


@part
def _integer(data: Any, at: int) -> tuple[int, int]:
    """The digits from ``at``: their number (at most _MAX_INTEGER) and where they end."""
    number = 0
    while at < len(data) and 48 <= data[at] <= 57:
        number = number * 10 + (data[at] - 48) if number < _MAX_INTEGER // 10 else _MAX_INTEGER
        at += 1
    return number, at


@part
def _decimal(data: Any, at: int) -> tuple[float, int]:
    """A decimal number from ``at`` and where it ends; -1 where there is none. Within an ulp of the exact double."""
    negative = at < len(data) and data[at] == 45
    if at < len(data) and (data[at] == 45 or data[at] == 43):
        at += 1
    mantissa, exponent, n_digits, in_fraction = 0, 0, 0, False
    while at < len(data) and (48 <= data[at] <= 57 or (data[at] == 46 and not in_fraction)):
        if data[at] == 46:
            in_fraction = True
        else:
            n_digits += 1
            if mantissa < 10**17:
                mantissa = mantissa * 10 + (data[at] - 48)
                exponent -= in_fraction
            else:
                exponent += not in_fraction
        at += 1
    if n_digits == 0:
        return 0.0, -1
    if at < len(data) and (data[at] | 32) == 101:
        at += 1
        down = at < len(data) and data[at] == 45
        if at < len(data) and (data[at] == 45 or data[at] == 43):
            at += 1
        power, end = _integer(data, at)
        if end == at:
            return 0.0, -1
        exponent += -power if down else power
        at = end
    value = _scaled(float(mantissa), exponent)
    return (-value if negative else value), at


@part
def _scaled(mantissa: float, exponent: int) -> float:
    """mantissa * 10**exponent."""
    if mantissa == 0.0 or exponent < -80:  # below the smallest float32
        return 0.0
    if exponent > 60:
        return np.inf
    if exponent < 0:
        return mantissa / _TEN[-exponent] if exponent >= -22 else mantissa * 10.0**exponent
    return mantissa * _TEN[exponent] if exponent <= 22 else mantissa * 10.0**exponent


@part
def _parse_labels(data: Any, start: int, n_labels: int, labels: Any, n: int) -> tuple[int, int, int]:
    """Labels "l1,l2" from ``start`` into ``labels[n:]``: code, where they end (or what is wrong), and the new n."""
    first, at, signed = n, start, n_labels < 0
    while True:
        begin = at
        negative = signed and at < len(data) and data[at] == 45
        if signed and at < len(data) and (data[at] == 45 or data[at] == 43):
            at += 1
        digits = at
        number, at = _integer(data, at)
        if begin < at < len(data) and data[at] == 58 and n == first:
            return _OK, start, n  # no labels: this is the first feature
        if at == digits:
            return _BAD_LABEL, begin, n
        if number >= _MAX_INTEGER or (n_labels >= 0 and number >= n_labels):
            return _LABEL_RANGE, begin, n
        labels[n] = -number if negative else number
        n += 1
        if at == len(data) or data[at] == 10 or _is_blank(data[at]):
            return _OK, at, n
        if data[at] != 44:
            return _BAD_LABEL, begin, n
        at += 1


@part
def _parse_features(
    data: Any, at: int, comments: bool, n_features: int, ids: Any, values: Any, n: int
) -> tuple[int, int, int]:
    """Features "f:v f:v" from ``at`` to the end of the line into ``ids[n:]`` and ``values[n:]``; as `_parse_labels`."""
    while True:
        while at < len(data) and _is_blank(data[at]):
            at += 1
        if at == len(data) or data[at] == 10 or (comments and data[at] == 35):
            return _OK, at, n
        begin = at
        number, at = _integer(data, at)
        if at == begin or at == len(data) or data[at] != 58:
            return _BAD_FEATURE, begin, n
        if number >= n_features:
            return _FEATURE_RANGE, begin, n
        value, at = _decimal(data, at + 1)
        if at < 0 or (at < len(data) and data[at] != 10 and not _is_blank(data[at])):
            return _BAD_VALUE, begin, n
        if not np.isfinite(np.float32(value)):
            return _BAD_VALUE, begin, n
        ids[n], values[n] = number, value
        n += 1


@kernel
def parse_rows(
    data: Any,
    n_features: int,
    n_labels: int,
    rows_left: int,
    lines: Any,
    label_indptr: Any,
    labels: Any,
    indptr: Any,
    ids: Any,
    values: Any,
) -> tuple[int, int, int, int, int]:
    """Parse whole lines of ``data`` (uint8) into the arrays that follow; answer (code, position, rows, labels, values).

    ``n_labels`` and ``rows_left`` are -1 for svmlight: any integer label; blank lines and comments are left out.
    ``lines`` becomes the line of each row, from 0.
    """
    svmlight = rows_left < 0
    n_rows, n_of_labels, n_of_values, line, at = 0, ZERO, ZERO, -1, ZERO
    while at < len(data):
        start, line = at, line + 1
        while at < len(data) and _is_blank(data[at]):
            at += 1
        is_blank_line = at == len(data) or data[at] == 10 or (svmlight and data[at] == 35)
        if is_blank_line and (svmlight or n_rows == rows_left):
            while at < len(data) and data[at] != 10:
                at += 1
            at += 1
            continue
        if n_rows == rows_left:
            return _TOO_MANY, at, n_rows, 0, 0

        if at == start and not is_blank_line:
            code, at, n_of_labels = _parse_labels(data, at, n_labels, labels, n_of_labels)
            if code != _OK:
                return code, at, n_rows, 0, 0
        code, at, n_of_values = _parse_features(data, at, svmlight, n_features, ids, values, n_of_values)
        if code != _OK:
            return code, at, n_rows, 0, 0
        while at < len(data) and data[at] != 10:  # a comment
            at += 1
        at += 1
        lines[n_rows] = line
        n_rows += 1
        label_indptr[n_rows], indptr[n_rows] = n_of_labels, n_of_values
    return _OK, 0, n_rows, n_of_labels, n_of_values
