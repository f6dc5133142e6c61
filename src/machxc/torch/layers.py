"""What a group of repetitions learns: one table of input rows, and an output layer each. Row-wise Adagrad in batches.

A row's gradient is summed over the batch, and then is what the kernels have for one sample:

    s   += |gradient|^2
    row -= rate * gradient / sqrt(s)

so that a batch of one sample is a step of the kernels. Only rows that the batch has are read and written. Weights are
float32; where the device has bfloat16 units, outputs are multiplied in that, from a copy that each step refreshes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import embedding_bag

from machxc.torch.encode import Matrix, Rows
from machxc.torch.fused import kernels_for

if TYPE_CHECKING:
    from torch import Tensor

BIAS_RATE = 0.1  # of the learning rate, as in arithmetic.py
_CHUNK = 1 << 24  # numbers of gradients that are held beside the weights at a time: 64 MB


class Table:
    """The input rows of a group, those of one repetition after the other: weights float32 [rows, W], sums [rows]."""

    def __init__(self, n_rows: int, width: int, device: str) -> None:
        self.width = width
        self.weights = torch.zeros((n_rows, width), device=device)
        self.squares = torch.zeros(n_rows, device=device)

    def views(self, rows: slice) -> dict[str, Tensor]:
        """The part of one repetition."""
        return {"table": self.weights[rows], "squares": self.squares[rows]}

    def sums(self, rows: Rows | Matrix) -> Tensor:
        """The weighted rows of each bag, added up: float32 [G n, W]."""
        if isinstance(rows, Matrix):
            weights = self.weights[rows.rows].view(len(rows.values), -1, self.width)
            return torch.bmm(rows.values, weights).view(-1, self.width)
        if not len(rows.rows):
            return torch.zeros((len(rows.offsets), self.weights.shape[1]), device=self.weights.device)
        return embedding_bag(rows.rows, self.weights, rows.offsets, mode="sum", per_sample_weights=rows.weights)

    def backward(self, rows: Turned | Matrix, gradient: Tensor, rate: float) -> Callable[[], None]:
        """Compute with the gradient of each bag's sum [G n, W]; what is returned takes the step."""
        if isinstance(rows, Turned):
            return lambda: self.step(rows, gradient, rate)
        of_bags = gradient.float().view(*rows.values.shape[:2], self.width)
        of_rows = torch.bmm(rows.values.transpose(1, 2), of_bags).view(-1, self.width)
        weights, squares = self.weights[rows.rows], self.squares[rows.rows]

        def step() -> None:
            squares.add_(of_rows.square().sum(dim=1))
            weights.addcmul_(of_rows, _inverse_root(squares)[:, None], value=-rate)

        return step

    def step(self, turned: Turned, gradient: Tensor, rate: float) -> None:
        """A step by the gradient of each bag's sum [G n, W].

        For each row the gradients of its bags are gathered and added up in their order: no two threads add to the same
        number, and the sum is the same every time.
        """
        if not len(turned.used):
            return
        kernels = kernels_for(gradient)
        if kernels is not None and self.width <= kernels.WIDEST:
            kernels.step_rows(
                self.weights, self.squares, turned.used, turned.ends, turned.bags, turned.weights, gradient, rate
            )
            return
        weights = turned.weights.to(gradient.dtype)
        for some, first, last in _parts(turned.ends, gradient.shape[1]):
            sums = embedding_bag(
                turned.bags[first:last],
                gradient,
                turned.ends[some] - turned.counts[some] - first,
                mode="sum",
                per_sample_weights=weights[first:last],
            )
            self._move(turned.used[some], sums.float(), rate)

    def _move(self, used: Tensor, gradient: Tensor, rate: float) -> None:
        squares = self.squares[used] + gradient.square().sum(dim=1)
        self.squares[used] = squares
        self.weights.index_add_(0, used, gradient.mul_(-rate * _inverse_root(squares)[:, None]))


@dataclass(frozen=True)
class Turned:
    """A batch turned round: for each row that it has, the bags that have the row.

    ``used`` int64 [u]: these rows, rising; ``counts`` and ``ends`` int64 [u]: how many bags each has, and where they
    end; ``bags`` int64 [e], rising for each row, and ``weights`` float32 [e] of the row in them.
    """

    used: Tensor
    counts: Tensor
    ends: Tensor
    bags: Tensor
    weights: Tensor


def for_step(inputs: Rows | Matrix) -> Turned | Matrix:
    """Inputs as `Table.backward` takes them."""
    return inputs if isinstance(inputs, Matrix) else turned(inputs)


def turned(rows: Rows) -> Turned:
    """Rows by row instead of by bag."""
    by_row, order = torch.sort(rows.rows, stable=True)
    used, counts = torch.unique_consecutive(by_row, return_counts=True)
    return Turned(used, counts, torch.cumsum(counts, 0), rows.bags[order], rows.weights[order])


def _parts(ends: Tensor, width: int) -> Iterator[tuple[slice, int, int]]:
    """Rows in chunks whose gradients take little memory, and where their bags start and end."""
    step = max(1, _CHUNK // width)
    first = 0
    for start in range(0, len(ends), step):
        last = int(ends[min(start + step, len(ends)) - 1])
        yield slice(start, start + step), first, last
        first = last


class Bias:
    """The biases of a group: weights float32 [G, W], and one sum of squares a repetition: float32 [G]."""

    def __init__(self, groups: int, width: int, device: str) -> None:
        self.weights = torch.zeros((groups, width), device=device)
        self.squares = torch.zeros(groups, device=device)

    def views(self, i: int, name: str) -> dict[str, Tensor]:
        """The part of the i-th repetition, by the ``name`` of the bias."""
        return {name: self.weights[i], f"{name}_square": self.squares[i : i + 1]}

    def late(self, part: slice, z: Tensor) -> Tensor | None:
        """The biases, where the loss's kernels add them to the logits ``z``: one pass less over all of these."""
        return self.weights[part] if kernels_for(z) is not None else None

    def step(self, part: slice, gradient: Tensor, rate: float) -> None:
        """A step of the repetitions ``part`` by their gradients float32 [g, W]."""
        self.squares[part] += gradient.square().sum(dim=1)
        scale = -BIAS_RATE * rate * _inverse_root(self.squares[part])
        self.weights[part] += gradient * scale[:, None]


class Dense:
    """A matrix for each repetition of a group: weights float32 [G, W, H], W from H; sums of squares float32 [G, W].

    ``dtype``: in which matrices are multiplied.
    """

    def __init__(self, groups: int, width: int, n_inputs: int, device: str, dtype: torch.dtype) -> None:
        self.weights = torch.zeros((groups, width, n_inputs), device=device)
        self.squares = torch.zeros((groups, width), device=device)
        self.dtype = dtype
        self._copy = self.weights if dtype == torch.float32 else self.weights.to(dtype)

    def views(self, i: int, name: str) -> dict[str, Tensor]:
        """The part of the i-th repetition, by the ``name`` of the matrix."""
        return {name: self.weights[i], f"{name}_squares": self.squares[i]}

    def refresh(self, i: int) -> None:
        """Take over the i-th repetition's weights, which were set from outside."""
        self._copy[i].copy_(self.weights[i])

    def products(self, part: slice, inputs: Tensor) -> Tensor:
        """Sums [g, n, W] of inputs [g, n, H], both of ``dtype``."""
        return torch.bmm(inputs, self._copy[part].transpose(1, 2))

    def gradients(self, part: slice, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient of the sums [g, n, W]: those of inputs [g, n, H] and weights [g, W, H]."""
        return torch.bmm(gradient, self._copy[part]), torch.bmm(gradient.transpose(1, 2), inputs)

    def step_weights(self, part: slice, gradients: Tensor, rate: float) -> None:
        """A step of the repetitions ``part`` by the gradients of their weights [g, W, H]."""
        weights, squares, copy = self.weights[part], self.squares[part], self._copy[part]
        kernels, width = kernels_for(weights), weights.shape[2]
        if kernels is not None and width <= kernels.WIDEST:
            flat = (x.view(-1, width) for x in (weights, gradients, copy))
            of_rows, of_gradient, of_copy = flat
            kernels.step_outputs(of_rows, squares.view(-1), of_gradient, of_copy, rate)
            return
        for r, some in _blocks(weights):
            gradient = gradients[r, some].float()
            squares[r, some] += gradient.square().sum(dim=1)
            weights[r, some] -= gradient * (rate * _inverse_root(squares[r, some]))[:, None]
            if copy.dtype != weights.dtype:
                copy[r, some] = weights[r, some].to(copy.dtype)


class Output(Dense):
    """The output layers of a group, with their biases."""

    def __init__(self, groups: int, n_buckets: int, width: int, device: str, dtype: torch.dtype) -> None:
        super().__init__(groups, n_buckets, width, device, dtype)
        self.bias = Bias(groups, n_buckets, device)

    def views(self, i: int, name: str = "output") -> dict[str, Tensor]:
        """The part of the i-th repetition."""
        return {**super().views(i, name), **self.bias.views(i, "bias")}

    def logits(self, part: slice, hidden: Tensor, *, late: bool = False) -> Tensor:
        """Bucket scores [g, n, B] of hidden units [g, n, H], both of ``dtype``; ``late``: without `Bias.late`."""
        if late and self.bias.late(part, hidden) is not None:
            return torch.bmm(hidden, self._copy[part].transpose(1, 2))
        bias = self.bias.weights[part, None].to(self.dtype)
        return torch.baddbmm(bias, hidden, self._copy[part].transpose(1, 2))

    def all_gradients(self, part: slice, hidden: Tensor, gradient: Tensor) -> OutputGradients:
        """From the gradient of the logits [g, n, B]: those of hidden units, weights and biases."""
        return OutputGradients(*self.gradients(part, hidden, gradient), gradient.sum(dim=1, dtype=torch.float32))

    def add(self, part: slice, hidden: Tensor, gradient: Tensor, before: OutputGradients) -> OutputGradients:
        """`gradients` of more samples: those of weights and biases are added to what was ``before``, in its place.

        The sum of weights is rounded to ``dtype`` once more.
        """
        before.weights.baddbmm_(gradient.transpose(1, 2), hidden)
        before.bias.add_(gradient.sum(dim=1, dtype=torch.float32))
        of_hidden = torch.bmm(gradient, self._copy[part])
        return OutputGradients(torch.cat([before.hidden, of_hidden], dim=1), before.weights, before.bias)

    def step(self, part: slice, gradients: OutputGradients, rate: float) -> None:
        """A step of the repetitions ``part``."""
        self.bias.step(part, gradients.bias, rate)
        self.step_weights(part, gradients.weights, rate)


@dataclass(frozen=True)
class OutputGradients:
    """Gradients of hidden units [g, n, H], of weights [g, B, H], and of biases float32 [g, B]."""

    hidden: Tensor
    weights: Tensor
    bias: Tensor


def _blocks(weights: Tensor) -> Iterator[tuple[int, slice]]:
    groups, n_buckets, width = weights.shape
    step = max(1, _CHUNK // width)
    for r in range(groups):
        for start in range(0, n_buckets, step):
            yield r, slice(start, start + step)


def _inverse_root(squares: Tensor) -> Tensor:
    """1 / sqrt(s), and 0 where s is 0: what has no gradient takes no step."""
    return torch.where(squares > 0, squares.rsqrt(), 0.0)
