"""Tables with named columns: CSV, TSV and Parquet. One column or several of text, one of labels, one of weights."""

from __future__ import annotations

import contextlib
import csv
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from machxc.data.options import ReadOptions
from machxc.data.raw import BATCH, RawBatch
from machxc.data.records import Records
from machxc.data.source import Source, text_blocks
from machxc.errors import MachxcError, MissingExtraError
from machxc.files import output_errors

_MAX_CELL = 1 << 26


def read_csv(source: Source, options: ReadOptions) -> Iterator[RawBatch]:
    """The rows of a table with commas; the first line names the columns. Blank lines are left out."""
    return _read_delimited(source, options, ",")


def read_tsv(source: Source, options: ReadOptions) -> Iterator[RawBatch]:
    """The rows of a table with tabs; the first line names the columns. Blank lines are left out."""
    return _read_delimited(source, options, "\t")


def read_parquet(source: Source, options: ReadOptions) -> Iterator[RawBatch]:
    """The rows of a Parquet file (a "line" is a row, from 1). Labels may be lists, strings or integers.

    A compressed file or standard input goes through a temporary file, as Parquet is not read from front to back.
    MissingExtraError without pyarrow.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("Parquet files", "parquet") from None
    with _seekable(source) as file:
        try:
            yield from _parquet_batches(source, options, parquet.ParquetFile(file))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, MachxcError):
                raise
            raise source.error(f"is not a Parquet file that can be read: {error}") from None


def _read_delimited(source: Source, options: ReadOptions, delimiter: str) -> Iterator[RawBatch]:
    if csv.field_size_limit() < _MAX_CELL:  # a limit of the whole process, against a quote that is never closed
        csv.field_size_limit(_MAX_CELL)
    rows = _rows(source, options, delimiter)
    line, header = next(rows, (1, []))
    columns = _Columns(source, options, header, line)
    records = Records(source.name, typed=False)
    for line, row in rows:
        if len(row) != len(header):
            raise source.error(f"expected {len(header)} cells as in the first line, got {len(row)}", line)
        labels = [] if columns.label is None else _split(row[columns.label], options.label_separator)
        weight = None if columns.weight is None else _number(row[columns.weight])
        records.add_text(line, " ".join([row[place] for place in columns.texts]), labels, weight)
        if records.full:
            yield records.take()
    if len(records):
        yield records.take()


def _rows(source: Source, options: ReadOptions, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line on which it begins."""
    blocks = text_blocks(source, options.encoding)
    lines = (line for _, block in blocks for line in _lines(block))
    reader, begin = csv.reader(lines, delimiter=delimiter, strict=True), 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise source.error(
                f"expected cells separated by {delimiter!r}: {error}; write a quote in a quoted cell twice", begin
            ) from None
        if row is None:
            return
        if row:
            yield begin, row
        begin = reader.line_num + 1


def _lines(block: str) -> Iterator[str]:
    """Lines with their ends; only a line feed ends one."""
    lines = block.split("\n")
    yield from (line + "\n" for line in lines[:-1])
    if lines[-1]:
        yield lines[-1]


class _Columns:
    """Which places of a row hold the texts, the labels and the weight."""

    def __init__(self, source: Source, options: ReadOptions, header: Sequence[str], line: int | None) -> None:
        self._source, self._header, self._line = source, header, line
        self.texts = [self._place(name, "text") for name in options.text_columns]
        needed = options.labels_required or options.label_column in header
        self.label = self._place(options.label_column, "labels") if needed else None
        self.weight = None if options.weight_column is None else self._place(options.weight_column, "weights")

    def _place(self, name: str, what: str) -> int:
        if (count := list(self._header).count(name)) == 1:
            return list(self._header).index(name)
        found = ", ".join(map(repr, self._header))[:300] or "no column"
        raise self._source.error(
            f"expected {'one' if count else 'a'} column {name!r} for the {what}, "
            f"found {f'{count} of that name' if count else found}; name the column that holds the {what}",
            self._line,
        )


def _split(cell: str, separator: str | None) -> list[str]:
    parts = [cell] if separator is None else cell.split(separator)
    return [part for part in map(str.strip, parts) if part]


def _number(cell: str) -> Any:
    """A cell as a number, None when it is empty; what is no number stays, to be reported."""
    try:
        return float(cell) if cell.strip() else None
    except ValueError:
        return cell


@contextlib.contextmanager
def _seekable(source: Source) -> Iterator[IO[bytes]]:
    """The decompressed file, to be read in any order; the source has been read to its end (and so hashed)."""
    if source.is_plain_file:
        for _ in source.blocks():
            pass
        with open(source.path, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        with output_errors(tempfile.gettempdir()):
            copy.writelines(source.blocks())
            copy.seek(0)
        yield copy


def _parquet_batches(source: Source, options: ReadOptions, file: Any) -> Iterator[RawBatch]:
    columns = _Columns(source, options, file.schema_arrow.names, None)
    places = [*columns.texts, columns.label, columns.weight]
    names = [None if place is None else file.schema_arrow.names[place] for place in places]
    records, begin = Records(source.name, typed=True), 1
    wanted = sorted({name for name in names if name is not None})
    for batch in file.iter_batches(batch_size=BATCH // 8, columns=wanted):
        cells = {name: batch.column(name).to_pylist() for name in wanted}
        cells[None] = [None] * batch.num_rows
        *texts, labels, weights = (cells[name] for name in names)
        lines = range(begin, begin + batch.num_rows)
        for line, *row, label, weight in zip(lines, *texts, labels, weights, strict=True):
            records.add_text(line, _joined(source, row, line), _listed(label, options.label_separator), weight)
        begin = lines.stop
        if records.full:
            yield records.take()
    if len(records):
        yield records.take()


def _joined(source: Source, texts: list[Any], line: int) -> str:
    wrong = next((text for text in texts if not isinstance(text, str | None)), None)
    if wrong is not None:
        raise source.error(f"expected a text, got {wrong!r:.60}", line)
    return " ".join(text or "" for text in texts)


def _listed(label: Any, separator: str | None) -> list[Any]:
    """The labels of a cell: a list as it is, a string cut at the separator, anything else by itself."""
    if label is None:
        return []
    if isinstance(label, str):
        return _split(label, separator)
    return label if isinstance(label, list) else [label]
