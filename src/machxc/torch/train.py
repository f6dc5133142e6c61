"""Train a group of repetitions on one device: epochs, learning rate, early stopping. The twin of repetition/loop.py.

What becomes of a repetition follows from the samples, the config, its number and the kind of device: not from its
siblings. What differs from the kernels: a step is taken by a batch, not by a sample; all repetitions see the samples in
one order, and hold out the same ones. docs/gpu.md has more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from machxc.config import Config
from machxc.errors import MemoryBudgetError
from machxc.partition import Partition
from machxc.repetition.checkpoint import Checkpoints, State, learner_of
from machxc.repetition.chunks import chunk_size
from machxc.repetition.encode import Encoder, fit_encoder
from machxc.repetition.loop import check_loss, rate_at, split, start_bias
from machxc.repetition.windows import gather
from machxc.samples import Array, Samples
from machxc.threads import share_out
from machxc.torch.batches import SHARED, batch_of, batches
from machxc.torch.cost import batch_size
from machxc.torch.device import on
from machxc.torch.learner import group_of
from machxc.torch.loss import held_out_losses
from machxc.torch.memory import give_back, in_parts

log = logging.getLogger("machxc.torch")

HELD_OUT_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 27}  # of held-out samples, at a time: in float64

Store = Callable[[int, dict[str, Array]], None]
OnGroup = Callable[[Sequence[int], int], None]
"""Called with repetitions, and how many samples these were trained on, all of them added up."""


def train_group(
    samples: Samples,
    config: Config,
    partition: Partition,
    numbers: Sequence[int],
    device: str,
    store: Store,
    on_samples: OnGroup | None = None,
    checkpoints: Mapping[int, Checkpoints] | None = None,
) -> None:
    """Train the repetitions ``numbers`` on a device of PyTorch, and hand each one's tensors to ``store``.

    ``on_samples`` is called with numbers of samples that add up to epochs x `n_trained` x repetitions; what it raises
    ends training. ``checkpoints``: where each repetition is to go on from, and to keep its state in. Those that stand
    at the same place train together, as many as the device has memory for. DataError when training diverges,
    MemoryBudgetError when a single repetition does not fit.
    """
    kept, places = checkpoints or {}, dict[tuple[int, int], dict[int, State | None]]()
    for r in numbers:
        state = kept[r].load(config, r, len(samples)) if r in kept else None
        places.setdefault((state.epoch, state.start) if state else (0, 0), {})[r] = state
    work = _Work(samples, config, partition, device, store, on_samples or _nobody, kept)
    with on(device):
        for states in places.values():
            _train_together(work, states)


@dataclass(frozen=True)
class _Work:
    """What is the same for all repetitions of a call of `train_group`."""

    samples: Samples
    config: Config
    partition: Partition
    device: str
    store: Store
    tell: OnGroup
    checkpoints: Mapping[int, Checkpoints]


def _train_together(work: _Work, states: dict[int, State | None]) -> None:
    """Train repetitions in one group, or where the device has no memory for that, in two, one after the other."""
    try:
        training = _Training(work, states)
    except torch.OutOfMemoryError:
        training = None
    if training is None:
        _train_halves(work, states)
        return
    try:
        training.run()
    except torch.OutOfMemoryError as error:
        raise _no_memory(work) from error
    for i, state in enumerate(training.states):
        tensors = training.group.tensors(i) if state.best is None else state.best
        work.store(training.numbers[i], {**state.encoder.tensors(), **tensors})


def _train_halves(work: _Work, states: dict[int, State | None]) -> None:
    if len(states) == 1:
        raise _no_memory(work)
    numbers = list(states)
    half = len(numbers) // 2
    log.warning(
        "%s has no memory for %d repetitions at once: it trains %d, and then the others", work.device, len(states), half
    )
    give_back(work.device)
    for some in (numbers[:half], numbers[half:]):
        _train_together(work, {r: states[r] for r in some})


def _no_memory(work: _Work) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"{work.device} has no memory for a single repetition; lower 'buckets', 'hidden' or 'feature_bits', "
        "or train with device='cpu'"
    )


def _nobody(numbers: Sequence[int], n: int) -> None:
    """Whom to tell when nobody asked."""


class _Training:
    """Repetitions in training in one group. Their states have no learner but when they are kept: the group has it."""

    def __init__(self, work: _Work, found: Mapping[int, State | None]) -> None:
        self.work, self.config, self.device, self.numbers = work, work.config, work.device, list(found)
        self.order, self.held_out = split(work.samples, work.config, SHARED)
        self.size, self._held_out_at_a_time = batch_size(len(self.order)), self._most_held_out()
        encoders = self._encoders(found)
        self.group = group_of(self.config, work.partition, self.numbers, self.device, encoders)
        self.states = [self._begin(i, encoder, found[self.numbers[i]]) for i, encoder in enumerate(encoders)]
        self.epoch, self.start = self.states[0].epoch, self.states[0].start
        self.losses = torch.tensor([state.loss for state in self.states], dtype=torch.float64, device=self.device)
        if any(state is not None for state in found.values()):
            log.info(
                "repetitions %s go on in epoch %d, after %d samples of it", self.numbers, self.epoch + 1, self.start
            )
            self._tell(self.epoch * len(self.order) + self.start)

    def run(self) -> None:
        """All epochs, or as many as help."""
        while self.epoch < self.config.epochs:
            self._epoch()
            if len(self.held_out) and self._is_enough():
                self._tell((self.config.epochs - self.epoch) * len(self.order))
                return

    def _encoders(self, found: Mapping[int, State | None]) -> list[Encoder]:
        """The encoders of all repetitions: a pass over the samples each, which threads share out."""

        def encoder(r: int) -> Encoder:
            state = found[r]
            return fit_encoder(self.work.samples.features, self.config, r) if state is None else state.encoder

        return share_out(encoder, list(found), min(len(found), os.cpu_count() or 1))

    def _begin(self, i: int, encoder: Encoder, found: State | None) -> State:
        """Give the i-th repetition the weights that it was kept with, or those that the kernels start from.

        On this machine there are those of one repetition at a time.
        """
        config, r = self.config, self.numbers[i]
        if found is None:
            bias = start_bias(self.work.samples, config, self.work.partition, r)
            found = State(encoder, learner_of(config, r, len(encoder.row_weights), bias, whole=True))
        self.group.set(i, found.learner)
        none = learner_of(config, r, 0, np.zeros(config.buckets, np.float32), whole=True)
        return dataclasses.replace(found, learner=none)

    def _tell(self, n: int) -> None:
        self.work.tell(self.numbers, n * len(self.numbers))

    def _epoch(self) -> None:
        """The rest of a pass over the samples."""
        config, total = self.config, len(self.order)
        ahead = batches(self.work.samples, self.order, config.seed, self.epoch, self.size, self.device, self.start)
        with contextlib.closing(ahead):
            for batch in ahead:
                rate = rate_at(config, self.epoch + (self.start + len(batch) / 2) / total)
                self.losses += self.group.train(batch, rate, self.epoch)
                self.start += len(batch)
                self._keep()
                self._tell(len(batch))
        for r, loss in zip(self.numbers, (self.losses / max(1, total)).tolist(), strict=True):
            check_loss(loss, config, r, self.epoch)
        self.epoch, self.start = self.epoch + 1, 0
        self.losses.zero_()

    def _keep(self) -> None:
        """Keep the state of all, when it is time for one: so that they go on together."""
        kept = [self.work.checkpoints[r] for r in self.numbers if r in self.work.checkpoints]
        if not kept or not kept[0].due:
            return
        losses = self.losses.tolist()
        for i, (r, checkpoints) in enumerate(zip(self.numbers, kept, strict=True)):
            now = {"learner": self.group.learner(i), "epoch": self.epoch, "start": self.start, "loss": losses[i]}
            checkpoints.keep(dataclasses.replace(self.states[i], **now), self.config, r, len(self.work.samples))

    def _is_enough(self) -> bool:
        """Keep the weights of each repetition that is better than ever on the samples held out; whether none goes on.

        One that has stopped is computed with the others as long as they go on, and keeps its best.
        """
        patience = self.config.patience
        for i, (state, loss) in enumerate(zip(self.states, self._held_out_losses(), strict=True)):
            if state.since_best >= patience:
                continue
            if state.best is None or loss < state.best_loss:
                state.best_loss, state.best, state.since_best = loss, self.group.tensors(i), 0
                continue
            state.since_best += 1
            if state.since_best >= patience:
                r = self.numbers[i]
                log.info("repetition %d stops after epoch %d: no better for %d epochs", r, self.epoch, patience)
        return all(state.since_best >= patience for state in self.states)

    def _held_out_losses(self) -> list[float]:
        """The mean loss of each repetition over the samples held out."""
        total = torch.zeros_like(self.losses)

        def run(start: int, stop: int) -> None:
            chunk = self.held_out[start:stop]
            batch = batch_of(gather(self.work.samples, chunk.astype(np.uint32)), self.device)
            wanted = self.group.targets(batch, slice(0, len(self.numbers)))
            total.add_(held_out_losses(self.group.logits(batch), wanted, softmax=self.config.loss == "softmax"))

        self._held_out_at_a_time = in_parts(
            len(self.held_out), self._held_out_at_a_time, run, self.device, "held-out samples"
        )
        means: list[float] = (total / len(self.held_out)).tolist()
        return means

    def _most_held_out(self) -> int:
        held = HELD_OUT_LOGITS["cuda" if self.device.startswith("cuda") else "cpu"]
        logits = held // (self.config.buckets * len(self.numbers))
        return max(1, min(chunk_size(self.work.samples.features), logits))
