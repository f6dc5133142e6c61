"""The counted repetition: weights in closed form, from how often a feature meets a bucket.

A smoothed multinomial model of each bucket, as information retrieval ranks documents by the likelihood of a query
(Zhai and Lafferty 2001, Dirichlet priors), and with the background of Kneser and Ney (1995): a feature is as common
as the number of buckets that have it, not as the number of its occurrences.

    c(f, b)   sum of the weights x_f of feature f over the samples of bucket b (samples scaled to length 1)
    p(f)      the share of f in all pairs (feature, bucket) with c > 0
    w(f, b) = max(0, ln(1 + c(f, b)**POWER / (smoothing * p(f))) - LENGTH * ln(1 + sum_f c(f, b) / smoothing))
    bias(b) = PRIOR * ln(number of samples of bucket b), of an empty bucket as if it had UNSEEN samples

Two passes over the samples in the order of their buckets (windows.py reads a store beyond memory in its own order), no
gradient. What these weights do not know is then learnt from some samples that are left
out of their own bucket: see leave_one_out.py.

Features of one sample repeat each other, and a product over all of them is far too sure of itself. So weights and
biases are multiplied by min(1, CALM / root of the mean number of features of a sample): that changes no ranking, and
lets the best score be about as often right as it says.

All of that can be shared out to threads, by buckets or by rows, which changes no byte: what a feature and a bucket have
in common is added up by one thread, in the order of the samples.

What never met has no weight, so that a feature's row has an entry for each bucket that it was seen in, and the whole
model at most as many entries as the training samples have (feature, label) pairs: memory follows the data, not K.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from threading import Event

import numpy as np

from machxc.compiled import fast_kernel, kernel
from machxc.config import Config
from machxc.partition import Partition
from machxc.repetition.arithmetic import Int32
from machxc.repetition.associations import Added, associate, merge
from machxc.repetition.bfloat import to_bfloat
from machxc.repetition.chunks import OnSamples, chunk_size
from machxc.repetition.counts import CALM, Counts, Pairs, shared, weight_of
from machxc.repetition.encode import Encoder, Rows, fit_encoder
from machxc.repetition.leave_one_out import Learnt, learn
from machxc.repetition.stored import pack
from machxc.repetition.targets import bucket_counts, bucket_targets
from machxc.repetition.windows import in_order, is_beyond_memory
from machxc.samples import Array, Float32, Int64, Samples, UInt32
from machxc.threads import share_out

_NEVER = np.uint32(0xFFFFFFFF)


def count_repetition(
    samples: Samples,
    config: Config,
    partition: Partition,
    r: int,
    on_samples: OnSamples | None = None,
    threads: int = 1,
) -> dict[str, Array]:
    """Count repetition r; returns its tensors by name, those of a linear repetition (see folder.py).

    ``on_samples`` is called with numbers of samples that add up to N, by any of the ``threads`` that work on it. (One
    does where the samples are beyond memory, and are read from front to back.)
    """
    threads = 1 if is_beyond_memory(samples) else threads
    encoder = fit_encoder(samples.features, config, r)
    pairs = _by_bucket(samples, partition, r)
    counts = _count(samples, encoder, pairs, config, bucket_counts(samples, partition, r), on_samples, threads)
    weights, calm = np.empty(len(counts.counts), np.float32), _calm(samples)
    _weigh(counts, weights, threads)
    learnt = Learnt.nothing(len(encoder.row_weights))
    if config.left_out:
        learnt = learn(samples, encoder, partition, pairs, counts, weights, config, r, calm, on_samples, threads)
    added = Added.nothing(len(encoder.row_weights))
    if config.associations:
        added = associate(samples, encoder, pairs, counts, calm * learnt.scale, config, r, on_samples, threads)
    bias = learnt.prior * counts.log_shares
    kept = _take_in(
        counts.starts, counts.entries, counts.counts, weights, counts.shares, counts.lengths, counts.features,
        learnt.scale, learnt.lack, counts.mean_value, calm, np.float32(config.prune), bias,
    )  # fmt: skip
    starts, entries, weights = counts.starts, counts.entries[:kept], weights[:kept]
    del counts  # before copies are made
    if len(added.entries):
        starts, entries, weights = _merged(starts, entries, weights, added, np.float32(config.prune))
        del added
    bits = to_bfloat(weights)
    del weights
    table = pack(starts, entries, bits)
    return {**encoder.tensors(), **table, "bias": calm * bias}


def _merged(
    starts: Int64, entries: UInt32, weights: Float32, added: Added, prune: np.float32
) -> tuple[Int64, UInt32, Float32]:
    """What was counted, and what was added to it."""
    room, merged = len(entries) + len(added.entries), np.zeros_like(starts)
    buckets, values = np.empty(room, np.uint32), np.empty(room, np.float32)
    n = merge(starts, entries, weights, added.starts, added.entries, added.weights, prune, merged, buckets, values)
    return merged, buckets[:n], values[:n]


def _count(
    samples: Samples,
    encoder: Encoder,
    pairs: Pairs,
    config: Config,
    shares: Array,
    on_samples: OnSamples | None,
    threads: int,
) -> Counts:
    """Two passes: how many buckets each feature met, then how much it met each of them.

    Each thread has buckets of its own, and what a row met of them is a part of it: one thread writes each byte.
    """
    n_rows, stop, parts = len(encoder.row_weights), Event(), pairs.parts(threads)

    def meet(part: slice) -> Int64:
        met, last = np.zeros(n_rows + 1, np.int64), np.full(n_rows, _NEVER, np.uint32)
        for rows, chunk in _chunks(samples, encoder, pairs, part):
            _count_entries(rows.indptr, rows.rows, rows.weights, pairs.buckets[chunk], pairs.weights[chunk], last, met)
            if stop.is_set():
                break
        return met

    met = share_out(meet, parts, threads, stop)
    starts: Int64 = np.cumsum(np.sum(met, axis=0)) if len(met) > 1 else np.cumsum(met[0])
    counts = _nothing_counted(starts, config, shares)
    begins = [starts[:-1]]  # of what each part has of a row
    begins += (begins[-1] + before[1:] for before in met[:-1])
    del met

    def add(part: slice, begin: Int64) -> None:
        ends = begin.copy()
        for rows, chunk in _chunks(samples, encoder, pairs, part):
            _add_counts(
                rows.indptr, rows.rows, rows.weights, pairs.buckets[chunk], pairs.weights[chunk],
                begin, ends, counts.entries, counts.counts, counts.lengths, counts.features,
            )  # fmt: skip
            if on_samples is not None:
                before, reached = (place * len(samples) // len(pairs) for place in (chunk.start, chunk.stop))
                on_samples(reached - before)
            if stop.is_set():
                break

    share_out(lambda at: add(parts[at], begins[at]), range(len(parts)), threads, stop)
    if on_samples is not None and not len(pairs):
        on_samples(len(samples))
    return counts


def _nothing_counted(starts: Int64, config: Config, shares: Array) -> Counts:
    """Room for the entries of rows that begin at ``starts`` (int64 [rows + 1])."""
    met = np.diff(starts).astype(np.float32)
    return Counts(
        starts,
        np.empty(starts[-1], np.uint32),
        np.zeros(starts[-1], np.float32),
        np.float32(config.smoothing) * met / np.float32(max(1, starts[-1])),
        shares.astype(np.float32),
        np.zeros(config.buckets, np.float32),
        np.zeros(config.buckets, np.float32),
        np.float32(config.smoothing),
    )


def _weigh(counts: Counts, weights: Float32, threads: int) -> None:
    """The weight of each entry, rows shared out so that each thread has about as many entries."""
    starts, penalties = counts.starts, counts.penalties
    bounds = np.searchsorted(starts, np.linspace(0, starts[-1], threads + 1)[1:-1].astype(np.int64))
    rows = [slice(a, b) for a, b in itertools.pairwise([0, *bounds.tolist(), len(starts) - 1])]

    def weigh(part: slice) -> None:
        some = starts[part.start : part.stop + 1]
        _to_weights(some, counts.entries, counts.counts, counts.background[part], penalties, weights)

    share_out(weigh, rows, threads)


def _calm(samples: Samples) -> np.float32:
    per_sample = len(samples.features.indices) / max(1, len(samples))
    return np.float32(min(1.0, CALM / math.sqrt(max(1.0, per_sample))))


def _by_bucket(samples: Samples, partition: Partition, r: int) -> Pairs:
    """All (sample, bucket) pairs, ordered by bucket."""
    targets = bucket_targets(samples, np.arange(len(samples), dtype=np.int64), partition, r)
    starts = np.zeros(partition.n_buckets + 1, np.int64)
    members, buckets = np.empty(len(targets.buckets), np.uint32), np.empty(len(targets.buckets), np.uint32)
    _sort_pairs(targets.indptr, targets.buckets, starts, members, buckets)
    weights = np.ones(len(members), np.float32) if samples.weights is None else samples.weights[members]
    return Pairs(members, buckets, weights, np.concatenate((np.zeros(1, np.int64), starts[:-1])))


def _chunks(samples: Samples, encoder: Encoder, pairs: Pairs, part: slice) -> Iterator[tuple[Rows, slice]]:
    """Encoded samples of a part of ``pairs``, in their order, and the slice of it that they are, chunk by chunk."""
    step, start = chunk_size(samples.features), part.start
    for features, places in in_order(samples, pairs.members[part]):
        for at in range(0, len(places), step):
            chunk = places[at : at + step]
            yield encoder(features, chunk), slice(start + at, start + at + len(chunk))
        start += len(places)


@kernel
def _sort_pairs(indptr: Int64, targets: Int32, starts: Int64, members: UInt32, buckets: UInt32) -> None:
    """Fill ``members`` and ``buckets``, bucket by bucket; ``starts`` (0, [B + 1]) has where each of them ends then."""
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
    begins: Int64, ends: Int64, entries: UInt32, counts: Float32, lengths: Float32, features: Float32,
) -> None:  # fmt: skip
    """Add samples, ordered by bucket, to the entries of their rows: what a row has of a bucket is its last entry.

    Entries of a row begin at ``begins`` and end at ``ends`` (int64 [rows]).
    """
    for i in range(len(indptr) - 1):
        bucket = buckets[i]
        for j in range(indptr[i], indptr[i + 1]):
            row, value = rows[j], weights[i] * values[j]
            if not value > np.float32(0.0):
                continue
            if ends[row] == begins[row] or entries[ends[row] - 1] != bucket:
                entries[ends[row]] = bucket
                ends[row] += 1
            counts[ends[row] - 1] += value
            lengths[bucket] += value
            features[bucket] += weights[i]


@fast_kernel
def _to_weights(
    starts: Int64, entries: UInt32, counts: Float32, background: Float32, penalties: Float32, weights: Float32
) -> None:
    for row in range(len(starts) - 1):
        for e in range(starts[row], starts[row + 1]):
            weights[e] = max(weight_of(counts[e], background[row], penalties[entries[e]]), np.float32(0.0))


@fast_kernel
def _take_in(
    starts: Int64, entries: UInt32, counts: Float32, weights: Float32,
    shares: Float32, lengths: Float32, features: Float32, scale: Float32, lack: Float32,
    mean: np.float32, calm: np.float32, prune: np.float32, bias: Float32,
) -> int:  # fmt: skip
    """Take what was learnt into the weights and the bias, in place, and leave out weights at most ``prune`` from 0.

    Returns how many weights are left.
    """
    kept = 0
    for row in range(len(starts) - 1):
        first, last = starts[row], starts[row + 1]
        starts[row] = kept
        for e in range(first, last):
            bucket = entries[e]
            lacked = lack[row] * shared(counts[e], shares[bucket], lengths[bucket], features[bucket])
            bias[bucket] -= lacked
            weight = calm * (scale[row] * weights[e] + lacked / mean)
            if np.abs(weight) > prune:
                entries[kept], weights[kept] = bucket, weight
                kept += 1
    starts[len(starts) - 1] = kept
    return kept
