"""What the settings are chosen from: a few numbers about the samples, counted in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from machxc.compiled import inline, kernel, part
from machxc.label_counts import LabelCounts
from machxc.partition import UInt64
from machxc.samples import Array, Features, Float32, Int64, Samples, UInt32, frozen

TABLE_BITS = 22  # distinct feature ids are told apart by this many bits of a hash; above a million they are estimated
MET_BITS = 20  # pairs of a feature and a label are counted by a table of so many places, half of them in use
_BLOCK = 1 << 22
_ROWS = 1 << 18


@dataclass(frozen=True)
class Facts:
    """Counts of a dataset.

    ``n_samples`` N, ``n_labels`` K, ``n_seen`` labels that occur, ``n_pairs`` (sample, label) pairs, ``most_labels`` of
    a sample, ``n_features`` D, ``n_values`` stored feature values, ``n_distinct`` feature ids that occur,
    ``n_repeated`` and ``n_frequent`` those in two and in three samples or more, ``counts``: all values are positive
    whole numbers (counts, not measurements or weights), ``dense``: nearly every sample has nearly every feature,
    ``text``: token hashes, ``n_met`` pairs of a feature and a label that meet in a sample (None: not counted).
    """

    n_samples: int
    n_labels: int
    n_seen: int
    n_pairs: int
    most_labels: int
    n_features: int
    n_values: int
    n_distinct: int
    n_repeated: int
    n_frequent: int
    counts: bool
    dense: bool
    text: bool
    n_met: int | None = None

    @property
    def per_sample(self) -> float:
        """Mean number of features of a sample."""
        return self.n_values / max(1, self.n_samples)

    @property
    def per_label(self) -> float:
        """Mean number of samples of a label that occurs."""
        return self.n_pairs / max(1, self.n_seen)

    def rows(self, min_count: int) -> int:
        """Feature ids that occur in at least ``min_count`` samples (counted for 1 and 2; beyond 3, at most)."""
        return {1: self.n_distinct, 2: self.n_repeated}.get(min_count, self.n_frequent)


def facts_of(samples: Samples, *, text: bool) -> Facts:
    """Count; ``text``: whether the features are token hashes of texts. Memory: 24 MB, whatever the size."""
    features, labels = samples.features, samples.labels
    distinct, repeated, frequent, whole = _distinct(features)
    n = len(samples)
    return Facts(
        n_samples=n,
        n_labels=labels.n_labels,
        n_seen=LabelCounts.of(labels).n_seen,
        n_pairs=len(labels.indices),
        most_labels=int(np.diff(labels.indptr).max(initial=0)),
        n_features=features.n_features,
        n_values=len(features.indices),
        n_distinct=distinct,
        n_repeated=repeated,
        n_frequent=frequent,
        counts=whole,
        dense=not text and len(features.indices) > 0.5 * n * features.n_features,
        text=text,
        n_met=_met(samples),
    )


def _distinct(features: Features) -> tuple[int, int, int, bool]:
    """Feature ids in one, two, three samples or more, and whether all values are positive whole numbers."""
    exact = features.n_features <= 1 << TABLE_BITS
    size = features.n_features if exact else 1 << TABLE_BITS
    counts = np.zeros(size, np.uint8)
    whole = True
    for start in range(0, len(features.indices), _BLOCK):
        block = slice(start, start + _BLOCK)
        whole &= bool(_count(frozen(features.indices[block]), frozen(features.values[block]), exact, counts))
    once, twice, more = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3))
    if not exact:
        once, twice, more = _corrected(once, twice, more, size)
    return once + twice + more, twice + more, more, whole


def _corrected(once: int, twice: int, more: int, size: int) -> tuple[int, int, int]:
    """Ids that occur once, twice, and more often, of the places that count so many, in a table of ``size`` places.

    Of d ids a share of exp(-d / size) shares no place, and is counted right; as many places are empty (linear counting,
    Whang et al. 1990). A place that counts two may be one id that occurs twice or two that occur once.
    """
    empty = max(1, size - once - twice - more) / size
    singles = once / empty
    doubles = max(0.0, twice / empty - singles**2 / (2 * size))
    return round(singles), round(doubles), round(max(0.0, -size * np.log(empty) - singles - doubles))


def _met(samples: Samples) -> int:
    """Distinct pairs of a feature and a label in one sample: exact up to half a million.

    Beyond, of the pairs those whose hash ends in enough zeros are kept, and counted for all (adaptive sampling,
    Flajolet 1990): within some tenths of a percent.
    """
    table, state = np.zeros(1 << MET_BITS, np.uint64), np.zeros(2, np.int64)
    for start in range(0, len(samples), _ROWS):
        stop = min(start + _ROWS, len(samples))
        features, labels = samples.features.rows(start, stop), samples.labels.rows(start, stop)
        _keep(
            frozen(features.indptr),
            frozen(features.indices),
            frozen(labels.indptr),
            frozen(labels.indices),
            table,
            state,
        )
    return int(state[0] << state[1])


@kernel
def _keep(indptr: Int64, indices: UInt32, label_indptr: Int64, labels: UInt32, table: UInt64, state: Int64) -> None:
    """Put the hashes of pairs that end in ``state[1]`` zeros into ``table``; ``state[0]``: how many there are."""
    n, zeros = state[0], state[1]
    for i in range(len(indptr) - 1):
        for j in range(indptr[i], indptr[i + 1]):
            for k in range(label_indptr[i], label_indptr[i + 1]):
                z = ((np.uint64(indices[j]) << np.uint64(32)) | np.uint64(labels[k])) + np.uint64(0x9E3779B97F4A7C15)
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z ^= z >> np.uint64(31)
                if z & ((np.uint64(1) << np.uint64(zeros)) - np.uint64(1)) == 0 and _put(table, z):
                    n += 1
                    while 2 * n > len(table):
                        zeros += 1
                        n = _thin(table, zeros)
    state[0], state[1] = n, zeros


@part
def _put(table: UInt64, value: np.uint64) -> bool:
    """Whether the value is new; it is in the table then. (The one value 0 is never kept.)"""
    place = np.int64(value >> np.uint64(64 - MET_BITS))
    while table[place] != 0:
        if table[place] == value:
            return False
        place = (place + 1) & (len(table) - 1)
    table[place] = value
    return bool(value != 0)


@inline
def _thin(table: UInt64, zeros: int) -> int:
    """Keep the values that end in so many zeros; returns how many there are."""
    values, n = table.copy(), 0
    table[:] = 0
    for value in values:
        if value & ((np.uint64(1) << np.uint64(zeros)) - np.uint64(1)) == 0 and _put(table, value):
            n += 1
    return n


@kernel
def _count(indices: UInt32, values: Float32, exact: bool, counts: Array) -> bool:
    whole = True
    for j in range(len(indices)):
        place = np.uint64(indices[j])
        if not exact:
            place = (place * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - TABLE_BITS)
        if counts[place] < 3:
            counts[place] += 1
        whole &= values[j] > 0 and values[j] == np.floor(values[j])
    return whole
