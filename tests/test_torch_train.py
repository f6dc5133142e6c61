"""Repetitions trained on a device: as good as the kernels', stored as theirs, and the same every time."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from torch_tools import DEEP, KINDS, config_of, of_kernels, torch

from machxc.config import Config
from machxc.errors import DataError, MemoryBudgetError
from machxc.partition import HashPartition
from machxc.repetition.checkpoint import Checkpoints
from machxc.repetition.encode import encoder_of
from machxc.repetition.loop import n_trained, train_repetition
from machxc.repetition.scorer import scorer_of
from machxc.samples import Array, Samples
from machxc.testing import make_samples
from machxc.torch import cost, learner
from machxc.torch import train as training
from machxc.torch.cost import batch_size
from machxc.torch.learner import Group
from machxc.torch.train import train_group

SAMPLES = make_samples(200, 20)
K = SAMPLES.labels.n_labels
Tensors = dict[str, Array]
ALL = KINDS | DEEP


def config_for(kind: str, **changed: Any) -> Config:
    facts = {"n_labels": K, "n_features": SAMPLES.features.n_features, "buckets": 16, "epochs": 10, "feature_bits": 7}
    return config_of(**{**facts, "repetitions": 8, **ALL[kind], **changed})


def partition_of(config: Config) -> HashPartition:
    return HashPartition(config.n_labels, config.buckets, config.repetitions, config.seed)


def trained(
    config: Config, numbers: Any = (0, 1), samples: Samples = SAMPLES, on_samples: Any = None, checkpoints: Any = None
) -> dict[int, Tensors]:
    found: dict[int, Tensors] = {}
    tell = None if on_samples is None else lambda numbers, n: on_samples(n)
    train_group(samples, config, partition_of(config), numbers, "cpu", found.__setitem__, tell, checkpoints)
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
        for name in ("row_slots", "row_weights", "repeats"):
            assert found[r][name].tobytes() == kernels[name].tobytes()
        assert accuracy(config, found[r], r) > 0.9
        assert accuracy(config, found[r], r, others) > accuracy(config, kernels, r, others) - 0.03


@pytest.mark.parametrize("kind", ALL)
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
    work = training._Work(samples, config, partition_of(config), "cpu", fail, lambda numbers, n: None, {})
    run = training._Training(work, {0: None, 3: None})
    run._epoch()
    order = split(samples, config, SHARED)[1]
    for i, found in enumerate(run._held_out_losses()):
        encoder, learner = run.states[i].encoder, of_kernels(run.group.learner(i))
        expected = held_out_loss(samples, config, partition_of(config), (0, 3)[i], order, encoder, learner)
        assert found == pytest.approx(
            expected, rel=1e-5 if config.hidden else 2e-3
        )  # the kernels' weights have 16 bits


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


@pytest.mark.parametrize("kind", ALL)
def test_any_learning_rate_gives_finite_weights(kind: str) -> None:
    for rate in (1e6, 1e-9):
        config = config_for(kind, learning_rate=rate, prune=0.0, epochs=3)
        assert np.isfinite(logits_of(config, trained(config, (0,))[0], 0)).all()


def test_batches_are_large_where_there_are_many_samples() -> None:
    sizes = [batch_size(n) for n in (1, 200, 12_000, 100_000, 600_000, 70_000_000)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (cost.LEAST, cost.MOST)
    assert all(size & (size - 1) == 0 for size in sizes)


def fail(*arguments: Any) -> None:
    raise AssertionError("this was not to be called")


# ---- memory


class Short:
    """A device that has no memory for more than ``most`` repetitions at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.tried: list[int] = []
        original = learner.group_of

        def group_of(config: Config, partition: Any, numbers: list[int], *others: Any) -> Group:
            self.tried.append(len(numbers))
            if len(numbers) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")
            return original(config, partition, numbers, *others)

        monkeypatch.setattr(training, "group_of", group_of)


@pytest.mark.parametrize("kind", ["network-bce", "deep-bce"])
def test_a_group_that_does_not_fit_is_halved(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(kind, epochs=2)
    whole, memory = trained(config, range(5)), Short(monkeypatch, 2)
    with caplog.at_level(logging.WARNING, "machxc"):
        parts = trained(config, range(5))
    assert memory.tried == [5, 2, 3, 1, 2]
    assert caplog.messages[0] == "cpu has no memory for 5 repetitions at once: it trains 2, and then the others"
    assert all(same(whole[r], parts[r]) for r in range(5))


def test_a_repetition_that_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Short(monkeypatch, 0)
    with pytest.raises(MemoryBudgetError, match="cpu has no memory for a single repetition; lower 'buckets'"):
        trained(config_for("linear-bce"))


def test_held_out_samples_are_cut_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    config = config_for("network-bce", epochs=2, validation_fraction=0.2)
    whole, logits = trained(config, range(3)), Group.logits

    def short(group: Group, batch: Any) -> Any:
        if len(batch) > 20:
            raise torch.OutOfMemoryError
        return logits(group, batch)

    monkeypatch.setattr(Group, "logits", short)
    with caplog.at_level(logging.WARNING, "machxc"):
        parts = trained(config, range(3))
    assert "held-out samples at once: it takes" in caplog.messages[0]
    assert all(same(whole[r], parts[r]) for r in range(3))


# ---- checkpoints


class Kept:
    """Keeps the tensors of the last checkpoint, after every batch."""

    def __init__(self) -> None:
        self.tensors: Any = None

    def checkpoints(self, of: str = "torch") -> Checkpoints:
        def save(tensors: Any) -> None:
            self.tensors = {name: np.array(array) for name, array in tensors.items()}

        return Checkpoints(lambda: self.tensors, save, 0.0, of)


class StoppedError(Exception):
    pass


def stopped(config: Config, numbers: list[int], kept: dict[int, Kept], after: int) -> None:
    calls = iter(range(after))

    def stop(n: int) -> None:
        if next(calls, None) is None:
            raise StoppedError

    with pytest.raises(StoppedError):
        trained(config, numbers, on_samples=stop, checkpoints={r: kept[r].checkpoints() for r in numbers})


@pytest.mark.parametrize("kind", ["linear-softmax", "network-bce", "deep-bce", "normalised-bce"])
@pytest.mark.parametrize("after", [0, 3, 14])
def test_stopped_anywhere_it_goes_on_to_the_same(kind: str, after: int) -> None:
    config = config_for(kind, epochs=4, dropout=0.1, validation_fraction=0.2, patience=3)
    kept, counted = {r: Kept() for r in (1, 5)}, list[int]()
    stopped(config, [1, 5], kept, after)
    again = trained(
        config, (1, 5), on_samples=counted.append, checkpoints={r: k.checkpoints() for r, k in kept.items()}
    )
    whole = trained(config, (1, 5))
    assert all(same(again[r], whole[r]) for r in (1, 5))
    assert sum(counted) == 2 * 4 * 160  # those of before the checkpoint, too


def test_repetitions_that_stand_at_different_places_go_on_each_from_its_own() -> None:
    config = config_for("linear-bce", epochs=3)
    kept = {r: Kept() for r in range(4)}
    stopped(config, [0, 1], kept, 9)
    stopped(config, [2], kept, 2)
    again = trained(config, range(4), checkpoints={r: k.checkpoints() for r, k in kept.items()})
    whole = trained(config, range(4))
    assert all(same(again[r], whole[r]) for r in range(4))


def test_the_kernels_do_not_go_on_with_it() -> None:
    config, kept = config_for("linear-bce", epochs=3), {0: Kept()}
    stopped(config, [0], kept, 3)
    other = kept[0].checkpoints("")
    assert other.load(config, 0, 200) is None
    assert kept[0].checkpoints().load(config, 0, 200) is not None


@pytest.mark.parametrize("kind", ["network-softmax", "network-bce"])
def test_products_in_bfloat16_are_exact_enough(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "matrix_dtype", lambda device: torch.bfloat16)
    config, others = config_for(kind), make_samples(400, 20, seed=9)
    found, kernels = trained(config)[0], train_repetition(SAMPLES, config, partition_of(config), 0)
    assert found["output"].dtype == np.int8
    assert accuracy(config, found, 0, others) > accuracy(config, kernels, 0, others) - 0.03
    assert same(found, trained(config)[0])
