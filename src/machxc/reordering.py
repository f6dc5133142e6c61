"""Samples in an order that depends on them alone: the same model, however a user of the estimator had shuffled them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from machxc.samples import Array, Features, Float32, Int64, Labels, Samples

UInt64 = npt.NDArray[np.uint64]

_MOST_REPEATED = 4  # whole weights are carried out by repeating samples up to this many times the data
_BLOCK = 1 << 16  # samples hashed in one step


def samples_of(features: Features, labels: Labels, weights: Float32 | None = None) -> Samples:
    """Samples in an order that depends on them alone, not on the order they came in; whole weights carried out.

    A sample of weight 0 is left out. When all weights are whole numbers, a sample of weight 3 is there three times
    (unless that makes more than four times as many samples): the same model as from repeated rows, to the last bit,
    which steps three times as long would not give. Other weights stay weights. Takes the memory of a copy.
    """
    rows = np.arange(len(Samples(features, labels, weights)))
    if weights is not None:
        whole = (weights == np.floor(weights)).all() and float(weights.sum()) <= _MOST_REPEATED * len(weights)
        rows = np.repeat(rows, weights.astype(np.int64)) if whole else np.flatnonzero(weights)
        weights = None if whole else weights
    hashes = _content_hashes(Samples(features, labels, weights))
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    indptr, at = _taken(features.indptr, rows)
    features = Features(indptr, features.indices[at], features.values[at], features.n_features)
    indptr, at = _taken(labels.indptr, rows)
    labels = Labels(indptr, labels.indices[at], labels.n_labels)
    return Samples(features, labels, None if weights is None else weights[rows])


def _content_hashes(samples: Samples) -> UInt64:
    """A 64-bit hash of the features, labels and weight of each sample."""
    hashes = np.empty(len(samples), np.uint64)
    for start in range(0, len(samples), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(samples)))
        features = samples.features.rows(block.start, block.stop)
        labels = samples.labels.rows(block.start, block.stop)
        entries = (features.indices.astype(np.uint64) << np.uint64(32)) | features.values.view(np.uint32)
        hashes[block] = _row_sums(_scrambled(entries), features.indptr)
        hashes[block] += _scrambled(_row_sums(_scrambled(labels.indices), labels.indptr))
        if samples.weights is not None:
            hashes[block] = _scrambled(hashes[block]) + samples.weights[block].view(np.uint32)
    return hashes


def _row_sums(hashes: UInt64, indptr: Int64) -> UInt64:
    """Sums modulo 2**64, in which differences of running sums are exact."""
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64)))
    return np.asarray(sums[indptr[1:]] - sums[indptr[:-1]])


def _scrambled(values: Array) -> UInt64:
    """The output function of SplitMix64."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _taken(indptr: Int64, rows: Int64) -> tuple[Int64, Int64]:
    """Of the chosen rows of a CSR matrix: their offsets, and where each of their items is."""
    sizes = np.diff(indptr)[rows]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return offsets, np.repeat(indptr[rows] - offsets[:-1], sizes) + np.arange(offsets[-1])
