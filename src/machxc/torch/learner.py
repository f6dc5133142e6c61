"""A group of repetitions in training on one device: the twins of linear.py and network.py, G of them in step.

What a repetition becomes does not depend on its siblings: all that they share is the batch. Its state goes to and from
the learners of the kernels, which start it, store it, and keep its checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from machxc.config import Config
from machxc.partition import Partition
from machxc.repetition.checkpoint import Learner, learner_of
from machxc.repetition.deep import DeepLearner
from machxc.repetition.encode import Encoder
from machxc.samples import Array
from machxc.torch.batches import Batch
from machxc.torch.encode import GroupEncoder, GroupTargets
from machxc.torch.layers import Bias, Output, OutputGradients, Table, for_step
from machxc.torch.loss import gradient_
from machxc.torch.memory import give_back, tell_of
from machxc.torch.trunk import DeepTrunk, SparseTrunk, Step, Trunk, Views

if TYPE_CHECKING:
    from torch import Tensor


class Group(ABC):
    """G repetitions that learn in step. ``config`` and ``partition``: theirs; ``numbers``: which they are.

    ``targets`` gives the target buckets of a batch.
    """

    def __init__(self, config: Config, partition: Partition, numbers: Sequence[int], device: str) -> None:
        self.config, self.numbers, self.device = config, list(numbers), device
        self.targets = GroupTargets(config, partition, numbers, device)
        self._at_a_time = len(self.numbers)  # repetitions that a step computes at a time: fewer when memory is short
        self._samples = 0  # and once a single one was too many: samples of a batch; 0: all

    @property
    @abstractmethod
    def _bias(self) -> Bias:
        """Of the buckets."""

    @abstractmethod
    def _logits(self, batch: Batch, part: slice, epoch: int | None) -> tuple[Tensor, Any]:
        """Bucket scores [g, n, B] (in training without `Bias.late`), and what `_step` needs to know of them."""

    @abstractmethod
    def _step(self, known: Any, part: slice, gradient: Tensor, rate: float) -> Step:
        """Compute with the gradient of the bucket scores; what is returned takes the step."""

    @abstractmethod
    def views(self, i: int) -> Views:
        """The i-th repetition's part of all that training changes."""

    def train(self, batch: Batch, rate: float, epoch: int) -> Tensor:
        """A step by a batch; the summed loss of each repetition before it: float32 [G], on the device.

        A step that finds no memory on the device is taken by fewer repetitions at a time, to the same result; where a
        single one is too many, the samples are cut, and their gradients added up before the step.
        """
        losses, at = [], 0
        batch = replace(batch, at_a_time=self._samples)
        while at < len(self.numbers):
            part = slice(at, min(at + self._at_a_time, len(self.numbers)))
            found = self._try(batch, part, rate, epoch)
            if found is None:
                self._make_room(len(batch))
                batch = replace(batch, at_a_time=self._samples)
                continue
            losses.append(found)
            at = part.stop
        return torch.cat(losses)

    def logits(self, batch: Batch) -> Tensor:
        """Bucket scores before softmax or sigmoid, nothing dropped: float32 [G, n, B]."""
        with torch.no_grad():
            return self._logits(batch, slice(0, len(self.numbers)), None)[0].float()

    def set(self, i: int, learner: Learner) -> None:
        """Take the i-th repetition over from a learner of the kernels."""
        for name, view in self.views(i).items():
            view.copy_(torch.from_numpy(np.ascontiguousarray(_of_learner(learner, name))))

    def learner(self, i: int) -> Learner:
        """The i-th repetition as a learner of the kernels: a copy."""
        views = self.views(i)
        n_rows = len(views["table"])
        learner = learner_of(self.config, 0, n_rows, np.zeros(self.config.buckets, np.float32), whole=True)
        for name, view in views.items():
            np.copyto(_of_learner(learner, name), view.cpu().numpy())
        return learner

    def tensors(self, i: int) -> dict[str, Array]:
        """The i-th repetition's weights as they are stored."""
        return self.learner(i).tensors()

    def _try(self, batch: Batch, part: slice, rate: float, epoch: int) -> Tensor | None:
        """A step of some repetitions; None when the device has no memory for it, and nothing has changed."""
        with torch.no_grad():
            try:
                losses, step = self._learn(batch, part, rate, epoch)
            except torch.OutOfMemoryError:
                if part.stop - part.start == 1 and min(len(batch), batch.at_a_time or len(batch)) == 1:
                    raise
                return None
            step()
        return losses

    def _learn(self, batch: Batch, part: slice, rate: float, epoch: int) -> tuple[Tensor, Step]:
        """The losses of some repetitions, and what takes their step. All that takes much memory is done before that."""
        logits, known = self._logits(batch, part, epoch)
        losses = self._to_gradient(logits, batch, part)
        return losses, self._step(known, part, logits, rate)

    def _to_gradient(self, logits: Tensor, batch: Batch, part: slice) -> Tensor:
        """Replace logits by the loss's gradient; the losses."""
        bias, softmax = self._bias.late(part, logits), self.config.loss == "softmax"
        return gradient_(logits, self.targets(batch, part), softmax=softmax, bias=bias)

    def _make_room(self, n: int) -> None:
        if self._at_a_time > 1:
            before, self._at_a_time = self._at_a_time, self._at_a_time // 2
            what, now = f"{before} repetitions by {n} samples", f"takes {self._at_a_time}"
        else:
            before, self._samples = self._samples or n, min(self._samples or n, n) // 2
            what, now = f"a repetition by {min(before, n)} samples", f"cuts the samples, {self._samples}"
        tell_of(self.device, f"a step of {what}: it {now} at a time from here on")
        give_back(self.device)


class LinearGroup(Group):
    """Linear repetitions: the table has a number for each bucket, and the rows of a sample add up to its scores."""

    def __init__(
        self, config: Config, partition: Partition, numbers: Sequence[int], device: str, encoders: Sequence[Encoder]
    ) -> None:
        super().__init__(config, partition, numbers, device)
        self.encoder = GroupEncoder(config, encoders, numbers, device)
        self.table = Table(self.encoder.starts[-1], config.buckets, device)
        self.bias = Bias(len(numbers), config.buckets, device)

    def _logits(self, batch: Batch, part: slice, epoch: int | None) -> tuple[Tensor, Any]:
        rows = self.encoder.inputs(batch, part, epoch)
        sums = self.table.sums(rows).view(-1, len(batch), self.config.buckets)
        if epoch is None or self.bias.late(part, sums) is None:
            sums.add_(self.bias.weights[part, None])
        return sums, rows

    @property
    def _bias(self) -> Bias:
        return self.bias

    def _step(self, known: Any, part: slice, gradient: Tensor, rate: float) -> Step:
        of_bias = gradient.sum(dim=1)
        step_rows = self.table.backward(for_step(known), gradient.view(-1, self.config.buckets), rate)

        def step() -> None:
            step_rows()
            self.bias.step(part, of_bias, rate)

        return step

    def views(self, i: int) -> Views:
        """As `machxc.repetition.linear.LinearLearner` has them."""
        return {**self.table.views(self.encoder.rows_of(i)), **self.bias.views(i, "bias")}


class NetworkGroup(Group):
    """Repetitions with hidden units, which a trunk makes, and an output layer over all buckets.

    (``negatives``, which spares the kernels most of the buckets, is an estimate of that, and not needed here.)
    """

    def __init__(self, config: Config, partition: Partition, numbers: Sequence[int], device: str, trunk: Trunk) -> None:
        super().__init__(config, partition, numbers, device)
        self.trunk = trunk
        self.output = Output(len(numbers), config.buckets, config.layers[-1], device, matrix_dtype(device))

    def set(self, i: int, learner: Learner) -> None:
        """Take the i-th repetition over from a learner of the kernels."""
        super().set(i, learner)
        self.output.refresh(i)
        self.trunk.refresh(i)

    def _logits(self, batch: Batch, part: slice, epoch: int | None) -> tuple[Tensor, Any]:
        hidden, known = self.trunk.forward(batch, part, epoch)
        hidden = hidden.to(self.output.dtype)
        return self.output.logits(part, hidden, late=epoch is not None), (hidden, known)

    @property
    def _bias(self) -> Bias:
        return self.output.bias

    def _learn(self, batch: Batch, part: slice, rate: float, epoch: int) -> tuple[Tensor, Step]:
        if not batch.is_cut:
            return super()._learn(batch, part, rate, epoch)
        hidden, known = self.trunk.forward(batch, part, epoch)
        hidden, losses, gradients = hidden.to(self.output.dtype), [], None
        for rows, piece in batch.parts():
            logits = self.output.logits(part, hidden[:, rows], late=True)
            losses.append(self._to_gradient(logits, piece, part))
            if gradients is None:
                gradients = self.output.all_gradients(part, hidden[:, rows], logits)
            else:
                gradients = self.output.add(part, hidden[:, rows], logits, gradients)
        assert gradients is not None
        return torch.stack(losses).sum(dim=0), self._step_by(gradients, known, part, rate)

    def _step(self, known: Any, part: slice, gradient: Tensor, rate: float) -> Step:
        hidden, of_trunk = known
        return self._step_by(self.output.all_gradients(part, hidden, gradient), of_trunk, part, rate)

    def _step_by(self, gradients: OutputGradients, of_trunk: Any, part: slice, rate: float) -> Step:
        """What takes a step. It holds no logits: others have their room."""
        step_trunk = self.trunk.backward(of_trunk, part, gradients.hidden, rate)

        def step() -> None:
            self.output.step(part, gradients, rate)
            step_trunk()

        return step

    def views(self, i: int) -> Views:
        """Those of the trunk, and of the output layer."""
        return {**self.trunk.views(i), **self.output.views(i)}


def group_of(
    config: Config, partition: Partition, numbers: Sequence[int], device: str, encoders: Sequence[Encoder]
) -> Group:
    """The group that a config asks for, all of its weights 0: `Group.set` them."""
    if not config.hidden:
        return LinearGroup(config, partition, numbers, device, encoders)
    first = SparseTrunk(config, GroupEncoder(config, encoders, numbers, device), numbers, device)
    deep = len(config.layers) > 1
    trunk = DeepTrunk(config, first, numbers, device, matrix_dtype(device)) if deep else first
    return NetworkGroup(config, partition, numbers, device, trunk)


def matrix_dtype(device: str) -> torch.dtype:
    """In which matrices are multiplied: bfloat16 where the device has units for it, else float32."""
    with_units = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if with_units else torch.float32


def _of_learner(learner: Learner, name: str) -> Array:
    """An array of a learner by the name of a view. A network's sum for the hidden bias is the last of its squares."""
    if isinstance(learner, DeepLearner):
        return learner.arrays[name]
    networks = hasattr(learner, "hidden_bias")
    if name == "hidden_bias_square":
        return np.asarray(learner.squares[-1:])
    found: Array = getattr(learner, name)
    return found[:-1] if networks and name == "squares" else found
