"""What counting cannot tell: how much each feature says. Learnt from samples, each left out of its own bucket.

Counted weights (counting.py) hold one feature to be as telling as another that is as rare, and nothing speaks against
a bucket. Both are wrong in a way that the samples themselves show: leave a sample out of its bucket's counts, as if it
were a query, and see which buckets are taken for its own. Three things are learnt from that, shared by all buckets, so
that they are worth something for a bucket of a single sample, too:

    score(b) = prior ln n(b) + sum over the f of the query of x_f scale_f w(f, b)
                             - sum over all f of lack_f e(f, b) (1 - x_f / m)

    scale_f   how much more, or less, than counted a feature says where it met the bucket
    lack_f    how much it speaks against a bucket, whose samples have it, that the query has it not (x_f = 0)
    prior     what a bucket's frequency is worth
    e(f, b)   the share of the samples of b that have f, taken as c(f, b) F(b) / (n(b) L(b)): its mean value in them,
              over the mean value of a feature in them (F: features of the samples of b, L: the sum of their values)
    m         the mean value of a feature in all samples

It stays a linear model: lack_f e(f, b) / m is added to the weight of f, and lack_f e(f, b) taken off the bias. Learning
is one pass of stochastic gradient descent (Adagrad) on the cross-entropy of the left-out sample's own bucket among the
CANDIDATES that counting finds nearest. As a sample is judged by a bucket that does not know it, what is learnt holds
for new ones: with their own samples left in, buckets are recognised by them, and there is nothing to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from machxc.compiled import fast_kernel, inline, kernel
from machxc.config import Config
from machxc.partition import Partition
from machxc.repetition import random
from machxc.repetition.arithmetic import Int32
from machxc.repetition.chunks import CANDIDATES, LEFT_OUT_BATCH, MEMBERS, OnSamples
from machxc.repetition.counts import (
    LENGTH,
    PRIOR,
    Counts,
    Members,
    Pairs,
    encoded,
    members_of,
    shared,
    weight_of,
    with_others,
)
from machxc.repetition.encode import Encoder, Rows
from machxc.repetition.targets import Targets, bucket_targets
from machxc.repetition.windows import batch_size
from machxc.samples import Float32, Int64, Samples, UInt32
from machxc.threads import in_turn

RATE, PRIOR_RATE = 0.1, 0.01
PASSES = 4  # over the samples, where there are few
_MOST_ENTRIES = 1 << 14  # of the rarest features of a sample: these find its candidates
_LEAST = np.float32(1e-6)  # of what is left of a count: below, it is what rounding left


@dataclass(frozen=True)
class Learnt:
    """What is learnt of the features: ``scale``, ``lack`` float32 [rows]; ``prior`` float32 [1]. See above."""

    scale: Float32
    lack: Float32
    prior: Float32

    @classmethod
    def nothing(cls, n_rows: int) -> Learnt:
        """What counting alone holds."""
        return cls(np.ones(n_rows, np.float32), np.zeros(n_rows, np.float32), np.full(1, PRIOR, np.float32))


class _Batch(NamedTuple):
    """Left-out samples: their ``pairs`` int64 [n], encoded; where their candidates (int64 [n, 1 + CANDIDATES]) stand in
    ``buckets`` (int64), and the members of these."""

    pairs: Int64
    queries: Rows
    near: Int64
    buckets: Int64
    members: Members


def learn(
    samples: Samples,
    encoder: Encoder,
    partition: Partition,
    pairs: Pairs,
    counts: Counts,
    weights: Float32,
    config: Config,
    r: int,
    calm: np.float32,
    on_samples: OnSamples | None = None,
    threads: int = 1,
) -> Learnt:
    """Learn from ``config.left_out`` pairs of repetition r, drawn at random, or from all where there are fewer.

    ``weights``: w(f, b) of each entry; ``calm``: what scores are multiplied by. ``on_samples`` is called with 0 now and
    then: what it raises ends learning. Steps are taken one after the other; what they need of the samples is prepared
    on ``threads``.
    """
    learnt = Learnt.nothing(len(encoder.row_weights))
    squares = Learnt(np.ones_like(learnt.scale), np.ones_like(learnt.lack), np.ones_like(learnt.prior))
    sums = np.zeros(len(learnt.scale), np.float32)
    chosen = _left_out(pairs, config, r)
    log_shares = counts.log_shares
    bias, penalties, mean_value = PRIOR * log_shares, counts.penalties, counts.mean_value  # of all buckets: once
    size = batch_size(samples, max(1, LEFT_OUT_BATCH // threads), MEMBERS * (1 + CANDIDATES))

    def prepare(start: int) -> _Batch:
        batch = chosen[start : start + size]
        order = pairs.members[batch].astype(np.int64)
        queries, targets = encoded(samples, encoder, pairs.members[batch]), bucket_targets(samples, order, partition, r)
        near = _candidates(queries, targets, pairs.buckets[batch], counts, weights, bias)
        buckets, places = np.unique(near[near >= 0], return_inverse=True)
        near[near >= 0] = places
        return _Batch(batch, queries, near, buckets, members_of(samples, encoder, pairs, buckets))

    def step(start: int, batch: _Batch) -> None:
        queries, members = batch.queries, batch.members
        _learn(
            queries.indptr, queries.rows, queries.weights, batch.pairs, batch.near, batch.buckets,
            members.starts, members.pairs, members.rows.indptr, members.rows.rows, members.rows.weights, pairs.weights,
            counts.starts, counts.entries, counts.counts, weights, counts.background,
            counts.shares, counts.lengths, counts.features, log_shares, penalties, counts.smoothing,
            learnt.scale, learnt.lack, learnt.prior, squares.scale, squares.lack, squares.prior, sums,
            mean_value, calm, _room(queries, members), start, len(chosen),
        )  # fmt: skip
        if on_samples is not None:
            on_samples(0)

    in_turn(prepare, step, range(0, len(chosen), size), threads)
    return learnt


def _left_out(pairs: Pairs, config: Config, r: int) -> Int64:
    """The pairs to learn from, in random order: those that leave something in their bucket, up to PASSES times."""
    able = with_others(pairs)
    orders = []
    for turn in range(min(PASSES, -(-config.left_out // max(1, len(able))))):
        orders.append(able.copy())
        random.shuffle(orders[-1], random.stream(config.seed, random.LEFT_OUT, r, turn))
    return np.concatenate([able[:0], *orders])[: config.left_out]


def _candidates(queries: Rows, targets: Targets, own: UInt32, counts: Counts, weights: Float32, bias: Float32) -> Int64:
    """Each query's own bucket, then the nearest that are no targets, -1 for none: int64 [n, 1 + CANDIDATES]."""
    near = np.full((len(queries), 1 + CANDIDATES), -1, np.int64)
    near[:, 0] = own
    rarest_first = np.lexsort((-queries.rows, np.repeat(np.arange(len(queries)), np.diff(queries.indptr))))
    _nearest(
        queries.indptr, queries.rows, queries.weights, rarest_first, targets.indptr, targets.buckets,
        counts.starts, counts.entries, weights, bias, near,
    )  # fmt: skip
    return near


def _room(queries: Rows, members: Members) -> int:
    """How many features a query and a bucket's members may have between them."""
    of_buckets = members.rows.indptr[members.starts]
    return int(np.diff(queries.indptr).max(initial=0) + np.diff(of_buckets).max(initial=0))


@kernel
def _nearest(
    indptr: Int64, rows: Int32, values: Float32, order: Int64, target_indptr: Int64, targets: Int32,
    starts: Int64, entries: UInt32, weights: Float32, bias: Float32, out: Int64,
) -> None:  # fmt: skip
    """The best buckets of each query by its rarest features, targets left out; of equal ones those found first.

    ``order``: the features of each query, the rarest first.
    """
    scores = np.zeros(len(bias), np.float32)
    found = np.empty(len(bias), np.int64)
    best = np.empty(out.shape[1] - 1, np.float32)
    for i in range(len(indptr) - 1):
        n = 0
        room = _MOST_ENTRIES
        for at in range(indptr[i], indptr[i + 1]):
            row, value = rows[order[at]], values[order[at]]
            room -= starts[row + 1] - starts[row]
            if room < 0 and n > 0:
                break
            for e in range(starts[row], starts[row + 1]):
                bucket = entries[e]
                if weights[e] <= 0.0 or value <= 0.0:
                    continue
                if scores[bucket] == 0.0:
                    found[n] = bucket
                    n += 1
                scores[bucket] += value * weights[e]
        for bucket in targets[target_indptr[i] : target_indptr[i + 1]]:
            scores[bucket] = -np.inf
        best[:] = -np.inf
        for bucket in found[:n]:
            score, at = scores[bucket] + bias[bucket], len(best)
            scores[bucket] = 0.0
            while at > 0 and best[at - 1] < score:
                at -= 1
                if at + 1 < len(best):
                    best[at + 1], out[i, at + 2] = best[at], out[i, at + 1]
            if at < len(best) and score > best[at]:
                best[at], out[i, at + 1] = score, bucket
        for bucket in targets[target_indptr[i] : target_indptr[i + 1]]:
            scores[bucket] = 0.0


@inline
def _find(entries: UInt32, first: int, last: int, bucket: int) -> int:
    """Where the bucket stands among rising entries; -1 where it does not."""
    end = last
    while first < last:
        middle = (first + last) >> 1
        if entries[middle] < bucket:
            first = middle + 1
        else:
            last = middle
    return first if first < end and entries[first] == bucket else -1


@fast_kernel
def _learn(
    indptr: Int64, rows: Int32, values: Float32, batch: Int64, near: Int64, buckets: Int64,
    member_starts: Int64, member_pairs: Int64, member_indptr: Int64, member_rows: Int32, member_values: Float32,
    pair_weights: Float32,
    starts: Int64, entries: UInt32, counts: Float32, weights: Float32, background: Float32,
    shares: Float32, lengths: Float32, features: Float32, log_shares: Float32, penalties: Float32,
    smoothing: np.float32,
    scale: Float32, lack: Float32, prior: Float32,
    scale_squares: Float32, lack_squares: Float32, prior_square: Float32, sums: Float32,
    mean: np.float32, calm: np.float32, room: int, done: int, total: int,
) -> None:  # fmt: skip
    """One step a query: its candidates' scores, a softmax of them, and the gradient of what is learnt.

    Of candidate k, ``said[k, j]`` is what the query's j-th feature says, x w(f, b), and ``lacked[k]`` has
    e(f, b) (x / m - 1) for the features ``which[k]`` of the query and of the bucket's members; ``sums`` (0, by row)
    adds these up.
    """
    width = near.shape[1]
    longest = 0
    for i in range(len(indptr) - 1):
        longest = max(longest, indptr[i + 1] - indptr[i])
    said = np.empty((width, longest), np.float32)
    lacked = np.empty((width, room), np.float32)
    which = np.empty((width, room), np.int64)
    used = np.empty(width, np.int64)
    log_share = np.empty(width, np.float32)
    z = np.empty(width, np.float32)
    for i in range(len(indptr) - 1):
        first, last, own_weight = indptr[i], indptr[i + 1], pair_weights[batch[i]]
        top = np.float32(-3e38)
        for k in range(width):
            if near[i, k] < 0:
                continue
            place = near[i, k]
            bucket = buckets[place]
            share, length, n_features = shares[bucket], lengths[bucket], features[bucket]
            log_share[k], penalty = log_shares[bucket], penalties[bucket]
            if k == 0:  # as if the sample were not there
                share -= own_weight
                for j in range(first, last):
                    length -= own_weight * max(values[j], np.float32(0.0))
                    n_features -= own_weight * (values[j] > np.float32(0.0))
                length, n_features = max(length, _LEAST), max(n_features, np.float32(0.0))
                log_share[k] = np.log(share)
                penalty = np.float32(LENGTH) * np.log1p(length / smoothing)
            score = prior[0] * log_share[k]
            n = 0
            # what the query has
            for j in range(first, last):
                row, value = rows[j], values[j]
                said[k, j - first] = np.float32(0.0)
                entry = _find(entries, starts[row], starts[row + 1], bucket)
                if entry < 0:
                    continue
                count, weight = counts[entry], weights[entry]
                if k == 0:
                    for other in range(first, last):  # features that share a row count together
                        if rows[other] == row:
                            count -= own_weight * max(values[other], np.float32(0.0))
                    if count <= _LEAST:
                        continue
                    weight = max(weight_of(count, background[row], penalty), np.float32(0.0))
                said[k, j - first] = value * weight
                score += scale[row] * value * weight
                if sums[row] == np.float32(0.0):
                    which[k, n] = row
                    n += 1
                sums[row] += value / mean * shared(count, share, length, n_features)
            # what the bucket's samples have
            members_weight = np.float32(0.0)
            for m in range(member_starts[place], member_starts[place + 1]):
                if k > 0 or member_pairs[m] != batch[i]:
                    members_weight += pair_weights[member_pairs[m]]
            ratio = n_features / (length * max(members_weight, np.float32(1e-30)))
            for m in range(member_starts[place], member_starts[place + 1]):
                if k == 0 and member_pairs[m] == batch[i]:
                    continue
                weight = pair_weights[member_pairs[m]] * ratio
                for j in range(member_indptr[m], member_indptr[m + 1]):
                    row = member_rows[j]
                    if sums[row] == np.float32(0.0):
                        which[k, n] = row
                        n += 1
                    sums[row] -= weight * max(member_values[j], np.float32(0.0))
            for a in range(n):
                row = which[k, a]
                lacked[k, a] = sums[row]
                score += lack[row] * sums[row]
                sums[row] = np.float32(0.0)
            used[k] = n
            z[k] = calm * score
            top = max(top, z[k])
        total_exp = np.float32(0.0)
        for k in range(width):
            if near[i, k] >= 0:
                z[k] = np.exp(z[k] - top)
                total_exp += z[k]
        fall = np.float32(1.0) - np.float32(done + i) / np.float32(total)
        prior_gradient = np.float32(0.0)
        for k in range(width):
            if near[i, k] < 0:
                continue
            g = own_weight * (z[k] / total_exp - np.float32(k == 0))
            prior_gradient += g * log_share[k]
            for j in range(first, last):
                d = g * said[k, j - first]
                if d != np.float32(0.0):
                    row = rows[j]
                    scale_squares[row] += d * d
                    scale[row] -= np.float32(RATE) * fall * d / np.sqrt(scale_squares[row])
            for a in range(used[k]):
                d, row = g * lacked[k, a], which[k, a]
                lack_squares[row] += d * d
                lack[row] -= np.float32(RATE) * fall * d / np.sqrt(lack_squares[row])
        prior_square[0] += prior_gradient * prior_gradient
        prior[0] -= np.float32(PRIOR_RATE) * fall * prior_gradient / np.sqrt(prior_square[0])
