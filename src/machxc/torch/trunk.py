"""From a batch to the hidden units of each repetition of a group: what stands before the output layers.

The first layer adds up rows of a table, those of a sample's features; further ones are dense, and multiplied for all
repetitions at once. All gradients of a step are taken before any weight is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from machxc.config import Config, layer_name
from machxc.repetition import random
from machxc.repetition.int8 import scales_of
from machxc.repetition.layers import EPSILON
from machxc.samples import Array
from machxc.torch.batches import Batch
from machxc.torch.bits import signed
from machxc.torch.encode import GroupEncoder
from machxc.torch.layers import Bias, Dense, Table, for_step

if TYPE_CHECKING:
    from torch import Tensor

Step = Callable[[], None]
Views = dict[str, "Tensor"]
"""Parts of a group's tensors, by the names that the learner of one repetition has for them; writing writes there."""


class Trunk(Protocol):
    """From a batch to the hidden units of each repetition."""

    def forward(self, batch: Batch, part: slice, epoch: int | None) -> tuple[Tensor, Any]:
        """Hidden units float32 [g, n, H] of the repetitions ``part``, and what `backward` needs to know of them.

        ``epoch``: of training, which may drop features and units; None when scoring: nothing is dropped, and no
        `backward` follows.
        """

    def backward(self, known: Any, part: slice, gradient: Tensor, rate: float) -> Step:
        """Compute with the gradient of the hidden units [g, n, H], which may be overwritten; what is returned steps."""

    def views(self, i: int) -> Views:
        """The i-th repetition's part."""

    def refresh(self, i: int) -> None:
        """Take over the i-th repetition's weights, which were set from outside."""


class Units:
    """The units of hidden layer ``number``, of a group: normalisation, bias, ReLU and dropout, of a layer's sums."""

    def __init__(self, config: Config, numbers: Sequence[int], number: int, device: str) -> None:
        self.bias = Bias(len(numbers), config.layers[number], device)
        self._normalised, self._dropout = config.normalisation == "layer", config.hidden_dropout
        self._seed, self._numbers, self._number = config.seed, list(numbers), number

    def forward(self, sums: Tensor, batch: Batch, part: slice, epoch: int | None) -> tuple[Tensor, Any]:
        """Units of sums float32 [g, n, H], which are overwritten, and what `backward` needs to know."""
        scales = normalise_(sums) if self._normalised else None
        # what is normalised is needed again
        units = sums.add_(self.bias.weights[part, None]) if scales is None else sums + self.bias.weights[part, None]
        units.relu_()
        if epoch is not None and self._dropout:
            self._drop_(units, batch, part, epoch)
        return units, (units, sums, scales)

    def backward(self, known: Any, part: slice, gradient: Tensor, rate: float) -> tuple[Tensor, Step]:
        """From the gradient of the units, which is overwritten: that of the sums, and what takes the bias's step."""
        units, normalised, scales = known
        gradient.mul_(units > 0)
        if self._dropout:
            gradient /= 1.0 - self._dropout
        of_bias = gradient.sum(dim=1, dtype=torch.float32)
        if scales is not None:
            gradient = _through_normalisation(gradient.float(), normalised, scales)
        return gradient, lambda: self.bias.step(part, of_bias, rate)

    def _drop_(self, units: Tensor, batch: Batch, part: slice, epoch: int) -> None:
        """Each unit stays with a probability, grown by as much; what is drawn depends on no sibling."""
        kept = 1.0 - self._dropout
        for r, of_repetition in zip(self._numbers[part], units, strict=True):
            state = random.stream(self._seed, random.UNITS, r, epoch, self._number, batch.first)
            source = torch.Generator(units.device).manual_seed(signed(state))
            of_repetition.mul_(torch.empty_like(of_repetition).bernoulli_(kept, generator=source)).div_(kept)


class SparseTrunk:
    """One hidden layer: the sum of the weighted rows of a sample's features becomes its units."""

    def __init__(self, config: Config, encoder: GroupEncoder, numbers: Sequence[int], device: str) -> None:
        self.encoder = encoder
        self.table, self.units = Table(encoder.starts[-1], config.layers[0], device), Units(config, numbers, 0, device)

    def forward(self, batch: Batch, part: slice, epoch: int | None) -> tuple[Tensor, Any]:
        """Hidden units, and the rows that they are made of: turned round here, as a step has to find memory for all."""
        rows = self.encoder.inputs(batch, part, epoch)
        sums = self.table.sums(rows).view(-1, len(batch), self.table.width)
        units, known = self.units.forward(sums, batch, part, epoch)
        return units, None if epoch is None else (for_step(rows), known)

    def backward(self, known: Any, part: slice, gradient: Tensor, rate: float) -> Step:
        """What takes a step of the rows and the bias."""
        rows, of_units = known
        gradient, step_bias = self.units.backward(of_units, part, gradient, rate)
        step_rows = self.table.backward(rows, gradient.view(-1, self.table.width), rate)

        def step() -> None:
            step_rows()
            step_bias()

        return step

    def views(self, i: int) -> Views:
        """As the learners of `machxc.repetition` have them, but for ``squares``, which is here in two parts."""
        return {**self.table.views(self.encoder.rows_of(i)), **self.units.bias.views(i, "hidden_bias")}

    def refresh(self, i: int) -> None:
        """Nothing to do: there are no copies."""


class DeepTrunk:
    """Further hidden layers behind a first one. ``dtype``: in which matrices are multiplied."""

    def __init__(
        self, config: Config, first: SparseTrunk, numbers: Sequence[int], device: str, dtype: torch.dtype
    ) -> None:
        self.first, sizes = first, config.layers
        self._layers = [
            (Dense(len(numbers), after, before, device, dtype), Units(config, numbers, number, device))
            for number, (before, after) in enumerate(pairwise(sizes), 1)
        ]

    def refresh(self, i: int) -> None:
        """Take over the i-th repetition's weights, which were set from outside."""
        for layer, _ in self._layers:
            layer.refresh(i)

    def forward(self, batch: Batch, part: slice, epoch: int | None) -> tuple[Tensor, Any]:
        """Units of the last layer, and what each layer had and made."""
        hidden, of_first = self.first.forward(batch, part, epoch)
        of_layers = []
        for layer, units in self._layers:
            inputs = hidden.to(layer.dtype)
            hidden, known = units.forward(layer.products(part, inputs).float(), batch, part, epoch)
            of_layers.append((inputs, known))
        return hidden, (of_first, of_layers)

    def backward(self, known: Any, part: slice, gradient: Tensor, rate: float) -> Step:
        """What takes a step of all layers."""
        of_first, of_layers = known
        steps: list[Step] = []
        for (layer, units), (inputs, of_units) in zip(reversed(self._layers), reversed(of_layers), strict=True):
            gradient, step_bias = units.backward(of_units, part, gradient, rate)
            gradient, step_weights = _backward(layer, part, inputs, gradient.to(layer.dtype), rate)
            steps += [step_bias, step_weights]
        steps.append(self.first.backward(of_first, part, gradient, rate))

        def step() -> None:
            for each in steps:
                each()

        return step

    def views(self, i: int) -> Views:
        """As `machxc.repetition.deep.DeepLearner` has them."""
        views = self.first.views(i)
        for number, (layer, units) in enumerate(self._layers, 1):
            name = layer_name(number)
            views |= {**layer.views(i, name), **units.bias.views(i, f"{name}_bias")}
        return views


class StoredUnits:
    """The hidden layers of trained repetitions, from their stored tensors: what `Units` makes when it scores."""

    def __init__(self, config: Config, tensors: Sequence[Mapping[str, Array]], device: str) -> None:
        names = [layer_name(number) for number in range(1, len(config.layers))]
        self._normalised = config.normalisation == "layer"
        self._layers = [
            tuple(_stacked(tensors, each, device) for each in (name, scales_of(name), f"{name}_bias")) for name in names
        ]
        self._bias = _stacked(tensors, "hidden_bias", device)

    def __call__(self, sums: Tensor) -> Tensor:
        """Units of the last layer float32 [G, n, H] of the sums of input rows float32 [G, n, H1]."""
        units = self._units(sums, self._bias)
        for weights, scales, bias in self._layers:
            units = self._units(torch.bmm(units, (weights * scales[:, :, None]).transpose(1, 2)), bias)
        return units

    def _units(self, sums: Tensor, bias: Tensor) -> Tensor:
        if self._normalised:
            normalise_(sums)
        return sums.add_(bias[:, None]).relu_()


def normalise_(sums: Tensor) -> Tensor:
    """Bring the last dimension to mean 0 and variance 1, in place; returns what it was multiplied by: [g, n, 1]."""
    sums -= sums.mean(dim=2, keepdim=True)
    scales = sums.square().mean(dim=2, keepdim=True).add_(EPSILON).rsqrt_()
    sums *= scales
    return scales


def _through_normalisation(gradient: Tensor, normalised: Tensor, scales: Tensor) -> Tensor:
    """From the gradient of what is normalised to that of what was given, in place."""
    along = (gradient * normalised).mean(dim=2, keepdim=True)
    gradient.sub_(gradient.mean(dim=2, keepdim=True))
    return gradient.sub_(normalised * along).mul_(scales)


def _backward(layer: Dense, part: slice, inputs: Tensor, gradient: Tensor, rate: float) -> tuple[Tensor, Step]:
    """The gradient of a layer's inputs, and what takes the step of its weights."""
    of_inputs, of_weights = layer.gradients(part, inputs, gradient)
    return of_inputs, lambda: layer.step_weights(part, of_weights, rate)


def _stacked(tensors: Sequence[Mapping[str, Array]], name: str, device: str) -> Tensor:
    return torch.from_numpy(np.stack([each[name] for each in tensors])).to(device)
