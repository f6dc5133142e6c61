"""Labels to buckets to scores, in blocks: the one place where a label is scored, for the scan and for the search.

A label's R values are merged in the order of the repetitions, in float32, wherever it is scored: its score is the same
to the last bit however it was found, and in whatever company.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from machxc.compiled import fast_kernel, inline, part
from machxc.partition import UInt64
from machxc.retrieval.estimators import MEDIAN, SUM
from machxc.retrieval.permutation import permute32
from machxc.samples import Array, Float32, Int64, UInt32

Integer = int | np.integer[Any]  # in compiled code both are int64

_LOOKS = 4  # repetitions between two looks at whether a label can still be among the best


class Lookup(NamedTuple):
    """A partition as the kernels read it: a hash, and an empty table; or a table.

    ``forward`` and ``inverse`` uint64 [R, 6]: the numbers of `machxc.partition.permute`. ``table`` uint32 [R, K], and
    its inverted index, which only the search reads: ``members`` uint32 [R, K] and ``starts`` int64 [R, B + 1].
    """

    n_labels: int
    n_buckets: int
    bits: int
    forward: UInt64
    inverse: UInt64
    table: UInt32
    members: UInt32
    starts: Int64


@part
def find_buckets(lookup: Lookup, labels: UInt32, n: Integer, buckets: UInt32) -> None:
    """buckets[r, j] = the bucket of labels[j] in repetition r, for the first n labels."""
    for r in range(buckets.shape[0]):
        find_buckets_of(lookup, r, labels, n, buckets[r])


@part
def find_buckets_of(lookup: Lookup, r: Integer, labels: UInt32, n: Integer, buckets: UInt32) -> None:
    """buckets[j] = the bucket of labels[j] in repetition r, for the first n labels."""
    if lookup.table.size:
        for j in range(n):
            buckets[j] = lookup.table[r, labels[j]]
        return
    bits, n_buckets = np.uint64(lookup.bits), np.uint32(lookup.n_buckets)
    p0, p1, p2, p3, p4, p5 = _six(lookup.forward[r])
    shift, mask = np.uint32((lookup.bits + 1) // 2), np.uint32((1 << lookup.bits) - 1)
    for j in range(n):
        y = permute32(labels[j], p0, p1, p2, p3, p4, p5, shift, mask)
        buckets[j] = (np.uint64(y) * np.uint64(n_buckets)) >> bits  # 32 bits by 32: one instruction


@part
def find_members(lookup: Lookup, r: Integer, start: Integer, n: Integer, labels: UInt32) -> None:
    """The labels in places ``start`` to ``start + n`` of repetition r, where members of a bucket stand side by side.

    For a hash some may be ids that no label has: K or above.
    """
    if lookup.table.size:
        for j in range(n):
            labels[j] = lookup.members[r, start + j]
        return
    p0, p1, p2, p3, p4, p5 = _six(lookup.inverse[r])
    shift, mask = np.uint32((lookup.bits + 1) // 2), np.uint32((1 << lookup.bits) - 1)
    for j in range(n):
        labels[j] = permute32(np.uint32(start + j), p0, p1, p2, p3, p4, p5, shift, mask)


@part
def places(lookup: Lookup, r: Integer, bucket: Integer) -> tuple[Integer, Integer]:
    """Where the members of a bucket start and stop, for `find_members`."""
    if lookup.table.size:
        return lookup.starts[r, bucket], lookup.starts[r, bucket + 1]
    return _first_place(lookup, bucket), _first_place(lookup, bucket + 1)


@part
def _first_place(lookup: Lookup, bucket: Integer) -> Integer:
    """The smallest y with y * B >= bucket * 2**w; bucket <= B < 2**32 and w <= 32, so nothing overflows."""
    top, n_buckets = np.uint64(bucket) << np.uint64(lookup.bits), np.uint64(lookup.n_buckets)
    return np.int64(top // n_buckets) + np.int64(top % n_buckets != 0)


@inline
def _six(p: UInt64) -> tuple[Any, ...]:
    return (np.uint32(p[0]), np.uint32(p[1]), np.uint32(p[2]), np.uint32(p[3]), np.uint32(p[4]), np.uint32(p[5]))


@part
def score_those(
    values: Float32,
    lookup: Lookup,
    labels: UInt32,
    n: Integer,
    merge: Integer,
    rest: Float32,
    floor: float,
    buckets: UInt32,
    scores: Float32,
) -> Integer:
    """Score the first n labels for one query, but give up those that cannot reach ``floor``; how many are left.

    They are moved to the front of ``labels``, with their ``scores`` [>= n]: the same as `score_block`'s. ``values``
    [R, B]; ``rest`` [R]: see `rest_of`; ``buckets`` [>= n]: scratch. Sums and minima only.
    """
    for r in range(values.shape[0]):
        row = values[r]
        find_buckets_of(lookup, r, labels, n, buckets)
        if r == 0:
            for j in range(n):
                scores[j] = row[buckets[j]]
        elif merge == SUM:
            for j in range(n):
                scores[j] += row[buckets[j]]
        else:
            for j in range(n):
                scores[j] = min(scores[j], row[buckets[j]])
        if (merge != SUM or r % _LOOKS == _LOOKS - 1) and n:
            n = keep(labels, n, scores, np.float32(floor - rest[r]))
    return n


@part
def rest_of(values: Float32, merge: Integer, rest: Float32) -> None:
    """rest[r] = the most that repetitions after r can add to a sum of values [R, B], rounding included; minima: 0."""
    total, size = 0.0, 0.0
    for r in range(len(values) - 1, -1, -1):
        rest[r] = total
        if merge == SUM:
            high, low = extremes(values[r])
            total += high
            size += max(high, -low)
    for r in range(len(values)):
        rest[r] += rounding(size, len(values)) if merge == SUM else 0.0


@fast_kernel
def extremes(values: Float32) -> tuple[float, float]:
    """The largest and the smallest value; where order may change, vector by vector."""
    high, low = values[0], values[0]
    for b in range(len(values)):
        high = values[b] if values[b] > high else high
        low = values[b] if values[b] < low else low
    return float(high), float(low)


@inline
def rounding(size: float, n_repetitions: int) -> float:
    """How far two float32 sums of n values may be apart by their order, ``size`` the sum of their largest magnitudes.

    Twice (n - 1) 2**-24 size (Higham 2002, section 4.2), and as much again for what is computed beside them.
    """
    return size * n_repetitions * 2.4e-7


@part
def keep(labels: UInt32, n: Integer, scores: Array, least: np.number[Any]) -> Integer:
    """Move labels with a score of at least ``least`` to the front, if a third has less; how many labels are left.

    For fewer it would take longer than it saves.
    """
    count = 0
    for j in range(n):
        count += scores[j] >= least
    if 3 * count > 2 * n:
        return n
    kept: Integer = np.int64(0)
    for j in range(n):
        labels[kept], scores[kept] = labels[j], scores[j]
        kept += scores[j] >= least
    return kept


@part
def score_block(values: Float32, buckets: UInt32, n: Integer, merge: int, scratch: Float32, scores: Float32) -> None:
    """scores[j, q] = the R values of label j for query q, merged.

    ``values`` [R, B, Q], ``buckets`` [R, >= n], ``scores`` [>= n, Q], ``scratch`` [R, >= n]. One row of values is in
    use at a time, and the inner loop runs over the queries, vector by vector. One query: see `score_those`.
    """
    if merge == MEDIAN:
        _score_medians(values, buckets, n, scratch, scores)
    else:
        _score_queries(values, buckets, n, merge, scores)


@part
def _score_queries(values: Float32, buckets: UInt32, n: Integer, merge: int, scores: Float32) -> None:
    n_repetitions, _, n_queries = values.shape
    for r in range(n_repetitions):
        for j in range(n):
            b = buckets[r, j]
            if r == 0:
                for q in range(n_queries):
                    scores[j, q] = values[r, b, q]
            elif merge == SUM:
                for q in range(n_queries):
                    scores[j, q] += values[r, b, q]
            else:
                for q in range(n_queries):
                    scores[j, q] = min(scores[j, q], values[r, b, q])


@part
def _score_medians(values: Float32, buckets: UInt32, n: Integer, scratch: Float32, scores: Float32) -> None:
    n_repetitions, _, n_queries = values.shape
    for q in range(n_queries):
        for r in range(n_repetitions):
            for j in range(n):
                scratch[r, j] = values[r, buckets[r, j], q]
        _medians(scratch, n, scores[:, q])


@part
def _medians(x: Float32, n: Integer, out: Float32) -> None:
    """out[j] = the median of column j of x [R, >= n]: the middle value, or the mean of the two middle ones; reorders x.

    Half a bubble sort, of all columns at once: its compare-exchanges have no branches and run at the vector width.
    """
    middle = len(x) // 2
    lowest = middle if len(x) % 2 else middle - 1
    for last in range(len(x) - 1, lowest - 1, -1):
        for r in range(last):
            low, high = x[r], x[r + 1]
            for j in range(n):
                a, b = low[j], high[j]
                low[j] = a if a < b else b
                high[j] = b if a < b else a
    for j in range(n):
        out[j] = np.float32(0.5) * (x[lowest, j] + x[middle, j]) if lowest < middle else x[middle, j]


@part
def merged(values: Float32, merge: int, scratch: Float32, out: Float32) -> None:
    """out[0] = R values, one a repetition, as `score_block` merges those of a label. ``scratch`` [R, >= 1]."""
    if merge == MEDIAN:
        for r in range(len(values)):
            scratch[r, 0] = values[r]
        _medians(scratch, 1, out)
    else:
        out[0] = values[0]
        for r in range(1, len(values)):
            out[0] = out[0] + values[r] if merge == SUM else min(out[0], values[r])


@inline
def is_seen(seen: Array, label: Integer) -> bool:
    """Whether a bitmap (uint8, least significant bit first; empty: all of them) has a label."""
    return len(seen) == 0 or (seen[label >> 3] >> (label & 7)) & 1 == 1
