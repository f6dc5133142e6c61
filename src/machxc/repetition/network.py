"""The repetition with a hidden layer: rows of H inputs, ReLU, then an output vector of H numbers for each bucket.

All buckets, or the targets and a few sampled others: see `_train`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from machxc.compiled import fast_kernel, kernel
from machxc.config import Config
from machxc.repetition import random
from machxc.repetition.arithmetic import (
    BIAS_RATE,
    HALF_SCALE,
    Int32,
    UInt16,
    add_row,
    copy,
    half_to_float,
    sigmoid_gradient,
    softmax_gradient,
    to_half,
)
from machxc.repetition.encode import Rows
from machxc.repetition.random import draw
from machxc.repetition.targets import Targets
from machxc.samples import Array, Float32, frozen


@dataclass
class NetworkLearner:
    """A repetition with a hidden layer in training: float32 weights and row-wise Adagrad sums."""

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
        table = np.empty((n_rows, config.hidden), np.float32)
        _uniform(table, np.float32(np.sqrt(3.0 / config.hidden)), random.stream(config.seed, random.WEIGHTS, r))
        return cls(
            config.loss == "softmax",
            config.negatives if config.negatives < config.buckets else 0,
            random.stream(config.seed, random.NEGATIVES, r),
            table,
            np.zeros(config.hidden, np.float32),
            np.zeros((config.buckets, config.hidden), np.float32),
            bias,
            np.zeros(n_rows + 1, np.float32),
            np.zeros(config.buckets, np.float32),
            np.zeros(1, np.float32),
        )

    def train(self, rows: Rows, targets: Targets, rates: tuple[float, float], position: int) -> float:
        """One pass over encoded samples, the rate falling from rates[0] to rates[1]; returns the summed loss.

        ``position``: how many samples were trained on before, in this and earlier epochs (draws the negatives).
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
                self.hidden_bias,
                self.output,
                self.bias,
                self.squares,
                self.output_squares,
                self.bias_square,
                self.softmax,
                self.negatives,
                self.state,
                position,
                *map(np.float32, rates),
            )
        )

    def logits(self, rows: Rows) -> Float32:
        """Bucket scores before softmax or sigmoid: float32 [n, B]."""
        hidden = np.empty((len(rows), len(self.hidden_bias)), np.float32)
        _hidden(rows.indptr, rows.rows, rows.weights, self.table, self.hidden_bias, hidden)
        out = np.empty((len(rows), len(self.bias)), np.float32)
        _outputs(hidden, self.output, self.bias, out)
        return out

    def tensors(self) -> dict[str, Array]:
        """The trained weights as they are stored: tables in float16."""
        return {
            "table": to_half(self.table),
            "hidden_bias": self.hidden_bias.copy(),
            "output": to_half(self.output),
            "bias": self.bias.copy(),
        }


class NetworkScorer:
    """A trained repetition with a hidden layer: scores from its stored, possibly memory-mapped, tensors."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.table: UInt16 = frozen(tensors["table"].view(np.uint16))
        self.hidden_bias: Float32 = frozen(tensors["hidden_bias"])
        self.output: Float32 = tensors["output"].astype(np.float32)
        self.bias: Float32 = frozen(tensors["bias"])

    def logits(self, rows: Rows, out: Float32) -> None:
        """Bucket scores before softmax or sigmoid, into ``out`` float32 [n, B] (rows of it contiguous)."""
        hidden = np.empty((len(rows), len(self.hidden_bias)), np.float32)
        _hidden_half(rows.indptr, rows.rows, rows.weights, self.table, self.hidden_bias, hidden)
        _outputs(hidden, self.output, self.bias, out)


@kernel
def _uniform(table: Float32, half_width: np.float32, state: np.uint64) -> None:
    rows, columns = table.shape
    for i in range(rows):
        for j in range(columns):
            unit = np.float32(draw(state, i * columns + j) >> np.uint64(40)) * np.float32(2.0**-23) - np.float32(1.0)
            table[i, j] = half_width * unit


@fast_kernel
def _train(
    indptr: Array, rows: Int32, weights: Float32, target_indptr: Array, targets: Int32, sample_weights: Float32,
    table: Float32, hidden_bias: Float32, output: Float32, bias: Float32,
    squares: Float32, output_squares: Float32, bias_square: Float32,
    softmax: bool, negatives: int, state: np.uint64, position: int, first_rate: np.float32, last_rate: np.float32,
) -> np.float64:  # fmt: skip
    """One step of stochastic gradient descent a sample.

    With ``negatives`` m > 0 only the targets and m buckets, drawn evenly with replacement, are computed; a draw that
    is a target is left out. Each draw stands for B / m buckets: in the binary cross-entropy its gradient is multiplied
    by that, which makes the expectation of the gradient that of all buckets; in the softmax its logit is raised by the
    logarithm of it (sampled softmax, Jean et al. 2015), which does so for the sum that the softmax divides by.
    """
    n_buckets, n_hidden = output.shape
    room = n_buckets + negatives
    picked = np.arange(room)  # with all buckets computed it stays so
    z = np.empty(room, np.float32)
    g = np.empty(room, np.float32)
    bits = np.empty(room, np.int32)
    powers = bits.view(np.float32)
    h = np.empty(n_hidden, np.float32)
    dh = np.empty(n_hidden, np.float32)
    first_targets = np.arange(n_buckets).astype(np.int32)
    stands_for = np.float32(n_buckets) / np.float32(max(1, negatives))
    n = len(indptr) - 1
    loss = np.float64(0.0)
    for i in range(n):
        wanted = targets[target_indptr[i] : target_indptr[i + 1]]
        if softmax and len(wanted) == 0:
            continue
        copy(h, hidden_bias)
        for j in range(indptr[i], indptr[i + 1]):
            add_row(h, weights[j], table[rows[j]])
        h_square = np.float32(1e-30)
        for k in range(n_hidden):
            h[k] = max(h[k], np.float32(0.0))
            h_square += h[k] * h[k]
        # which outputs, and their logits
        m = n_buckets
        if negatives > 0:
            m = len(wanted)
            for b in range(m):
                picked[b] = wanted[b]
            for s in range(negatives):
                bucket = np.int64(draw(state, (position + i) * negatives + s) % np.uint64(n_buckets))
                at = np.searchsorted(wanted, bucket)
                if at == len(wanted) or wanted[at] != bucket:
                    picked[m] = bucket
                    m += 1
            wanted = first_targets[: len(wanted)]
        for b in range(m):
            row = output[picked[b]]
            total = bias[picked[b]]
            for k in range(n_hidden):
                total += h[k] * row[k]
            z[b] = total
        if negatives > 0 and softmax:
            z[len(wanted) : m] += np.log(stands_for)
        if softmax:
            loss += softmax_gradient(z[:m], wanted, sample_weights[i], bits[:m], powers[:m], g[:m])
        else:
            loss += sigmoid_gradient(z[:m], wanted, sample_weights[i], bits[:m], powers[:m], g[:m])
            if negatives > 0:
                for b in range(len(wanted), m):
                    g[b] *= stands_for
        # outputs, and the gradient of the hidden units
        rate = first_rate + (last_rate - first_rate) * np.float32(i) / np.float32(n)
        for k in range(n_hidden):
            dh[k] = np.float32(0.0)
        bias_gradient = np.float32(1e-30)
        for b in range(m):
            bias_gradient += g[b] * g[b]
        bias_square[0] += bias_gradient
        bias_step = np.float32(BIAS_RATE) * rate / np.sqrt(bias_square[0])
        for b in range(m):
            bucket = picked[b]
            add_row(dh, g[b], output[bucket])
            output_squares[bucket] += g[b] * g[b] * h_square + np.float32(1e-30)
            add_row(output[bucket], -rate * g[b] / np.sqrt(output_squares[bucket]), h)
            bias[bucket] -= bias_step * g[b]
        # inputs
        dh_square = np.float32(1e-30)
        for k in range(n_hidden):
            if h[k] <= np.float32(0.0):
                dh[k] = np.float32(0.0)
            dh_square += dh[k] * dh[k]
        for j in range(indptr[i], indptr[i + 1]):
            row_id, weight = rows[j], weights[j]
            squares[row_id] += weight * weight * dh_square
            if squares[row_id] > np.float32(0.0):
                add_row(table[row_id], -rate * weight / np.sqrt(squares[row_id]), dh)
        last = len(squares) - 1
        squares[last] += dh_square
        add_row(hidden_bias, -rate * np.float32(BIAS_RATE) / np.sqrt(squares[last]), dh)
    return loss


@fast_kernel
def _hidden(indptr: Array, rows: Int32, weights: Float32, table: Float32, bias: Float32, out: Float32) -> None:
    for i in range(len(indptr) - 1):
        copy(out[i], bias)
        for j in range(indptr[i], indptr[i + 1]):
            add_row(out[i], weights[j], table[rows[j]])
        for k in range(len(bias)):
            out[i, k] = max(out[i, k], np.float32(0.0))


@fast_kernel
def _hidden_half(indptr: Array, rows: Int32, weights: Float32, table: UInt16, bias: Float32, out: Float32) -> None:
    bits = np.empty(len(bias), np.int32)
    floats = bits.view(np.float32)
    for i in range(len(indptr) - 1):
        copy(out[i], bias)
        for j in range(indptr[i], indptr[i + 1]):
            half_to_float(table[rows[j]], bits)
            add_row(out[i], weights[j] * HALF_SCALE, floats)
        for k in range(len(bias)):
            out[i, k] = max(out[i, k], np.float32(0.0))


@fast_kernel
def _outputs(hidden: Float32, output: Float32, bias: Float32, out: Float32) -> None:
    for i in range(len(hidden)):
        for b in range(len(bias)):
            total = bias[b]
            for k in range(hidden.shape[1]):
                total += hidden[i, k] * output[b, k]
            out[i, b] = total
