"""The repetition with a hidden layer: rows of H inputs, ReLU, then an output vector of H numbers for each bucket.

All buckets, or the targets and a few sampled others: see `_train_all` and `_train_sampled`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from machxc.compiled import fast_kernel, inline, kernel
from machxc.config import Config
from machxc.repetition import random
from machxc.repetition.arithmetic import (
    BIAS_RATE,
    Int32,
    add_row,
    copy,
    sigmoid_gradient,
    softmax_gradient,
)
from machxc.repetition.encode import Rows
from machxc.repetition.int8 import Int8, add_int8, as_int8
from machxc.repetition.layers import Layers, activate, products
from machxc.repetition.random import draw
from machxc.repetition.targets import Targets
from machxc.samples import Array, Float32, frozen


@dataclass
class NetworkLearner:
    """A repetition with a hidden layer in training: float32 weights and row-wise Adagrad sums.

    ``output`` float32 [B, H] lies in memory column by column where all buckets are computed, row by row where some are.
    """

    softmax: bool
    negatives: int
    state: np.uint64
    table: Float32
    hidden_bias: Float32
    output: Float32
    bias: Float32
    squares: Float32
    output_squares: Float32
    bias_square: Float32

    @classmethod
    def start(cls, config: Config, r: int, n_rows: int, bias: Float32) -> NetworkLearner:
        """Input rows uniform in +-sqrt(3 / H), outputs 0, the bias at the buckets' own frequencies (float32 [B]).

        Random inputs set the hidden units apart; with outputs at 0 the first scores are the buckets' frequencies.
        """
        (n_hidden,) = config.layers
        table = np.empty((n_rows, n_hidden), np.float32)
        uniform(table, np.float32(np.sqrt(3.0 / n_hidden)), random.stream(config.seed, random.WEIGHTS, r))
        negatives = config.negatives if config.negatives < config.buckets else 0
        output = np.zeros((config.buckets, n_hidden), np.float32, order="C" if negatives else "F")
        return cls(
            config.loss == "softmax",
            negatives,
            random.stream(config.seed, random.NEGATIVES, r),
            table,
            np.zeros(n_hidden, np.float32),
            output,
            bias,
            np.zeros(n_rows + 1, np.float32),
            np.zeros(config.buckets, np.float32),
            np.zeros(1, np.float32),
        )

    def train(self, rows: Rows, targets: Targets, rates: tuple[float, float], position: int) -> float:
        """One pass over encoded samples, the rate falling from rates[0] to rates[1]; returns the summed loss.

        ``position``: how many samples were trained on before, in this and earlier epochs (draws the negatives).
        """
        given = (rows.indptr, rows.rows, rows.weights, targets.indptr, targets.buckets, targets.weights)
        sums = (self.squares, self.output_squares, self.bias_square)
        first_rate, last_rate = map(np.float32, rates)
        if not self.negatives:
            learnt = (self.table, self.hidden_bias, self.output.T, self.bias)
            return float(_train_all(*given, *learnt, *sums, self.softmax, first_rate, last_rate))
        learnt = (self.table, self.hidden_bias, self.output, self.bias)
        drawn = (self.negatives, self.state, position)
        return float(_train_sampled(*given, *learnt, *sums, self.softmax, *drawn, first_rate, last_rate))

    def logits(self, rows: Rows) -> Float32:
        """Bucket scores before softmax or sigmoid: float32 [n, B]."""
        hidden = np.empty((len(rows), len(self.hidden_bias)), np.float32)
        _sums(rows.indptr, rows.rows, rows.weights, self.table, self.hidden_bias, hidden)
        activate(hidden, self.hidden_bias, False)
        out = np.empty((len(rows), len(self.bias)), np.float32)
        products(hidden, np.ascontiguousarray(self.output.T), self.bias, out)
        return out

    def tensors(self) -> dict[str, Array]:
        """The trained weights as they are stored: tables in 8 bits, with a scale for each row (see int8.py)."""
        return {
            **as_int8("table", self.table),
            "hidden_bias": self.hidden_bias.copy(),
            **as_int8("output", self.output),
            "bias": self.bias.copy(),
        }


class NetworkScorer:
    """A trained repetition with hidden layers: scores from its stored, possibly memory-mapped, tensors."""

    def __init__(self, tensors: dict[str, Array], *, normalised: bool = False) -> None:
        self._table: Int8 = frozen(tensors["table"])
        self._scales: Float32 = frozen(tensors["table_scales"])
        self._layers = Layers(tensors, normalised=normalised)

    def logits(self, rows: Rows, out: Float32) -> None:
        """Bucket scores before softmax or sigmoid, into ``out`` float32 [n, B] (rows of it contiguous)."""
        sums = np.empty((len(rows), self._table.shape[1]), np.float32)
        _sums_int8(rows.indptr, rows.rows, rows.weights, self._table, self._scales, self._layers.start, sums)
        self._layers.logits(sums, out)


@kernel
def uniform(table: Float32, half_width: np.float32, state: np.uint64) -> None:
    """Fill it with numbers that are uniform in +-half_width."""
    rows, columns = table.shape
    for i in range(rows):
        for j in range(columns):
            unit = np.float32(draw(state, i * columns + j) >> np.uint64(40)) * np.float32(2.0**-23) - np.float32(1.0)
            table[i, j] = half_width * unit


@fast_kernel
def _train_all(
    indptr: Array, rows: Int32, weights: Float32, target_indptr: Array, targets: Int32, sample_weights: Float32,
    table: Float32, hidden_bias: Float32, columns: Float32, bias: Float32,
    squares: Float32, output_squares: Float32, bias_square: Float32,
    softmax: bool, first_rate: np.float32, last_rate: np.float32,
) -> np.float64:  # fmt: skip
    """One step of stochastic gradient descent a sample, all buckets computed.

    ``columns`` float32 [H, B] has what each hidden unit gives to the buckets, one after the other in memory: units
    that are 0 (about half) give nothing and learn nothing, so that they are not even read. The others' are read once
    on the way forward, and once on the way back, where their gradient and their step are taken together.
    """
    n_hidden, n_buckets = columns.shape
    z, g, step = np.empty(n_buckets, np.float32), np.empty(n_buckets, np.float32), np.empty(n_buckets, np.float32)
    h, dh = np.empty(n_hidden, np.float32), np.empty(n_hidden, np.float32)
    active = np.empty(n_hidden, np.int64)
    n = len(indptr) - 1
    loss = np.float64(0.0)
    for i in range(n):
        wanted = targets[target_indptr[i] : target_indptr[i + 1]]
        if softmax and len(wanted) == 0:
            continue  # a sample without labels says nothing to a softmax
        sample = slice(indptr[i], indptr[i + 1])
        h_square = _forward(rows[sample], weights[sample], table, hidden_bias, h)
        n_active = 0
        copy(z, bias)
        for k in range(n_hidden):
            dh[k] = np.float32(0.0)
            if h[k] > np.float32(0.0):
                active[n_active] = k
                n_active += 1
                add_row(z, h[k], columns[k])
        if softmax:
            loss += softmax_gradient(z, wanted, sample_weights[i], g)
        else:
            loss += sigmoid_gradient(z, wanted, sample_weights[i], g)
        rate = first_rate + (last_rate - first_rate) * np.float32(i) / np.float32(n)
        bias_gradient = np.float32(1e-30)
        for b in range(n_buckets):
            bias_gradient += g[b] * g[b]
            output_squares[b] += g[b] * g[b] * h_square + np.float32(1e-30)
            step[b] = -rate * g[b] / np.sqrt(output_squares[b])
        for k in active[:n_active]:
            column, unit, total = columns[k], h[k], np.float32(0.0)
            for b in range(n_buckets):
                total += g[b] * column[b]
                column[b] += unit * step[b]
            dh[k] = total
        bias_square[0] += bias_gradient
        add_row(bias, np.float32(-BIAS_RATE) * rate / np.sqrt(bias_square[0]), g)
        _backward(rows[sample], weights[sample], dh, rate, table, hidden_bias, squares)
    return loss


@fast_kernel
def _train_sampled(
    indptr: Array, rows: Int32, weights: Float32, target_indptr: Array, targets: Int32, sample_weights: Float32,
    table: Float32, hidden_bias: Float32, output: Float32, bias: Float32,
    squares: Float32, output_squares: Float32, bias_square: Float32,
    softmax: bool, negatives: int, state: np.uint64, position: int, first_rate: np.float32, last_rate: np.float32,
) -> np.float64:  # fmt: skip
    """One step of stochastic gradient descent a sample, the targets and ``negatives`` m other buckets computed.

    These are drawn evenly with replacement; a draw that is a target is left out. Each draw stands for B / m buckets: in
    the binary cross-entropy its gradient is multiplied by that, which makes the expectation of the gradient that of all
    buckets; in the softmax its logit is raised by the logarithm of it (sampled softmax, Jean et al. 2015), which does
    so for the sum that the softmax divides by. ``output`` float32 [B, H]: what a bucket takes lies together.
    """
    n_buckets, n_hidden = output.shape
    room = n_buckets + negatives
    picked = np.empty(room, np.int64)
    z, g = np.empty(room, np.float32), np.empty(room, np.float32)
    h, dh = np.empty(n_hidden, np.float32), np.empty(n_hidden, np.float32)
    first_targets = np.arange(n_buckets).astype(np.int32)
    stands_for = np.float32(n_buckets) / np.float32(negatives)
    n = len(indptr) - 1
    loss = np.float64(0.0)
    for i in range(n):
        wanted = targets[target_indptr[i] : target_indptr[i + 1]]
        if softmax and len(wanted) == 0:
            continue
        sample = slice(indptr[i], indptr[i + 1])
        h_square = _forward(rows[sample], weights[sample], table, hidden_bias, h)
        m = len(wanted)
        for b in range(m):
            picked[b] = wanted[b]
        for s in range(negatives):
            bucket = np.int64(draw(state, (position + i) * negatives + s) % np.uint64(n_buckets))
            at = np.searchsorted(wanted, bucket)
            if at == len(wanted) or wanted[at] != bucket:
                picked[m] = bucket
                m += 1
        first = first_targets[: len(wanted)]
        for b in range(m):
            row = output[picked[b]]
            total = bias[picked[b]]
            for k in range(n_hidden):
                total += h[k] * row[k]
            z[b] = total
        if softmax:
            z[len(wanted) : m] += np.log(stands_for)
            loss += softmax_gradient(z[:m], first, sample_weights[i], g[:m])
        else:
            loss += sigmoid_gradient(z[:m], first, sample_weights[i], g[:m])
            for b in range(len(wanted), m):
                g[b] *= stands_for
        rate = first_rate + (last_rate - first_rate) * np.float32(i) / np.float32(n)
        bias_gradient = np.float32(1e-30)
        for b in range(m):
            bias_gradient += g[b] * g[b]
        bias_square[0] += bias_gradient
        bias_step = np.float32(BIAS_RATE) * rate / np.sqrt(bias_square[0])
        for k in range(n_hidden):
            dh[k] = np.float32(0.0)
        for b in range(m):
            bucket = picked[b]
            add_row(dh, g[b], output[bucket])
            output_squares[bucket] += g[b] * g[b] * h_square + np.float32(1e-30)
            add_row(output[bucket], -rate * g[b] / np.sqrt(output_squares[bucket]), h)
            bias[bucket] -= bias_step * g[b]
        for k in range(n_hidden):
            if h[k] <= np.float32(0.0):
                dh[k] = np.float32(0.0)
        _backward(rows[sample], weights[sample], dh, rate, table, hidden_bias, squares)
    return loss


@inline
def _forward(rows: Int32, weights: Float32, table: Float32, bias: Float32, h: Float32) -> np.float32:
    """The hidden units of a sample, after the ReLU, into ``h``; returns their squared norm, above 0."""
    copy(h, bias)
    for j in range(len(rows)):
        add_row(h, weights[j], table[rows[j]])
    square = np.float32(1e-30)
    for k in range(len(h)):
        h[k] = max(h[k], np.float32(0.0))
        square += h[k] * h[k]
    return square


@inline
def _backward(
    rows: Int32, weights: Float32, dh: Float32, rate: np.float32, table: Float32, bias: Float32, squares: Float32
) -> None:
    """A step of the input rows of a sample and of the hidden bias, whose sum of squares is the last."""
    dh_square = np.float32(1e-30)
    for k in range(len(dh)):
        dh_square += dh[k] * dh[k]
    for j in range(len(rows)):
        row, weight = rows[j], weights[j]
        squares[row] += weight * weight * dh_square
        if squares[row] > np.float32(0.0):
            add_row(table[row], -rate * weight / np.sqrt(squares[row]), dh)
    last = len(squares) - 1
    squares[last] += dh_square
    add_row(bias, -rate * np.float32(BIAS_RATE) / np.sqrt(squares[last]), dh)


@fast_kernel
def _sums(indptr: Array, rows: Int32, weights: Float32, table: Float32, start: Float32, out: Float32) -> None:
    for i in range(len(indptr) - 1):
        copy(out[i], start)
        for j in range(indptr[i], indptr[i + 1]):
            add_row(out[i], weights[j], table[rows[j]])


@fast_kernel
def _sums_int8(
    indptr: Array, rows: Int32, weights: Float32, table: Int8, scales: Float32, start: Float32, out: Float32
) -> None:
    for i in range(len(indptr) - 1):
        copy(out[i], start)
        for j in range(indptr[i], indptr[i + 1]):
            add_int8(out[i], weights[j] * scales[rows[j]], table[rows[j]])
