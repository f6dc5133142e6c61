"""The buckets that stand out: of each repetition those furthest above its mean, in order.

How far above the mean is the same for all repetitions, not how many: a repetition that knows a lot about a query has
more of them than one that knows nothing. The bound is the order statistic of a sample, so nothing is sorted but what
is listed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from machxc.compiled import fast_kernel, part
from machxc.retrieval.heap import best_first, offer, sift_down
from machxc.retrieval.scoring import Integer, extremes
from machxc.samples import Float32, Int64

_SAMPLE = 4096  # values looked at for the bound
_BLOCK = 16  # values between two looks at whether one is to be listed


class Tops(NamedTuple):
    """``values`` and ``buckets`` [room]: those of repetition r lie at ``starts[r]`` to ``starts[r + 1]``, falling.

    ``below`` [R]: no bucket that is not listed has a value above it; ``means`` [R]. ``corners`` [room + R]: see
    `find_corners`; those of repetition r start at ``starts[r] + r``, and ``last_corner[r]`` is the place of the last.
    """

    values: Float32
    buckets: Int64
    starts: Int64
    below: Float32
    means: Float32
    corners: Int64
    last_corner: Int64


@part
def new_tops(n_repetitions: int, room: int) -> Tops:
    """Room for so many buckets of all repetitions together."""
    return Tops(
        np.empty(room, np.float32), np.empty(room, np.int64), np.zeros(n_repetitions + 1, np.int64),
        np.empty(n_repetitions, np.float32), np.empty(n_repetitions, np.float32),
        np.empty(room + n_repetitions, np.int64), np.empty(n_repetitions, np.int64),
    )  # fmt: skip


@part
def list_tops(values: Float32, wanted: Integer, tops: Tops) -> None:
    """List about ``wanted`` buckets of values [R, B]: fewer, or none, where too many are alike."""
    for r in range(len(values)):
        tops.means[r] = mean(values[r])
    bounds = _highest_of_sample(values, tops.means, wanted)
    place = len(bounds) - 1
    while place > 0 and _count(values, tops.means, bounds[place]) > len(tops.values):
        place //= 2
    bound = bounds[place]
    if place == 0 and _count(values, tops.means, bound) > len(tops.values):
        bound = np.float32(np.inf)
    _list(values, bound, tops)


@part
def level(tops: Tops, r: Integer, n: Integer) -> float:
    """The best value of repetition r when its n best buckets are taken away, or a little more."""
    place = tops.starts[r] + n
    return float(tops.values[place] if place < tops.starts[r + 1] else tops.below[r])


@part
def find_corners(tops: Tops) -> None:
    """Which numbers of buckets are worth opening: the corners of the convex hull below the curve of `level`.

    Between them, another bucket would lower the level by less than the next corner does a bucket.
    """
    for r in range(len(tops.below)):
        n_listed = tops.starts[r + 1] - tops.starts[r]
        levels = tops.values[tops.starts[r] : tops.starts[r + 1]]
        corners = tops.corners[tops.starts[r] + r : tops.starts[r + 1] + r + 1]
        last = 0
        corners[0] = 0
        for n in range(1, n_listed + 1):
            lowest = np.float64(levels[n] if n < n_listed else tops.below[r])
            while last:
                before, corner = corners[last - 1], corners[last]
                high, low = np.float64(levels[before]), np.float64(levels[corner])
                if (high - low) * (n - corner) > (low - lowest) * (corner - before):  # slopes, without a division
                    break
                last -= 1
            last += 1
            corners[last] = n
        tops.last_corner[r] = last


@part
def _fall(tops: Tops, r: Integer, some: Integer, more: Integer) -> float:
    """By how much the level falls for each bucket, from some open ones to more."""
    return (level(tops, r, some) - level(tops, r, more)) / (more - some)


@part
def open_corners(tops: Tops, multiplier: float, at: Int64, n_open: Int64) -> int:
    """Move on to the last corner whose buckets each lower the level by 1 / multiplier or more; how many are open.

    ``at`` [R]: the corner of each repetition, zeros at first; ``n_open`` [R] receives how many buckets that is.
    """
    total = 0
    for r in range(len(at)):
        corners = tops.corners[tops.starts[r] + r :]
        while at[r] < tops.last_corner[r] and (_fall(tops, r, corners[at[r]], corners[at[r] + 1]) * multiplier >= 1.0):
            at[r] += 1
        n_open[r] = corners[at[r]]
        total += n_open[r]
    return total


@part
def open_highest(tops: Tops, wanted: Integer, n_open: Int64) -> int:
    """Open the ``wanted`` buckets that stand out most, fewer if others are like the last; how many.

    At least the best bucket of each repetition that has one listed.
    """
    low, high = np.inf, -np.inf
    for r in range(len(n_open)):
        low = min(low, float(tops.below[r] - tops.means[r]))
        high = max(high, level(tops, r, 0) - float(tops.means[r]))
    for _ in range(30):
        middle = (low + high) / 2
        if _open_above(tops, middle, n_open) > wanted:
            low = middle
        else:
            high = middle
    _open_above(tops, high, n_open)
    total = 0
    for r in range(len(n_open)):
        n_open[r] = min(max(n_open[r], 1), tops.starts[r + 1] - tops.starts[r])
        total += n_open[r]
    return total


@part
def _open_above(tops: Tops, bound: float, n_open: Int64) -> int:
    total = 0
    for r in range(len(n_open)):
        low, high = tops.starts[r], tops.starts[r + 1]
        while low < high:
            middle = (low + high) // 2
            if tops.values[middle] - tops.means[r] > bound:
                low = middle + 1
            else:
                high = middle
        n_open[r] = low - tops.starts[r]
        total += n_open[r]
    return total


@part
def _highest_of_sample(values: Float32, means: Float32, wanted: Integer) -> Float32:
    """How far above their means the highest of a sample are, falling: the last, as far as about ``wanted`` of all."""
    n_buckets = values.shape[1]
    step = max(1, values.size // _SAMPLE)
    n_highest = max(1, min(values.size // step, wanted // step))
    highest, places = np.full(n_highest, -np.inf, np.float32), np.zeros(n_highest, np.int64)
    for place in range(0, values.size, step):
        r = place // n_buckets
        offer(highest, places, values[r, place - r * n_buckets] - means[r], place)
    best_first(highest, places)
    return highest


@part
def _count(values: Float32, means: Float32, bound: np.float32) -> int:
    total = 0
    for r in range(len(values)):
        total += _above(values[r], means[r] + bound)
    return total


@part
def _above(row: Float32, bound: np.float32) -> int:
    count = 0
    for b in range(len(row)):  # a plain count, so that it vectorises
        count += row[b] > bound
    return count


@part
def _list(values: Float32, bound: np.float32, tops: Tops) -> None:
    """List, in order, the buckets that are further than the bound above the mean of their repetition."""
    n: Integer = np.int64(0)
    for r in range(len(values)):
        row, least = values[r], tops.means[r] + bound
        tops.starts[r] = n
        for start in range(0, len(row), _BLOCK):
            block = row[start : start + _BLOCK]
            if _above(block, least):
                for b in range(len(block)):
                    if block[b] > least:
                        tops.values[n], tops.buckets[n] = block[b], start + b
                        n += 1
        tops.starts[r + 1] = n
        _sort(tops.values[tops.starts[r] : n], tops.buckets[tops.starts[r] : n])
        tops.below[r] = least if n > tops.starts[r] else extremes(row)[0]


@part
def _sort(values: Float32, buckets: Int64) -> None:
    for hole in range(len(values) // 2 - 1, -1, -1):
        sift_down(values, buckets, len(values), hole, values[hole], buckets[hole])
    best_first(values, buckets)


@fast_kernel
def mean(row: Float32) -> np.float32:
    """The mean; where order may change, vector by vector."""
    total = np.float32(0.0)
    for b in range(len(row)):
        total += row[b]
    return total / np.float32(len(row))
