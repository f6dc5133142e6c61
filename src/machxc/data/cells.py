"""Cells of tables as packed strings: rows of CSV to cells, several columns to one, labels in a cell to many."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from machxc.compiled import kernel
from machxc.packed import Strings
from machxc.samples import Array, Int64, starts_of

_QUOTE, _FEED, _RETURN = 34, 10, 13
OK, WRONG_QUOTE, OPEN_QUOTE, LONE_RETURN, WRONG_COUNT = range(5)
# the bytes of str.isspace() beyond ASCII
_WIDE_SPACES = (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
_SPACES = np.zeros((len(_WIDE_SPACES), 4), np.uint8)
for _row, _space in zip(_SPACES, _WIDE_SPACES, strict=True):
    _encoded = chr(_space).encode()
    _row[: len(_encoded)] = list(_encoded)
    _row[3] = len(_encoded)


class Rows(NamedTuple):
    """Rows of a table, and what ended them.

    ``code``: OK, or what is wrong with the row from ``begin`` to ``end``, which has ``n_cells`` (WRONG_COUNT). If
    all is well, ``begin`` is the end of the last whole row. ``lines`` int64 [n] of the rows, from 0; ``cells``: those
    wanted, row by row.
    """

    code: int
    begin: int
    end: int
    n_cells: int
    lines: Int64
    cells: Strings


def split_rows(data: Array, delimiter: int, wanted: Array, *, final: bool) -> Rows:
    """Cut bytes of a table (uint8) into rows and cells, as `csv` does when it is strict; blank lines are left out.

    ``wanted`` bool [columns]: the cells to keep. ``final``: the last row may end without a line feed.
    """
    n_rows = int(np.count_nonzero(data == _FEED)) + 1
    n_wanted = int(np.count_nonzero(wanted))
    lines, ends = np.empty(n_rows, np.int64), np.zeros(n_rows * n_wanted + 1, np.int64)
    out = np.empty(len(data), np.uint8)
    code, begin, end, count, n = _split(data, delimiter, wanted, final, lines, ends, out)
    ends = ends[: n * n_wanted + 1]
    return Rows(code, begin, end, count, lines[:n], Strings(out[: ends[-1]], ends))


def column(cells: Strings, width: int, places: list[int]) -> Strings:
    """Of rows of ``width`` cells those at ``places``, joined by spaces."""
    if width == len(places) == 1:
        return cells
    n = (len(cells) // width) if width else 0
    lengths = np.diff(cells.offsets).reshape(n, width)[:, places].sum(axis=1) + len(places) - 1
    ends = starts_of(lengths)
    out = np.empty(int(ends[-1]), np.uint8)
    _join(cells.bytes, cells.offsets, width, np.array(places, np.int64), out)
    return Strings(out, ends)


def split_labels(cells: Strings, separator: str | None, width: int = 1, place: int = 0) -> tuple[Int64, Strings]:
    """The labels of each cell: cut at the separator, without white space around them; empty ones are none.

    Of rows of ``width`` cells, those at ``place``. Returns their offsets by cell (int64 [n + 1]), and the labels.
    """
    mark = np.frombuffer((separator or "").encode(), np.uint8)
    n_rows = len(cells) // width
    most = n_rows + (int(np.count_nonzero(cells.bytes == mark[0])) if len(mark) else 0)
    starts, stops = np.empty(most, np.int64), np.empty(most, np.int64)
    indptr = np.zeros(n_rows + 1, np.int64)
    n = _cut(cells.bytes, cells.offsets, width, place, mark, _SPACES, indptr, starts, stops)
    ends = starts_of(stops[:n] - starts[:n])
    out = np.empty(int(ends[-1]), np.uint8)
    _gather(cells.bytes, starts[:n], stops[:n], out)
    return indptr, Strings(out, ends)


@kernel
def _split(
    data: Any, delimiter: int, wanted: Any, final: bool, lines: Int64, ends: Int64, out: Any
) -> tuple[int, int, int, int, int]:
    """The first four of `Rows`, and how many rows there are."""
    n, n_cells, used, line, at = 0, 0, 0, 0, 0
    while at < len(data):
        row, row_line, cell = at, line, 0
        feed = at
        while feed < len(data) and data[feed] == _RETURN:
            feed += 1
        if (feed < len(data) and data[feed] == _FEED) or (feed == len(data) and final):
            at, line = feed + 1, line + 1  # a blank line
            continue
        while True:  # cell by cell
            kept = cell < len(wanted) and wanted[cell]
            if at < len(data) and data[at] == _QUOTE:
                at += 1
                while at < len(data):
                    if data[at] == _QUOTE:
                        if at + 1 < len(data) and data[at + 1] == _QUOTE:
                            at += 1
                        else:
                            break
                    line += data[at] == _FEED
                    if kept:
                        out[used] = data[at]
                        used += 1
                    at += 1
                if at == len(data):
                    return (OPEN_QUOTE if final else OK), row, at, 0, n
                at += 1
                ended = at == len(data) or data[at] == delimiter or data[at] == _FEED or data[at] == _RETURN
                if not ended:
                    return WRONG_QUOTE, row, at, 0, n
            else:
                while at < len(data) and data[at] != delimiter and data[at] != _FEED and data[at] != _RETURN:
                    if kept:
                        out[used] = data[at]
                        used += 1
                    at += 1
            cell += 1
            if kept:
                n_cells += 1
                ends[n_cells] = used
            if at < len(data) and data[at] == delimiter:
                at += 1
                continue
            break
        if at == len(data) and not final:
            return OK, row, at, 0, n
        if at < len(data) and data[at] == _RETURN:
            while at < len(data) and data[at] == _RETURN:
                at += 1
            if at == len(data) and not final:
                return OK, row, at, 0, n
            if at < len(data) and data[at] != _FEED:
                return LONE_RETURN, row, at, 0, n
        if cell != len(wanted):
            return WRONG_COUNT, row, min(at + 1, len(data)), cell, n
        at += 1
        line += 1
        lines[n] = row_line
        n += 1
    return OK, min(at, len(data)), at, 0, n


@kernel
def _join(text: Any, offsets: Int64, width: int, places: Int64, out: Any) -> None:
    at = 0
    for row in range((len(offsets) - 1) // width):
        for i in range(len(places)):
            if i > 0:
                out[at] = 32
                at += 1
            cell = row * width + places[i]
            for j in range(offsets[cell], offsets[cell + 1]):
                out[at] = text[j]
                at += 1


@kernel
def _gather(text: Any, starts: Int64, stops: Int64, out: Any) -> None:
    at = 0
    for n in range(len(starts)):
        for j in range(starts[n], stops[n]):
            out[at] = text[j]
            at += 1


@kernel
def _is_at(text: Any, at: int, stop: int, sought: Any, length: int) -> bool:
    if at + length > stop:
        return False
    i = 0
    while i < length and text[at + i] == sought[i]:
        i += 1
    return i == length


@kernel
def _space_at(text: Any, at: int, stop: int, spaces: Any) -> int:
    """How many bytes of white space begin here: 0 if none."""
    byte = text[at]
    if byte < 0x80:
        return 1 if byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31 else 0
    for space in spaces:
        length = int(space[3])
        if _is_at(text, at, stop, space, length):
            return length
    return 0


@kernel
def _stripped(text: Any, start: int, stop: int, spaces: Any) -> tuple[int, int]:
    while start < stop:
        length = _space_at(text, start, stop, spaces)
        if length == 0:
            break
        start += length
    while start < stop:
        last = stop - 1
        while last > start and text[last] & 0xC0 == 0x80:
            last -= 1
        if _space_at(text, last, stop, spaces) == 0:
            break
        stop = last
    return start, stop


@kernel
def _cut(
    text: Any, offsets: Int64, width: int, place: int, separator: Any, spaces: Any,
    indptr: Int64, starts: Int64, stops: Int64,
) -> int:  # fmt: skip
    n = 0
    for row in range(len(indptr) - 1):
        begin, end = offsets[row * width + place], offsets[row * width + place + 1]
        while True:
            at = begin if len(separator) > 0 else end
            while at < end and not (text[at] == separator[0] and _is_at(text, at, end, separator, len(separator))):
                at += 1
            start, stop = _stripped(text, begin, at, spaces)
            if start < stop:
                starts[n], stops[n] = start, stop
                n += 1
            if at >= end:
                break
            begin = at + len(separator)
        indptr[row + 1] = n
    return n
