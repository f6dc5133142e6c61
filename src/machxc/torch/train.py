"""Train a group of repetitions on one device: epochs, learning rate, early stopping. The twin of repetition/loop.py.

What becomes of a repetition follows from the samples, the config, its number and the kind of device: not from its
siblings. What differs from the kernels: a step is taken by a batch, not by a sample; all repetitions see the samples in
one order, and hold out the same ones. docs/gpu.md has more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from machxc.config import Config
from machxc.errors import DataError
from machxc.partition import Partition
from machxc.repetition.checkpoint import learner_of
from machxc.repetition.chunks import OnSamples, chunk_size
from machxc.repetition.encode import Encoder, fit_encoder
from machxc.repetition.loop import HELD_OUT_LOGITS, rate_at, split, start_bias
from machxc.repetition.windows import gather
from machxc.samples import Array, Samples
from machxc.torch.batches import SHARED, batch_of, batches
from machxc.torch.encode import GroupTargets
from machxc.torch.learner import Group, group_of
from machxc.torch.loss import held_out_losses

log = logging.getLogger("machxc.torch")

STEPS = 512  # of an epoch, at least, as long as batches have
LEAST, MOST = 16, 8192  # samples

Store = Callable[[int, dict[str, Array]], None]


@dataclass
class _Member:
    """A repetition of a group in training: the best of its weights so far, where it may stop early.

    ``best`` tensors had the held-out loss ``best_loss``; ``since_best`` epochs were no better.
    """

    r: int
    encoder: Encoder
    best: dict[str, Array] | None = None
    best_loss: float = math.inf
    since_best: int = 0


def train_group(
    samples: Samples,
    config: Config,
    partition: Partition,
    numbers: Sequence[int],
    device: str,
    store: Store,
    on_samples: OnSamples | None = None,
) -> None:
    """Train the repetitions ``numbers`` on a device of PyTorch, and hand each one's tensors to ``store``.

    ``on_samples`` is called with numbers of samples that add up to epochs x `n_trained` x repetitions; what it raises
    ends training. DataError when training diverges.
    """
    training = _Training(samples, config, partition, numbers, device, on_samples or _nobody)
    training.run()
    for i, member in enumerate(training.members):
        tensors = training.group.tensors(i) if member.best is None else member.best
        store(member.r, {"slots": member.encoder.slots, "row_weights": member.encoder.row_weights, **tensors})


def batch_size(config: Config, n: int) -> int:
    """The samples of a batch: so few that an epoch over ``n`` has many steps, as far as the device is not idle then."""
    return max(LEAST, min(MOST, 1 << max(0, n // STEPS).bit_length() - 1 if n >= STEPS else LEAST))


def _nobody(n: int) -> None:
    """Whom to tell when nobody asked."""


class _Training:
    """One call of `train_group`."""

    def __init__(
        self,
        samples: Samples,
        config: Config,
        partition: Partition,
        numbers: Sequence[int],
        device: str,
        tell: OnSamples,
    ) -> None:
        self.samples, self.config, self.device, self.tell = samples, config, device, tell
        self.order, self.held_out = split(samples, config, SHARED)
        self.size = batch_size(config, len(self.order))
        self.members = [_Member(r, fit_encoder(samples.features, config, r)) for r in numbers]
        self.group = self._started(partition)
        self.targets = GroupTargets(config, partition, numbers, device)

    def run(self) -> None:
        """All epochs, or as many as help."""
        for epoch in range(self.config.epochs):
            self._epoch(epoch)
            if len(self.held_out) and self._is_enough(epoch):
                self.tell((self.config.epochs - epoch - 1) * len(self.order) * len(self.members))
                return

    def _started(self, partition: Partition) -> Group:
        """The group with the weights that the kernels start from."""
        config, encoders = self.config, [member.encoder for member in self.members]
        group = group_of(config, partition, [member.r for member in self.members], self.device, encoders)
        for i, member in enumerate(self.members):
            bias = start_bias(self.samples, config, partition, member.r)
            group.set(i, learner_of(config).start(config, member.r, len(member.encoder.row_weights), bias))
        return group

    def _epoch(self, epoch: int) -> None:
        config, done, total = self.config, 0, len(self.order)
        loss = torch.zeros(len(self.members), dtype=torch.float64, device=self.device)
        for batch in batches(self.samples, self.order, config.seed, epoch, self.size, self.device):
            loss += self.group.train(batch, rate_at(config, epoch + (done + len(batch) / 2) / total), epoch)
            done += len(batch)
            self.tell(len(batch) * len(self.members))
        self._check((loss / max(1, total)).cpu().numpy(), epoch)

    def _check(self, losses: Array, epoch: int) -> None:
        for member, loss in zip(self.members, losses.tolist(), strict=True):
            if not np.isfinite(loss):
                raise DataError(
                    f"repetition {member.r} diverged in epoch {epoch + 1}: its loss is {loss}. "
                    f"Lower 'learning_rate' (now {self.config.learning_rate:g}), or scale the features."
                )
            log.debug("repetition %d, epoch %d of %d: loss %.4f", member.r, epoch + 1, self.config.epochs, loss)

    def _is_enough(self, epoch: int) -> bool:
        """Keep the weights of each repetition that is better than ever on the samples held out; whether none goes on.

        One that has stopped is computed with the others as long as they go on, and keeps its best.
        """
        patience = self.config.patience
        for i, (member, loss) in enumerate(zip(self.members, self._held_out_losses(), strict=True)):
            if member.since_best >= patience:
                continue
            if member.best is None or loss < member.best_loss:
                member.best_loss, member.best, member.since_best = loss, self.group.tensors(i), 0
                continue
            member.since_best += 1
            if member.since_best >= patience:
                log.info("repetition %d stops after epoch %d: no better for %d epochs", member.r, epoch + 1, patience)
        return all(member.since_best >= patience for member in self.members)

    def _held_out_losses(self) -> list[float]:
        """The mean loss of each repetition over the samples held out."""
        total, step = torch.zeros(len(self.members), dtype=torch.float64, device=self.device), self._held_out_step()
        for start in range(0, len(self.held_out), step):
            chunk = self.held_out[start : start + step]
            batch = batch_of(gather(self.samples, chunk.astype(np.uint32)), self.device)
            wanted = self.targets(batch, slice(0, len(self.members)))
            total += held_out_losses(self.group.logits(batch), wanted, softmax=self.config.loss == "softmax")
        means: list[float] = (total / len(self.held_out)).tolist()
        return means

    def _held_out_step(self) -> int:
        logits = HELD_OUT_LOGITS // (self.config.buckets * len(self.members))
        return max(1, min(chunk_size(self.samples.features), logits))
