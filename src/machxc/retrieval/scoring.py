"""Labels to buckets to scores, in blocks: the one place where a label is scored, for the scan and for the search.

A label's R values are merged in the order of the repetitions, in float32, wherever it is scored: its score is the same
to the last bit however it was found, and in whatever company.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from machxc import partition
from machxc.compiled import inline, part
from machxc.partition import UInt64
from machxc.retrieval.estimators import MEDIAN, SUM
from machxc.samples import Array, Float32, Int64, UInt32

Integer = int | np.integer[Any]  # in compiled code both are int64

_permute: Any = inline(partition.permute)


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
    if lookup.table.size:
        for r in range(buckets.shape[0]):
            for j in range(n):
                buckets[r, j] = lookup.table[r, labels[j]]
        return
    bits, n_buckets = np.uint64(lookup.bits), np.uint64(lookup.n_buckets)
    for r in range(buckets.shape[0]):
        _permute_all(lookup.forward[r], lookup.bits, labels, n, buckets[r])
        for j in range(n):
            buckets[r, j] = (np.uint64(buckets[r, j]) * n_buckets) >> bits


@part
def find_members(lookup: Lookup, r: Integer, start: Integer, n: Integer, labels: UInt32) -> None:
    """The labels in places ``start`` to ``start + n`` of repetition r, where members of a bucket stand side by side.

    For a hash some may be ids that no label has: K or above.
    """
    if lookup.table.size:
        for j in range(n):
            labels[j] = lookup.members[r, start + j]
        return
    for j in range(n):
        labels[j] = start + j
    _permute_all(lookup.inverse[r], lookup.bits, labels, n, labels)


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


@part
def _permute_all(p: UInt64, bits: int, x: UInt32, n: Integer, out: UInt32) -> None:
    p0, p1, p2, p3, p4, p5 = p[0], p[1], p[2], p[3], p[4], p[5]
    shift, mask = np.uint64((bits + 1) // 2), np.uint64((1 << bits) - 1)
    for j in range(n):
        out[j] = _permute(np.uint64(x[j]), p0, p1, p2, p3, p4, p5, shift, mask)


@part
def score_block(values: Float32, buckets: UInt32, n: Integer, merge: int, scratch: Float32, scores: Float32) -> None:
    """scores[j, q] = the R values of label j for query q, merged.

    ``values`` [R, B, Q], ``buckets`` [R, >= n], ``scores`` [>= n, Q], ``scratch`` [R, >= n]. One row of values is in
    use at a time. With several queries the inner loop runs over them, vector by vector; with one, over the labels.
    """
    if merge == MEDIAN:
        _score_medians(values, buckets, n, scratch, scores)
    elif values.shape[2] == 1:
        _score_one_query(values[:, :, 0], buckets, n, merge, scores[:, 0])
    else:
        _score_queries(values, buckets, n, merge, scores)


@part
def _score_one_query(values: Float32, buckets: UInt32, n: Integer, merge: int, scores: Float32) -> None:
    for r in range(values.shape[0]):
        row, bucket = values[r], buckets[r]
        if r == 0:
            for j in range(n):
                scores[j] = row[bucket[j]]
        elif merge == SUM:
            for j in range(n):
                scores[j] += row[bucket[j]]
        else:
            for j in range(n):
                scores[j] = min(scores[j], row[bucket[j]])


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
