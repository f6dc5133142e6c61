"""Scores and labels as one integer each, which is the larger the better: by the score, equal ones by the smaller label.

Where k is large, sorting keys takes a fraction of the time of a heap that every label is offered to: first a bound is
found that about k scores reach, and only theirs become keys.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import inline, part
from machxc.retrieval.heap import NO_LABEL
from machxc.retrieval.scoring import Integer
from machxc.samples import Float32, Int64

_FEW = 128  # keys: comparing all with all takes less time than a heap of a hundred of them


@inline
def key_of(score: np.float32, label: Integer) -> np.int64:
    """The key of a score, not NaN, and a label."""
    bits = np.float32(score + np.float32(0.0)).view(np.int32)  # -0.0 + 0.0 is 0.0, its equal
    return (np.int64(_order(bits)) << 32) | (np.int64(NO_LABEL) - np.int64(label))


@part
def take_best(keys: Int64, n: Integer, scores: Float32, labels: Int64) -> None:
    """The best of n keys, best first, into ``scores`` and ``labels`` [k], as many as there are; reorders ``keys``.

    Few keys (all of them differ): each goes to the place that is the number of larger ones, which vectorises. Others:
    by a heap with the best at its root.
    """
    if n <= _FEW:
        _take_by_rank(keys[:n], scores, labels)
        return
    for hole in range(n // 2 - 1, -1, -1):
        _sift_down(keys, n, hole, np.int64(keys[hole]))
    for i in range(min(n, len(scores))):
        key, last = np.int64(keys[0]), np.int64(keys[n - 1])
        _put(key, i, scores, labels)
        n -= 1
        _sift_down(keys, n, np.int64(0), last)


@part
def _take_by_rank(keys: Int64, scores: Float32, labels: Int64) -> None:
    n = len(keys)
    for i in range(n):
        key, rank = np.int64(keys[i]), np.int64(0)
        for j in range(n):
            rank += np.int64(keys[j] > key)
        if rank < len(scores):
            _put(key, rank, scores, labels)


@inline
def _put(key: np.int64, i: Integer, scores: Float32, labels: Int64) -> None:
    """The score and the label of a key into place i."""
    scores[i] = np.int32(_order(np.int32(key >> 32))).view(np.float32)
    labels[i] = NO_LABEL - (key & 0xFFFFFFFF)


@part
def _sift_down(keys: Int64, size: Integer, hole: Integer, key: Integer) -> None:
    """Put a key into the hole of a heap of ``size`` keys, or below it, so that the largest is first."""
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size:
            child += keys[child + 1] > keys[child]
        if keys[child] <= key:
            break
        keys[hole] = keys[child]
        hole = child
    keys[hole] = key


@part
def nth_largest(numbers: Float32, n: Integer) -> np.float32:
    """A number that n of ``numbers`` reach, or more where some are equal; the least of them if they are fewer.

    By halving the range between the smallest and the largest: each time they are only counted, which vectorises.
    """
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    bits = numbers.view(np.int32)
    for i in range(len(bits)):
        low, high = min(low, _order(bits[i])), max(high, _order(bits[i]))
    count = len(numbers)
    while low < high and count > n:
        middle = np.int32(np.int64(low) + (np.int64(high) - np.int64(low) + 1) // 2)
        bound = np.int32(_order(middle)).view(np.float32)
        reached = 0
        for i in range(len(numbers)):
            reached += numbers[i] >= bound
        if reached >= n:
            low, count = middle, reached
        else:
            high = np.int32(middle - 1)
    return np.int32(_order(low)).view(np.float32)


@inline
def _order(bits: np.int32) -> np.int32:
    """The bits of a float32 as an integer that is the larger the larger the number is; its own inverse."""
    ordered: np.int32 = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return ordered
