"""How many training samples each label has, in memory and bytes that grow with the labels that occur, not with K."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from machxc.errors import ModelError
from machxc.samples import Array, Labels, UInt32

_FEW = 8  # labels for each (sample, label) pair, from which on pairs are sorted instead of counted in K places
_BLOCK = 1 << 22  # pairs, or labels, that are looked at in one step


class LabelCounts:
    """How many samples each of K labels has; ``len()`` is K, and ``counts[ids]`` are those of label ids, uint32.

    Held, and stored, in the smaller of two ways: ``counts`` uint32 [K], or, where less than half of the labels occur,
    ``seen`` uint32, their ids, rising, and ``seen_counts`` uint32. `numpy.asarray` makes K numbers of them.
    """

    def __init__(self, n_labels: int, arrays: Mapping[str, Array]) -> None:
        self._n, self._arrays = n_labels, dict(arrays)

    @classmethod
    def of(cls, labels: Labels) -> LabelCounts:
        """The counts of label sets."""
        if _FEW * len(labels.indices) < labels.n_labels:
            seen, found = np.unique(labels.indices, return_counts=True)
            return cls._sparse(labels.n_labels, seen, found)
        counts = np.zeros(labels.n_labels, np.uint32)
        for start in range(0, len(labels.indices), _BLOCK):
            np.add.at(counts, labels.indices[start : start + _BLOCK], np.uint32(1))
        return cls.dense(counts)

    @classmethod
    def dense(cls, counts: npt.ArrayLike) -> LabelCounts:
        """The counts of all labels, given as integers [K]."""
        given = np.asarray(counts, np.uint32)
        if 2 * np.count_nonzero(given) >= len(given):
            return cls(len(given), {"counts": given})
        (seen,) = np.nonzero(given)
        return cls._sparse(len(given), seen, given[seen])

    @classmethod
    def _sparse(cls, n_labels: int, seen: Array, counts: Array) -> LabelCounts:
        arrays = {"seen": seen.astype(np.uint32, copy=False), "seen_counts": counts.astype(np.uint32, copy=False)}
        return cls(n_labels, arrays)

    @classmethod
    def from_arrays(cls, n_labels: int, arrays: Mapping[str, Array]) -> LabelCounts:
        """The inverse of `arrays`, whose dtypes and shapes are right; ModelError when ids do not rise."""
        seen = arrays.get("seen")
        if seen is not None and not _is_rising(seen, n_labels):
            raise ModelError(f"label counts: expected rising label ids below {n_labels}; the model is damaged")
        return cls(n_labels, arrays)

    def arrays(self) -> dict[str, Array]:
        """What is stored: {"counts"} or {"seen", "seen_counts"}."""
        return dict(self._arrays)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, ids: npt.ArrayLike) -> UInt32:
        given = np.asarray(ids)
        if "counts" in self._arrays:
            return np.asarray(self._arrays["counts"][given])
        seen, counts = self._arrays["seen"], self._arrays["seen_counts"]
        if not len(seen):
            return np.zeros(given.shape, np.uint32)
        places = np.minimum(np.searchsorted(seen, given.astype(np.uint32)), len(seen) - 1)
        return np.where(seen[places] == given, counts[places], np.uint32(0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if "counts" in self._arrays:
            return np.array(self._arrays["counts"], dtype, copy=copy)
        whole = np.zeros(self._n, np.uint32 if dtype is None else dtype)
        whole[self._arrays["seen"]] = self._arrays["seen_counts"]
        return whole

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelCounts):
            return NotImplemented
        same = np.array_equal(self.seen, other.seen)
        return len(self) == len(other) and same and np.array_equal(self[self.seen], other[self.seen])

    __hash__ = None  # type: ignore[assignment]

    @property
    def seen(self) -> UInt32:
        """The labels that occur, rising."""
        if "seen" in self._arrays:
            return self._arrays["seen"]
        return np.flatnonzero(self._arrays["counts"]).astype(np.uint32)

    @property
    def n_seen(self) -> int:
        """How many labels occur."""
        return len(self._arrays["seen"]) if "seen" in self._arrays else int(np.count_nonzero(self._arrays["counts"]))

    @property
    def n_pairs(self) -> int:
        """Pairs of a sample and a label."""
        counts = self._arrays["counts" if "counts" in self._arrays else "seen_counts"]
        return int(counts.sum(dtype=np.int64))

    def bitmap(self) -> npt.NDArray[np.uint8]:
        """Which labels occur, a bit each, the least significant first: uint8 [ceil(K / 8)]."""
        bits = np.zeros(-(-self._n // 8), np.uint8)
        for start in range(0, self._n if "counts" in self._arrays else 0, _BLOCK):
            some = np.packbits(self._arrays["counts"][start : start + _BLOCK] > 0, bitorder="little")
            bits[start // 8 : start // 8 + len(some)] = some
        if "seen" in self._arrays:
            seen = self._arrays["seen"]
            np.bitwise_or.at(bits, seen >> 3, np.left_shift(1, seen & 7, dtype=np.uint32).astype(np.uint8))
        return bits


def _is_rising(ids: UInt32, below: int) -> bool:
    if len(ids) and int(ids[-1]) >= below:
        return False
    blocks = (ids[start : start + _BLOCK + 1] for start in range(0, len(ids) - 1, _BLOCK))  # they share one id
    return all(bool((block[1:] > block[:-1]).all()) for block in blocks)
