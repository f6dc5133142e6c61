"""Train one repetition: a pure function of the samples, the config and the repetition's number.

Knows nothing of its siblings. The order of samples, what is dropped and what is drawn follow from
the seed and the repetition's number alone, so that the same bytes come out wherever it runs.
"""

from __future__ import annotations

import logging

import numpy as np

from machxc.config import Config
from machxc.errors import DataError
from machxc.partition import Partition
from machxc.repetition import random
from machxc.repetition.checkpoint import Checkpoints, Learner, State, learner_of
from machxc.repetition.chunks import OnSamples, chunk_size
from machxc.repetition.counting import count_repetition
from machxc.repetition.encode import Encoder, fit_encoder
from machxc.repetition.targets import Targets, bucket_counts, bucket_targets
from machxc.repetition.windows import shuffled
from machxc.samples import Array, Float32, Int64, Samples

log = logging.getLogger("machxc.repetition")

HELD_OUT_LOGITS = 1 << 19  # logits of held-out samples computed at a time: some 10 MB with what the loss takes


def train_repetition(
    samples: Samples,
    config: Config,
    partition: Partition,
    r: int,
    on_samples: OnSamples | None = None,
    checkpoints: Checkpoints | None = None,
    threads: int = 1,
) -> dict[str, Array]:
    """Train repetition r; returns its tensors by name, as they are stored (see folder.py for dtypes and shapes).

    ``on_samples`` is called with the number of samples each time some were trained on, and when training stops early,
    with how many that saves: in all, epochs x `n_trained`. What it raises ends training. ``checkpoints``: where to go
    on from, and to keep the state in now and then (a counted repetition takes seconds, and is counted again).
    ``threads``: how many may work on it, which changes no byte: counting is shared out, steps are taken by one.
    """
    if config.learner == "counts":
        return count_repetition(samples, config, partition, r, on_samples, threads)
    tell = on_samples or _nobody
    order, held_out = split(samples, config, r)
    state = None if checkpoints is None else checkpoints.load(config, r, len(samples))
    if state is not None:
        log.info("repetition %d goes on in epoch %d, after %d samples of it", r, state.epoch + 1, state.start)
        tell(state.epoch * len(order) + state.start)
    else:
        state = _start(samples, config, partition, r)

    def chunk_done(n: int) -> None:
        if checkpoints is not None:
            checkpoints.offer(state, config, r, len(samples))
        tell(n)

    while state.epoch < config.epochs:
        _epoch(samples, config, partition, r, order, state, chunk_done)
        if len(held_out) and _is_enough(samples, config, partition, r, held_out, state):
            tell((config.epochs - state.epoch) * len(order))
            break
    tensors = state.learner.tensors() if state.best is None else state.best
    return {**state.encoder.tensors(), **tensors}


def _nobody(n: int) -> None:
    """Whom to tell when nobody asked."""


def _start(samples: Samples, config: Config, partition: Partition, r: int) -> State:
    encoder = fit_encoder(samples.features, config, r)
    bias = start_bias(samples, config, partition, r)
    return State(encoder, learner_of(config, r, len(encoder.row_weights), bias))


def _epoch(
    samples: Samples, config: Config, partition: Partition, r: int, order: Int64, state: State, chunk_done: OnSamples
) -> None:
    """The rest of a pass over the samples, in an order of its own; DataError when the loss is no number."""
    epoch, done, step = state.epoch, 0, chunk_size(samples.features)
    for number, window in enumerate(shuffled(samples, order, config.seed, r, epoch)):
        dropout = random.stream(config.seed, random.DROPOUT, r, epoch, *((number,) if number else ()))
        for start in range(0, len(window.order), step):
            chunk = window.order[start : start + step]
            before, done = done, done + len(chunk)
            if done <= state.start:
                continue  # trained on before the checkpoint
            first_rate, last_rate = (rate_at(config, epoch + at / len(order)) for at in (before, done))
            state.loss += state.learner.train(
                state.encoder(window.samples.features, chunk, config.dropout, dropout),
                bucket_targets(window.samples, chunk, partition, r),
                (first_rate, last_rate),
                epoch * len(order) + before,
            )
            state.start = done
            chunk_done(len(chunk))
    check_loss(state.loss / max(1, len(order)), config, r, epoch)
    state.epoch, state.start, state.loss = epoch + 1, 0, 0.0


def _is_enough(samples: Samples, config: Config, partition: Partition, r: int, held_out: Int64, state: State) -> bool:
    """Keep the weights if they are the best so far on the samples held out; whether training is to stop."""
    checked = held_out_loss(samples, config, partition, r, held_out, state.encoder, state.learner)
    if state.best is None or checked < state.best_loss:
        state.best_loss, state.best, state.since_best = checked, state.learner.tensors(), 0
    else:
        state.since_best += 1
    if state.since_best < config.patience:
        return False
    log.info("repetition %d stops after epoch %d: no better for %d epochs", r, state.epoch, state.since_best)
    return True


def check_loss(loss: float, config: Config, r: int, epoch: int) -> None:
    """Log the mean loss of an epoch; DataError when it is no number."""
    if not np.isfinite(loss):
        raise DataError(
            f"repetition {r} diverged in epoch {epoch + 1}: its loss is {loss}. "
            f"Lower 'learning_rate' (now {config.learning_rate:g}), or scale the features."
        )
    log.debug("repetition %d, epoch %d of %d: loss %.4f", r, epoch + 1, config.epochs, loss)


def rate_at(config: Config, epochs_done: float) -> float:
    """The learning rate falls linearly from the initial one to 0 at the end of the last epoch."""
    return config.learning_rate * (1.0 - epochs_done / config.epochs)


def n_trained(config: Config, n_samples: int) -> int:
    """How many of N samples a repetition trains on: those that are not held out for early stopping."""
    return n_samples - int(config.validation_fraction * n_samples)


def split(samples: Samples, config: Config, r: int) -> tuple[Int64, Int64]:
    """The samples to train on and those held out for early stopping (another slice in every repetition)."""
    order = np.arange(len(samples), dtype=np.int64)
    n_held_out = len(samples) - n_trained(config, len(samples))
    if not n_held_out:
        return order, order[:0]
    random.shuffle(order, random.stream(config.seed, random.HOLDOUT, r))
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def start_bias(samples: Samples, config: Config, partition: Partition, r: int) -> Float32:
    """What the loss would choose if no feature told anything: the logarithm, or the logit, of each bucket's share."""
    counts = bucket_counts(samples, partition, r) + 1.0 / config.buckets
    total = len(samples) if samples.weights is None else float(samples.weights.sum())
    share = np.clip(counts / max(1.0, total), 1e-7, 0.9)
    prior: Float32 = np.log(
        counts / counts.sum() if config.loss == "softmax" else share / (1.0 - share), dtype=np.float32
    )
    return prior


def held_out_loss(
    samples: Samples,
    config: Config,
    partition: Partition,
    r: int,
    order: Int64,
    encoder: Encoder,
    learner: Learner,
) -> float:
    """The mean loss over the samples ``order``, all buckets counted, nothing dropped."""
    total, step = 0.0, max(1, min(chunk_size(samples.features), HELD_OUT_LOGITS // config.buckets))
    for start in range(0, len(order), step):
        chunk = order[start : start + step]
        logits = learner.logits(encoder(samples.features, chunk)).astype(np.float64)
        total += loss_of(logits, bucket_targets(samples, chunk, partition, r), config.loss)
    return total / max(1, len(order))


def loss_of(logits: Array, targets: Targets, loss: str) -> float:
    """Summed cross-entropy of logits float64 [n, B], in nats."""
    sizes = np.diff(targets.indptr)
    row = np.repeat(np.arange(len(sizes)), sizes)
    at_targets = logits[row, targets.buckets]
    if loss == "softmax":
        normalised = at_targets - np.logaddexp.reduce(logits, axis=1)[row]
        return float(-(targets.weights[row] * normalised / sizes[row]).sum())
    everywhere = np.logaddexp(0.0, logits).sum(axis=1)
    return float((targets.weights * everywhere).sum() - (targets.weights[row] * at_targets).sum())
