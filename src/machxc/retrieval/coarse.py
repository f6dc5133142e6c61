"""A scan of very many labels for one query, where scores are sums: values rounded up to 8 bits rule most labels out.

What a label's R buckets have above the means of their repetitions, rounded up to units, adds up to a bound on its
score. The table of a repetition then stays in the first-level cache, and whole vectors of bounds are added up; only a
label whose bound reaches the k-th best score so far is scored. A value that alone is enough for that score needs no
more units than the score does, so units are small where a few buckets stand out; they are set anew as it rises.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from machxc.compiled import kernel, part
from machxc.retrieval.estimators import SUM
from machxc.retrieval.heap import best_first, offer_once
from machxc.retrieval.scoring import Integer, Lookup, extremes, find_buckets_of, is_seen, keep, rest_of, score_those
from machxc.retrieval.tops import mean
from machxc.samples import Array, Float32, Int64, UInt32

_BLOCK = 2048  # labels
_TOP = 255  # units
_UNCAPPED = 1 << 16  # more than any label has
_LOOKS = 8  # repetitions between two looks at whether a label can still be among the best


@kernel
def coarse_scan(values: Float32, lookup: Lookup, seen: Array, best_scores: Float32, best_labels: Int64) -> None:
    """The k best of all labels by their sums of values [R, B], R at most 256.

    ``best_scores`` and ``best_labels`` [k]; they, and ``seen``, are as in `machxc.retrieval.scan.scan`.
    """
    n_repetitions = len(values)
    rest, units_rest = np.empty(n_repetitions, np.float32), np.empty(n_repetitions, np.int64)
    rest_of(values, np.int64(SUM), rest)
    table, bounds = np.empty(values.shape, np.uint8), np.empty(_BLOCK, np.uint16)
    labels, buckets = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    scores = np.empty(_BLOCK, np.float32)
    total, unit, most, helps = 0.0, 0.0, 0, False
    for start in range(0, lookup.n_labels, _BLOCK):
        block = start // _BLOCK
        if block & (block - 1) == 0 and most <= _TOP:  # ever more seldom: the floor rises ever more slowly
            total, unit, most = _round_up(values, float(best_scores[0]), table, units_rest)
            helps = unit > 0
        n: Integer = min(_BLOCK, lookup.n_labels - start)
        for j in range(n):
            labels[j] = start + j
        if helps:
            dues = (float(best_scores[0]) - total - float(rest[-1])) / unit
            left = _rule_out(table, units_rest, lookup, labels, n, max(0, min(most, int(dues))), buckets, bounds)
            helps, n = 3 * left < 2 * n, left
        n = score_those(values, lookup, labels, n, np.int64(SUM), rest, best_scores[0], buckets, scores)
        for j in range(n):
            if scores[j] >= best_scores[0] and is_seen(seen, labels[j]):
                offer_once(best_scores, best_labels, scores[j], np.int64(labels[j]))
    best_first(best_scores, best_labels)


@part
def _round_up(values: Float32, floor: float, table: Array, units_rest: Int64) -> tuple[float, float, int]:
    """table = how far values are above the means of their repetitions, rounded up to units, at most 255 of them.

    Returns the sum of the means, the unit (0: nothing is above them, or the floor is below that sum), and how many
    units a label can be asked for. ``units_rest[r]``: how many units the repetitions after r can add.
    """
    total, largest = 0.0, 0.0
    means = np.empty(len(values), np.float32)
    for r in range(len(values)):
        means[r] = mean(values[r])
        total += float(means[r])
        largest = max(largest, extremes(values[r])[0] - float(means[r]))
    unit = min(largest, floor - total) / _TOP
    if not unit > 0:
        return total, 0.0, 0
    more: Integer = np.int64(0)
    for r in range(len(values) - 1, -1, -1):
        row, out, below = values[r], table[r], float(means[r])
        units_rest[r], most = more, np.uint8(0)
        for b in range(len(row)):
            out[b] = np.uint8(min(max(np.ceil((float(row[b]) - below) / unit), 0.0), 255.0))
            most = max(most, out[b])
        more += np.int64(most)
    return total, unit, _TOP if unit * _TOP < largest else _UNCAPPED


@part
def _rule_out(
    table: Array,
    units_rest: Int64,
    lookup: Lookup,
    labels: UInt32,
    n: Integer,
    dues: int,
    buckets: UInt32,
    bounds: npt.NDArray[np.uint16],
) -> Integer:
    """Move the labels whose units add up to the dues to the front; how many."""
    bounds[:n] = 0
    last = len(table) - 1
    for r in range(len(table)):
        row = table[r]
        find_buckets_of(lookup, r, labels, n, buckets)
        for j in range(n):
            bounds[j] += row[buckets[j]]
        if r % _LOOKS == _LOOKS - 1 and r < last:
            n = keep(labels, n, bounds, np.uint16(max(0, dues - units_rest[r])))
    kept: Integer = np.int64(0)
    for j in range(n):
        if bounds[j] >= dues:  # few: a branch costs less than to store them all
            labels[kept] = labels[j]
            kept += 1
    return kept
