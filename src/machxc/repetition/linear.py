"""The linear repetition: one table of weights [rows, B], as in MACH's own ODP run. All outputs, no hidden layer.

The row of a feature is one contiguous vector over all buckets: a sample with f features reads f such vectors, adds them
up, computes the loss over the B sums, and writes f vectors back. That is all it does, and memory traffic is its limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from machxc.compiled import fast_kernel, kernel
from machxc.config import Config
from machxc.repetition import random
from machxc.repetition.arithmetic import (
    BIAS_RATE,
    Int32,
    UInt16,
    add_row,
    copy,
    sigmoid_gradient,
    softmax_gradient,
)
from machxc.repetition.bfloat import add_bfloats, bfloat, fetch_row, fill_noise, step_bfloats, to_bfloat, turn_of
from machxc.repetition.encode import Rows
from machxc.repetition.random import draw
from machxc.repetition.stored import Entries, add_narrow, add_wide, pack, rows_of
from machxc.repetition.targets import Targets
from machxc.samples import Array, Float32, Int64, frozen

_UNPACKED = 1 << 20  # weights of a repetition that are unpacked to score many samples: 4 MB
_FEWEST_TO_UNPACK = 64  # samples
_AT_ONCE = 16  # weights of an unpacked row that are added in the time of an entry
_UNPACKING = 4  # times as long as to add a row: to make room for it


@dataclass
class LinearLearner:
    """A linear repetition in training: the row-wise Adagrad sums of squared gradients, and the weights in 16 bits.

    ``table`` uint16 [rows, B]: the bits of bfloat16 numbers (see bfloat.py); float32 where a device trains it, of which
    this is the copy on this machine.
    """

    softmax: bool
    prune: np.float32
    state: np.uint64
    table: Array
    bias: Float32
    squares: Float32
    bias_square: Float32

    @classmethod
    def start(cls, config: Config, r: int, n_rows: int, bias: Float32, *, whole: bool = False) -> LinearLearner:
        """All weights 0, of 16 bits or (``whole``) 32, the bias at the buckets' own frequencies (float32 [B])."""
        return cls(
            config.loss == "softmax",
            np.float32(config.prune),
            random.stream(config.seed, random.ROUNDING, r),
            np.zeros((n_rows, config.buckets), np.float32 if whole else np.uint16),
            bias,
            np.zeros(n_rows, np.float32),
            np.zeros(1, np.float32),
        )

    def train(self, rows: Rows, targets: Targets, rates: tuple[float, float], position: int) -> float:
        """One pass over encoded samples, the rate falling from rates[0] to rates[1]; returns the summed loss.

        ``position``: how many samples were trained on before, in this and earlier epochs (draws how weights round).
        """
        return float(
            _train(
                rows.indptr,
                rows.rows,
                rows.weights,
                targets.indptr,
                targets.buckets,
                targets.weights,
                self.table,
                self.bias,
                self.squares,
                self.bias_square,
                self.softmax,
                self.state,
                position,
                *map(np.float32, rates),
            )
        )

    def logits(self, rows: Rows) -> Float32:
        """Bucket scores before softmax or sigmoid: float32 [n, B]."""
        out = np.empty((len(rows), len(self.bias)), np.float32)
        _score(rows.indptr, rows.rows, rows.weights, self.table, self.bias, out)
        return out

    def tensors(self) -> dict[str, Array]:
        """The trained weights as they are stored (see stored.py): those more than ``prune`` from 0, and the bias.

        Most weights of a linear model stay near 0 and change no ranking: four in a hundred are left at ``prune`` 0.3
        with tens of thousands of labels (docs/algorithm.md has the measurements).
        """
        table = self.table if self.table.dtype == np.uint16 else to_bfloat(self.table)
        starts = np.zeros(len(table) + 1, np.int64)
        _count_kept(table, self.prune, starts)
        buckets, weights = (np.empty(int(starts[-1]), np.uint16) for _ in range(2))
        _gather_kept(table, self.prune, starts, buckets, weights)
        return {**pack(starts, buckets, weights, table.shape[1]), "bias": self.bias.copy()}


class LinearScorer:
    """A trained linear repetition: scores from its stored, possibly memory-mapped, tensors."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        starts, entries = rows_of(tensors)
        self.starts: Int64 = frozen(starts)
        self.entries: Entries = frozen(entries)
        self.levels: Float32 = frozen(tensors["levels"])
        self.bias: Float32 = frozen(tensors["bias"])
        self._no_table: Float32 = np.empty((0, len(self.bias)), np.float32)

    def logits(self, rows: Rows, out: Float32) -> None:
        """Bucket scores before softmax or sigmoid, into ``out`` float32 [n, B] (rows of it contiguous)."""
        given = (rows.indptr, rows.rows, rows.weights, self.starts, self.entries, self.levels, self.bias)
        if self.entries.dtype == np.uint16:
            _score_narrow(*given, self._no_table if len(rows) < _FEWEST_TO_UNPACK else self._busiest(rows), out)
        else:
            _score_wide(*given, out)

    def _busiest(self, rows: Rows) -> Float32:
        """The weights of the first rows, those that samples have most, as a table: float32 [m, B].

        As many as it saves the most time to unpack: a row is read as often as samples have it, or once, to be unpacked.
        """
        n_buckets = len(self.bias)
        most = min(len(self.starts) - 1, _UNPACKED // n_buckets)
        times = np.bincount(rows.rows, minlength=most)[:most]
        entries, adding = np.diff(self.starts[: most + 1]), n_buckets // _AT_ONCE  # in the time of an entry each
        saved = np.cumsum(times * (entries - adding) - (entries + _UNPACKING * adding))
        m = int(saved.argmax()) + 1 if most else 0
        if not m or saved[m - 1] <= 0:
            return self._no_table
        table = np.zeros((m, n_buckets), np.float32)
        _unpack_rows(self.starts, self.entries, self.levels, table)
        return table


@fast_kernel
def _train(
    indptr: Array, rows: Int32, weights: Float32, target_indptr: Array, targets: Int32, sample_weights: Float32,
    table: UInt16, bias: Float32, squares: Float32, bias_square: Float32, softmax: bool,
    state: np.uint64, position: int, first_rate: np.float32, last_rate: np.float32,
) -> np.float64:  # fmt: skip
    n_buckets = len(bias)
    z = np.empty(n_buckets, np.float32)
    g = np.empty(n_buckets, np.float32)
    noise = np.empty(n_buckets, np.int32)
    n = len(indptr) - 1
    loss = np.float64(0.0)
    for i in range(n):
        wanted = targets[target_indptr[i] : target_indptr[i + 1]]
        if softmax and len(wanted) == 0:
            continue  # a sample without labels says nothing to a softmax
        copy(z, bias)
        for j in range(indptr[i], indptr[i + 1]):
            add_bfloats(z, weights[j], table[rows[j]])
        if softmax:
            loss += softmax_gradient(z, wanted, sample_weights[i], g)
        else:
            loss += sigmoid_gradient(z, wanted, sample_weights[i], g)
        # Row-wise Adagrad (Duchi et al. 2011, one sum a row): row -= rate * gradient / sqrt(sum of |gradient|^2).
        square = np.float32(1e-30)
        for b in range(n_buckets):
            square += g[b] * g[b]
        rate = first_rate + (last_rate - first_rate) * np.float32(i) / np.float32(n)
        drawn = draw(state, position + i)
        fill_noise(noise, drawn)
        ahead = indptr[i + 1] - indptr[i]  # from a row of this sample to one of the next, which it has read
        for j in range(indptr[i], indptr[i + 1]):
            if j + ahead < indptr[n]:
                fetch_row(table[rows[j + ahead]])
            row, weight = rows[j], weights[j]
            squares[row] += weight * weight * square
            if squares[row] > np.float32(0.0):
                step_bfloats(
                    table[row], -rate * weight / np.sqrt(squares[row]), g, noise, turn_of(drawn, j - indptr[i])
                )
        bias_square[0] += square
        add_row(bias, np.float32(-BIAS_RATE) * rate / np.sqrt(bias_square[0]), g)
    return loss


@fast_kernel
def _score(indptr: Array, rows: Int32, weights: Float32, table: UInt16, bias: Float32, out: Float32) -> None:
    for i in range(len(indptr) - 1):
        copy(out[i], bias)
        for j in range(indptr[i], indptr[i + 1]):
            add_bfloats(out[i], weights[j], table[rows[j]])


@fast_kernel
def _score_narrow(
    indptr: Array, rows: Int32, weights: Float32,
    starts: Int64, entries: Entries, levels: Float32, bias: Float32, table: Float32, out: Float32,
) -> None:  # fmt: skip
    """``table`` [m, B]: the first rows once more, unpacked; the same numbers are added in the same order."""
    z = np.empty(len(bias), np.float32)  # the rows of ``out`` may lie apart: vectors are added where they cannot
    for i in range(len(indptr) - 1):
        copy(z, bias)
        for j in range(indptr[i], indptr[i + 1]):
            if rows[j] < len(table):
                add_row(z, weights[j], table[rows[j]])
            else:
                add_narrow(z, weights[j], entries[starts[rows[j]] : starts[rows[j] + 1]], levels)
        copy(out[i], z)


@kernel
def _unpack_rows(starts: Int64, entries: Entries, levels: Float32, table: Float32) -> None:
    """The first rows of narrow entries into ``table`` [m, B], zeros at first."""
    for row in range(len(table)):
        add_narrow(table[row], np.float32(1.0), entries[starts[row] : starts[row + 1]], levels)


@fast_kernel
def _score_wide(
    indptr: Array, rows: Int32, weights: Float32,
    starts: Int64, entries: Entries, levels: Float32, bias: Float32, out: Float32,
) -> None:  # fmt: skip
    for i in range(len(indptr) - 1):
        copy(out[i], bias)
        for j in range(indptr[i], indptr[i + 1]):
            add_wide(out[i], weights[j], entries[starts[rows[j]] : starts[rows[j] + 1]], levels)


@fast_kernel
def _count_kept(table: UInt16, prune: np.float32, starts: Int64) -> None:
    for row in range(len(table)):
        kept = 0
        for b in range(table.shape[1]):
            kept += np.abs(bfloat(table[row, b])) > prune
        starts[row + 1] = starts[row] + kept


@kernel
def _gather_kept(table: UInt16, prune: np.float32, starts: Int64, buckets: UInt16, weights: UInt16) -> None:
    for row in range(len(table)):
        at = starts[row]
        for b in range(table.shape[1]):
            if np.abs(bfloat(table[row, b])) > prune:
                buckets[at], weights[at] = b, table[row, b]
                at += 1
