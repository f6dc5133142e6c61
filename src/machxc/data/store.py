"""The converted store: a folder with a dataset's arrays as they lie in memory, to be memory-mapped.

Every array is a file NAME.bin of little-endian numbers, and nothing else. ``store.json``, written last, has the counts,
each array's dtype, length and SHA-256, and the digest of itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from machxc.config import MAX_ID, TextConfig
from machxc.data.collect import Encoder, collect
from machxc.data.dataset import Dataset, no_unknown
from machxc.data.options import Progress, ReadOptions, SourceFacts
from machxc.data.source import Source
from machxc.errors import DataError, MachxcError
from machxc.files import (
    check_target,
    find_folder,
    output_errors,
    replace_folder,
    sha256_file,
    staging_folder,
    write_file,
)
from machxc.labels import LabelNames
from machxc.samples import Array, Features, Labels, Samples

MANIFEST = "store.json"
_KIND = "machxc store"
_VERSION = 1
_ROWS = 1 << 18  # samples that are checked at a time
_DTYPES = {
    "features.indptr": "<i8",
    "features.indices": "<u4",
    "features.values": "<f4",
    "labels.indptr": "<i8",
    "labels.indices": "<u4",
    "weights": "<f4",
    "names.integers": "<i8",
    "names.bytes": "|u1",
    "names.offsets": "<u8",
    "names.order": "<u4",
}
_REQUIRED = {name for name in _DTYPES if name.startswith(("features.", "labels."))}


def is_store(path: Path | str) -> bool:
    """Whether a path is the folder of a converted store (complete or damaged)."""
    folder = find_folder(path)
    return folder is not None and (folder / MANIFEST).is_file()


def convert(
    path: Path | str,
    store: Path | str,
    options: ReadOptions | None = None,
    *,
    text: TextConfig | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Read a file of samples once, write it as a converted store, and open that.

    Memory is bounded by a block of the file and the label names. The folder appears when it is complete, or not at
    all. ``text``: how texts become features; None: chosen from the first ones. DataError for what is wrong with the
    data, OutputError when ``store`` exists (without ``overwrite``) or cannot be written.
    """
    options = options or ReadOptions()
    check_target(store, overwrite=overwrite)
    if is_store(path):
        raise DataError("is a converted store already; use it as it is, or copy the folder", path=str(path))
    with Source(path, progress) as source, staging_folder(store) as folder, output_errors(store):
        with _FileColumns(folder) as columns:
            dataset = collect(source, options, columns, Encoder(options.label_names, text=text))
            for name, array in dataset.names.arrays().items():
                columns.add(f"names.{name}", array)
            write_file(folder / MANIFEST, _manifest(dataset, columns.facts))
        replace_folder(folder, store, overwrite=overwrite)
    return open_store(store, verify=False)


def open_store(path: Path | str, *, verify: bool = True) -> Dataset:
    """Open a converted store: a dataset of memory-mapped arrays.

    Sizes are always checked; ``verify``: also the SHA-256 of every array, and that ids and offsets are in range.
    DataError when the folder is not a store, is of a newer version, or was truncated or altered.
    """
    folder = find_folder(path) or Path(path)
    if not folder.is_dir():
        given = "is a file" if folder.exists() else "no such folder"
        raise DataError(f"{given}; expected the folder of a converted store", path=str(path))
    facts = _read_manifest(folder)
    try:
        dataset = _Reader(folder, facts).dataset()
        if verify:
            _verify(folder, facts, dataset.samples)
    except (KeyError, TypeError, ValueError, OverflowError, MachxcError, OSError) as error:
        raise _damaged(folder, str(error)) from error
    return dataset


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"is not a complete converted store ({why}); convert the data again", path=str(folder))


def _manifest(dataset: Dataset, arrays: dict[str, dict[str, Any]]) -> bytes:
    samples = dataset.samples
    facts = {
        "kind": _KIND,
        "version": _VERSION,
        "n_samples": len(dataset),
        "n_features": samples.features.n_features,
        "n_labels": samples.labels.n_labels,
        "label_kind": dataset.names.kind,
        "text": None if dataset.text is None else dataclasses.asdict(dataset.text),
        "text_reason": dataset.text_reason,
        "source": None if dataset.source is None else dataclasses.asdict(dataset.source),
        "arrays": arrays,
    }
    return (json.dumps({**facts, "sha256": _digest(facts)}, indent=1) + "\n").encode()


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise _damaged(folder, f"it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST}: {error}") from error
    if not isinstance(facts, dict) or facts.get("kind") != _KIND:
        raise _damaged(folder, f"{MANIFEST} is not that of a store")
    if facts.get("version") != _VERSION:
        raise DataError(
            f"is a store of version {facts.get('version')!r}, this machxc reads version {_VERSION}; "
            "install a newer one, or convert the data again",
            path=str(folder),
        )
    if facts.pop("sha256", None) != _digest(facts):
        raise _damaged(folder, f"{MANIFEST} was altered")
    return facts


class _Reader:
    """Maps the arrays of a store by its manifest, and checks their sizes."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._folder, self._facts, self._arrays = folder, facts, facts["arrays"]
        if not _REQUIRED <= set(self._arrays) <= set(_DTYPES):
            raise ValueError(f"its arrays are {sorted(self._arrays)}")

    def dataset(self) -> Dataset:
        """The dataset; ValueError, TypeError, KeyError or a MachxcError when something does not fit."""
        facts, n = self._facts, self._count("n_samples", MAX_ID)
        features = Features(
            self._array("features.indptr", n + 1),
            self._array("features.indices"),
            self._array("features.values"),
            self._count("n_features", 2**32),
        )
        labels = Labels(
            self._array("labels.indptr", n + 1), self._array("labels.indices"), self._count("n_labels", MAX_ID)
        )
        weights = self._array("weights", n) if "weights" in self._arrays else None
        named = {name.removeprefix("names."): self._array(name) for name in self._arrays if name.startswith("names.")}
        names = LabelNames.from_arrays(facts["label_kind"], labels.n_labels, named)
        text = None if facts["text"] is None else TextConfig(**facts["text"])
        source = None if facts["source"] is None else SourceFacts(**facts["source"])
        samples = Samples(features, labels, weights)
        _check_ends(samples)
        return Dataset(samples, names, text, no_unknown(n), str(facts["text_reason"]), source)

    def _count(self, name: str, largest: int) -> int:
        value = self._facts[name]
        if type(value) is not int or not 0 <= value <= largest:
            raise ValueError(f"{name} is {value!r}")
        return value

    def _array(self, name: str, length: int | None = None) -> Array:
        told, dtype = self._arrays[name], np.dtype(_DTYPES[name])
        if told["dtype"] != _DTYPES[name] or length not in (None, told["length"]):
            raise ValueError(f"{name} is {told['length']} numbers of {told['dtype']}")
        path = _file(self._folder, name)
        size = path.stat().st_size
        if type(told["length"]) is not int or size != told["length"] * dtype.itemsize:
            raise ValueError(f"{path.name} has {size} bytes, expected {told['length']} numbers of {dtype.itemsize}")
        return _mapped(path, dtype)


def _verify(folder: Path, facts: dict[str, Any], samples: Samples) -> None:
    for name, told in facts["arrays"].items():
        if sha256_file(_file(folder, name)) != told["sha256"]:
            raise ValueError(f"{name} was altered")
    for start in range(0, len(samples), _ROWS):
        stop = min(start + _ROWS, len(samples))
        samples.features.rows(start, stop).check()
        samples.labels.rows(start, stop).check()


def _check_ends(samples: Samples) -> None:
    features, labels = samples.features, samples.labels
    if len(features.values) != len(features.indices):
        raise ValueError("it has not as many feature values as ids")
    for rows in (features, labels):
        if (int(rows.indptr[0]), int(rows.indptr[-1])) != (0, len(rows.indices)):
            raise ValueError("offsets do not fit the ids")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _mapped(path: Path, dtype: npt.DTypeLike) -> Array:
    if not path.stat().st_size:
        return np.empty(0, dtype)  # nothing to map
    return np.memmap(path, dtype, mode="r")


class _FileColumns:
    """Columns as files of a folder, hashed as they are written, on the disk when finished."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        self._folder = folder
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _FileColumns:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def new(self, name: str, dtype: npt.DTypeLike) -> _FileColumn:
        """A new, empty column in the file ``name``.bin."""
        path = _file(self._folder, name)
        file = self._open.enter_context(open(path, "xb", buffering=0))  # noqa: SIM115 (closed by the stack)
        return _FileColumn(path, file, np.dtype(_DTYPES.get(name, dtype)), self.facts.setdefault(name, {}))

    def add(self, name: str, array: Array) -> None:
        """A whole column."""
        column = self.new(name, array.dtype)
        column.append(array)
        column.finish()

    def drop(self, name: str) -> None:
        """Remove a column's file."""
        del self.facts[name]
        _file(self._folder, name).unlink()


class _FileColumn:
    def __init__(self, path: Path, file: IO[bytes], dtype: np.dtype[Any], facts: dict[str, Any]) -> None:
        self._path, self._file, self._dtype, self._facts = path, file, dtype, facts
        self._digest, self._length = hashlib.sha256(), 0

    def append(self, values: Array) -> None:
        if not len(values):
            return
        view = np.ascontiguousarray(values, self._dtype).data.cast("B")
        self._digest.update(view)
        self._length += len(values)
        while len(view):
            view = view[self._file.write(view) :]

    def finish(self) -> Array:
        os.fsync(self._file.fileno())
        self._file.close()
        self._facts.update(dtype=self._dtype.str, length=self._length, sha256=self._digest.hexdigest())
        return _mapped(self._path, self._dtype)
