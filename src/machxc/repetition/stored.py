"""How the weights of a linear repetition are stored: row by row, those that are kept, in 2 bytes each or 4.

An entry is one number. Its lowest 8 bits say what it weighs, those above where it is:

    weight   one of at most 255 ``levels``, float32, which a repetition has of its own; close together where its weights
             are. The levels are numbered from 1: level 0 is 0.
    bucket   wide entries, uint32: the bucket itself, below 2**24.
             Narrow entries, uint16: how far it is from the bucket of the entry before, at most 255, or from 0 if it is
             the row's first. Where it is further, entries of level 0 stand in between, each 255 further: they add 0.

Entries are narrow where that takes less room: unless rows have few entries among very many buckets. Whoever makes a
repetition calls `pack`, whoever wants its weights back `unpack`; scorers read entries as they are, from a memory map.
Of each row its length is stored, in 1, 2 or 4 bytes: where rows start follows (`starts_of`). Of few buckets that are
in many rows, a bit a bucket and row says which are, instead of lengths and steps: `rows_of` makes narrow entries of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from machxc.compiled import inline, kernel
from machxc.config import LEVELS
from machxc.repetition.arithmetic import UInt16
from machxc.repetition.bfloat import from_bfloat
from machxc.repetition.lengths import MOST_DENSE, narrowed
from machxc.samples import Array, Float32, Int64, UInt32, frozen, starts_of

_FURTHEST = 255  # from one narrow entry to the next
_ROUNDS = 8  # of moving levels to where they are best

Entries = UInt16 | UInt32
_UInt8 = npt.NDArray[np.uint8]


def pack(starts: Int64, buckets: UInt16 | UInt32, weights: UInt16, n_buckets: int | None = None) -> dict[str, Array]:
    """Rows of weights as they are stored: the tensors ``lengths``, ``entries`` and ``levels`` by name.

    Given B (``n_buckets``), where that takes less room: ``present`` uint8 [rows, ceil(B / 8)], bits (the least
    significant first), ``codes`` uint8, the levels of those that are, and ``levels``.

    Row i has the weights starts[i] to starts[i + 1] (int64 [rows + 1]), in rising order of their ``buckets`` (below
    2**24); ``weights`` are the bits of finite bfloat16 numbers (see `to_bfloat`). Each becomes the level nearest to it.
    """
    times = np.zeros(1 << 16, np.int64)
    _count_times(weights, times)
    levels, codes = _levels(times)
    if n_buckets is not None and _is_dense(len(starts) - 1, len(buckets), n_buckets):
        table = np.zeros((len(starts) - 1, n_buckets), np.bool_)
        table[np.repeat(np.arange(len(table)), np.diff(starts)), buckets] = True
        return {"present": np.packbits(table, axis=1, bitorder="little"), "codes": codes[weights], "levels": levels}
    narrow_starts = np.zeros_like(starts)
    _count_narrow(starts, buckets, narrow_starts)
    if narrow_starts[-1] > 2 * len(buckets):
        wide = np.empty(len(buckets), np.uint32)
        _fill_wide(buckets, weights, codes, wide)
        return {"lengths": narrowed(np.diff(starts)), "entries": wide, "levels": levels}
    narrow = np.empty(int(narrow_starts[-1]), np.uint16)
    _fill_narrow(starts, buckets, weights, codes, narrow)
    return {"lengths": narrowed(np.diff(narrow_starts)), "entries": narrow, "levels": levels}


def unpack(tensors: Mapping[str, Array]) -> tuple[Int64, UInt32, Float32]:
    """The rows of stored weights: starts int64 [rows + 1], buckets uint32 and weights float32, one for each kept."""
    starts, entries = rows_of(tensors)
    buckets, unpacked_starts = np.empty(len(entries), np.uint32), np.empty_like(starts)
    kept = np.empty(len(entries), np.int64)
    n = _unpack(frozen(starts), frozen(entries), entries.dtype == np.uint16, unpacked_starts, buckets, kept)
    weights: Float32 = tensors["levels"][entries[kept[:n]] & (LEVELS - 1)]
    return unpacked_starts, buckets[:n], weights


def rows_of(tensors: Mapping[str, Array]) -> tuple[Int64, Entries]:
    """Where the rows of stored weights start, int64 [rows + 1], and their entries, as scorers read them."""
    if "present" not in tensors:
        return starts_of(tensors["lengths"]), tensors["entries"]
    bits = np.unpackbits(tensors["present"], axis=1, bitorder="little").view(np.bool_)
    starts = starts_of(bits.sum(axis=1))
    places = np.flatnonzero(bits)
    entries = np.diff(places, prepend=0).astype(np.uint16)
    (some,) = np.nonzero(starts[1:] > starts[:-1])  # rows: their first steps are from 0
    entries[starts[some]] = places[starts[some]] - some * bits.shape[1]
    entries <<= 8
    entries |= tensors["codes"]
    return starts, entries


def _is_dense(n_rows: int, n_entries: int, n_buckets: int) -> bool:
    """Whether a bit a bucket and row takes less room than a step an entry; few entries, as they will be in memory."""
    return n_buckets <= 1 + _FURTHEST and n_rows * -(-n_buckets // 8) < n_entries <= MOST_DENSE


def _levels(times: Int64) -> tuple[Float32, _UInt8]:
    """The levels (float32 [256]) for numbers of which each bfloat16 occurs so often; the level of each (uint8 [65536]).

    For a number of levels that is not small, the mean squared error is least where they lie as densely as the third
    root of the density of the numbers (Panter and Dite 1951). From there each moves to the mean of the numbers that it
    is the nearest of, some times over (Lloyd 1982). Where there are at most 255 distinct numbers, they are the levels.
    """
    found = np.flatnonzero(times).astype(np.uint16)
    numbers = from_bfloat(found).astype(np.float64)
    order = np.argsort(numbers, kind="stable")
    found, numbers = found[order], numbers[order]
    weights = times[found].astype(np.float64)
    centres = numbers if len(numbers) < LEVELS else _centres(numbers, weights)
    levels, codes = np.zeros(LEVELS, np.float32), np.zeros(1 << 16, np.uint8)
    levels[1 : 1 + len(centres)] = centres
    codes[found] = 1 + _nearest(centres, numbers)
    return levels, codes


def _centres(numbers: Array, weights: Array) -> Array:
    """255 rising numbers, or somewhat fewer, for more than that: rising, too, and as often as their weight."""
    apart = np.gradient(numbers)
    shares = np.cbrt(weights / apart) * apart
    for _ in range(_ROUNDS):  # no number needs more than a level of its own, however far it is from the others
        shares = np.minimum(shares, shares.sum() / (LEVELS - 1))
    reached = np.cumsum(shares)
    near = np.minimum(reached / reached[-1] * (LEVELS - 1), LEVELS - 2).astype(np.int64)
    centres = _means(near, numbers, weights)
    for _ in range(_ROUNDS):
        centres = _means(_nearest(centres, numbers), numbers, weights)
    return centres


def _nearest(centres: Array, numbers: Array) -> Int64:
    """Which of the rising ``centres`` is nearest to each number."""
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, numbers)


def _means(cells: Int64, numbers: Array, weights: Array) -> Array:
    """The weighted mean of the numbers in each cell that has some."""
    total = np.bincount(cells, weights)
    return np.bincount(cells, weights * numbers)[total > 0] / total[total > 0]


@inline
def add_narrow(z: Float32, weight: np.float32, entries: Entries, levels: Float32) -> None:
    """z += weight * a row of narrow entries."""
    bucket = np.uint64(0)
    for entry in entries:
        bucket += np.uint64(entry) >> np.uint64(8)
        z[bucket] += weight * levels[entry & np.uint16(LEVELS - 1)]


@inline
def add_wide(z: Float32, weight: np.float32, entries: Entries, levels: Float32) -> None:
    """z += weight * a row of wide entries."""
    for entry in entries:
        z[entry >> np.uint32(8)] += weight * levels[entry & np.uint32(LEVELS - 1)]


@kernel
def _count_times(weights: UInt16, times: Int64) -> None:
    for weight in weights:
        times[weight] += 1


@kernel
def _count_narrow(starts: Int64, buckets: Entries, out: Int64) -> None:
    """``out``: where each row starts when its entries are narrow, those in between counted."""
    for row in range(len(starts) - 1):
        before = n = np.int64(0)
        for e in range(starts[row], starts[row + 1]):
            further = np.int64(buckets[e]) - before
            n += 1 + max(np.int64(0), further - 1) // _FURTHEST
            before += further
        out[row + 1] = out[row] + n


@kernel
def _fill_narrow(starts: Int64, buckets: Entries, weights: UInt16, codes: _UInt8, out: UInt16) -> None:
    at = 0
    for row in range(len(starts) - 1):
        before = np.int64(0)
        for e in range(starts[row], starts[row + 1]):
            further = np.int64(buckets[e]) - before
            while further > _FURTHEST:
                out[at] = _FURTHEST * LEVELS
                further -= _FURTHEST
                at += 1
            out[at] = further * LEVELS + codes[weights[e]]
            before = np.int64(buckets[e])
            at += 1


@kernel
def _fill_wide(buckets: Entries, weights: UInt16, codes: _UInt8, out: UInt32) -> None:
    for e in range(len(out)):
        out[e] = np.int64(buckets[e]) * LEVELS + codes[weights[e]]


@kernel
def _unpack(starts: Int64, entries: Entries, narrow: bool, out_starts: Int64, buckets: UInt32, kept: Int64) -> int:
    """Buckets and places of the entries that are of a weight; returns how many."""
    n = 0
    for row in range(len(starts) - 1):
        out_starts[row] = n
        bucket = np.int64(0)
        for e in range(starts[row], starts[row + 1]):
            bucket = np.int64(entries[e] >> 8) + (bucket if narrow else np.int64(0))
            if entries[e] & (LEVELS - 1):
                buckets[n], kept[n] = bucket, e
                n += 1
    out_starts[len(starts) - 1] = n
    return n
