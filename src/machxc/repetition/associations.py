"""What goes with what: features that the samples of a bucket lack, but that come with features which they have.

A query may share nothing with the samples of its own bucket: a name in letters that none of its known names is written
in, a term in other words. But the samples tell which features go together. Leave one out of its bucket, as if it were a
query (as leave_one_out.py does), and see what it has that the others lack, and what these have:

    t(f | g) = (n(f, g) + DOUBT p(f)) / (n(g) + DOUBT) - p(f)

    n(g)       left-out samples, the others of whose bucket have feature g
    n(f, g)    those of them that have f, which the others lack
    p(f)       the share of all left-out samples that have f, which the others lack

A bucket that lacks f is then expected to have it in a share of its samples to come, as each of its features g may bring
it (a "noisy or"), and that share is counted as if it had been seen:

    E(f, b) = 1 - product over the features g of b of (1 - t(f | g))
    c(f, b) = STRENGTH n(b) m E(f, b)          n(b): samples of b; m: the mean value of a feature

from which the weight follows as from any count, multiplied by the learnt scale_f. Retrieval by translation (Berger and
Lafferty 1999) does the same with probabilities of words. Only the likeliest (f, b) are taken: as many as were counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from machxc.compiled import kernel
from machxc.config import Config
from machxc.repetition import random
from machxc.repetition.arithmetic import Int32, UInt16
from machxc.repetition.chunks import BAND, MEMBERS, MOST_ROWS, OnSamples
from machxc.repetition.counts import Counts, Pairs, encoded, members_of, weight_of, with_others
from machxc.repetition.encode import Encoder
from machxc.repetition.windows import batch_size
from machxc.samples import Array, Float32, Int64, Samples, UInt32
from machxc.threads import in_turn, share_out

STRENGTH = 2.0  # measured on names and terms: docs/algorithm.md
FEWEST_MET = 16  # buckets that such a feature has met
MOST_LEFT_OUT = (1 << 16) - 1  # so that numbers of samples fit 16 bits
FEWEST, LIFT, LEAST, DOUBT = 3, 3.0, 0.015, 5.0  # n(f, g); t / p(f); t and E; samples made up against chance
BATCH = 2048  # left-out samples prepared at a time
_BLOCK = 64  # features g whose t is computed at a time
_LOOKED_AT, _BUCKETS = 4096, 1024  # buckets that tell which E to take; buckets whose E is computed at a time


class Table(NamedTuple):
    """t(f | g) row by row of g: ``starts`` int64 [rows + 1], ``rows`` int32 (f, rising), ``chances`` float32."""

    starts: Int64
    rows: Int32
    chances: Float32


@dataclass(frozen=True)
class Added:
    """Weights of features that buckets lack, as `Counts` has entries: ``starts``, ``entries`` (rising), ``weights``."""

    starts: Int64
    entries: UInt32
    weights: Float32

    @classmethod
    def nothing(cls, n_rows: int) -> Added:
        """No weights."""
        return cls(np.zeros(n_rows + 1, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32))


class _Shown(NamedTuple):
    """What some left-out samples show.

    Of the i-th, the features that the others of its bucket lack: ``rows`` uint16 from starts[i] to starts[i + 1] (int64
    [n + 1]); and those that the others have: ``others`` uint16 from other_starts[i] to other_starts[i + 1].
    """

    starts: Int64
    rows: UInt16
    other_starts: Int64
    others: UInt16


class _Features(NamedTuple):
    """The associated features of each bucket: ``starts`` int64 [B + 1], ``rows`` uint16, rising."""

    starts: Int64
    rows: UInt16


def associate(
    samples: Samples,
    encoder: Encoder,
    pairs: Pairs,
    counts: Counts,
    scale: Float32,
    config: Config,
    r: int,
    on_samples: OnSamples | None = None,
    threads: int = 1,
) -> Added:
    """The weights w(f, b) of features that buckets lack, learnt from ``config.associations`` left-out samples.

    ``scale`` float32 [rows]: what each is multiplied by. ``on_samples`` is called with 0 now and then: what it raises
    ends the work, which ``threads`` share.
    """
    n_rows = min(MOST_ROWS, int(np.count_nonzero(np.diff(counts.starts) >= FEWEST_MET)))
    table = _learn(samples, encoder, pairs, config, r, n_rows, on_samples, threads)
    if not len(table.rows):
        return Added.nothing(len(encoder.row_weights))
    features = _features_of_buckets(counts, n_rows)
    least = _least(features, table, counts)
    size = max(1, _BUCKETS // threads)
    blocks = range(0, config.buckets, size)

    def expect(start: int) -> tuple[UInt32, Int32, Float32]:
        return _expected(features, table, _some(counts, start, size), least)

    added = np.zeros(len(counts.starts), np.int64)

    def count(start: int, rows: Int64) -> None:
        added[1 : n_rows + 1] += rows

    in_turn(lambda start: np.bincount(expect(start)[1], minlength=n_rows), count, blocks, threads)
    np.cumsum(added, out=added)
    entries, weights = np.empty(added[-1], np.uint32), np.empty(added[-1], np.float32)
    ends, penalties, strength = added[:-1].copy(), counts.penalties, np.float32(STRENGTH) * counts.mean_value

    def put(start: int, found: tuple[UInt32, Int32, Float32]) -> None:
        buckets, rows, chances = found
        expected = strength * counts.shares[buckets] * chances
        _put(buckets, rows, expected, counts.background, penalties, scale, ends, entries, weights)
        if on_samples is not None:
            on_samples(0)

    in_turn(expect, put, blocks, threads)  # once more, as to keep what was expected would take more memory
    return Added(added, entries, weights)


def _learn(
    samples: Samples,
    encoder: Encoder,
    pairs: Pairs,
    config: Config,
    r: int,
    n_rows: int,
    on_samples: OnSamples | None,
    threads: int,
) -> Table:
    """Count what goes together in left-out samples, drawn at random, each once."""
    chosen = with_others(pairs)
    random.shuffle(chosen, random.stream(config.seed, random.ASSOCIATIONS, r))
    chosen = np.sort(chosen[: min(config.associations, MOST_LEFT_OUT)])
    size, band_size = batch_size(samples, max(1, BATCH // threads), 1 + MEMBERS), max(1, BAND // threads)

    def show(start: int) -> _Shown:
        if on_samples is not None:
            on_samples(0)
        return _shown(samples, encoder, pairs, chosen[start : start + size], n_rows)

    shown = share_out(show, range(0, len(chosen), size), threads)
    having = _times([batch.others for batch in shown], n_rows)
    lacking = _times([batch.rows for batch in shown], n_rows)

    def band(first: int) -> Table:
        together = np.zeros((min(band_size, n_rows - first), n_rows), np.uint16)
        for batch in shown:
            _tally(batch.starts, batch.rows, batch.other_starts, batch.others, first, together)
        return table_of(together, having[first : first + band_size], lacking, len(chosen))

    return _joined(share_out(band, range(0, n_rows, band_size), threads))


def _shown(samples: Samples, encoder: Encoder, pairs: Pairs, batch: Int64, n_rows: int) -> _Shown:
    """What the left-out samples ``batch`` (numbers of their pairs) show."""
    queries = encoded(samples, encoder, pairs.members[batch])
    buckets, places = np.unique(pairs.buckets[batch], return_inverse=True)
    members = members_of(samples, encoder, pairs, buckets.astype(np.int64))
    room = np.minimum(n_rows, np.diff(members.rows.indptr[members.starts]))[places].sum()
    starts, other_starts = np.zeros(len(batch) + 1, np.int64), np.zeros(len(batch) + 1, np.int64)
    rows, others = np.empty(len(queries.rows), np.uint16), np.empty(room, np.uint16)
    _show(
        queries.indptr, queries.rows, queries.weights, batch, places.astype(np.int64),
        members.starts, members.pairs, members.rows.indptr, members.rows.rows, members.rows.weights,
        n_rows, starts, rows, other_starts, others,
    )  # fmt: skip
    return _Shown(starts, rows[: starts[-1]].copy(), other_starts, others[: other_starts[-1]].copy())


def _times(parts: list[UInt16], n_rows: int) -> Int64:
    """How often each row occurs in all of them."""
    times = np.zeros(n_rows, np.int64)
    for part in parts:
        times += np.bincount(part, minlength=n_rows)
    return times


def _joined(parts: list[Table]) -> Table:
    """Tables of bands of rows g, one after the other."""
    sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.starts) for part in parts)])
    rows = np.concatenate([np.empty(0, np.int32), *(part.rows for part in parts)])
    return Table(np.cumsum(sizes), rows, np.concatenate([np.empty(0, np.float32), *(part.chances for part in parts)]))


def table_of(together: UInt16, having: Int64, lacking: Int64, n: int) -> Table:
    """t(f | g), where it is at least LEAST, from n(f, g) as ``together`` [g, f], n(g), and n p(f), of n samples."""
    share = lacking / max(1, n)
    sizes, rows, chances = [np.zeros(1, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for start in range(0, len(together), _BLOCK):
        block = slice(start, start + _BLOCK)
        t = (together[block] + DOUBT * share) / (having[block, None] + DOUBT) - share
        kept = (together[block] >= FEWEST) & (t >= LEAST) & (t >= LIFT * share)
        sizes.append(kept.sum(axis=1))
        rows.append(np.nonzero(kept)[1].astype(np.int32))
        chances.append(np.minimum(t[kept], 1.0 - 1e-6).astype(np.float32))
    return Table(np.cumsum(np.concatenate(sizes)), np.concatenate(rows), np.concatenate(chances))


def _features_of_buckets(counts: Counts, n_rows: int) -> _Features:
    entries = counts.entries[: counts.starts[n_rows]]
    n_buckets = len(counts.shares)
    starts = np.concatenate(([0], np.cumsum(np.bincount(entries, minlength=n_buckets)))).astype(np.int64)
    rows = np.empty(len(entries), np.uint16)
    _transpose(counts.starts[: n_rows + 1], entries, starts[:-1].copy(), rows)
    return _Features(starts, rows)


def _some(counts: Counts, start: int, size: int) -> Int64:
    """The buckets from ``start`` on, ``size`` of them, that have samples."""
    return (start + np.flatnonzero(counts.shares[start : start + size] > 0)).astype(np.int64)


def _least(features: _Features, table: Table, counts: Counts) -> np.float32:
    """The least E to take, so that about as many are taken as were counted; told by some of the buckets."""
    occupied = np.flatnonzero(counts.shares > 0).astype(np.int64)
    step = max(1, len(occupied) // _LOOKED_AT)
    looked_at = np.ascontiguousarray(occupied[::step])  # as all buckets are given: kernels are compiled once
    chances = _expected(features, table, looked_at, np.float32(LEAST))[2]
    most = len(counts.entries) * len(looked_at) // max(1, len(occupied))
    if len(chances) <= most:
        return np.float32(LEAST)
    return np.float32(np.partition(chances, len(chances) - most - 1)[len(chances) - most - 1])


def _expected(features: _Features, table: Table, buckets: Int64, least: np.float32) -> tuple[UInt32, Int32, Float32]:
    """Buckets, features f that they lack, and E(f, b) > ``least``, bucket by bucket."""
    room = _room(features.starts, features.rows, table.starts, buckets)
    of, rows, chances = np.empty(room, np.uint32), np.empty(room, np.int32), np.empty(room, np.float32)
    n = _expect(
        features.starts, features.rows, table.starts, table.rows, table.chances, buckets, least, of, rows, chances
    )
    return of[:n], rows[:n], chances[:n]


@kernel
def _show(
    indptr: Int64, rows: Int32, values: Float32, pairs: Int64, places: Int64,
    member_starts: Int64, member_pairs: Int64, member_indptr: Int64, member_rows: Int32, member_values: Float32,
    n_rows: int, out_starts: Int64, out_rows: UInt16, other_starts: Int64, others: UInt16,
) -> None:  # fmt: skip
    """Fill a `_Shown` with left-out samples, the ``pairs``; the i-th is of bucket ``places[i]``."""
    met = np.full(n_rows, -1, np.int64)  # the sample for which a feature was met last
    n = done = 0
    for i in range(len(indptr) - 1):
        for m in range(member_starts[places[i]], member_starts[places[i] + 1]):
            if member_pairs[m] == pairs[i]:
                continue
            for j in range(member_indptr[m], member_indptr[m + 1]):
                g = member_rows[j]
                if g < n_rows and met[g] != i and member_values[j] > 0.0:
                    met[g], others[n] = i, g
                    n += 1
        for j in range(indptr[i], indptr[i + 1]):
            f = rows[j]
            if f < n_rows and met[f] != i and values[j] > 0.0:
                met[f], out_rows[done] = i, f
                done += 1
        out_starts[i + 1], other_starts[i + 1] = done, n


@kernel
def _tally(starts: Int64, rows: UInt16, other_starts: Int64, others: UInt16, first: int, together: UInt16) -> None:
    """Count what samples show of the rows g from ``first`` on into ``together`` [g - first, f]."""
    for i in range(len(starts) - 1):
        for g in others[other_starts[i] : other_starts[i + 1]]:
            if first <= g < first + len(together):
                for f in rows[starts[i] : starts[i + 1]]:
                    together[g - first, f] += 1


@kernel
def _transpose(starts: Int64, entries: UInt32, ends: Int64, out: UInt16) -> None:
    for row in range(len(starts) - 1):
        for e in range(starts[row], starts[row + 1]):
            out[ends[entries[e]]] = row
            ends[entries[e]] += 1


@kernel
def _room(starts: Int64, features: UInt16, table_starts: Int64, buckets: Int64) -> int:
    """How many features may go with those of the buckets, at most."""
    room = 0
    for bucket in buckets:
        n = 0
        for a in range(starts[bucket], starts[bucket + 1]):
            n += table_starts[features[a] + 1] - table_starts[features[a]]
        room += min(n, len(table_starts) - 1)
    return room


@kernel
def _expect(
    starts: Int64, features: UInt16, table_starts: Int64, table_rows: Int32, chances: Float32,
    buckets: Int64, least: np.float32, out_buckets: UInt32, out_rows: Int32, out_chances: Float32,
) -> int:  # fmt: skip
    n_rows = len(table_starts) - 1
    none = np.ones(n_rows, np.float32)  # the probability that no feature brings f; 0: the bucket has it
    found = np.empty(n_rows, np.int64)
    done = 0
    for bucket in buckets:
        n = 0
        own = features[starts[bucket] : starts[bucket + 1]]
        for g in own:
            none[g] = np.float32(0.0)
        for g in own:
            for e in range(table_starts[g], table_starts[g + 1]):
                f = table_rows[e]
                if none[f] == np.float32(1.0):
                    found[n] = f
                    n += 1
                none[f] *= np.float32(1.0) - chances[e]
        for f in found[:n]:
            if np.float32(1.0) - none[f] > least:
                out_buckets[done], out_rows[done], out_chances[done] = bucket, f, np.float32(1.0) - none[f]
                done += 1
            none[f] = np.float32(1.0)
        for g in own:
            none[g] = np.float32(1.0)
    return done


@kernel
def _put(
    buckets: UInt32, rows: Int32, expected: Float32, background: Float32, penalties: Float32, scale: Float32,
    ends: Int64, entries: UInt32, weights: Float32,
) -> None:  # fmt: skip
    """Append w(f, b), as it follows from the ``expected`` counts, to the entries of its row."""
    for i in range(len(buckets)):
        row, at = rows[i], ends[rows[i]]
        weight = max(weight_of(expected[i], background[row], penalties[buckets[i]]), np.float32(0.0))
        entries[at], weights[at] = buckets[i], scale[row] * weight
        ends[row] = at + 1


@kernel
def merge(
    starts: Int64, entries: UInt32, weights: Float32, added_starts: Int64, added: UInt32, added_weights: Float32,
    prune: np.float32, out_starts: Int64, out_entries: Array, out_weights: Float32,
) -> int:  # fmt: skip
    """Both lists of each row as one, buckets rising, without added weights up to ``prune``; how many there are."""
    n = 0
    for row in range(len(starts) - 1):
        e, last = starts[row], starts[row + 1]
        for a in range(added_starts[row], added_starts[row + 1]):
            if added_weights[a] <= prune:
                continue
            while e < last and entries[e] < added[a]:
                out_entries[n], out_weights[n] = entries[e], weights[e]
                n, e = n + 1, e + 1
            out_entries[n], out_weights[n] = added[a], added_weights[a]
            n += 1
        while e < last:
            out_entries[n], out_weights[n] = entries[e], weights[e]
            n, e = n + 1, e + 1
        out_starts[row + 1] = n
    return n
