from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
from plain import KINDS, config_of, features_of, labels_of

from machxc.config import Config
from machxc.errors import DataError
from machxc.partition import HashPartition
from machxc.repetition import chunks, loop
from machxc.repetition.bfloat import to_bfloat
from machxc.repetition.encode import encoder_of, fit_encoder
from machxc.repetition.linear import LinearLearner
from machxc.repetition.loop import held_out_loss, n_trained, rate_at, train_repetition
from machxc.repetition.network import NetworkLearner
from machxc.repetition.scorer import scorer_of
from machxc.repetition.targets import bucket_targets
from machxc.samples import Array, Features, Samples
from machxc.testing import make_samples

SAMPLES = make_samples(200, 20)
K = SAMPLES.labels.n_labels


def config_for(kind: str, **changed: Any) -> Config:
    facts = {"n_labels": K, "n_features": SAMPLES.features.n_features, "buckets": 16, "epochs": 5, "feature_bits": 7}
    return config_of(**{**facts, **KINDS[kind], **changed})


def partition_of(config: Config) -> HashPartition:
    return HashPartition(config.n_labels, config.buckets, config.repetitions, config.seed)


def trained(config: Config, r: int = 0, samples: Samples = SAMPLES, on_samples: Any = None) -> dict[str, Array]:
    return train_repetition(samples, config, partition_of(config), r, on_samples)


def same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def logits_of(config: Config, tensors: dict[str, Array], r: int = 0, samples: Samples = SAMPLES) -> Array:
    out = np.empty((len(samples), config.buckets), np.float32)
    scorer_of(config, tensors).logits(encoder_of(config, r, tensors)(samples.features), out)
    return out


def accuracy(config: Config, tensors: dict[str, Array], r: int = 0, samples: Samples = SAMPLES) -> float:
    """How often the best bucket is the one of the (one) label."""
    best = logits_of(config, tensors, r, samples).argmax(axis=1)
    return float((best == partition_of(config).buckets(samples.labels.indices, r)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_can_be_learnt(kind: str) -> None:
    config = config_for(kind, epochs=10)
    for r in range(2):
        tensors = trained(config, r)
        assert accuracy(config, tensors, r) > 0.9  # of chance: 1 in 16
        assert accuracy(config, tensors, r, make_samples(200, 20, seed=9)) > 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_several_labels_of_a_sample_are_learnt(kind: str) -> None:
    samples = make_samples(300, 20, labels_per_sample=3, noise=0)
    config = config_for(kind, epochs=20, buckets=40)
    logits = logits_of(config, trained(config, samples=samples), samples=samples)
    targets = bucket_targets(samples, np.arange(300), partition_of(config), 0)
    right = 0.0
    for i in range(300):
        wanted = targets.buckets[targets.indptr[i] : targets.indptr[i + 1]]
        right += len(np.intersect1d(np.argsort(-logits[i])[: len(wanted)], wanted)) / len(wanted)
    assert right / 300 > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_comes_out_of_every_run(kind: str) -> None:
    config = config_for(kind, dropout=0.2, validation_fraction=0.1)
    assert same(trained(config), trained(config))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", ["seed", "repetition", "epochs", "rate", "dropout"])
def test_something_else_comes_out_of_something_else(kind: str, changed: str) -> None:
    config = config_for(kind)
    others: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1}, "repetition": {}, "epochs": {"epochs": 6}, "rate": {"learning_rate": 0.5},
        "dropout": {"dropout": 0.1},
    }  # fmt: skip
    one, other = trained(config), trained(config_for(kind, **others[changed]), int(changed == "repetition"))
    weights = "output" if config.hidden else "codes" if "codes" in one else "entries"
    assert one[weights].tobytes() != other[weights].tobytes()


def test_memory_mapped_samples_give_the_same_bytes(tmp_path: Any) -> None:
    arrays: dict[str, Array] = {
        "indptr": SAMPLES.features.indptr, "indices": SAMPLES.features.indices, "values": SAMPLES.features.values,
        "label_indptr": SAMPLES.labels.indptr, "label_indices": SAMPLES.labels.indices,
    }  # fmt: skip
    mapped = {}
    for name, array in arrays.items():
        array.tofile(tmp_path / name)
        mapped[name] = np.memmap(tmp_path / name, array.dtype, "r")
    features = type(SAMPLES.features)(
        mapped["indptr"], mapped["indices"], mapped["values"], SAMPLES.features.n_features
    )
    samples = Samples(features, type(SAMPLES.labels)(mapped["label_indptr"], mapped["label_indices"], K))
    for kind in ("linear-bce", "network-softmax"):
        assert same(trained(config_for(kind), samples=samples), trained(config_for(kind)))


def test_how_many_samples_are_encoded_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the learning rate, which falls in straight lines between chunks: a straight line anyway."""
    for kind in ("linear-softmax", "network-bce-negatives"):
        config = config_for(kind, dropout=0.3, validation_fraction=0.2)
        whole = logits_of(config, trained(config))
        monkeypatch.setattr(chunks, "CHUNK", 7)
        monkeypatch.setattr(loop, "HELD_OUT_LOGITS", 100)
        np.testing.assert_allclose(logits_of(config, trained(config)), whole, atol=0.02)
        monkeypatch.undo()


def test_chunks_have_bounded_numbers_of_samples_and_values() -> None:
    assert chunks.chunk_size(SAMPLES.features) == 4096
    wide = Features(np.array([0, 5000]), np.zeros(5000, np.uint32), np.ones(5000, np.float32), 1)
    assert chunks.chunk_size(wide) == 2**20 // 5000
    assert chunks.chunk_size(Features(np.array([0, 2**21]), np.empty(2**21, np.uint32), wide.values, 1)) == 1
    assert chunks.chunk_size(features_of([], 5)) == 4096


# ---- weights


def weighted(weights: list[float]) -> Samples:
    return Samples(SAMPLES.features, SAMPLES.labels, np.array(weights, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_1_are_no_weights(kind: str) -> None:
    config = config_for(kind)
    assert same(trained(config, samples=weighted([1.0] * 200)), trained(config))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_weight_0_are_not_learnt(kind: str) -> None:
    config = config_for(kind, buckets=64)  # few labels share a bucket
    half = weighted([float(i % 20 < 10) for i in range(200)])
    best = logits_of(config, trained(config, samples=half)).argmax(axis=1)
    ignored = partition_of(config).buckets(np.arange(10, 20), 0)
    learnt = partition_of(config).buckets(np.arange(10), 0)
    assert not np.isin(best, np.setdiff1d(ignored, learnt)).any()


# ---- early stopping


@pytest.mark.parametrize("kind", ["linear-softmax", "network-bce"])
@pytest.mark.parametrize(
    ("losses", "patience", "epochs_run", "best"),
    [
        ([3.0, 1.0, 2.0, 2.0, 0.5], 2, 4, 2),
        ([3.0, 1.0, 2.0, 0.5, 2.0], 2, 5, 4),
        ([1.0, 1.0, 0.0, 0.0, 0.0], 1, 2, 1),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 1, 5, 5),
    ],
)
def test_it_stops_when_it_gets_no_better_and_keeps_the_best(
    monkeypatch: pytest.MonkeyPatch, kind: str, losses: list[float], patience: int, epochs_run: int, best: int
) -> None:
    after_epoch: list[dict[str, Array]] = []
    counted: list[int] = []

    def scripted(*arguments: Any) -> float:
        after_epoch.append(arguments[-1].tensors())
        return losses[len(after_epoch) - 1]

    monkeypatch.setattr(loop, "held_out_loss", scripted)
    config = config_for(kind, validation_fraction=0.25, patience=patience)
    tensors = trained(config, on_samples=counted.append)
    assert len(after_epoch) == epochs_run
    assert same({name: tensors[name] for name in after_epoch[0]}, after_epoch[best - 1])
    assert sum(counted) == 5 * 150  # those that need not be trained on count as done


@pytest.mark.parametrize("kind", KINDS)
def test_early_stopping_saves_epochs_that_do_not_help(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    noise = features_of([{i % 7: 1.0} for i in range(60)], 80)
    labels = labels_of([[(i * 7919) % 20] for i in range(60)], K)
    config = config_for(kind, epochs=400, learning_rate=5.0, validation_fraction=0.5)
    with caplog.at_level(logging.INFO, "machxc"):
        trained(config, samples=Samples(noise, labels))
    assert "stops after epoch" in caplog.text


def test_the_held_out_loss_is_that_of_numpy() -> None:
    samples = make_samples(50, 20, labels_per_sample=3)
    weights = np.linspace(0, 2, 50).astype(np.float32)
    samples = Samples(samples.features, samples.labels, weights)
    order = np.arange(0, 50, 2)
    for kind in ("linear-softmax", "linear-bce"):
        config = config_for(kind)
        partition, encoder = partition_of(config), fit_encoder(samples.features, config, 0)
        learner = LinearLearner.start(config, 0, len(encoder.row_weights), np.zeros(16, np.float32))
        learner.table[:] = to_bfloat(np.random.default_rng(0).normal(0, 1, learner.table.shape).astype(np.float32))
        z = learner.logits(encoder(samples.features)).astype(np.float64)
        expected = 0.0
        for i in order:
            wanted = np.unique(partition.buckets(samples.labels.indices[3 * i : 3 * i + 3], 0))
            if kind == "linear-softmax":
                expected += weights[i] * np.mean(np.log(np.exp(z[i]).sum()) - z[i, wanted])
            else:
                expected += weights[i] * (np.log1p(np.exp(z[i])).sum() - z[i, wanted].sum())
        found = held_out_loss(samples, config, partition, 0, order, encoder, learner)
        assert found == pytest.approx(expected / len(order), rel=1e-5)


def test_repetitions_hold_out_other_samples() -> None:
    config = config_for("linear-bce", validation_fraction=0.25)
    slices = [loop.split(SAMPLES, config, r) for r in range(3)]
    for trained_on, held_out in slices:
        assert len(held_out) == 50
        assert sorted([*trained_on, *held_out]) == list(range(200))
    assert len({tuple(held_out) for _, held_out in slices}) == 3


# ---- rate, progress, trouble


def test_the_learning_rate_falls_in_a_straight_line_to_0() -> None:
    config = config_for("linear-bce", epochs=4, learning_rate=2.0)
    assert [rate_at(config, at) for at in (0, 1, 2.5, 4)] == [2.0, 1.5, 0.75, 0.0]


def test_every_epoch_goes_on_where_the_last_one_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[float, float], int, int]] = []

    def train(self: LinearLearner, rows: Any, targets: Any, rates: tuple[float, float], position: int) -> float:
        seen.append((rates, position, len(rows)))
        return 0.0

    monkeypatch.setattr(LinearLearner, "train", train)
    monkeypatch.setattr(chunks, "CHUNK", 64)
    trained(config_for("linear-bce", epochs=3))
    assert [n for _, _, n in seen] == [64, 64, 64, 8] * 3
    assert [position for _, position, _ in seen] == list(np.cumsum([0] + [64, 64, 64, 8] * 3)[:-1])
    assert seen[0][0][0] == 3.0
    assert seen[-1][0][1] == pytest.approx(0, abs=1e-12)
    for (before, _, _), (after, _, _) in itertools.pairwise(seen):
        assert before[1] == pytest.approx(after[0])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["linear-softmax", "network-bce"])
def test_progress_counts_every_sample_of_every_epoch(kind: str, fraction: float) -> None:
    config = config_for(kind, validation_fraction=fraction, patience=100)
    counted: list[int] = []
    trained(config, on_samples=counted.append)
    assert counted == [n_trained(config, 200)] * 5
    assert n_trained(config, 200) == round(200 * (1 - fraction))


def test_what_the_caller_raises_ends_training() -> None:
    class StopNowError(Exception):
        pass

    counted: list[int] = []

    def stop(n: int) -> None:
        counted.append(n)
        if len(counted) == 3:
            raise StopNowError

    with pytest.raises(StopNowError):
        trained(config_for("linear-bce"), on_samples=stop)
    assert len(counted) == 3


@pytest.mark.parametrize("kind", ["linear-bce", "network-softmax"])
@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_divergence_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, kind: str, loss: float) -> None:
    learner = NetworkLearner if "network" in kind else LinearLearner
    monkeypatch.setattr(learner, "train", lambda *arguments: loss)
    with pytest.raises(DataError, match=r"repetition 1 diverged in epoch 1: its loss is .*'learning_rate' \(now"):
        trained(config_for(kind), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_any_learning_rate_gives_finite_weights(kind: str) -> None:
    for rate in (1e6, 1e-9):
        config = config_for(kind, learning_rate=rate, prune=0.0)
        assert np.isfinite(logits_of(config, trained(config))).all()
