"""Samples in an order that depends on them alone: the same model, however a user of the estimator had shuffled them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from machxc.repetition.windows import gather
from machxc.samples import Array, Features, Float32, Int64, Labels, Samples

UInt64 = npt.NDArray[np.uint64]

_MOST_REPEATED = 4  # whole weights are carried out by repeating samples up to this many times the data
_BLOCK, _VALUES = 1 << 16, 1 << 20  # samples hashed in one step, and about so many feature values


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
    return gather(Samples(features, labels, weights), rows.astype(np.uint32))


def _content_hashes(samples: Samples) -> UInt64:
    """A 64-bit hash of the features, labels and weight of each sample."""
    hashes = np.empty(len(samples), np.uint64)
    step = max(1, min(_BLOCK, _VALUES * len(samples) // max(1, len(samples.features.indices))))
    for start in range(0, len(samples), step):
        block = slice(start, min(start + step, len(samples)))
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
