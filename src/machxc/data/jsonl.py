"""JSON Lines: an object a line, {"text": str} or {"features": ...}, "labels", and perhaps "weight"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from machxc.data.jsonl_kernel import STRINGS, Parsed, parse_lines
from machxc.data.options import ReadOptions
from machxc.data.raw import RawBatch, RawLabels
from machxc.data.records import Records
from machxc.data.source import Mark, Source, line_blocks, n_lines, utf8
from machxc.errors import DataError
from machxc.packed import Strings

_FEATURES = "features"


def read_jsonl(source: Source, options: ReadOptions, mark: Mark | None = None) -> Iterator[RawBatch]:
    """The samples of a JSON Lines file; blank lines are left out.

    "features" is {"id": value, ...}, [[id, value], ...] or a list of numbers, of one length for all samples.
    """
    parser = _Parser(source.name, options, {} if mark is None else mark.state)
    for line, block, rest in line_blocks(source, mark):
        block = utf8(source, block, line, options.encoding)
        batches = parser.batches(line, block)
        for batch in batches[:-1]:
            yield batch
        for batch in batches[-1:]:
            yield replace(batch, mark=source.mark(rest, line + n_lines(block), **parser.state))


class _Parser:
    """Lines to batches, by the options; what was before ``state`` is known."""

    def __init__(self, path: str, options: ReadOptions, state: dict[str, Any]) -> None:
        self._records = Records(path, typed=True, of_texts=state.get("of_texts"))
        self._path = path
        self._texts = options.text_columns
        self._label, self._labels_required = options.label_column, options.labels_required
        self._weight = options.weight_column or "weight"
        self._weight_required = options.weight_column is not None
        self._dense: int | None = state.get("dense")
        self._keys = [key.encode() for key in (self._texts[0], self._label, self._weight)]
        self._plain = len(self._texts) == 1 and len({*self._keys, _FEATURES.encode()}) == 4

    @property
    def state(self) -> dict[str, Any]:
        """What to know of the samples before a mark."""
        return {"of_texts": self._records.of_texts, "dense": self._dense}

    def batches(self, line: int, block: bytes) -> list[RawBatch]:
        """The samples of a block of lines in UTF-8: by the kernel if it can, else line by line."""
        parsed = None
        if self._plain and self._records.of_texts is not False:
            needs_labels, needs_weight = self._labels_required, self._weight_required
            parsed = parse_lines(block, self._keys, needs_labels=needs_labels, needs_weight=needs_weight)
        if parsed is not None:
            self._records.of_texts = True if len(parsed.lines) else self._records.of_texts
            return [_batch_of(self._path, line, parsed)] if len(parsed.lines) else []
        return list(self._slow_batches(line, block.decode().split("\n")))

    def _slow_batches(self, first: int, rows: list[str]) -> Iterator[RawBatch]:
        for line, row in enumerate(rows, first):
            if row and not row.isspace():
                self.add(line, row)
            if self._records.full:
                yield self._records.take()
        if len(self._records):
            yield self._records.take()

    def add(self, line: int, row: str) -> None:
        """Parse one line and gather its sample."""
        record = self._parsed(line, row)
        text, features = self._text_of(line, record), record.get(_FEATURES)
        labels, weight = self._labels_of(line, record), self._weight_of(line, record)
        if text is not None:
            if features is not None:
                raise self._error(f"the sample has both {self._text_keys} and {_FEATURES!r}; expected one", line)
            self._records.add_text(line, text, labels, weight)
        elif features is not None:
            self._records.add_features(line, *self._features_of(line, features), labels, weight)
        else:
            raise self._error(f"the sample has neither {self._text_keys} nor {_FEATURES!r}; {_found(record)}", line)

    @property
    def _text_keys(self) -> str:
        return " or ".join(map(repr, self._texts))

    def _error(self, message: str, line: int) -> DataError:
        return DataError(message, path=self._path, line=line)

    def _parsed(self, line: int, row: str) -> dict[str, Any]:
        try:
            record = json.loads(row)
        except json.JSONDecodeError as error:
            raise self._error(
                f"expected one JSON object a line, but at column {error.colno}: {error.msg}; "
                f"got {row[max(error.pos - 10, 0) : error.pos + 20]!r}",
                line,
            ) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
            raise self._error(f"expected one JSON object a line, that can be read: {error}", line) from None
        if not isinstance(record, dict):
            raise self._error(
                f'expected one JSON object a line, as {{"text": "...", "labels": [...]}}, got {row[:40]!r}', line
            )
        return record

    def _text_of(self, line: int, record: dict[str, Any]) -> str | None:
        if len(self._texts) == 1:
            text = record.get(self._texts[0])
            if text is None or type(text) is str:
                return text
        given = [(key, record[key]) for key in self._texts if record.get(key) is not None]
        for key, text in given:
            if type(text) is not str:
                raise self._error(f"expected {key!r} to be a string, got {json.dumps(text)[:60]}", line)
        return " ".join(text for _, text in given) if given else None

    def _labels_of(self, line: int, record: dict[str, Any]) -> list[Any]:
        labels = record.get(self._label)
        if isinstance(labels, list):
            return labels
        if labels is not None:
            return [labels]
        if self._labels_required and self._label not in record:
            raise self._error(
                f"the sample has no {self._label!r}; write an empty list for a sample without labels, "
                f"or name the key of the labels; {_found(record)}",
                line,
            )
        return []

    def _weight_of(self, line: int, record: dict[str, Any]) -> Any:
        weight = record.get(self._weight)
        if weight is None and self._weight_required:
            raise self._error(f"the sample has no weight {self._weight!r}; {_found(record)}", line)
        return weight

    def _features_of(self, line: int, given: Any) -> tuple[list[Any], list[Any]]:
        if isinstance(given, dict):
            return [_id_of(key) for key in given], list(given.values())
        if not isinstance(given, list):
            raise self._error(f"expected {_FEATURES!r} to be an object or a list, got {json.dumps(given)[:60]}", line)
        if any(isinstance(item, list) for item in given):
            return self._pairs_of(line, given)
        return self._dense_of(line, given)

    def _pairs_of(self, line: int, given: list[Any]) -> tuple[list[Any], list[Any]]:
        wrong = next((item for item in given if not isinstance(item, list) or len(item) != 2), None)
        if wrong is not None:
            raise self._error(f"expected features as [id, value], got {json.dumps(wrong)[:60]}", line)
        return [item[0] for item in given], [item[1] for item in given]

    def _dense_of(self, line: int, given: list[Any]) -> tuple[list[Any], list[Any]]:
        if given and self._dense is None:
            self._dense = len(given)
        if given and len(given) != self._dense:
            raise self._error(f"expected {self._dense} feature values as in the samples before, got {len(given)}", line)
        return list(range(len(given))), given


def _batch_of(path: str, line: int, parsed: Parsed) -> RawBatch:
    strings = parsed.kind == STRINGS
    values = Strings(parsed.strings, parsed.string_offsets) if strings else parsed.integers
    labels = RawLabels(parsed.label_indptr, values)
    weights = parsed.weights if parsed.weighted else None
    texts = Strings(parsed.texts, parsed.text_offsets)
    return RawBatch(path, parsed.lines + line, labels, texts, weights=weights)


def _id_of(key: str) -> int | str:
    """A key of "features" as an id; what is no plain number stays, to be reported."""
    return int(key) if key.isascii() and key.isdigit() and len(key) <= 18 else key


def _found(record: dict[str, Any]) -> str:
    return f"found {', '.join(map(repr, sorted(record)))}"[:200] if record else "found nothing"
