"""Arrays that grow at their end: in memory, or as files that a later process can go on with."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from machxc.errors import DataError
from machxc.maps import map_array, mapping_of
from machxc.samples import Array, Int64

TEMPORARY = ("part.", "spelt.")  # columns that are no part of a dataset
_HASHED = 1 << 22  # bytes that are hashed at a time


class Column(Protocol):
    """An array that grows at its end."""

    def append(self, values: Array) -> None:
        """Add values of the column's dtype."""
        ...

    def finish(self) -> Array:
        """The whole array; nothing can be appended any more."""
        ...

    def __len__(self) -> int:
        """How many values it has."""
        ...


class Columns(Protocol):
    """Makes columns, and keeps them by their names."""

    def new(self, name: str, dtype: npt.DTypeLike) -> Column:
        """A column: empty, or where an earlier process came to."""
        ...

    def scratch(self, name: str, dtype: npt.DTypeLike, length: int) -> Array:
        """An array to write into, not to be kept."""
        ...

    def drop(self, name: str) -> None:
        """Forget a finished column that is not wanted after all."""
        ...


class MemoryColumns:
    """Columns in memory."""

    def new(self, name: str, dtype: npt.DTypeLike) -> Column:
        """An empty column."""
        return _MemoryColumn(dtype)

    def scratch(self, name: str, dtype: npt.DTypeLike, length: int) -> Array:
        """An array to write into."""
        return np.empty(length, dtype)

    def drop(self, name: str) -> None:
        """Nothing: memory is freed when nobody refers to it."""


class _MemoryColumn:
    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._parts: list[Array] = [np.empty(0, dtype)]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def append(self, values: Array) -> None:
        self._parts.append(values)

    def finish(self) -> Array:
        whole = np.concatenate(self._parts, dtype=self._parts[0].dtype, casting="unsafe")
        self._parts = []
        return whole


class FileColumns:
    """Columns as files NAME.bin of a folder: little-endian numbers, hashed as they are written.

    ``lengths``: how many numbers of each column an earlier process wrote, and is to be gone on with. ``facts``: dtype,
    length and SHA-256 of each finished column.
    """

    def __init__(self, folder: Path, lengths: dict[str, int] | None = None) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        self._folder, self._before = folder, lengths or {}
        self._columns: dict[str, _FileColumn] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> FileColumns:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def new(self, name: str, dtype: npt.DTypeLike) -> _FileColumn:
        """A column: empty, or what an earlier process wrote. ValueError when not all of that is there."""
        path, length = self._path(name), self._before.get(name)
        file = self._open.enter_context(open(path, "xb" if length is None else "r+b", buffering=0))  # noqa: SIM115
        facts = self.facts.setdefault(name, {})
        column = _FileColumn(path, file, np.dtype(dtype).newbyteorder("<"), facts, hashed=not _is_temporary(name))
        self._columns[name] = column
        if length is not None:
            column.go_on(length)
        return column

    def scratch(self, name: str, dtype: npt.DTypeLike, length: int) -> Array:
        """An array in a file of its own, which is not kept."""
        if not length:
            return np.empty(0, dtype)
        path = self._path(name)
        with open(path, "wb") as file:  # room on the disk first: a full disk ends a process that writes into a map
            _reserve(file, length * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, mode="r+")

    def add(self, name: str, array: Array) -> None:
        """A whole column."""
        column = self.new(name, array.dtype)
        column.append(array)
        column.finish()

    def drop(self, name: str) -> None:
        """Remove a column's file."""
        del self.facts[name]
        self._path(name).unlink()

    def kept_facts(self) -> dict[str, dict[str, Any]]:
        """``facts`` without the columns that are no part of a dataset, in the order of names."""
        return {name: told for name, told in sorted(self.facts.items()) if not _is_temporary(name)}

    def lengths(self) -> dict[str, int]:
        """How many numbers each column has; they are on the disk then."""
        for column in self._columns.values():
            column.sync()
        return {name: len(column) for name, column in self._columns.items()}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.bin"


class _FileColumn:
    def __init__(
        self, path: Path, file: IO[bytes], dtype: np.dtype[Any], facts: dict[str, Any], *, hashed: bool
    ) -> None:
        self._path, self._file, self._dtype, self._facts = path, file, dtype, facts
        self._digest, self._length = hashlib.sha256() if hashed else None, 0

    def __len__(self) -> int:
        return self._length

    def append(self, values: Array) -> None:
        if not len(values):
            return
        view = np.ascontiguousarray(values, self._dtype).data.cast("B")
        if self._digest is not None:
            self._digest.update(view)
        self._length += len(values)
        while len(view):
            view = view[self._file.write(view) :]

    def finish(self) -> Array:
        self.sync()
        self._file.close()
        digest = None if self._digest is None else self._digest.hexdigest()
        self._facts.update(dtype=self._dtype.str, length=self._length, sha256=digest)
        return map_array(self._path, self._dtype, DataError)

    def go_on(self, length: int) -> None:
        """Keep the first ``length`` numbers that are there, hash them, and append after them."""
        left = length * self._dtype.itemsize
        if os.fstat(self._file.fileno()).st_size < left:
            raise ValueError(f"{self._path.name} is shorter than it was")
        self._file.truncate(left)
        while self._digest is not None and left:
            data = self._file.read(min(_HASHED, left))
            self._digest.update(data)
            left -= len(data)
        self._file.seek(0, os.SEEK_END)
        self._length = length

    def sync(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())


class Offsets:
    """A column of offsets, appended to a batch at a time. ``last``: where an earlier process came to; None: nowhere."""

    def __init__(self, column: Column, last: int | None = None) -> None:
        self._column, self.last = column, last or 0
        if last is None:
            column.append(np.zeros(1, np.int64))

    def append(self, indptr: Int64) -> None:
        """Add rows by their offsets, of which the first is 0."""
        self._column.append(indptr[1:] + self.last)
        self.last += int(indptr[-1])

    def finish(self) -> Array:
        """The offsets of all."""
        return self._column.finish()


def release(*arrays: Array) -> None:
    """Let go of the memory that mapped arrays took: they stay as they are, and are read from their files again."""
    for content in map(mapping_of, arrays):
        if content is not None and hasattr(mmap, "MADV_DONTNEED"):
            content.madvise(mmap.MADV_DONTNEED)


def _reserve(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, _HASHED):
        file.write(bytes(min(_HASHED, size - start)))


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY)
