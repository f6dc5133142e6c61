"""The counted repetition: weights in closed form, from how often a feature meets a bucket. No gradient, two passes.

A smoothed multinomial model of each bucket, as information retrieval ranks documents by the likelihood of a query
(Zhai and Lafferty 2001, Dirichlet priors), and with the background of Kneser and Ney (1995): a feature is as common
as the number of buckets that have it, not as the number of its occurrences.

    c(f, b)   sum of the weights x_f of feature f over the samples of bucket b (samples scaled to length 1)
    p(f)      the share of f in all pairs (feature, bucket) with c > 0
    w(f, b) = max(0, ln(1 + c(f, b)**POWER / (smoothing * p(f))) - LENGTH * ln(1 + sum_f c(f, b) / smoothing))
    bias(b) = PRIOR * ln(number of samples of bucket b), of an empty bucket as if it had UNSEEN samples

Features of one sample repeat each other, and a product over all of them is far too sure of itself. So weights and
biases are multiplied by min(1, CALM / root of the mean number of features of a sample): that changes no ranking, and
lets the best score be about as often right as it says.

What never met has no weight, so that a feature's row has an entry for each bucket that it was seen in, and the whole
model at most as many entries as the training samples have (feature, label) pairs: memory follows the data, not K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from machxc.compiled import fast_kernel, kernel
from machxc.config import NARROW, Config
from machxc.partition import Partition
from machxc.repetition.arithmetic import Int32, to_half
from machxc.repetition.chunks import OnSamples, chunk_size
from machxc.repetition.encode import Encoder, Rows, fit_encoder
from machxc.repetition.targets import bucket_counts, bucket_targets
from machxc.samples import Array, Float32, Int64, Samples, UInt32

POWER, LENGTH, PRIOR, UNSEEN, CALM = 0.7, 0.4, 0.5, 0.01, 2.4  # measured on names, terms and queries: docs/algorithm.md
_NEVER = np.uint32(0xFFFFFFFF)


def count_repetition(
    samples: Samples, config: Config, partition: Partition, r: int, on_samples: OnSamples | None = None
) -> dict[str, Array]:
    """Count repetition r; returns its tensors by name, those of a linear repetition (see folder.py).

    ``on_samples`` is called with numbers of samples that add up to N.
    """
    encoder = fit_encoder(samples.features, config, r)
    members, buckets = _by_bucket(samples, partition, r)
    weights = np.ones(len(members), np.float32) if samples.weights is None else samples.weights[members]
    starts = np.zeros(len(encoder.row_weights) + 1, np.int64)
    last = np.full(len(encoder.row_weights), _NEVER, np.uint32)
    for rows, chunk in _chunks(samples, encoder, members):
        _count_entries(rows.indptr, rows.rows, rows.weights, buckets[chunk], weights[chunk], last, starts)
    np.cumsum(starts, out=starts)
    entries = np.empty(starts[-1], np.uint32)
    counts = np.zeros(starts[-1], np.float32)
    lengths = np.zeros(config.buckets, np.float32)
    ends = starts[:-1].copy()
    done = 0
    for rows, chunk in _chunks(samples, encoder, members):
        _add_counts(
            rows.indptr, rows.rows, rows.weights, buckets[chunk], weights[chunk], starts, ends, entries, counts, lengths
        )
        if on_samples is not None:
            reached = chunk.stop * len(samples) // len(members)
            on_samples(reached - done)
            done = reached
    if on_samples is not None:
        on_samples(len(samples) - done)
    smoothing, calm = np.float32(config.smoothing), _calm(samples)
    penalties = LENGTH * np.log1p(lengths / smoothing)
    kept = _to_weights(starts, entries, counts, penalties, smoothing, calm, np.float32(config.prune))
    share = bucket_counts(samples, partition, r)
    return {
        "slots": encoder.slots,
        "row_weights": encoder.row_weights,
        "starts": starts,
        "buckets": entries[:kept].astype(np.uint16 if config.buckets <= NARROW else np.uint32),
        "weights": to_half(counts[:kept]),
        "bias": (calm * PRIOR * np.log(np.maximum(share, UNSEEN))).astype(np.float32),
    }


def _calm(samples: Samples) -> np.float32:
    per_sample = len(samples.features.indices) / max(1, len(samples))
    return np.float32(min(1.0, CALM / math.sqrt(max(1.0, per_sample))))


def _by_bucket(samples: Samples, partition: Partition, r: int) -> tuple[UInt32, UInt32]:
    """All (sample, bucket) pairs, each once, ordered by bucket and then by sample: uint32 [pairs] each."""
    targets = bucket_targets(samples, np.arange(len(samples), dtype=np.int64), partition, r)
    starts = np.zeros(partition.n_buckets + 1, np.int64)
    members, buckets = np.empty(len(targets.buckets), np.uint32), np.empty(len(targets.buckets), np.uint32)
    _sort_pairs(targets.indptr, targets.buckets, starts, members, buckets)
    return members, buckets


def _chunks(samples: Samples, encoder: Encoder, members: UInt32) -> Iterator[tuple[Rows, slice]]:
    """Encoded samples in the order of ``members``, and the slice of it that they are, chunk by chunk."""
    step = chunk_size(samples.features)
    for start in range(0, len(members), step):
        chunk = slice(start, min(start + step, len(members)))
        yield encoder(samples.features, members[chunk].astype(np.int64)), chunk


@kernel
def _sort_pairs(indptr: Int64, targets: Int32, starts: Int64, members: UInt32, buckets: UInt32) -> None:
    for bucket in targets:
        starts[bucket + 1] += 1
    for b in range(len(starts) - 1):
        starts[b + 1] += starts[b]
    for i in range(len(indptr) - 1):
        for j in range(indptr[i], indptr[i + 1]):
            bucket = targets[j]
            members[starts[bucket]], buckets[starts[bucket]] = i, bucket
            starts[bucket] += 1


@kernel
def _count_entries(
    indptr: Int64, rows: Int32, values: Float32, buckets: UInt32, weights: Float32, last: UInt32, counts: Int64
) -> None:
    """counts[row + 1] += the buckets that it meets for the first time; ``last``: the one that each row met last."""
    for i in range(len(indptr) - 1):
        for j in range(indptr[i], indptr[i + 1]):
            if weights[i] * values[j] > np.float32(0.0) and last[rows[j]] != buckets[i]:
                last[rows[j]] = buckets[i]
                counts[rows[j] + 1] += 1


@kernel
def _add_counts(
    indptr: Int64, rows: Int32, values: Float32, buckets: UInt32, weights: Float32,
    starts: Int64, ends: Int64, entries: UInt32, counts: Float32, lengths: Float32,
) -> None:  # fmt: skip
    """Add samples, ordered by bucket, to the entries of their rows: what a row has of a bucket is its last entry."""
    for i in range(len(indptr) - 1):
        bucket = buckets[i]
        for j in range(indptr[i], indptr[i + 1]):
            row, value = rows[j], weights[i] * values[j]
            if not value > np.float32(0.0):
                continue
            if ends[row] == starts[row] or entries[ends[row] - 1] != bucket:
                entries[ends[row]] = bucket
                ends[row] += 1
            counts[ends[row] - 1] += value
            lengths[bucket] += value


@fast_kernel
def _to_weights(
    starts: Int64, entries: UInt32, counts: Float32, penalties: Float32,
    smoothing: np.float32, calm: np.float32, prune: np.float32,
) -> int:  # fmt: skip
    """Replace counts by weights, in place, those at most ``prune`` left out; returns how many are left."""
    total = np.float32(starts[len(starts) - 1])
    kept = 0
    for row in range(len(starts) - 1):
        first, last = starts[row], starts[row + 1]
        starts[row] = kept
        background = smoothing * np.float32(last - first) / total
        for e in range(first, last):
            weight = calm * (np.log1p(counts[e] ** np.float32(POWER) / background) - penalties[entries[e]])
            if weight > prune:
                entries[kept], counts[kept] = entries[e], weight
                kept += 1
    starts[len(starts) - 1] = kept
    return kept
