"""Parquet: columns of text, labels and weights, taken from Arrow's own buffers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from machxc.data.cells import split_labels
from machxc.data.options import ReadOptions
from machxc.data.raw import RawBatch, RawLabels
from machxc.data.records import Records
from machxc.data.source import ChangedError, Mark, Source
from machxc.data.tables import Columns
from machxc.errors import MachxcError, MissingExtraError
from machxc.files import output_errors
from machxc.packed import Strings
from machxc.samples import Float32, Int64

_ROWS = 4096  # at a time
_LARGEST = float(np.finfo(np.float32).max)


def read_parquet(source: Source, options: ReadOptions, mark: Mark | None = None) -> Iterator[RawBatch]:
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
        whole = source.mark()
        if mark is not None and mark.sha256 != whole.sha256:
            raise ChangedError("is not the data that was read before: they were changed since", path=source.name)
        begin = 0 if mark is None else mark.state["rows"]
        try:
            yield from _Rows(source, options, parquet.ParquetFile(file)).batches(begin)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, MachxcError):
                raise
            raise source.error(f"is not a Parquet file that can be read: {error}") from None
        source.check_unchanged()


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


class _Rows:
    """The rows of an open Parquet file as batches."""

    def __init__(self, source: Source, options: ReadOptions, file: Any) -> None:
        self._source, self._file, self._separator = source, file, options.label_separator
        names = file.schema_arrow.names
        columns = Columns(source, options, names, None)
        self._texts = [names[place] for place in columns.texts]
        self._label = None if columns.label is None else names[columns.label]
        self._weight = None if columns.weight is None else names[columns.weight]

    def batches(self, begin: int) -> Iterator[RawBatch]:
        """The rows from ``begin`` (from 0) on."""
        wanted = sorted({name for name in (*self._texts, self._label, self._weight) if name is not None})
        first, groups = self._groups_from(begin)
        for batch in self._file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=wanted):
            rows = batch.slice(max(0, begin - first))
            first += batch.num_rows
            if rows.num_rows:
                yield self._batch(rows, first - rows.num_rows, self._source.mark(rows=first))

    def _groups_from(self, begin: int) -> tuple[int, list[int]]:
        """The row groups from the one with row ``begin`` on, and the row with which they begin."""
        groups, first = list(range(self._file.num_row_groups)), 0
        while groups and first + (n := self._file.metadata.row_group(groups[0]).num_rows) <= begin:
            first += n
            del groups[0]
        return first, groups

    def _batch(self, rows: Any, first: int, mark: Mark) -> RawBatch:
        lines = np.arange(first, first + rows.num_rows) + 1
        texts = _texts_of([rows.column(name) for name in self._texts])
        labels = self._labels_of(None if self._label is None else rows.column(self._label), len(lines))
        known, weights = (True, None) if self._weight is None else _weights_of(rows.column(self._weight))
        if texts is None or labels is None or not known:
            return self._slow_batch(rows, lines, mark)
        return RawBatch(self._source.name, lines, labels, texts, weights=weights, mark=mark)

    def _labels_of(self, column: Any, n: int) -> RawLabels | None:
        """The labels of a column, if there are only lists, strings or integers."""
        import pyarrow as pa

        if column is None or pa.types.is_null(column.type):
            return RawLabels(np.zeros(n + 1, np.int64), np.empty(0, np.int64))
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            values = _values_of(column.flatten())
            return None if values is None else _raw(_indptr(counts), values)
        if pa.types.is_integer(column.type):
            values = _values_of(column.drop_null())
            return None if values is None else _raw(_indptr(column.is_valid().to_numpy(zero_copy_only=False)), values)
        cells = _strings_of(column)
        return None if cells is None else _raw(*split_labels(cells, self._separator))

    def _slow_batch(self, rows: Any, lines: Int64, mark: Mark) -> RawBatch:
        """As Python values: what else there may be, and the errors."""
        records = Records(self._source.name, typed=True)
        nothing: list[Any] = [None] * len(lines)
        texts = [rows.column(name).to_pylist() for name in self._texts]
        labels = nothing if self._label is None else rows.column(self._label).to_pylist()
        weights = nothing if self._weight is None else rows.column(self._weight).to_pylist()
        for line, *row, label, weight in zip(lines.tolist(), *texts, labels, weights, strict=True):
            records.add_text(line, self._joined(row, line), _listed(label, self._separator), weight)
        return records.take(mark)

    def _joined(self, texts: list[Any], line: int) -> str:
        wrong = next((text for text in texts if not isinstance(text, str | None)), None)
        if wrong is not None:
            raise self._source.error(f"expected a text, got {wrong!r:.60}", line)
        return " ".join(text or "" for text in texts)


def _texts_of(columns: list[Any]) -> Strings | None:
    """Columns of strings, joined by spaces, if they are; a missing one is empty."""
    import pyarrow.compute as pc

    if len(columns) == 1:
        return _strings_of(columns[0])
    if not all(map(_is_text, columns)):
        return None
    return _strings_of(pc.binary_join_element_wise(*columns, " ", null_handling="replace", null_replacement=""))


def _is_text(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _strings_of(column: Any) -> Strings | None:
    """A column of strings, if it is one; a missing one is empty."""
    if not _is_text(column):
        return None
    if column.null_count:
        column = column.fill_null("")
    _, ends, data = column.buffers()
    width = np.int32 if str(column.type) == "string" else np.int64
    offsets = np.frombuffer(ends, width)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    text = np.frombuffer(data if data is not None else b"", np.uint8)[offsets[0] : offsets[-1]]
    return Strings(text, offsets - offsets[0])


def _values_of(column: Any) -> Int64 | Strings | None:
    """Labels, one a value, if they are integers or strings, none of them missing or empty."""
    import pyarrow as pa

    if column.null_count:
        return None
    if pa.types.is_integer(column.type) and not pa.types.is_uint64(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), np.int64)
    strings = _strings_of(column)
    return None if strings is None or not np.diff(strings.offsets).all() else strings


def _weights_of(column: Any) -> tuple[bool, Float32 | None]:
    """Whether a column is good weights, and them."""
    import pyarrow as pa

    if column.null_count == len(column):
        return True, None
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return False, None
    missing = column.is_null().to_numpy(zero_copy_only=False)
    values = np.where(missing, 1.0, column.to_numpy(zero_copy_only=False).astype(np.float64))
    return bool(((values >= 0) & (values <= _LARGEST)).all()), values.astype(np.float32)


def _indptr(counts: Any) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _raw(indptr: Int64, values: Int64 | Strings) -> RawLabels:
    return RawLabels(indptr, values if len(values) else np.empty(0, np.int64))


def _listed(label: Any, separator: str | None) -> list[Any]:
    """The labels of a cell: a list as it is, a string cut at the separator, anything else by itself."""
    if label is None:
        return []
    if isinstance(label, str):
        parts = [label] if separator is None else label.split(separator)
        return [part for part in map(str.strip, parts) if part]
    return label if isinstance(label, list) else [label]
