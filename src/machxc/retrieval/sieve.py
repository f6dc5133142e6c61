"""Exact top-k of very many labels, where scores are sums: most labels are ruled out before any of them is scored.

Open the best buckets of every repetition, down to a level next[r]. A label that is in the open buckets of some
repetitions scores at most

    sum of next[r] over all r  +  sum of its gains,         gain: value of its open bucket - next[r]

so it can be among the k best only if its gains add up to what the k-th best score is above the sum of the levels, its
*dues*. The search (`machxc.retrieval.search`) scores every member of an open bucket, R lookups each, most of them in
vain: nearly all are in one open bucket only. The sieve adds up gains instead, in a table of 8-bit cells that stays in
the cache, a cell for all labels with the same lower bits: one addition a member. Others in its cell can only add to
what a label seems to have gained; it is scored as soon as its cell has its dues.

A query takes passes over the members of open buckets. *Probes*, of few buckets and then more, score the labels of
the fullest cells, to find a k-th best score: often it is the final one. Given that, a *plan*: the levels that make the
proof cheapest. Opening one more bucket costs the same in every repetition, so they are those of a Lagrange multiplier:
each repetition minimises its open buckets + multiplier * next[r]. Last the *proof*: all labels that have their dues
are scored. How full cells are by chance is known beforehand: what falls into one is a compound Poisson distribution.
If a plan says that the proof would take longer than a scan of all labels, nothing is proven and the caller scans.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from machxc.compiled import kernel, part
from machxc.retrieval.estimators import SUM
from machxc.retrieval.heap import best_first, offer, offer_once
from machxc.retrieval.scoring import (
    Integer,
    Lookup,
    find_members,
    is_seen,
    places,
    rest_of,
    score_those,
)
from machxc.samples import Array, Float32, Int64, UInt32

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

_SHALLOW, DEEP = 64, 256  # buckets of a repetition that can be opened, at first and at most
_FIRST_PROBE, _DEEPER = 4, 4  # buckets a repetition that a first probe opens, and how many times as many the next
_CELLS = 1 << 19  # half of a core's second-level cache
_LOWER = np.uint32(_CELLS - 1)  # the bits of a label that tell its cell
_CHUNK = 512  # members looked up at a time, and labels scored at a time
_TOP = 255  # a full cell
_LARGEST_GAIN, _UNITS = 64.0, 128  # the largest gain of a probe, and the dues of a proof, in units of a cell
_PROBED_FOR_EACH, _PROBED = 4, 2048  # cells that a probe looks into: so many for each of the k, and at least
_SCORED = 16.0  # how much longer a label takes to be scored than a member of a bucket to be sieved: measured
_MULTIPLIERS, _STEP = 48, 1.4  # how many are tried, and the factor between them


class _Sieve(NamedTuple):
    """One query. ``values`` [R, B, 1]; its k best so far; ``rest`` as `score_those` wants it.

    ``tops`` and ``buckets`` [R, DEEP]: the ``depth[0]`` best values of each repetition, falling, and which they are;
    ``open`` [R]: how many of them are open; ``cells`` uint8: gains, by a label's lower bits; the rest is scratch.
    """

    values: Float32
    best_scores: Float32
    best_labels: Int64
    rest: Float32
    depth: Int64
    tops: Float32
    buckets: Int64
    open: Int64
    cells: UInt8
    chance: Float64
    members: UInt32
    waiting: UInt32
    scores: Float32
    scratch: UInt32


@kernel
def sieve(
    values: Float32,
    lookup: Lookup,
    seen: Array,
    probes: float,
    limit: float,
    best_scores: Float32,
    best_labels: Int64,
    proven: Array,
) -> None:
    """The k best labels of n queries by their sums; ``proven[i]`` tells whether they are known to be.

    If not, they are good labels with their scores, but better ones may be missing. ``values`` float32 [n, R, B];
    ``limit``: how many members of buckets may be looked at (a label that is scored counts for 16), ``probes`` of them
    before the proof; ``best_scores`` and ``best_labels`` [n, k] as in `machxc.retrieval.scan.scan`; ``proven`` bool
    [n].
    """
    n, n_repetitions, _ = values.shape
    tops = np.empty((n_repetitions, DEEP), np.float32)
    buckets = np.empty((n_repetitions, DEEP), np.int64)
    opened, rest = np.empty(n_repetitions, np.int64), np.empty(n_repetitions, np.float32)
    cells, chance = np.empty(_CELLS, np.uint8), np.empty(_TOP + 1, np.float64)
    members, waiting = np.empty(_CHUNK, np.uint32), np.empty(2 * _CHUNK, np.uint32)
    scores, scratch = np.empty(2 * _CHUNK, np.float32), np.empty(2 * _CHUNK, np.uint32)
    for i in range(n):
        rest_of(values[i], SUM, rest)
        one = _Sieve(
            values[i], best_scores[i], best_labels[i], rest, np.zeros(1, np.int64), tops, buckets, opened,
            cells, chance, members, waiting, scores, scratch,
        )  # fmt: skip
        proven[i] = _sieve_one(one, lookup, seen, probes, limit)
        best_first(best_scores[i], best_labels[i])


@part
def _sieve_one(one: _Sieve, lookup: Lookup, seen: Array, probes: float, limit: float) -> bool:
    """Probe deeper as long as the proof would take longer than the next probe; then prove, if the limit allows."""
    most = min(DEEP, lookup.n_buckets) - 1  # the value after the last open bucket must be known
    if most == 0:
        return False
    a_bucket = len(one.open) * lookup.n_labels / lookup.n_buckets  # members of a bucket in every repetition
    n_open = _FIRST_PROBE
    while True:
        n_open = max(1, min(n_open, most, int(probes / a_bucket)))
        _find_best_buckets(one, min(_SHALLOW if n_open < _SHALLOW else DEEP, lookup.n_buckets))
        _probe(one, lookup, seen, n_open)
        probes, limit = probes - n_open * a_bucket, limit - n_open * a_bucket
        cost = _plan(one, lookup, limit)
        deeper = min(n_open * _DEEPER, most, int(probes / a_bucket))
        if cost <= deeper * a_bucket or 2 * deeper <= 3 * n_open:
            break
        n_open = deeper
    if cost < limit:
        _prove(one, lookup, seen)
    return bool(cost < limit)


@part
def _find_best_buckets(one: _Sieve, depth: int) -> None:
    if one.depth[0] < depth:
        one.depth[0] = depth
        for r in range(len(one.open)):
            _best_buckets(one.values[r], one.tops[r][:depth], one.buckets[r][:depth])


@part
def _best_buckets(values: Float32, tops: Float32, buckets: Int64) -> None:
    """The best of B values, falling, and where they are; of equal ones the first."""
    tops[:], buckets[:] = -np.inf, len(values)
    for start in range(0, len(values), 16):
        reached = 0
        for b in range(start, min(start + 16, len(values))):  # a plain count, so that it vectorises
            reached += values[b] > tops[0]
        if reached:
            for b in range(start, min(start + 16, len(values))):
                offer(tops, buckets, values[b], b)
    best_first(tops, buckets)


@part
def _probe(one: _Sieve, lookup: Lookup, seen: Array, n_open: int) -> None:
    """Open so many buckets in every repetition, and score the labels of cells that are fuller than chance explains."""
    one.open[:] = n_open
    largest = _spread(one, n_open)
    unit = max(largest / _LARGEST_GAIN, 1e-30)
    wanted = max(_PROBED, _PROBED_FOR_EACH * len(one.best_scores)) / _CELLS
    _fill_by_chance(one, lookup, unit, _TOP)
    while one.chance[_TOP] > wanted and unit < largest:  # cells would run over
        unit *= 2.0
        _fill_by_chance(one, lookup, unit, _TOP)
    least, above = _TOP, one.chance[_TOP]
    while least > 1 and above + one.chance[least - 1] <= wanted:
        least -= 1
        above += one.chance[least]
    one.cells[:] = 0
    _pass(one, lookup, seen, unit, least, rising=False)


@part
def _spread(one: _Sieve, n: Integer) -> float:
    """How far the value after the n best of a repetition is below the best one, at most."""
    spread = 0.0
    for r in range(len(one.open)):
        gain = float(one.tops[r, 0] - one.tops[r, n])
        spread = gain if gain > spread else spread
    return spread


@part
def _plan(one: _Sieve, lookup: Lookup, limit: float) -> float:
    """Open what makes the proof cheapest; its cost, in members of buckets, or the limit if it is not below that."""
    members = lookup.n_labels / lookup.n_buckets
    spread = _spread(one, one.depth[0] - 1)
    if one.best_scores[0] == -np.inf or spread <= 0:
        return limit
    multiplier, cheapest, best = 0.1 / spread, limit, -1.0
    for _ in range(_MULTIPLIERS):
        n_open = _set_levels(one, multiplier)
        if n_open * members >= cheapest:
            break
        dues = _dues(one)
        if dues > 0:
            cost = members * (n_open + _SCORED * _likely(one, lookup, dues))
            if cost < cheapest:
                cheapest, best = cost, multiplier
        multiplier *= _STEP
    if best > 0:
        _set_levels(one, best)
    return cheapest


@part
def _set_levels(one: _Sieve, multiplier: float) -> int:
    """Open what a multiplier says; how many buckets that is."""
    n_open = 0
    for r in range(len(one.open)):
        least = np.inf
        for n in range(one.depth[0]):
            cost = n + multiplier * float(one.tops[r, n])
            if cost < least:
                least, one.open[r] = cost, n
        n_open += one.open[r]
    return n_open


@part
def _likely(one: _Sieve, lookup: Lookup, dues: float) -> float:
    """How many open buckets the members would fill that seem to have their dues, with what else is in their cells."""
    counts = _fill_by_chance(one, lookup, dues / _UNITS, _UNITS)
    total, enough = 0.0, one.chance[_UNITS]  # the probability that others have what a gain of 0 lacks
    for gain in range(_UNITS + 1):
        total += counts[gain] * enough
        enough += one.chance[_UNITS - 1 - gain] if gain < _UNITS else 0.0
    return total


@part
def _fill_by_chance(one: _Sieve, lookup: Lookup, unit: float, top: int) -> Float64:
    """chance[x] = the probability that what falls into a cell from open buckets is x units; for ``top``: or more.

    Gains come to a cell as a Poisson process; their sum has a compound distribution, by Panjer's recursion (1981).
    Returns how many open buckets have each gain, the last that or more.
    """
    counts = np.zeros(top + 1, np.float64)
    for r in range(len(one.open)):
        for i in range(one.open[r]):
            counts[_in_units(one, r, i, unit, top)] += 1.0
    rate = lookup.n_labels / lookup.n_buckets / _CELLS  # of members of one bucket
    chance = one.chance
    chance[0] = np.exp(-rate * counts[1:].sum())
    below = chance[0]
    for x in range(1, top):
        total = 0.0
        for gain in range(1, x + 1):
            total += gain * counts[gain] * chance[x - gain]
        chance[x] = total * rate / x
        below += chance[x]
    chance[top] = max(0.0, 1.0 - below)
    return counts


@part
def _in_units(one: _Sieve, r: Integer, i: Integer, unit: float, top: int) -> int:
    """The gain of open bucket i of repetition r, rounded up, and at most ``top``."""
    return int(min(np.ceil((one.tops[r, i] - one.tops[r, one.open[r]]) / unit), top))


@part
def _prove(one: _Sieve, lookup: Lookup, seen: Array) -> None:
    """Score every label that has its dues."""
    unit = _dues(one) / _UNITS
    one.cells[:] = 0
    _pass(one, lookup, seen, unit, _dues_in(one, unit), rising=True)


@part
def _dues(one: _Sieve) -> float:
    """What the gains of a label must add up to if it is among the k best."""
    total = 0.0
    for r in range(len(one.open)):
        total += float(one.tops[r, one.open[r]])
    return float(one.best_scores[0]) - total - float(one.rest[-1])  # after the last repetition the rest is rounding


@part
def _dues_in(one: _Sieve, unit: float) -> int:
    return max(0, min(_TOP, int(_dues(one) / unit)))


@part
def _pass(one: _Sieve, lookup: Lookup, seen: Array, unit: float, least: int, rising: bool) -> None:
    """Add up the gains of the members of all open buckets; score the labels whose cell has ``least`` then.

    A label's last member is added when all its gains are there, so none that has enough is missed. Gains are rounded up
    to units. ``rising``: ``least`` is the dues, which rise with the k-th best score.
    """
    waiting: Integer = np.int64(0)
    for r in range(len(one.open)):
        for i in range(one.open[r]):
            gain = _in_units(one, r, i, unit, _TOP)
            start, stop = places(lookup, r, one.buckets[r, i])
            for place in range(start, stop, _CHUNK):
                n = min(_CHUNK, stop - place)
                find_members(lookup, r, place, n, one.members)
                waiting = _add_and_pick(one, n, gain, least, waiting)
                if waiting >= _CHUNK:
                    _score(one, lookup, seen, waiting)
                    waiting = np.int64(0)
                    if rising:
                        least = _dues_in(one, unit)
    _score(one, lookup, seen, waiting)


@part
def _add_and_pick(one: _Sieve, n: Integer, gain: int, least: int, waiting: Integer) -> Integer:
    """Add a gain to the cells of n members, up to what a cell can hold; append those whose cell has ``least`` then to
    the labels waiting to be scored; how many wait then."""
    units, room, enough = np.uint8(gain), np.uint8(_TOP - gain), np.uint8(least)
    for j in range(n):
        label = one.members[j]
        cell = label & _LOWER
        content = one.cells[cell]
        content = np.uint8(content + units) if content <= room else np.uint8(_TOP)
        one.cells[cell] = content
        one.waiting[waiting] = label
        waiting += content >= enough
    return waiting


@part
def _score(one: _Sieve, lookup: Lookup, seen: Array, n: Integer) -> None:
    """Score the waiting labels and keep the best."""
    kept: Integer = np.int64(0)
    for j in range(n):
        label = one.waiting[j]
        one.waiting[kept] = label
        kept += label < lookup.n_labels and is_seen(seen, label)
    floor = one.best_scores[0]
    kept = score_those(one.values, lookup, one.waiting, kept, SUM, one.rest, floor, one.scratch, one.scores)
    for j in range(kept):
        offer_once(one.best_scores, one.best_labels, one.scores[j], np.int64(one.waiting[j]))
