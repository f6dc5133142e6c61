"""Samples: what every reader makes and every repetition reads. CSR arrays, checked once, here.

One house rule: inside the library a feature id is uint32, a label id is uint32, an offset is int64, a value is
float32. Arrays may be ordinary or memory-mapped; nothing below copies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from machxc.errors import DataError

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

MAX_LABELS = 2**32 - 1


def starts_of(lengths: npt.ArrayLike) -> Int64:
    """Where rows of these lengths start, one after the other, and where the last ends: int64 [n + 1]."""
    given = np.asarray(lengths)
    starts = np.zeros(len(given) + 1, np.int64)
    np.cumsum(given, dtype=np.int64, out=starts[1:])
    return starts


@dataclass(frozen=True)
class Features:
    """Sparse features of N samples.

    ``indptr`` int64 [N + 1], ``indices`` uint32 [nnz] (unique within a row), ``values`` float32 [nnz] (finite).
    ``n_features`` D: ids lie in [0, D). Hashed text has D = 2**32: any 32-bit token hash.
    """

    indptr: Int64
    indices: UInt32
    values: Float32
    n_features: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def rows(self, start: int, stop: int) -> Features:
        """Rows start to stop, without copying ids or values."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indptr = np.asarray(self.indptr[start : stop + 1]) - first
        return Features(indptr, self.indices[first:last], self.values[first:last], self.n_features)

    def check(self) -> None:
        """Raise DataError when an array breaks the promises above (uniqueness in a row excepted: readers see to it)."""
        _check_indptr(self.indptr, len(self.indices), "features")
        if len(self.values) != len(self.indices):
            raise DataError(f"expected as many feature values as ids ({len(self.indices)}), got {len(self.values)}")
        if len(self.indices) and int(self.indices.max()) >= self.n_features:
            raise DataError(
                f"feature id {int(self.indices.max())} is out of range: expected ids in [0, {self.n_features})"
            )
        if not np.isfinite(self.values).all():
            row = int(np.searchsorted(self.indptr, np.flatnonzero(~np.isfinite(self.values))[0], side="right")) - 1
            raise DataError(f"sample {row} has a feature value that is NaN or infinite; expected finite numbers")


@dataclass(frozen=True)
class Labels:
    """Label sets of N samples.

    ``indptr`` int64 [N + 1], ``indices`` uint32 [nnz] (sorted, unique within a row), ``n_labels`` K.
    """

    indptr: Int64
    indices: UInt32
    n_labels: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def rows(self, start: int, stop: int) -> Labels:
        """Rows start to stop, without copying ids."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        return Labels(np.asarray(self.indptr[start : stop + 1]) - first, self.indices[first:last], self.n_labels)

    def check(self) -> None:
        """Raise DataError when an array breaks the promises above (order in a row excepted: readers see to it)."""
        if not 0 <= self.n_labels <= MAX_LABELS:
            raise DataError(f"expected at most {MAX_LABELS} labels, got {self.n_labels}")
        _check_indptr(self.indptr, len(self.indices), "labels")
        if len(self.indices) and int(self.indices.max()) >= self.n_labels:
            raise DataError(f"label id {int(self.indices.max())} is out of range: expected ids in [0, {self.n_labels})")

    def counts(self) -> Int64:
        """How many samples carry each label: int64 [K]."""
        return np.bincount(self.indices, minlength=self.n_labels).astype(np.int64, copy=False)


@dataclass(frozen=True)
class Samples:
    """N samples: features, label sets, and optionally a non-negative weight each (float32 [N])."""

    features: Features
    labels: Labels
    weights: Float32 | None = None

    def __post_init__(self) -> None:
        if len(self.features) != len(self.labels):
            raise DataError(f"expected as many label sets as samples ({len(self.features)}), got {len(self.labels)}")
        if self.weights is not None and len(self.weights) != len(self.features):
            raise DataError(f"expected one weight a sample ({len(self.features)}), got {len(self.weights)}")

    def __len__(self) -> int:
        return len(self.features)

    def arrays(self) -> list[Array]:
        """All arrays of them."""
        features, labels = self.features, self.labels
        arrays: list[Array] = [features.indptr, features.indices, features.values, labels.indptr, labels.indices]
        return arrays if self.weights is None else [*arrays, self.weights]


def frozen(array: Array) -> Any:
    """A read-only view: so that one compiled kernel serves memory-mapped arrays, which are read-only, and others."""
    if type(array) is np.ndarray and not array.flags.writeable:
        return array
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _check_indptr(indptr: Int64, nnz: int, what: str) -> None:
    if len(indptr) < 1 or int(indptr[0]) != 0 or int(indptr[-1]) != nnz or (np.diff(indptr) < 0).any():
        raise DataError(f"the offsets of the {what} are broken: expected them to rise from 0 to {nnz}")
