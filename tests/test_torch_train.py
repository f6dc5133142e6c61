"""Repetitions trained on a device: as good as the kernels', stored as theirs, and the same every time."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from machxc.config import Config
from machxc.errors import DataError
from machxc.partition import HashPartition
from machxc.repetition.encode import encoder_of
from machxc.repetition.loop import n_trained, train_repetition
from machxc.repetition.scorer import scorer_of
from machxc.samples import Array, Samples
from machxc.testing import make_samples
from machxc.torch import train as training
from machxc.torch.learner import Group
from machxc.torch.train import batch_size, train_group
from torch_tools import config_of, torch

KINDS: dict[str, dict[str, Any]] = {
    "linear-softmax": {"loss": "softmax", "learning_rate": 5.0},
    "linear-bce": {"loss": "bce", "learning_rate": 3.0},
    "network-softmax": {"loss": "softmax", "hidden": 32},
    "network-bce": {"loss": "bce", "hidden": 32},
    "network-bce-negatives": {"loss": "bce", "hidden": 32, "negatives": 5},
}
SAMPLES = make_samples(200, 20)
K = SAMPLES.labels.n_labels
Tensors = dict[str, Array]


def config_for(kind: str, **changed: Any) -> Config:
    facts = {"n_labels": K, "n_features": SAMPLES.features.n_features, "buckets": 16, "epochs": 10, "feature_bits": 7}
    return config_of(**{**facts, "repetitions": 8, **KINDS[kind], **changed})


def partition_of(config: Config) -> HashPartition:
    return HashPartition(config.n_labels, config.buckets, config.repetitions, config.seed)


def trained(
    config: Config, numbers: Any = (0, 1), samples: Samples = SAMPLES, on_samples: Any = None
) -> dict[int, Tensors]:
    found: dict[int, Tensors] = {}
    train_group(samples, config, partition_of(config), numbers, "cpu", found.__setitem__, on_samples)
    return found


def logits_of(config: Config, tensors: Tensors, r: int, samples: Samples = SAMPLES) -> Array:
    out = np.empty((len(samples), config.buckets), np.float32)
    scorer_of(config, tensors).logits(encoder_of(config, r, tensors)(samples.features), out)
    return out


def accuracy(config: Config, tensors: Tensors, r: int, samples: Samples = SAMPLES) -> float:
    """How often the best bucket is the one of the (one) label."""
    best = logits_of(config, tensors, r, samples).argmax(axis=1)
    return float((best == partition_of(config).buckets(samples.labels.indices, r)).mean())


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_the_kernels_learn(kind: str) -> None:
    config, others = config_for(kind), make_samples(400, 20, seed=9)
    found = trained(config)
    for r in (0, 1):
        kernels = train_repetition(SAMPLES, config, partition_of(config), r)
        assert {n: (t.dtype, t.shape[1:]) for n, t in found[r].items()} == {
            n: (t.dtype, t.shape[1:]) for n, t in kernels.items()
        }
        assert found[r]["slots"].tobytes() == kernels["slots"].tobytes()
        assert accuracy(config, found[r], r) > 0.9
        assert accuracy(config, found[r], r, others) > accuracy(config, kernels, r, others) - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_comes_out_alone_and_with_siblings_every_time(kind: str) -> None:
    config = config_for(kind, dropout=0.2, validation_fraction=0.1, epochs=4)
    among = trained(config, (4, 2, 7))
    assert all(same(among[r], trained(config, [r])[r]) for r in (4, 2, 7))
    assert not np.array_equal(among[4]["bias"], among[2]["bias"])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"dropout": 0.1}, {"epochs": 3}, {"learning_rate": 1.0}])
def test_something_else_comes_out_of_something_else(changed: dict[str, Any]) -> None:
    one, other = trained(config_for("linear-bce")), trained(config_for("linear-bce", **changed))
    assert one[0]["bias"].tobytes() != other[0]["bias"].tobytes()


@pytest.mark.parametrize("kind", ["linear-softmax", "network-bce"])
def test_weights_of_samples_count(kind: str) -> None:
    config = config_for(kind, buckets=64)
    weights = np.array([float(i % 20 < 10) for i in range(200)], np.float32)
    found = trained(config, (0,), Samples(SAMPLES.features, SAMPLES.labels, weights))
    best = logits_of(config, found[0], 0).argmax(axis=1)
    ignored, learnt = (partition_of(config).buckets(np.arange(a, a + 10), 0) for a in (10, 0))
    assert not np.isin(best, np.setdiff1d(ignored, learnt)).any()
    one = Samples(SAMPLES.features, SAMPLES.labels, np.ones(200, np.float32))
    assert same(trained(config, (0,), one)[0], trained(config, (0,))[0])


# ---- early stopping, progress, trouble


@pytest.mark.parametrize("kind", ["linear-softmax", "network-bce"])
def test_each_repetition_stops_when_it_gets_no_better_and_keeps_its_best(
    monkeypatch: pytest.MonkeyPatch, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    after: list[list[Tensors]] = []
    losses = [[3.0, 5.0], [1.0, 4.0], [2.0, 3.0], [2.0, 2.0], [0.5, 2.5], [0.4, 3.0], [0.3, 0.1]]

    def scripted(self: Any) -> list[float]:
        after.append([self.group.tensors(i) for i in range(2)])
        return losses[len(after) - 1]

    monkeypatch.setattr(training._Training, "_held_out_losses", scripted)
    config, counted = config_for(kind, validation_fraction=0.25, patience=2, epochs=7), list[int]()
    with caplog.at_level(logging.INFO, "machxc"):
        found = trained(config, on_samples=counted.append)
    assert len(after) == 6
    for r, best in ((0, 1), (1, 3)):
        assert same({name: found[r][name] for name in after[0][0]}, after[best][r])
    assert sum(counted) == 2 * 7 * 150  # what need not be trained on counts as done
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.INFO] == [
        "repetition 0 stops after epoch 4: no better for 2 epochs",
        "repetition 1 stops after epoch 6: no better for 2 epochs",
    ]


@pytest.mark.parametrize("kind", ["linear-softmax", "linear-bce", "network-bce"])
def test_the_held_out_loss_is_that_of_the_kernels(kind: str) -> None:
    from machxc.repetition.loop import held_out_loss, split
    from machxc.torch.batches import SHARED

    config = config_for(kind, validation_fraction=0.25)
    samples = make_samples(120, 20, labels_per_sample=1 if "softmax" in kind else 3)
    run = training._Training(samples, config, partition_of(config), (0, 3), "cpu", lambda n: None)
    run._epoch(0)
    order = split(samples, config, SHARED)[1]
    for i, found in enumerate(run._held_out_losses()):
        encoder, learner = run.members[i].encoder, run.group.learner(i)
        expected = held_out_loss(samples, config, partition_of(config), (0, 3)[i], order, encoder, learner)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_progress_counts_every_sample_of_every_epoch_and_repetition(fraction: float) -> None:
    config, counted = config_for("linear-bce", validation_fraction=fraction, patience=100), list[int]()
    trained(config, (0, 1, 2), on_samples=counted.append)
    assert sum(counted) == 3 * config.epochs * n_trained(config, 200)


def test_what_the_caller_raises_ends_training() -> None:
    class StopNowError(Exception):
        pass

    def stop(n: int) -> None:
        raise StopNowError

    with pytest.raises(StopNowError):
        trained(config_for("linear-bce"), on_samples=stop)


def test_divergence_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = torch.tensor([1.0, float("nan")])
    monkeypatch.setattr(Group, "train", lambda *arguments: lost)
    with pytest.raises(DataError, match=r"repetition 1 diverged in epoch 1: its loss is nan.*'learning_rate' \(now"):
        trained(config_for("linear-bce"))


@pytest.mark.parametrize("kind", KINDS)
def test_any_learning_rate_gives_finite_weights(kind: str) -> None:
    for rate in (1e6, 1e-9):
        config = config_for(kind, learning_rate=rate, prune=0.0, epochs=3)
        assert np.isfinite(logits_of(config, trained(config, (0,))[0], 0)).all()


def test_batches_are_large_where_there_are_many_samples() -> None:
    config = config_for("linear-bce")
    sizes = [batch_size(config, n) for n in (1, 200, 12_000, 100_000, 600_000, 70_000_000)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (training.LEAST, training.MOST)
    assert all(size & (size - 1) == 0 for size in sizes)
