"""One repetition: labels in the order of their logits, and the k best logits as probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc import model as module
from machxc.config import ESTIMATORS, LOSSES, Settings
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.partition import HashPartition, TablePartition
from machxc.retrieval import METHODS, label_scores, top_k
from machxc.retrieval.best_buckets import rank
from machxc.retrieval.heap import NO_LABEL
from machxc.retrieval.retrieve import lookup_of
from machxc.retrieval.single import is_single, probabilities
from machxc.samples import Array, Float32
from machxc.testing import make_samples
from machxc.training import train

KINDS = ["noise", "ties", "flat", "peaked", "rising", "falling", "extreme"]


def logits_of(kind: str, n: int, n_buckets: int, rng: np.random.Generator) -> Float32:
    logits = rng.standard_normal((n, n_buckets))
    if kind == "ties":
        logits = np.round(logits)
    if kind == "flat":
        logits = np.full_like(logits, -1.5)
    if kind == "peaked":
        logits += 30 * (rng.random(logits.shape) < 0.01)
    if kind in ("rising", "falling"):
        logits = np.sort(logits, axis=1)[:, :: 1 if kind == "rising" else -1]
    if kind == "extreme":
        logits *= 1e4
    return np.ascontiguousarray(logits, np.float32)


def exact_probabilities(logits: Array, values: Array, loss: str, estimator: str) -> Array:
    """In float64; logits [n, B], values [n, m]."""
    x, v = logits.astype(np.float64), values.astype(np.float64)
    if loss == "softmax":
        top = x.max(axis=1, keepdims=True)
        p = np.exp(v - top) / np.exp(x - top).sum(axis=1, keepdims=True)
    else:
        p = np.exp(-np.logaddexp(0, -v))
    n_buckets = logits.shape[1]
    if estimator == "unbiased" and n_buckets > 1:
        p = n_buckets / (n_buckets - 1) * (p - 1 / n_buckets)
    return np.asarray(p)


@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    n_labels=st.integers(1, 40) | st.integers(1, 1500) | st.sampled_from([256, 257, 512, 1024]),
    k=st.integers(1, 20) | st.integers(1, 1600),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=200)
def test_rank_is_a_sort_by_logit_then_label(seed: int, kind: str, n_labels: int, k: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    partition = HashPartition(n_labels, 1 << max(1, (n_labels - 1).bit_length()), 1, seed)
    assert is_single(partition)
    logits, seen = logits_of(kind, 3, partition.n_buckets, rng), rng.random(n_labels) < share
    scores, labels = np.full((3, k), -np.inf, np.float32), np.full((3, k), NO_LABEL, np.int64)
    packed = np.packbits(seen, bitorder="little")
    rank(logits, lookup_of(partition, inverted=False), packed, scores, labels)
    allowed = np.flatnonzero(seen)
    buckets = partition.buckets(np.arange(n_labels), 0)
    for i in range(3):
        mine = logits[i, buckets]
        best = allowed[np.lexsort((allowed, -mine[allowed]))][:k]
        assert labels[i, : len(best)].tolist() == best.tolist()
        assert np.array_equal(scores[i, : len(best)], mine[best])
        assert (scores[i, len(best) :] == -np.inf).all()


def test_all_labels_may_be_asked_for() -> None:
    """An empty bitmap stands for all labels."""
    logits = np.array([[0, 3, 1, 2]], np.float32)
    partition = HashPartition(4, 4, 1, 0)
    scores, labels = np.full((1, 4), -np.inf, np.float32), np.full((1, 4), NO_LABEL, np.int64)
    rank(logits, lookup_of(partition, inverted=False), np.empty(0, np.uint8), scores, labels)
    assert scores.tolist() == [[3, 2, 1, 0]]
    assert partition.buckets(labels[0], 0).tolist() == [1, 3, 2, 0]


def test_what_is_single() -> None:
    assert is_single(HashPartition(5, 8, 1, 0))
    assert is_single(HashPartition(1, 2, 1, 0))
    assert is_single(HashPartition(5, 8, 3, 0).subset([2]))
    assert not is_single(HashPartition(5, 8, 2, 0))
    assert not is_single(HashPartition(5, 7, 1, 0))
    assert not is_single(HashPartition(5, 16, 1, 0))  # some buckets have no label
    assert not is_single(TablePartition(np.arange(4)[None], 4))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), n_buckets=st.integers(1, 3) | st.integers(1, 2000))
@settings(deadline=None, max_examples=25)
def test_probabilities_are_those_of_double_precision(
    loss: str, estimator: str, seed: int, kind: str, n_buckets: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = logits_of(kind, 3, n_buckets, rng)
    values = np.take_along_axis(logits, rng.integers(0, n_buckets, (3, 5)), axis=1)
    values[1, 2] = -np.inf
    scores = probabilities(logits[:, None], values, loss, estimator)
    assert scores.dtype == np.float32
    assert scores[1, 2] == -np.inf
    exact = exact_probabilities(logits, values, loss, estimator)
    exact[1, 2] = -np.inf
    np.testing.assert_allclose(scores, exact, rtol=5e-5, atol=2e-6)


@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    loss=st.sampled_from(LOSSES),
    estimator=st.sampled_from(ESTIMATORS),
    n_buckets=st.sampled_from([3, 50, 64]),
    method=st.sampled_from(METHODS),
)
@settings(deadline=None, max_examples=100)
def test_scores_of_given_labels_are_those_of_top_k(
    seed: int, kind: str, loss: str, estimator: str, n_buckets: int, method: str
) -> None:
    partition = HashPartition(50, n_buckets, 1, seed)
    logits = logits_of(kind, 4, n_buckets, np.random.default_rng(seed))[:, None]
    ids, scores = top_k(logits, partition, 50, loss=loss, estimator=estimator, method=method)
    given = label_scores(logits, partition, np.arange(50), loss=loss, estimator=estimator)
    assert np.array_equal(np.take_along_axis(given, ids, axis=1), scores)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_scores_that_round_to_the_same_are_still_in_order() -> None:
    logits = np.array([[[40.0, 60.0, 50.0, 30.0]]], np.float32)
    ids, scores = top_k(logits, TablePartition([[0, 1, 2, 3]], 4), 4, loss="bce", estimator="mean")  # type: ignore[arg-type]
    assert ids.tolist() == [[1, 2, 0, 3]]
    assert (scores == 1).all()


# ---- models of one repetition

SAMPLES = make_samples(900, 300, noise=3, seed=1)
QUERIES = make_samples(150, 300, noise=3, seed=2).features
ONES: dict[str, dict[str, Any]] = {
    "counted": {"learner": "counts"},
    "counted, shared": {"learner": "counts", "buckets": 100, "repetitions": 1},
    "stepped": {"learner": "gradient", "buckets": 512, "repetitions": 1, "epochs": 2},
    "stepped, shared, bce": {"learner": "gradient", "buckets": 100, "repetitions": 1, "epochs": 2, "loss": "bce"},
    "wide": {"learner": "counts", "buckets": 65_537, "repetitions": 1},
}


@pytest.fixture(scope="module", params=ONES)
def model(request: pytest.FixtureRequest) -> Model:
    labels = replace(SAMPLES.labels, n_labels=310)  # ten are never seen
    return train(replace(SAMPLES, labels=labels), LabelNames.ids(310), Settings(**ONES[request.param]))


def same(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    return all(a.tobytes() == b.tobytes() and a.shape == b.shape for a, b in zip(one, other, strict=True))


def test_one_repetition_answers_alike_however_it_is_asked(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.n_repetitions == 1
    whole = model.top_k(QUERIES, 20)
    assert (whole[0] < 300).all()
    if model.config.learner == "counts" and model.config.buckets > 300:
        assert (whole[0][:, 0] == np.arange(150)).mean() > 0.7
    for method in METHODS:
        for jobs in (1, 2):
            assert same(model.top_k(QUERIES, 20, method=method, jobs=jobs), whole), (method, jobs)
    for i in range(0, 150, 13):
        for method in METHODS:
            one = model.top_k(QUERIES.rows(i, i + 1), 20, method=method)
            assert same(one, (whole[0][i : i + 1], whole[1][i : i + 1]))
    monkeypatch.setattr(module, "_CACHED_LOGITS", 7 * model.config.buckets)
    assert same(model.top_k(QUERIES, 20, jobs=2), whole)
    candidates = model.top_k(QUERIES, 20, candidates=np.arange(300))
    assert same(candidates, whole)


def test_scores_of_a_models_labels_are_those_of_its_answers(model: Model) -> None:
    for estimator in ESTIMATORS:
        ids, scores = model.top_k(QUERIES, 300, estimator=estimator)
        given = model.label_scores(QUERIES, np.arange(300), estimator=estimator)
        assert np.array_equal(np.take_along_axis(given, ids, axis=1), scores)


def test_more_labels_than_were_seen(model: Model) -> None:
    ids, scores = model.top_k(QUERIES, 305)
    assert (np.sort(ids[:, :300], axis=1) == np.arange(300)).all()
    assert (ids[:, 300:] == -1).all()
    assert (scores[:, 300:] == -np.inf).all()


def test_a_model_of_one_repetition_is_saved_and_loaded(model: Model, tmp_path: Any) -> None:
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.config == model.config
    assert again.data.repetitions[0]["entries"].dtype == model.data.repetitions[0]["entries"].dtype
    assert same(again.top_k(QUERIES, 20), model.top_k(QUERIES, 20))


def test_parameters_are_checked_also_for_no_query(model: Model) -> None:
    ids, scores = model.top_k(QUERIES.rows(0, 0), 3)
    assert ids.shape == scores.shape == (0, 3)
