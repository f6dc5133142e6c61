"""Exact top-k from the members of the best buckets, with a proof that no other label can be among them.

The threshold algorithm of Fagin, Lotem and Naor (2001). Buckets are opened in decreasing order of their value, and
their members scored over all R repetitions (a score from the open buckets alone would be biased). A label that is in no
open bucket scores at most the merge of the best values left in each repetition, and float32 sums in a fixed order
respect that: when this bound is below the k-th best score so far, the k best are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from machxc.compiled import kernel, part
from machxc.retrieval.estimators import MEDIAN, MIN, SUM
from machxc.retrieval.heap import ROOT, best_first, offer_once, sift_down
from machxc.retrieval.scoring import (
    Integer,
    Lookup,
    find_buckets,
    find_members,
    is_seen,
    merged,
    places,
    rest_of,
    score_block,
    score_those,
)
from machxc.samples import Array, Float32, Int64, UInt32

_CHUNK = 512  # labels scored between two looks at the bound


class _Query(NamedTuple):
    """One query: its values [R, B, 1], its k best so far, and room for a block of labels being scored."""

    values: Float32
    best_scores: Float32
    best_labels: Int64
    rest: Float32
    labels: UInt32
    buckets: UInt32
    scores: Float32
    scratch: Float32


class _Rest(NamedTuple):
    """The buckets not yet open: a heap of those that may have to be, the best at its root, and a bound on the others.

    ``heap_values`` (negated) and ``heap_buckets`` (r * B + bucket): room for R * B. ``left`` [R]: how many in the heap
    are of each repetition; ``ceiling`` [R]: no bucket that is neither open nor in the heap has a value above it.
    """

    heap_values: Float32
    heap_buckets: Int64
    left: Int64
    ceiling: Float32


@kernel
def search(
    values: Float32,
    lookup: Lookup,
    seen: Array,
    merge: int,
    limit: int,
    patient: bool,
    best_scores: Float32,
    best_labels: Int64,
    proven: Array,
) -> None:
    """The k best labels of n queries; ``proven[i]`` tells whether ``limit`` members of buckets were enough for it.

    If they were not, or (not ``patient``) look as if they would not be, those are good labels with their scores, but
    better ones may be missing. ``values`` float32 [n, R, B, 1]; ``best_scores`` and ``best_labels`` [n, k] as in
    `machxc.retrieval.scan.scan`; ``proven`` bool [n].
    """
    n, n_repetitions, n_buckets, _ = values.shape
    labels = np.empty(2 * _CHUNK, np.uint32)
    buckets = np.empty((n_repetitions, 2 * _CHUNK), np.uint32)
    scores = np.empty((2 * _CHUNK, 1), np.float32)
    scratch = np.empty((n_repetitions, 2 * _CHUNK), np.float32)
    heap_values = np.empty(n_repetitions * n_buckets, np.float32)
    heap_buckets = np.empty(n_repetitions * n_buckets, np.int64)
    rest_sums = np.empty(n_repetitions, np.float32)
    for i in range(n):
        rest_of(values[i].reshape((n_repetitions, n_buckets)), merge, rest_sums)
        query = _Query(values[i], best_scores[i], best_labels[i], rest_sums, labels, buckets, scores, scratch)
        left, ceiling = np.zeros(n_repetitions, np.int64), np.empty(n_repetitions, np.float32)
        others = _Rest(heap_values, heap_buckets, left, ceiling)
        proven[i] = _search_one(query, others, lookup, seen, merge, limit, patient)
        best_first(best_scores[i], best_labels[i])


@part
def _search_one(query: _Query, rest: _Rest, lookup: Lookup, seen: Array, merge: int, limit: int, patient: bool) -> bool:
    first = _open_first(query, rest, lookup, seen, merge)  # gives a first k-th best score
    level, chosen = _level_to_open(query, rest, merge)
    size = _fill_heap(query, rest, first, level, chosen)
    n_repetitions, n_buckets, _ = query.values.shape
    bound = np.empty(n_repetitions, np.float32)
    opened: Integer = 0
    promising = patient
    while True:
        for r in range(n_repetitions):
            bound[r] = -rest.heap_values[0] if rest.left[r] else rest.ceiling[r]
        merged(bound, merge, query.scratch, query.scores[:, 0])
        if query.scores[0, 0] < query.best_scores[0]:
            return True
        if size == 0 or opened > limit:
            return False
        if not promising and 4 * opened > limit:
            # By now the k-th best score is close to what it will be: better to stop here than to find out at the limit.
            to_open = _to_open(query, rest, bound, merge, size)
            promising = opened + to_open * lookup.n_labels // n_buckets <= limit
            if not promising:
                return False
        waiting: Integer = np.int64(0)
        batch: Integer = 0
        while size and batch < _CHUNK:
            r, bucket = divmod(rest.heap_buckets[0], n_buckets)
            size -= 1
            sift_down(rest.heap_values, rest.heap_buckets, size, ROOT, rest.heap_values[size], rest.heap_buckets[size])
            rest.left[r] -= 1
            start, stop = places(lookup, r, bucket)
            batch += stop - start
            waiting = _open(query, lookup, r, bucket, seen, merge, waiting)
        _rescore(query, lookup, merge, waiting)
        opened += batch


@part
def _open_first(query: _Query, rest: _Rest, lookup: Lookup, seen: Array, merge: int) -> Int64:
    """Open the best bucket of each repetition; ``rest.ceiling`` becomes the second best value. Which: int64 [R]."""
    n_repetitions, n_buckets, _ = query.values.shape
    first = np.zeros(n_repetitions, np.int64)
    waiting: Integer = np.int64(0)
    for r in range(n_repetitions):
        best, second = query.values[r, 0, 0], np.float32(-np.inf)
        for b in range(1, n_buckets):
            value = query.values[r, b, 0]
            if value > best:
                best, second, first[r] = value, best, b
            elif value > second:
                second = value
        rest.ceiling[r] = second
        waiting = _open(query, lookup, r, first[r], seen, merge, waiting)
    _rescore(query, lookup, merge, waiting)
    return first


@part
def _open(
    query: _Query, lookup: Lookup, r: Integer, bucket: Integer, seen: Array, merge: int, waiting: Integer
) -> Integer:
    """Append the members of a bucket to the labels waiting to be scored, scoring when many wait; how many wait then."""
    start, stop = places(lookup, r, bucket)
    for place in range(start, stop, _CHUNK):
        n = min(_CHUNK, stop - place)
        found = query.labels[waiting:]
        find_members(lookup, r, place, n, found)
        for j in range(n):
            label = found[j]
            query.labels[waiting] = label  # at or before found[j]: written after it was read
            waiting += label < lookup.n_labels and is_seen(seen, label)
        if waiting >= _CHUNK:
            _rescore(query, lookup, merge, waiting)
            waiting = np.int64(0)
    return waiting


@part
def _rescore(query: _Query, lookup: Lookup, merge: int, n: Integer) -> None:
    """Score the first n waiting labels over all repetitions, and keep the best."""
    if merge == MEDIAN:
        find_buckets(lookup, query.labels, n, query.buckets)
        score_block(query.values, query.buckets, n, merge, query.scratch, query.scores)
    else:
        values, scores = query.values.reshape(query.values.shape[:2]), query.scores.reshape(2 * _CHUNK)
        floor = query.best_scores[0]
        n = score_those(values, lookup, query.labels, n, merge, query.rest, floor, query.buckets[0], scores)
    for j in range(n):
        offer_once(query.best_scores, query.best_labels, query.scores[j, 0], np.int64(query.labels[j]))


@part
def _level_to_open(query: _Query, rest: _Rest, merge: int) -> tuple[float, Array]:
    """A level, and repetitions, such that no other label is among the k best once their buckets above it are open.

    With minima, one repetition below the k-th best score is enough, and with medians R // 2 + 1: those with the fewest
    buckets to open are taken. With sums it is the level at which the best values left would add up to that score.
    """
    n_repetitions, n_buckets, _ = query.values.shape
    floor = query.best_scores[0]
    if merge == SUM:
        return _sum_level(rest.ceiling, floor), np.ones(n_repetitions, np.bool_)
    chosen, above = np.zeros(n_repetitions, np.bool_), np.zeros(n_repetitions, np.int64)
    for r in range(n_repetitions):
        for b in range(n_buckets):
            above[r] += query.values[r, b, 0] >= floor
    for _ in range(1 if merge == MIN else n_repetitions // 2 + 1):
        fewest = -1
        for r in range(n_repetitions):
            if not chosen[r] and (fewest < 0 or above[r] < above[fewest]):
                fewest = r
        chosen[fewest] = True
    return floor, chosen


@part
def _sum_level(ceiling: Float32, floor: float) -> float:
    """The level l with sum over r of min(l, ceiling[r]) = floor, and a little lower, for the rounding of the sums."""
    if floor == -np.inf:
        return floor
    level = floor / len(ceiling)
    for _ in range(len(ceiling)):
        below, above = 0.0, 0
        for r in range(len(ceiling)):
            if ceiling[r] < level:
                below += ceiling[r]
            else:
                above += 1
        if above == 0 or (floor - below) / above <= level:
            break
        level = (floor - below) / above
    return level - 1e-5 * abs(level)


@part
def _to_open(query: _Query, rest: _Rest, bound: Float32, merge: int, size: int) -> int:
    """How many buckets of the heap would have to be opened if the k-th best score stayed what it is."""
    floor = query.best_scores[0]
    level = _sum_level(bound, floor) if merge == SUM else floor
    count = 0
    for i in range(size):
        count += -rest.heap_values[i] >= level
    return count


@part
def _fill_heap(query: _Query, rest: _Rest, first: Int64, level: float, chosen: Array) -> int:
    """Put what is to be opened into the heap: not yet open, of a chosen repetition, at or above the level. How many."""
    n_repetitions, n_buckets, _ = query.values.shape
    size = 0
    for r in range(n_repetitions):
        if chosen[r] and rest.ceiling[r] >= level:
            below = np.float32(-np.inf)
            for b in range(n_buckets):
                value = query.values[r, b, 0]
                if value >= level and b != first[r]:
                    rest.heap_values[size], rest.heap_buckets[size] = -value, r * n_buckets + b
                    rest.left[r] += 1
                    size += 1
                elif value < level:
                    below = max(below, value)
            rest.ceiling[r] = below
    for hole in range(size // 2 - 1, -1, -1):
        sift_down(rest.heap_values, rest.heap_buckets, size, hole, rest.heap_values[hole], rest.heap_buckets[hole])
    return size
