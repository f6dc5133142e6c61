"""Answers on a device: those of the kernels from the same model, whoever trained it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_tools import torch

from machxc.config import ESTIMATORS, Settings
from machxc.errors import DataError, SettingError
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.partition import HashPartition, Partition, TablePartition
from machxc.retrieval import top_k as plain_top_k
from machxc.samples import Array
from machxc.testing import make_samples
from machxc.torch import scorer, top_k
from machxc.torch.scorer import DeviceModel
from machxc.training import train

SAMPLES = make_samples(300, 40, labels_per_sample=2)
QUERIES = make_samples(90, 40, seed=5).features
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"prune": 0.0},
    "linear-pruned": {"prune": 0.3, "loss": "bce"},
    "network": {"hidden": 16, "loss": "bce", "learning_rate": 1.0},
    "counts": {"learner": "counts", "loss": "softmax"},
}


@lru_cache
def model(kind: str, device: str) -> Model:
    names = LabelNames.ids(SAMPLES.labels.n_labels)
    settings = Settings(**{"repetitions": 4, "buckets": 24, "epochs": 8, **KINDS[kind]} | _of(kind))
    return train(SAMPLES, names, settings, device=device)


def _of(kind: str) -> dict[str, Any]:
    return {"epochs": None} if kind == "counts" else {}


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trained_on_either_answers_on_both_alike(kind: str, device: str, tmp_path: Path) -> None:
    made = model(kind, device)
    made.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")  # checked as any other
    on_device = DeviceModel(loaded, "cpu")
    np.testing.assert_allclose(on_device.sketch(QUERIES), loaded.sketch(QUERIES), rtol=1e-4, atol=1e-4)
    ids, scores = on_device.top_k(QUERIES, 10)
    expected_ids, expected = loaded.top_k(QUERIES, 10)
    np.testing.assert_allclose(scores, expected, rtol=1e-3)
    differ = ids != expected_ids
    assert differ.mean() < 0.05  # ties, in which the last bits of scores decide
    np.testing.assert_allclose(scores[differ], expected[differ], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_how_much_is_gathered_at_a_time_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DeviceModel(model(kind, "cpu"), "cpu").top_k(QUERIES, 5)
    monkeypatch.setattr(scorer, "_ENTRIES", 50)
    monkeypatch.setattr(scorer, "_HERE", 1 << 16)  # bytes: some queries
    monkeypatch.setattr(top_k, "_BLOCK", 60)
    parts = DeviceModel(model(kind, "cpu"), "cpu").top_k(QUERIES, 5)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_one_by_one_are_answered_as_all_at_once(kind: str) -> None:
    on_device = DeviceModel(model(kind, "cpu"), "cpu")
    expected = on_device.sketch(QUERIES)
    for i in (0, 1, 2, 0):
        np.testing.assert_allclose(on_device.sketch(QUERIES.rows(i, i + 1))[0], expected[i], rtol=1e-4, atol=1e-5)


def test_no_query_and_queries_without_features() -> None:
    on_device = DeviceModel(model("network", "cpu"), "cpu")
    assert on_device.top_k(QUERIES.rows(0, 0), 3)[0].shape == (0, 3)
    empty = type(QUERIES)(np.zeros(3, np.int64), QUERIES.indices[:0], QUERIES.values[:0], QUERIES.n_features)
    np.testing.assert_allclose(on_device.top_k(empty, 3)[1], model("network", "cpu").top_k(empty, 3)[1], rtol=1e-3)


# ---- the k best


def partitions(n_labels: int, n_buckets: int, repetitions: int) -> dict[str, Partition]:
    table = np.random.default_rng(0).integers(0, n_buckets, (repetitions, n_labels))
    return {
        "hash": HashPartition(n_labels, n_buckets, repetitions, 7),
        "table": TablePartition(table.astype(np.uint32), n_buckets),
    }


def logits(n: int, repetitions: int, n_buckets: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 3, (n, repetitions, n_buckets)).astype(np.float32)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", ["softmax", "bce"])
@pytest.mark.parametrize("kind", ["hash", "table"])
@pytest.mark.parametrize(("repetitions", "k"), [(1, 3), (4, 10), (5, 300)])
def test_the_best_are_those_of_the_kernels(estimator: str, loss: str, kind: str, repetitions: int, k: int) -> None:
    partition, z = partitions(200, 30, repetitions)[kind], logits(6, repetitions, 30)
    seen = np.packbits(np.arange(200) % 7 != 3, bitorder="little")
    ids, scores = top_k.top_k(torch.from_numpy(z), partition, k, loss=loss, estimator=estimator, seen=seen)
    expected_ids, expected = plain_top_k(z, partition, k, loss=loss, estimator=estimator, seen=seen)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    for row in range(6):  # but where scores are equal to their last bits, the same labels in the same places
        differ = ids[row] != expected_ids[row]
        np.testing.assert_allclose(scores[row][differ], expected[row][differ], rtol=1e-5)
        assert repetitions == 1 or estimator in ("min", "median") or differ.mean() < 0.1


def test_of_equal_scores_the_smaller_label_comes_first() -> None:
    partition = HashPartition(1000, 10, 2, 0)
    ids, scores = top_k.top_k(torch.zeros(2, 2, 10), partition, 7, loss="softmax", estimator="mean")
    assert ids.tolist() == [list(range(7))] * 2
    assert (scores == scores[0, 0]).all()


def test_candidates_are_all_there_is_to_choose_from() -> None:
    partition, z = HashPartition(1000, 50, 3, 0), logits(4, 3, 50)
    chosen = np.array([900, 3, 77, 500, 3])
    found = top_k.top_k(torch.from_numpy(z), partition, 6, loss="bce", estimator="mean", candidates=chosen)
    expected = plain_top_k(z, partition, 6, loss="bce", estimator="mean", candidates=chosen)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize("n_labels", [5, 2**16 + 17])
def test_labels_of_any_number(n_labels: int) -> None:
    partition, z = HashPartition(n_labels, 500, 3, 1), logits(2, 3, 500)
    found = top_k.top_k(torch.from_numpy(z), partition, 20, loss="softmax", estimator="log-probability")
    expected = plain_top_k(z, partition, 20, loss="softmax", estimator="log-probability")
    np.testing.assert_array_equal(found[0], expected[0])


def test_what_does_not_fit_is_refused() -> None:
    partition = HashPartition(100, 10, 2, 0)
    with pytest.raises(DataError, match=r"expected logits \[n, 2, 10\] for this partition, got \[1, 3, 10\]"):
        top_k.top_k(torch.zeros(1, 3, 10), partition, 5, loss="bce", estimator="mean")
    with pytest.raises(SettingError, match="'estimator'"):
        top_k.top_k(torch.zeros(1, 2, 10), partition, 5, loss="bce", estimator="best")
    with pytest.raises(SettingError, match="'k'"):
        top_k.top_k(torch.zeros(1, 2, 10), partition, 0, loss="bce", estimator="mean")
