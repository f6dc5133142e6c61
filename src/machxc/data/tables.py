"""Tables of text with named columns: CSV and TSV. One column or several of text, one of labels, one of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from machxc.data.cells import (
    LONE_RETURN,
    OK,
    OPEN_QUOTE,
    WRONG_COUNT,
    WRONG_QUOTE,
    Rows,
    column,
    split_labels,
    split_rows,
)
from machxc.data.options import ReadOptions
from machxc.data.raw import RawBatch, RawLabels
from machxc.data.records import checked_weights
from machxc.data.source import Mark, Source, line_blocks, n_lines, utf8
from machxc.errors import DataError
from machxc.packed import Strings
from machxc.samples import Array, Int64

_MAX_CELL = 1 << 26
_MAX_COLUMNS = 1 << 16


def read_csv(source: Source, options: ReadOptions, mark: Mark | None = None) -> Iterator[RawBatch]:
    """The rows of a table with commas; the first line names the columns. Blank lines are left out."""
    return _read_delimited(source, options, ",", mark)


def read_tsv(source: Source, options: ReadOptions, mark: Mark | None = None) -> Iterator[RawBatch]:
    """The rows of a table with tabs; the first line names the columns. Blank lines are left out."""
    return _read_delimited(source, options, "\t", mark)


def _read_delimited(source: Source, options: ReadOptions, delimiter: str, mark: Mark | None) -> Iterator[RawBatch]:
    table = _Table(source, options, delimiter, mark)
    rest = b""
    for line, block, after in _whole_and_last(line_blocks(source, mark)):
        rest, first = rest + utf8(source, block, line, options.encoding), line - n_lines(rest)
        batch, used = table.parse(rest, first, final=after is None)
        rest = rest[used:]
        if len(rest) > _MAX_CELL:
            raise source.error(f"a cell is longer than {_MAX_CELL >> 20} MB; is a quote missing?", first)
        if batch is not None:
            yield replace(batch, mark=table.mark(len(rest), after, line + n_lines(block) - n_lines(rest)))


def _whole_and_last(blocks: Iterator[tuple[int, bytes, int]]) -> Iterator[tuple[int, bytes, int | None]]:
    """The blocks, and at the end an empty one that has no bytes after it (None)."""
    line = 1
    for line, block, after in blocks:
        yield line, block, after
        line += n_lines(block)
    yield line, b"", None


class _Table:
    """Blocks of a table with a delimiter to batches."""

    def __init__(self, source: Source, options: ReadOptions, delimiter: str, mark: Mark | None) -> None:
        self._source, self._options, self._delimiter = source, options, delimiter
        self._columns: Columns | None = None
        if mark is not None and mark.state:
            self._columns = Columns(source, options, mark.state["header"], 1)

    def mark(self, rest: int, after: int | None, line: int) -> Mark | None:
        """A mark after a block with ``rest`` bytes left of it, in UTF-8, and ``after`` bytes read beyond it."""
        assert self._columns is not None
        if after is None or (rest and self._options.encoding != "utf-8"):
            return None  # how many bytes of the file that is, is not known
        return self._source.mark(rest + after, line, header=list(self._columns.header))

    def parse(self, block: bytes, line: int, *, final: bool) -> tuple[RawBatch | None, int]:
        """The whole rows of a block that begins at ``line``, if there are any, and how many bytes they take."""
        data, used = np.frombuffer(block, np.uint8), 0
        if self._columns is None:
            used = self._read_header(data, line, final=final)
            line += block.count(b"\n", 0, used)
        if self._columns is None:
            return None, used
        columns = self._columns
        rows = split_rows(data[used:], ord(self._delimiter), columns.wanted, final=final)
        batch = columns.batch(rows.lines + line, rows.cells) if len(rows.lines) else None
        if rows.code != OK:
            raise self._error(rows, line + block.count(b"\n", used, used + rows.begin))
        return batch, used + rows.begin

    def _read_header(self, data: Array, line: int, *, final: bool) -> int:
        """Take the columns from the first row, if all of it is there; returns where it ends."""
        delimiter = ord(self._delimiter)
        found = split_rows(data, delimiter, np.zeros(_MAX_COLUMNS, bool), final=final)
        if found.code == OK and not final:
            return 0
        line += bytes(data[: found.begin]).count(b"\n")
        if found.code not in (OK, WRONG_COUNT):
            raise self._error(found, line)
        row = data[found.begin : found.end]
        cells = split_rows(row, delimiter, np.ones(found.n_cells, bool), final=True).cells
        self._columns = Columns(self._source, self._options, cells.tolist(), line)
        return found.end

    def _error(self, rows: Rows, line: int) -> DataError:
        if rows.code == WRONG_COUNT:
            assert self._columns is not None
            expected = len(self._columns.header)
            return self._source.error(f"expected {expected} cells as in the first line, got {rows.n_cells}", line)
        what = {
            WRONG_QUOTE: f"{self._delimiter!r} expected after '\"'",
            OPEN_QUOTE: "unexpected end of data",
            LONE_RETURN: "a carriage return without a line feed, outside of quotes",
        }[rows.code]
        return self._source.error(
            f"expected cells separated by {self._delimiter!r}: {what}; write a quote in a quoted cell twice", line
        )


class Columns:
    """Which places of a row hold the texts, the labels and the weight."""

    def __init__(self, source: Source, options: ReadOptions, header: Sequence[str], line: int | None) -> None:
        self._source, self.header, self._line = source, header, line
        self._separator = options.label_separator
        self.texts = [self._place(name, "text") for name in options.text_columns]
        needed = options.labels_required or options.label_column in header
        self.label = self._place(options.label_column, "labels") if needed else None
        self.weight = None if options.weight_column is None else self._place(options.weight_column, "weights")

        places = [*self.texts, self.label, self.weight]
        self.wanted = np.isin(np.arange(len(header)), [place for place in places if place is not None])

    def batch(self, lines: Int64, cells: Strings) -> RawBatch:
        """Rows as samples; ``cells``: those wanted, row by row."""
        width, rank = int(np.count_nonzero(self.wanted)), np.cumsum(self.wanted) - 1

        def pick(*places: int) -> Strings:
            return column(cells, width, [int(rank[place]) for place in places])

        indptr, labels = np.zeros(len(lines) + 1, np.int64), Strings.of([])
        if self.label is not None:
            indptr, labels = split_labels(cells, self._separator, width, int(rank[self.label]))
        weights = [] if self.weight is None else list(map(_number, pick(self.weight).tolist()))
        checked = checked_weights(self._source.name, lines, weights)
        return RawBatch(self._source.name, lines, _raw(indptr, labels), pick(*self.texts), weights=checked)

    def _place(self, name: str, what: str) -> int:
        if (count := list(self.header).count(name)) == 1:
            return list(self.header).index(name)
        found = ", ".join(map(repr, self.header))[:300] or "no column"
        raise self._source.error(
            f"expected {'one' if count else 'a'} column {name!r} for the {what}, "
            f"found {f'{count} of that name' if count else found}; name the column that holds the {what}",
            self._line,
        )


def _number(cell: str) -> Any:
    """A cell as a number, None when it is empty; what is no number stays, to be reported."""
    try:
        return float(cell) if cell.strip() else None
    except ValueError:
        return cell


def _raw(indptr: Int64, labels: Strings) -> RawLabels:
    return RawLabels(indptr, labels if len(labels) else np.empty(0, np.int64), typed=False)
