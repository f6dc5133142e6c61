"""The converted store: a folder with a dataset's arrays as they lie in memory, to be memory-mapped.

Every array is a file NAME.bin of little-endian numbers, and nothing else. ``store.json``, written last, has the counts,
each array's dtype, length and SHA-256, and the digest of itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from machxc.config import MAX_ID, TextConfig
from machxc.data.columns import release
from machxc.data.dataset import Dataset, no_unknown
from machxc.data.options import SourceFacts
from machxc.errors import DataError, MachxcError
from machxc.files import find_folder, sha256_file
from machxc.labels import LabelNames
from machxc.maps import guarded, map_array
from machxc.samples import Array, Features, Labels, Samples

MANIFEST = "store.json"
_KIND = "machxc store"
_VERSION, _READ = 2, (1, 2)  # version 1: names are bytes and offsets
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
    "names.coded": "|u1",
    "names.blocks": "<u8",
    "names.order": "<u4",
}
_REQUIRED = {name for name in _DTYPES if name.startswith(("features.", "labels."))}


def is_store(path: Path | str) -> bool:
    """Whether a path is the folder of a converted store (complete or damaged)."""
    folder = find_folder(path)
    return folder is not None and (folder / MANIFEST).is_file()


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
        with guarded():
            dataset = _Reader(folder, facts).dataset(verify=verify)
            if verify:
                _verify(folder, facts, dataset)
    except (KeyError, TypeError, ValueError, OverflowError, MachxcError, OSError) as error:
        raise _damaged(folder, str(error)) from error
    return dataset


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"is not a complete converted store ({why}); convert the data again", path=str(folder))


def manifest(dataset: Dataset, arrays: dict[str, dict[str, Any]]) -> bytes:
    """The manifest of a dataset whose arrays are files; ``arrays``: dtype, length and SHA-256 of each."""
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
    if facts.get("version") not in _READ:
        raise DataError(
            f"is a store of version {facts.get('version')!r}, this machxc reads versions {_READ}; "
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

    def dataset(self, *, verify: bool) -> Dataset:
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
        names = LabelNames.from_arrays(facts["label_kind"], labels.n_labels, named, verify=verify)
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
        return map_array(path, dtype, DataError)


def _verify(folder: Path, facts: dict[str, Any], dataset: Dataset) -> None:
    """Look at all of a store, and let go of the memory that this takes on the way."""
    samples = dataset.samples
    release(*dataset.names.arrays().values())
    for name, told in facts["arrays"].items():
        if sha256_file(_file(folder, name)) != told["sha256"]:
            raise ValueError(f"{name} was altered")
    for start in range(0, len(samples), _ROWS):
        stop = min(start + _ROWS, len(samples))
        samples.features.rows(start, stop).check()
        samples.labels.rows(start, stop).check()
        release(samples.features.indices, samples.features.values, samples.features.indptr, samples.labels.indices)


def _check_ends(samples: Samples) -> None:
    features, labels = samples.features, samples.labels
    if len(features.values) != len(features.indices):
        raise ValueError("it has not as many feature values as ids")
    for rows in (features, labels):
        if (int(rows.indptr[0]), int(rows.indptr[-1])) != (0, len(rows.indices)):
            raise ValueError("offsets do not fit the ids")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"
