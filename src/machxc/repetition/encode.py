"""From stored features to a repetition's own rows: hash, look up, weigh, drop out.

A feature id (a 32-bit token hash, or a column number) falls into one of F slots: its own where there is room
(D <= F = 2**feature_bits), else by this repetition's hash, so that what collides in one repetition does not in another.
``slots`` gives each slot the row of the weight table that belongs to it, or -1: slots that too few training samples
use have none. Rows are ordered by falling frequency, so that the busy ones lie together in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from machxc.compiled import fast_kernel, inline, kernel, prefetch
from machxc.config import Config
from machxc.repetition import random
from machxc.repetition.arithmetic import LARGEST_WEIGHT
from machxc.repetition.lengths import most_slots, narrowed
from machxc.repetition.random import draw
from machxc.samples import Array, Features, Float32, Int64, UInt32, frozen

Int32 = npt.NDArray[np.int32]
NO_DRAWS = np.uint64(0)
_AHEAD, _NEXT = 6, 2  # samples whose features, and slots, are fetched into the caches


@dataclass(frozen=True)
class Rows:
    """Encoded samples: CSR of table rows and weights. indptr int64 [n + 1], rows int32 [nnz], weights float32 [nnz]."""

    indptr: Int64
    rows: Int32
    weights: Float32

    def __len__(self) -> int:
        return len(self.indptr) - 1


@dataclass(frozen=True)
class Encoder:
    """One repetition's way from feature ids to weighted rows.

    ``multiplier``, ``addend``: the hash (multiplier 0: a feature is its own slot); ``shift``: 64 - feature_bits;
    ``slots`` int32 [F]; ``row_weights`` float32 [rows]: the inverse document frequency, or the column's scale.
    """

    multiplier: np.uint64
    addend: np.uint64
    shift: np.uint64
    slots: Int32
    row_weights: Float32
    sublinear_tf: bool
    l2: bool

    def tensors(self) -> dict[str, Array]:
        """What is stored of it: the slot of each row (of many slots to few rows, the row of each slot), and weights.

        ``row_slots``, ``row_weights`` and ``repeats``: neighbours of one weight have it once, and how many they are.
        """
        n_rows = len(self.row_weights)
        firsts = np.flatnonzero(np.diff(self.row_weights, prepend=np.float32(np.nan)) != 0)
        weights = {"row_weights": self.row_weights[firsts], "repeats": narrowed(np.diff(firsts, append=n_rows))}
        if len(self.slots) > most_slots(n_rows):
            return {"slots": self.slots, **weights}
        used = np.flatnonzero(self.slots >= 0)
        row_slots = np.empty(n_rows, np.int64)
        row_slots[self.slots[used]] = used
        return {"row_slots": narrowed(row_slots), **weights}

    def __call__(
        self, features: Features, order: Int64 | None = None, dropout: float = 0.0, state: np.uint64 = NO_DRAWS
    ) -> Rows:
        """Encode the samples ``order`` (int64 [n], default all in order); dropout leaves features out at random."""
        if order is None:
            order, size = np.arange(len(features), dtype=np.int64), len(features.indices)
        else:  # a length below 0 is that of a file that was cut meanwhile
            size = int(np.maximum(features.indptr[order + 1] - features.indptr[order], 0).sum())
        indptr = np.zeros(len(order) + 1, np.int64)
        rows = np.empty(size, np.int32)
        weights = np.empty(len(rows), np.float32)
        used = _encode(
            frozen(features.indptr), frozen(features.indices), frozen(features.values), order,
            self.multiplier, self.addend, self.shift, frozen(self.slots), self._row_weights,
            self.sublinear_tf, self.l2,
            np.uint64(int(dropout * 2**32)), np.float32(1.0 / (1.0 - dropout) ** 0.5), state, indptr, rows, weights,
        )  # fmt: skip
        return Rows(indptr, rows[:used], weights[:used])

    @cached_property
    def _row_weights(self) -> Float32:
        """Of the rows, or none where all are 1: not to look them up takes a third less time where rows are many."""
        weights: Float32 = frozen(self.row_weights if (self.row_weights != 1.0).any() else self.row_weights[:0])
        return weights


def n_slots(config: Config) -> int:
    """F: how many slots features fall into."""
    return min(config.n_features, 1 << config.feature_bits)


def slot_hash(config: Config, r: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """multiplier, addend and shift of a repetition: slot = (multiplier * id + addend mod 2**64) >> shift.

    Multiply-add-shift hashing (Dietzfelbinger et al. 1996): 2-universal up to a factor of 2. Multiplier 0: no hash.
    """
    if config.n_features <= 2**config.feature_bits:
        return np.uint64(0), np.uint64(0), np.uint64(0)
    state = random.stream(config.seed, random.FEATURES, r)
    multiplier, addend = (random.stream(int(state), i) for i in range(2))
    return multiplier | np.uint64(1), addend, np.uint64(64 - config.feature_bits)


def fit_encoder(features: Features, config: Config, r: int) -> Encoder:
    """Count how often each slot occurs in the training samples, and give rows to those with at least ``min_count``.

    Two features of one sample that share a slot count twice (they are few, and telling would take a pass of its own).
    """
    hashed = slot_hash(config, r)
    counts = np.zeros(n_slots(config), np.uint32)
    squares = np.zeros(0 if config.l2 else len(counts), np.float64)
    _count_slots(frozen(features.indices), frozen(features.values), *hashed, counts, squares)
    kept = np.flatnonzero(counts >= config.min_count)
    kept = kept[np.argsort(counts[kept], kind="stable")[::-1]]
    slots = _rows_of_slots(len(counts), kept)
    row_weights = _row_weights(counts, squares, kept, len(features), config)
    return Encoder(*hashed, slots, row_weights, config.sublinear_tf, config.l2)


def _rows_of_slots(n: int, row_slots: Array) -> Int32:
    """The row of each of n slots, given the slot of each row; -1: none."""
    slots = np.full(n, -1, np.int32)
    slots[row_slots] = np.arange(len(row_slots), dtype=np.int32)
    return slots


def _row_weights(counts: UInt32, squares: Array, kept: Array, n: int, config: Config) -> Float32:
    """idf as ln((1 + N) / (1 + n_t)) + 1; without l2, columns are scaled so that a sample's norm is about 1."""
    seen = counts[kept].astype(np.float64)
    weights: Array = np.log((1.0 + n) / (1.0 + np.minimum(seen, n))) + 1.0 if config.idf else np.ones(len(kept))
    if not config.l2:
        root_mean_square: Array = np.sqrt(squares[kept] / seen)
        norm = np.sqrt(max(1.0, seen.sum() / max(1, n)))
        weights = weights / (np.where(root_mean_square > 0, root_mean_square, 1.0) * norm)
    clipped: Float32 = np.clip(weights, 1e-39, 1e38).astype(np.float32)
    return clipped


def encoder_of(config: Config, r: int, tensors: dict[str, Array]) -> Encoder:
    """The encoder of a trained repetition, from what is stored of it."""
    row_weights = np.repeat(tensors["row_weights"], tensors["repeats"])
    if "slots" in tensors:
        return encoder_with(config, r, tensors["slots"], row_weights)
    return encoder_with(config, r, _rows_of_slots(n_slots(config), tensors["row_slots"]), row_weights)


def encoder_with(config: Config, r: int, slots: Int32, row_weights: Float32) -> Encoder:
    """The encoder of repetition r with these rows."""
    return Encoder(*slot_hash(config, r), frozen(slots), frozen(row_weights), config.sublinear_tf, config.l2)


@inline
def _slot(index: np.uint32, multiplier: np.uint64, addend: np.uint64, shift: np.uint64) -> np.uint64:
    slot = np.uint64(index)
    if multiplier != 0:
        slot = (multiplier * slot + addend) >> shift
    return slot


@kernel
def _count_slots(
    indices: UInt32, values: Float32, multiplier: np.uint64, addend: np.uint64, shift: np.uint64,
    counts: UInt32, squares: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    for j in range(len(indices)):
        slot = _slot(indices[j], multiplier, addend, shift)
        counts[slot] += np.uint32(1)
        if len(squares) > 0:
            squares[slot] += np.float64(values[j]) * np.float64(values[j])


@fast_kernel
def _encode(
    indptr: Int64, indices: UInt32, values: Float32, order: Int64,
    multiplier: np.uint64, addend: np.uint64, shift: np.uint64, slots: Int32, row_weights: Float32,
    sublinear_tf: bool, l2: bool, drop_below: np.uint64, keep_scale: np.float32, state: np.uint64,
    out_indptr: Int64, out_rows: Int32, out_weights: Float32,
) -> int:  # fmt: skip
    """Encode samples (see `encode_sample`). Tables that are beyond the caches are fetched ahead."""
    used = 0
    for n in range(len(order)):
        first, last = indptr[order[n]], indptr[order[n] + 1]
        if n + _AHEAD < len(order) and indptr[order[n + _AHEAD]] < len(indices):
            prefetch(indices, indptr[order[n + _AHEAD]])
            prefetch(values, indptr[order[n + _AHEAD]])
        if n + _NEXT < len(order):
            for j in range(indptr[order[n + _NEXT]], indptr[order[n + _NEXT] + 1]):
                prefetch(slots, _slot(indices[j], multiplier, addend, shift))
        used = encode_sample(
            first, last, indices, values, multiplier, addend, shift, slots, row_weights, sublinear_tf, l2,
            drop_below, keep_scale, state, used, out_rows, out_weights,
        )  # fmt: skip
        out_indptr[n + 1] = used
    return used


@inline
def encode_sample(
    start: int, stop: int, indices: UInt32, values: Float32, multiplier: np.uint64, addend: np.uint64, shift: np.uint64,
    slots: Int32, row_weights: Float32, sublinear_tf: bool, l2: bool,
    drop_below: np.uint64, keep_scale: np.float32, state: np.uint64, first: int, out_rows: Int32, out_weights: Float32,
) -> int:  # fmt: skip
    """Rows and weights of the features ``start`` to ``stop``, from place ``first`` on; returns where they end.

    Empty ``row_weights`` stand for ones.
    """
    used = first
    norm = np.float64(0.0)  # in float64 the squares of all float32 numbers have room
    for j in range(start, stop):
        row = slots[_slot(indices[j], multiplier, addend, shift)]
        if row < 0:
            continue
        weight = values[j]
        if sublinear_tf and weight > np.float32(0.0):
            weight = np.float32(1.0) + np.log(weight)
        if len(row_weights) > 0:
            weight *= row_weights[row]
        norm += np.float64(weight) * np.float64(weight)  # of the whole sample: dropout must not change the others
        if drop_below > 0 and (draw(state, j) >> np.uint64(32)) < drop_below:
            continue
        out_rows[used] = row
        out_weights[used] = weight
        used += 1
    scale = np.float64(1.0)
    if l2 and norm > 0.0:
        scale = 1.0 / np.sqrt(norm)
    if drop_below > 0:
        scale *= keep_scale
    for j in range(first, used):  # a value far beyond those of training counts as the largest that there is room for
        out_weights[j] = max(min(np.float32(out_weights[j] * scale), LARGEST_WEIGHT), -LARGEST_WEIGHT)
    return used
