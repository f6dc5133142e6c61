"""The estimators: their formulas in double precision, their statistics over the draw of the hashes, and their edges."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.config import ESTIMATORS, LOSSES
from machxc.partition import HashPartition, TablePartition
from machxc.retrieval import top_k
from machxc.retrieval.estimators import contributions, finish
from machxc.samples import Array, Float32


def probabilities(logits: Array, loss: str) -> Array:
    """P in float64."""
    x = logits.astype(np.float64)
    if loss == "bce":
        return np.asarray(np.exp(-np.logaddexp(0, -x)))
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def score_of(p: Array, estimator: str, n_buckets: int) -> Array:
    """The formulas of the module's docstring, for p [R, K] in float64."""
    if estimator in ("min", "median"):
        return np.asarray(p.min(axis=0) if estimator == "min" else np.median(p, axis=0))
    if estimator == "log-probability":
        return np.asarray(np.prod(p, axis=0) ** (1 / len(p)))
    if estimator == "logit":
        odds = np.prod(p / (1 - p), axis=0) ** (1 / len(p))
        return np.asarray(odds / (1 + odds))
    mean = np.asarray(p.mean(axis=0))
    return mean if estimator == "mean" else n_buckets / (n_buckets - 1) * (mean - 1 / n_buckets)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.1, 1.0, 4.0]))
@settings(max_examples=20, deadline=None)
def test_scores_are_the_formula_in_double_precision(loss: str, estimator: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    n_labels, n_buckets, n_repetitions = int(rng.integers(1, 60)), int(rng.integers(2, 30)), int(rng.integers(1, 7))
    logits = (scale * rng.standard_normal((2, n_repetitions, n_buckets))).astype(np.float32)
    partition = HashPartition(n_labels, n_buckets, n_repetitions, seed)
    ids, scores = top_k(logits, partition, n_labels, loss=loss, estimator=estimator)
    p = probabilities(logits, loss)
    for i in range(2):
        rows = [p[i, r, partition.buckets(np.arange(n_labels), r)] for r in range(n_repetitions)]
        exact = score_of(np.stack(rows), estimator, n_buckets)
        np.testing.assert_allclose(scores[i], exact[ids[i]], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(scores[i], np.sort(exact)[::-1], rtol=2e-5, atol=2e-6)


def hashed_sketch(p: Array, assignment: Array, n_buckets: int) -> Float32:
    """The logits of repetitions that know the true bucket probabilities of one query: [1, R, B], for the softmax."""
    buckets = np.stack([np.bincount(row, weights=p, minlength=n_buckets) for row in assignment])
    return np.log(np.maximum(buckets, 1e-30))[None].astype(np.float32)


@pytest.mark.parametrize("n_buckets", [3, 8, 20])
@pytest.mark.parametrize("kind", ["throws", "hash"])
def test_unbiased_over_the_draw_of_the_hashes_with_the_known_variance(n_buckets: int, kind: str) -> None:
    """E = p_i, and Var = sum over k != i of p_k ** 2 / (R * (B - 1)), within 4 sigma.

    A hash of K = 2**10 labels into few buckets is as good as independent throws.
    """
    rng = np.random.default_rng(n_buckets)
    n_labels, n_repetitions, draws = 1024, 4, 1500
    p = np.zeros(n_labels)
    p[:12] = rng.dirichlet(np.full(12, 0.6))
    label = int(np.argsort(p)[-3])
    estimates = np.empty(draws)
    for draw in range(draws):
        if kind == "hash":
            hashed = HashPartition(n_labels, n_buckets, n_repetitions, draw)
            assignment: Array = np.stack([hashed.buckets(np.arange(n_labels), r) for r in range(n_repetitions)])
        else:
            assignment = rng.integers(0, n_buckets, (n_repetitions, n_labels))
        ids, scores = top_k(
            hashed_sketch(p, assignment, n_buckets),
            TablePartition(assignment, n_buckets),
            1,
            loss="softmax",
            estimator="unbiased",
            candidates=np.array([label]),
        )
        assert ids[0, 0] == label
        estimates[draw] = scores[0, 0]
    others = np.delete(p, label)
    variance = (others**2).sum() / (n_repetitions * (n_buckets - 1))
    assert abs(estimates.mean() - p[label]) < 4 * np.sqrt(variance / draws)
    squares = (estimates - p[label]) ** 2
    assert abs(squares.mean() - variance) < 4 * squares.std() / np.sqrt(draws)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_buckets", [1, 2, 50])
def test_extreme_logits_give_finite_scores_without_warnings(loss: str, estimator: str, n_buckets: int) -> None:
    rng = np.random.default_rng(1)
    partition = HashPartition(40, n_buckets, 3, 0)
    for size in (0.0, 30.0, 1e4, 1e30):
        logits = (size * rng.choice([-1, 0, 1], (9, 3, n_buckets))).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ids, scores = top_k(logits, partition, 45, loss=loss, estimator=estimator)
        assert (ids[:, :40] >= 0).all()
        assert np.isfinite(scores[:, :40]).all()
        assert (np.diff(scores[:, :40]) <= 0).all()
        assert scores[:, :40].max() <= 1
        assert scores[:, :40].min() >= (-1.0 / max(1, n_buckets - 1) if estimator == "unbiased" else 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_small_probabilities_keep_their_digits(loss: str) -> None:
    """Labels far below the best are still told apart: no rounding to 0 or 1 before the logarithm."""
    logits = np.array([[[40.0, 0.0, -30.0, -60.0]]], np.float32)
    p = probabilities(logits, loss)[0, 0]
    rest = np.array([p[1:].sum(), *(1 - p[1:])]) if loss == "softmax" else 1 / (1 + np.exp(logits[0, 0].astype(float)))
    logs = contributions(logits, loss, "log-probability")[0, 0]
    np.testing.assert_allclose(logs[1:], np.log(p[1:]), rtol=1e-6)
    np.testing.assert_allclose(contributions(logits, loss, "logit")[0, 0], np.log(p) - np.log(rest), rtol=1e-6)


@given(st.lists(st.floats(-86.0, 86.0, width=32), min_size=1, max_size=40), st.booleans())
@settings(deadline=None)
def test_the_logarithm_of_a_sigmoid_keeps_its_digits_on_both_sides(numbers: list[float], gaps: bool) -> None:
    logits = np.array(numbers, np.float32)[None, None]
    given = np.repeat(logits, 2, axis=-1)[..., ::2] if gaps else logits
    before, exact = given.copy(), given.astype(np.float64)
    found = contributions(given, "bce", "log-probability")
    np.testing.assert_allclose(found, np.minimum(exact, 0) - np.log1p(np.exp(-np.abs(exact))), rtol=5e-6)
    np.testing.assert_array_equal(given, before)
    assert found.dtype == np.float32


def test_one_bucket_tells_nothing() -> None:
    for estimator in ESTIMATORS:
        ids, scores = top_k(
            np.zeros((1, 2, 1), np.float32), HashPartition(3, 1, 2, 0), 2, loss="softmax", estimator=estimator
        )
        assert ids.tolist() == [[0, 1]]
        assert (scores == 1).all()


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=30), st.sampled_from(ESTIMATORS), st.integers(2, 50))
@settings(max_examples=200, deadline=None)
def test_finishing_changes_no_ranking(merged: list[float], estimator: str, n_buckets: int) -> None:
    values = np.array([*sorted(merged), -np.inf], np.float32)
    scores = finish(values.copy(), estimator, 3, n_buckets)
    assert scores.dtype == np.float32
    assert (np.diff(scores[:-1]) >= 0).all()
    assert scores[-1] == -np.inf
