"""Exact top-k of very many labels, where scores are sums: most labels are ruled out before any of them is scored.

Open the best buckets of every repetition, down to a level next[r]. A label that is in the open buckets of some
repetitions scores at most

    sum of next[r] over all r  +  sum of its gains,         gain: value of its open bucket - next[r]

so it can be among the k best only if its gains add up to what the k-th best score is above the sum of the levels, its
*dues*. The search (`machxc.retrieval.search`) scores every member of an open bucket, R lookups each, most of them in
vain: nearly all are in one open bucket only. The sieve adds up gains instead, in a table of 8-bit cells that stays in
the caches, a cell for all labels with the same lower bits: one addition a member. Others in its cell can only add to
what a label seems to have gained; it is scored as soon as its cell has its dues. Small gains are added first: most
cells that reach the dues do so by the last gains then, of which there are few, and few labels are scored in vain.

A query takes passes over the members of open buckets. *Probes* open those that stand out most and score the labels
of the fullest cells, to find a k-th best score: often it is the final one. Given that, a *plan*: the levels, and the
number of cells, that make the proof cheapest. Opening one more bucket costs the same in every repetition, so the levels
are those of a Lagrange multiplier: each repetition minimises its open buckets + multiplier * next[r]. Last the *proof*:
all labels that have their dues are scored. How full cells are by chance is known beforehand, after each size of gain:
what has fallen into one is a compound Poisson distribution. If a plan says that the proof would take more than half of
a scan of all labels, nothing is proven and the caller scans.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from machxc.compiled import inline, kernel, part, prefetch
from machxc.retrieval.chance import Float64, reached
from machxc.retrieval.estimators import SUM
from machxc.retrieval.heap import ROOT, best_first, offer_once
from machxc.retrieval.scoring import (
    Integer,
    Lookup,
    find_buckets_of,
    find_members,
    is_seen,
    keep,
    places,
    rest_of,
    score_those,
)
from machxc.retrieval.tops import Tops, find_corners, level, list_tops, new_tops, open_corners, open_highest
from machxc.samples import Array, Float32, Int64, UInt32

UInt8 = npt.NDArray[np.uint8]

_FEWEST_BITS, _MOST_BITS = 20, 23  # of a label, that tell its cell: tables from a second-level cache to a third-level
_CHUNK = 512  # members looked up at a time
_SCORED, _LOOKED_AT = 25.0, 15.0  # see `_price`: what a label costs that is scored, or looked at and mostly ruled out
_WAITING = 4096  # labels scored at a time: each time the values of all buckets are fetched
_TOP = 255  # a full cell
_UNITS = 128  # what a label needs to be scored, in units of a cell
_FIRST_PROBE = 1_000_000.0  # cost: see `_price`
_FIRST_SHARE = 0.25  # of what is for probes, if that is less
_DEEPER = 4.0  # times the cost of the last probe is that of the next
_OF_PROOF, _OF_LIMIT = 1 / 16, 1 / 8  # what a probe may cost, of the proof planned, or of the limit where there is none
_SURE = 1 / 2  # of the limit: a proof planned to take longer may take longer than what it replaces, as far as plans err
_HOPEFUL = 8.0  # times as much is for probes where a proof is to be hoped for
_PROBE, _PLAN, _HOPE, _PROVE, _LAST = 0, 1, 2, 3, 4  # steps of a query
_PROBE_BITS, _CROWDED = 21, 2.4  # of a label, that tell its cell in a probe: more if so many members come to a cell
_SHARE = 0.5  # of a probe for members, the rest is for scoring
_LISTED, _MOST_LISTED = 2048, 1 << 15  # buckets listed at first, and at most
_AHEAD = 16  # times the cost of the last probe can be planned for: a better score may need fewer buckets than to list
_MULTIPLIERS, _STEP = 40, 1.5  # how many are tried, and the factor between them
_FILTERS, _LOOKS = 16, 4  # repetitions in which labels are looked up before they are scored; looks between
_SLACK = 4.0  # times the rounding of a sum: that of all that is taken from a bound
_HALVINGS = 8  # of the bounds between which a probe looks for its dues


class _Sieve(NamedTuple):
    """One query. ``values`` [R, B]; its k best so far; ``rest`` as `score_those` wants it; the ``tops`` of its buckets.

    ``open`` [R]: how many of the best buckets are open; ``base`` [R]: what their gains are counted from; ``bits`` [1]:
    how many of a label tell its cell. ``cells`` uint8: gains, by a label's lower bits; the rest is scratch.
    """

    values: Float32
    best_scores: Float32
    best_labels: Int64
    rest: Float32
    tops: Tops
    open: Int64
    base: Float64
    bits: Int64
    cells: UInt8
    counts: Float64
    chance: Float64
    members: UInt32
    waiting: UInt32
    bounds: Float32
    scores: Float32
    scratch: UInt32
    order: Int64


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
    ``limit``: how many members of buckets may be looked at (a label that is scored counts for 25), ``probes`` of them
    before the proof, or eight times that where a proof is to be hoped for; ``best_scores`` and ``best_labels`` [n, k]
    as in `machxc.retrieval.scan.scan`; ``proven`` bool [n].
    """
    n, n_repetitions, n_buckets = values.shape
    tops = new_tops(n_repetitions, min(2 * _MOST_LISTED, n_repetitions * n_buckets))
    opened, rest = np.zeros(n_repetitions, np.int64), np.empty(n_repetitions, np.float32)
    base, bits = np.empty(n_repetitions, np.float64), np.full(1, _FEWEST_BITS, np.int64)
    cells, members = np.empty(1 << _MOST_BITS, np.uint8), np.empty(_CHUNK, np.uint32)
    counts, chance = np.empty(_UNITS + 1, np.float64), np.empty(_UNITS + 1, np.float64)
    waiting, scratch = np.empty(_WAITING + _CHUNK, np.uint32), np.empty(_WAITING + _CHUNK, np.uint32)
    bounds, scores = np.empty(_WAITING + _CHUNK, np.float32), np.empty(_WAITING + _CHUNK, np.float32)
    order = np.empty(min(_FILTERS, n_repetitions), np.int64)
    for i in range(n):
        rest_of(values[i], np.int64(SUM), rest)
        one = _Sieve(
            values[i], best_scores[i], best_labels[i], rest, tops, opened, base, bits, cells, counts, chance,
            members, waiting, bounds, scores, scratch, order,
        )  # fmt: skip
        proven[i] = _sieve_one(one, lookup, seen, probes, limit)
        best_first(best_scores[i], best_labels[i])


@inline
def _sieve_one(one: _Sieve, lookup: Lookup, seen: Array, probes: float, limit: float) -> bool:
    """Probe, deeper and deeper as long as that is little beside the proof, or no proof is in sight; then prove.

    If the limit does not allow that, but all of it is for probes, what is left goes into a last one. (One loop, so that
    each step is compiled into one place.)
    """
    bounded, size, hopeful = probes >= limit, min(_FIRST_PROBE, probes * _FIRST_SHARE), False
    n_listed, wanted, step = 0, max(_LISTED, _to_open(lookup, size)), _PROBE
    while True:
        if wanted > n_listed and n_listed < _MOST_LISTED:
            n_listed = min(wanted, _MOST_LISTED)
            list_tops(one.values, n_listed, one.tops)
            find_corners(one.tops)
        if step != _PLAN and step != _HOPE:
            unit = (_aim(one, lookup, size) if step != _PROVE else _dues(one, np.float64(one.best_scores[0]))) / _UNITS
            if unit > 0:
                _pass(one, lookup, seen, unit, step == _PROVE)
            if step >= _PROVE:
                return bool(step == _PROVE)
            probes, limit = probes - size, limit - size
        most = limit if bounded else _SURE * limit
        cost = _plan(one, lookup, _hope(one) if step == _HOPE else np.float64(one.best_scores[0]), most)
        if step != _HOPE and cost == most:
            if n_listed < min(_MOST_LISTED, _to_open(lookup, min(limit, _AHEAD * size))):
                wanted, step = 4 * n_listed, _PLAN
                continue
            if not bounded and not hopeful:
                step = _HOPE
                continue
        if step == _HOPE:
            hopeful, cost = cost < most, most
            probes *= _HOPEFUL if hopeful else 1.0
        worth = _OF_PROOF * cost if cost < most else _OF_LIMIT * limit if bounded else probes
        if _DEEPER * size <= worth:
            size, step = _DEEPER * size, _PROBE
            wanted = _to_open(lookup, size)
        elif cost < most:
            step = _PROVE
        elif bounded:
            size, step = limit, _LAST
            wanted = _to_open(lookup, size)
        else:
            return False


@part
def _hope(one: _Sieve) -> float:
    """A score half-way between the k-th best and the best: what the k-th best may become where some labels stand out.

    A flat sketch has none so good that a proof could start from it.
    """
    best = one.best_scores[0]
    for i in range(len(one.best_scores)):
        best = max(best, one.best_scores[i])
    return (float(best) + float(one.best_scores[0])) / 2


@part
def _to_open(lookup: Lookup, cost: float) -> int:
    """How many buckets can be opened for that."""
    return int(cost * lookup.n_buckets / lookup.n_labels)


@part
def _price(lookup: Lookup, n_open: float, n_looked: float, bits: Integer) -> float:
    """What it costs to open buckets, and to look at as many labels as are in ``n_looked`` buckets, most in vain.

    The unit is what a member of a bucket takes where cells are in the second-level cache (1.3 ns). Measured.
    """
    members = lookup.n_labels / lookup.n_buckets
    return members * (n_open * (1 + (bits - _FEWEST_BITS) ** 3 / 25) + _LOOKED_AT * n_looked) + (1 << bits) / 16


@inline
def _aim(one: _Sieve, lookup: Lookup, cost: float) -> float:
    """Open the buckets that stand out most, for a probe; what a label must have above the means of all repetitions.

    So much that there is time to score as many labels as seem to have it. 0 if no bucket stands out.
    """
    if open_highest(one.tops, _to_open(lookup, _SHARE * cost), one.open) == 0:
        return 0.0
    low, high = np.inf, 0.0
    for r in range(len(one.open)):
        one.base[r] = one.tops.means[r]
        high += max(0.0, level(one.tops, r, ROOT) - one.base[r])
        if one.open[r]:
            low = min(low, level(one.tops, r, one.open[r] - 1) - one.base[r])
    low, members = max(low, 1e-30), lookup.n_labels / lookup.n_buckets
    wanted = (1 - _SHARE) * cost / members / _SCORED
    one.bits[0] = _PROBE_BITS
    while one.bits[0] < _MOST_BITS and _SHARE * cost > _CROWDED * (1 << one.bits[0]):
        one.bits[0] += 1
    for _ in range(_HALVINGS):
        dues = np.sqrt(low * high)
        _count_gains(one, dues / _UNITS)
        if _likely(one, lookup, one.bits[0]) > wanted:
            low = dues
        else:
            high = dues
    return high


@inline
def _plan(one: _Sieve, lookup: Lookup, floor: float, limit: float) -> float:
    """Open what makes the proof cheapest if the floor is the k-th best score; its cost, or the limit if not below."""
    spread = 0.0
    for r in range(len(one.open)):
        spread = max(spread, level(one.tops, r, ROOT) - float(one.tops.below[r]))
    if floor == -np.inf or spread <= 0:
        return limit
    at, best = np.zeros(len(one.open), np.int64), one.open.copy()
    multiplier, cheapest = 0.1 / spread, limit
    for _ in range(_MULTIPLIERS):
        n_open = open_corners(one.tops, multiplier, at, one.open)
        multiplier *= _STEP
        if _price(lookup, n_open, 0.0, np.int64(_FEWEST_BITS)) >= cheapest:
            break
        dues = _dues(one, floor)
        if dues > 0:
            _count_gains(one, dues / _UNITS)
            for bits in range(_FEWEST_BITS, _MOST_BITS + 1):
                cost = _price(lookup, n_open, _likely(one, lookup, bits), bits)
                if cost < cheapest:
                    cheapest, one.bits[0] = cost, bits
                    for r in range(len(best)):  # not as one assignment: its check of shapes takes a second to compile
                        best[r] = one.open[r]
    for r in range(len(best)):
        one.open[r] = best[r]
    return cheapest


@part
def _dues(one: _Sieve, floor: float) -> float:
    """What the gains of a label must add up to if it scores ``floor``; gains count from the levels then."""
    total = 0.0
    for r in range(len(one.open)):
        one.base[r] = level(one.tops, r, one.open[r])
        total += one.base[r]
    return float(floor) - total - float(one.rest[-1])  # after the last repetition the rest is rounding


@part
def _count_gains(one: _Sieve, unit: float) -> None:
    """counts[x] = how many open buckets have a gain of x units, the last that or more."""
    one.counts[:] = 0.0
    for r in range(len(one.open)):
        for i in range(one.open[r]):
            one.counts[_in_units(one, r, i, unit, np.int64(_UNITS))] += 1.0


@part
def _likely(one: _Sieve, lookup: Lookup, bits: int) -> float:
    """How many open buckets the members would fill that find their dues in their cell, smaller gains first."""
    return reached(one.counts, lookup.n_labels / lookup.n_buckets / (1 << bits), one.chance)


@part
def _in_units(one: _Sieve, r: Integer, i: Integer, unit: float, top: Integer) -> int:
    """The gain of open bucket i of repetition r, rounded up, at least 0 and at most ``top``."""
    return int(max(0.0, min(np.ceil((level(one.tops, r, i) - one.base[r]) / unit), top)))


@inline
def _pass(one: _Sieve, lookup: Lookup, seen: Array, unit: float, rising: bool) -> None:
    """Add up the gains of the members of all open buckets; score the labels whose cell has _UNITS of them then.

    A label's last member is added when all its gains are there, so none that has enough is missed. Gains are rounded up
    to units. ``rising``: that is the dues, which rise with the k-th best score.
    """
    one.cells[: 1 << one.bits[0]] = 0
    _find_order(one)
    least: Integer = np.int64(_UNITS)
    waiting: Integer = np.int64(0)
    left = one.open.copy()
    for gain in range(1, _TOP + 1):
        for r in range(len(left)):
            while left[r] and _in_units(one, r, left[r] - 1, unit, np.int64(_TOP)) <= gain:
                left[r] -= 1
                start, stop = places(lookup, r, one.tops.buckets[one.tops.starts[r] + left[r]])
                for place in range(start, stop, _CHUNK):
                    n = min(_CHUNK, stop - place)
                    find_members(lookup, r, place, n, one.members)
                    waiting = _add_and_pick(one, lookup, n, gain, least, waiting)
                    if waiting >= _WAITING:
                        _score(one, lookup, seen, waiting, unit)
                        waiting = np.int64(0)
                        if rising:
                            least = max(0, min(_TOP, int(_dues(one, np.float64(one.best_scores[0])) / unit)))
    _score(one, lookup, seen, waiting, unit)


@part
def _find_order(one: _Sieve) -> None:
    """The repetitions whose level is furthest above what most buckets have: there a closed bucket tells most."""
    taken = np.zeros(len(one.open), np.bool_)
    for i in range(len(one.order)):
        best, most = 0, -np.inf
        for r in range(len(one.open)):
            above = level(one.tops, r, one.open[r]) - float(one.tops.means[r])
            if not taken[r] and above > most:
                best, most = r, above
        taken[best] = True
        one.order[i] = best


@part
def _add_and_pick(one: _Sieve, lookup: Lookup, n: Integer, gain: int, least: Integer, waiting: Integer) -> Integer:
    """Add a gain to the cells of n members, up to what a cell can hold; append those whose cell has ``least`` then to
    the labels waiting to be scored; how many wait then."""
    lower = np.uint32((1 << one.bits[0]) - 1)
    n_labels, units, enough = np.uint32(lookup.n_labels), np.uint32(gain), np.uint32(least)
    kept: Integer = np.int64(0)
    for j in range(n):
        label = one.members[j]
        one.members[kept] = label
        kept += label < n_labels
        prefetch(one.cells, int(label & lower))
    for j in range(kept):
        label = one.members[j]
        cell = label & lower
        content = np.uint32(one.cells[cell]) + units
        if content >= enough:  # so seldom that a branch costs half of what appending them all would
            content = min(content, np.uint32(_TOP))
            one.waiting[waiting], one.bounds[waiting] = label, content
            waiting += 1
        one.cells[cell] = np.uint8(content)
    return waiting


@part
def _score(one: _Sieve, lookup: Lookup, seen: Array, n: Integer, unit: float) -> None:
    """Score the waiting labels and keep the best."""
    n = _hopeful(one, lookup, n, unit)
    kept: Integer = np.int64(0)
    for j in range(n):
        label = one.waiting[j]
        one.waiting[kept] = label
        kept += label < lookup.n_labels and is_seen(seen, label)
    floor = one.best_scores[0]
    kept = score_those(one.values, lookup, one.waiting, kept, np.int64(SUM), one.rest, floor, one.scratch, one.scores)
    for j in range(kept):
        offer_once(one.best_scores, one.best_labels, one.scores[j], np.int64(one.waiting[j]))


@part
def _hopeful(one: _Sieve, lookup: Lookup, n: Integer, unit: float) -> Integer:
    """Move the waiting labels that can still be among the k best to the front; how many.

    All gains of a label are in its cell, so it scores at most what is in there and the levels. Each of its buckets that
    is looked up lowers that: by level - base if it is open, by how far it is below the level if not. What a cell holds
    of others' gains is soon used up.
    """
    floor, levels = one.best_scores[0], 0.0
    for r in range(len(one.open)):
        levels += level(one.tops, r, one.open[r])
    if floor == -np.inf:
        return n
    for j in range(n):
        full = one.bounds[j] >= _TOP
        one.bounds[j] = np.inf if full else one.bounds[j] * unit + levels
    least = np.float32(floor - _SLACK * one.rest[-1])
    for i in range(len(one.order)):
        r = one.order[i]
        row, high = one.values[r], np.float32(level(one.tops, r, one.open[r]))
        low = np.float32(one.base[r])
        find_buckets_of(lookup, r, one.waiting, n, one.scratch)
        for j in range(n):
            value = row[one.scratch[j]]
            one.bounds[j] -= high - (low if value > high else value)
        if i % _LOOKS == _LOOKS - 1:
            n = keep(one.waiting, n, one.bounds, least)
    return n
