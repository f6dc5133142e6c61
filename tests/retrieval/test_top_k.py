"""top_k against an oracle that does build the matrix of all scores: equal to the last bit, however it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from machxc.config import ESTIMATORS, LOSSES
from machxc.errors import DataError, SettingError
from machxc.partition import HashPartition, Partition, TablePartition
from machxc.retrieval import METHODS, top_k
from machxc.retrieval.estimators import contributions, finish, merge_of
from machxc.retrieval.single import probabilities
from machxc.samples import Array, Float32, Int64

FULL = 200  # hypothesis examples


@dataclass(frozen=True)
class Problem:
    """A sketch and everything that top_k is asked with it."""

    logits: Float32
    partition: Partition
    k: int
    loss: str
    estimator: str
    seen: Array | None = None
    candidates: Array | None = None

    def ask(self, **changes: Any) -> tuple[Int64, Float32]:
        arguments: dict[str, Any] = {"loss": self.loss, "estimator": self.estimator, "seen": self.seen}
        arguments |= {"candidates": self.candidates} | changes
        logits, k = arguments.pop("logits", self.logits), arguments.pop("k", self.k)
        return top_k(logits, arguments.pop("partition", self.partition), k, **arguments)


def label_values(problem: Problem, values: Array) -> Array:
    """What each label gets from each repetition: [n, R, K]."""
    labels = np.arange(problem.partition.n_labels)
    rows = [values[:, r, problem.partition.buckets(labels, r)] for r in range(values.shape[1])]
    return np.stack(rows, axis=1)


def merge(values: Array, estimator: str) -> Array:
    """[n, R, K] to [n, K], sums in the order of the repetitions."""
    if estimator in ("min", "median"):
        return np.asarray(np.min(values, axis=1) if estimator == "min" else np.median(values, axis=1))
    total = values[:, 0].copy()
    for r in range(1, values.shape[1]):
        total += values[:, r]
    return total


def allowed_labels(problem: Problem) -> Array:
    n_labels = problem.partition.n_labels
    allowed = np.ones(n_labels, np.bool_)
    if problem.seen is not None:
        allowed &= problem.seen
    if problem.candidates is not None:
        allowed &= np.isin(np.arange(n_labels), problem.candidates)
    return allowed


def brute_force(problem: Problem) -> tuple[Int64, Float32]:
    single = problem.logits.shape[1] == 1  # then labels come in the order of their logits, which are never rounded
    values = problem.logits if single else contributions(problem.logits, problem.loss, problem.estimator)
    merged = merge(label_values(problem, values), problem.estimator)
    allowed = np.flatnonzero(allowed_labels(problem))
    n, r, b = problem.logits.shape
    ids, scores = np.full((n, problem.k), -1, np.int64), np.full((n, problem.k), -np.inf, np.float32)
    for i in range(n):
        best = allowed[np.lexsort((allowed, -merged[i, allowed]))][: problem.k]
        ids[i, : len(best)] = best
        if single:
            some = probabilities(problem.logits[i : i + 1], merged[i : i + 1, best], problem.loss, problem.estimator)
            scores[i, : len(best)] = some[0]
        else:
            scores[i, : len(best)] = finish(merged[i, best], problem.estimator, r, b)
    return ids, scores


def sketch(kind: str, shape: tuple[int, int, int], rng: np.random.Generator) -> Float32:
    """Logits [n, R, B]: noise, a few high buckets, few distinct values (ties), or all the same."""
    logits = rng.standard_normal(shape)
    if kind == "peaked":
        logits += 8 * (rng.random(shape) < 0.1) - 5
    if kind == "coarse":
        logits = np.round(logits)
    if kind == "flat":
        logits = np.full(shape, -1.5)
    if kind == "extreme":
        logits *= 100
    return logits.astype(np.float32)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    n_labels = draw(st.one_of(st.integers(1, 12), st.integers(1, 400), st.sampled_from([2048, 2049, 5000])))
    shape = (
        draw(st.integers(1, 3) | st.just(9)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 12) | st.integers(1, 90)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    partition: Partition = HashPartition(n_labels, shape[2], shape[1], draw(st.integers(0, 2**63 - 1)))
    if draw(st.booleans()):
        partition = TablePartition(rng.integers(0, shape[2], (shape[1], n_labels)), shape[2])
    seen = draw(st.sampled_from([None, 0.0, 0.05, 0.7]))
    candidates = draw(st.sampled_from([None, None, None, 0, 1, 30]))
    return Problem(
        logits=sketch(draw(st.sampled_from(["noise", "peaked", "coarse", "flat", "extreme"])), shape, rng),
        partition=partition,
        k=draw(st.integers(1, 12) | st.integers(1, 420)),
        loss=draw(st.sampled_from(LOSSES)),
        estimator=draw(st.sampled_from(ESTIMATORS)),
        seen=None if seen is None else rng.random(n_labels) < seen,
        candidates=None if candidates is None else rng.integers(0, n_labels, candidates),
    )


@given(problem=problems(), method=st.sampled_from(METHODS))
@settings(max_examples=3 * FULL, deadline=None)
def test_equals_brute_force(problem: Problem, method: str) -> None:
    ids, scores = problem.ask(method=method)
    expected_ids, expected_scores = brute_force(problem)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float32
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["noise", "peaked", "coarse"]), k=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_search_equals_scan_and_brute_force_when_it_can_stop_early(
    loss: str, estimator: str, seed: int, kind: str, k: int
) -> None:
    rng = np.random.default_rng(seed)
    partition = HashPartition(3000, 150, 5, seed)
    problem = Problem(sketch(kind, (3, 5, 150), rng), partition, k, loss, estimator)
    expected = brute_force(problem)
    for method in METHODS:
        assert_same(problem.ask(method=method), expected)


@given(problem=problems(), jobs=st.integers(1, 3), cut=st.integers(0, 9))
@settings(max_examples=FULL, deadline=None)
def test_batches_and_jobs_change_nothing(problem: Problem, jobs: int, cut: int) -> None:
    whole = problem.ask()
    assert_same(problem.ask(jobs=jobs), whole)
    parts = [problem.ask(logits=part) for part in (problem.logits[:cut], problem.logits[cut:])]
    assert_same((np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])), whole)
    alone = [problem.ask(logits=problem.logits[i : i + 1]) for i in range(len(problem.logits))]
    assert_same((np.concatenate([p[0] for p in alone]), np.concatenate([p[1] for p in alone])), whole)


@given(problem=problems())
@settings(deadline=None, max_examples=50)
def test_logits_that_may_be_written_over_give_the_same(problem: Problem) -> None:
    assert_same(problem.ask(logits=problem.logits.copy(), in_place=True), problem.ask())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_many_queries_are_answered_as_one_by_one(method: str, estimator: str) -> None:
    rng = np.random.default_rng(5)
    logits = np.concatenate([sketch("peaked", (200, 4, 60), rng), sketch("noise", (131, 4, 60), rng)])
    problem = Problem(logits, HashPartition(900, 60, 4, 8), 7, "bce", estimator)
    whole = problem.ask(method=method)
    assert_same(problem.ask(method=method, jobs=3), whole)
    assert_same(whole, brute_force(problem))


@given(problem=problems())
@settings(max_examples=FULL, deadline=None)
def test_a_table_that_says_the_same_gives_the_same(problem: Problem) -> None:
    labels = np.arange(problem.partition.n_labels)
    table = np.stack([problem.partition.buckets(labels, r) for r in range(problem.partition.n_repetitions)])
    for method in METHODS:
        copy = problem.ask(partition=TablePartition(table, problem.partition.n_buckets), method=method)
        assert_same(copy, problem.ask(method=method))


@given(problem=problems(), seed=st.integers(0, 2**32))
@settings(max_examples=FULL, deadline=None)
def test_relabelling_moves_labels_and_keeps_scores(problem: Problem, seed: int) -> None:
    """Labels, buckets and queries in another order: the same scores, and where no scores tie, the same labels."""
    labels = np.arange(problem.partition.n_labels)
    n_repetitions, n_buckets = problem.logits.shape[1:]
    table = np.stack([problem.partition.buckets(labels, r) for r in range(n_repetitions)])
    rng = np.random.default_rng(seed)
    new_label, new_bucket = rng.permutation(len(labels)), rng.permutation(n_buckets)
    moved_table, moved_logits = np.empty_like(table), np.empty_like(problem.logits)
    moved_table[:, new_label] = new_bucket[table]
    moved_logits[..., new_bucket] = problem.logits
    seen = None if problem.seen is None else problem.seen[np.argsort(new_label)]
    candidates = None if problem.candidates is None else new_label[problem.candidates]
    moved = TablePartition(moved_table, n_buckets)
    before = problem.ask(loss="bce")
    after = problem.ask(loss="bce", logits=moved_logits, partition=moved, seen=seen, candidates=candidates)
    assert np.array_equal(before[1], after[1])
    everything = problem.ask(loss="bce", k=len(labels))[1]
    for row, (ids, score) in enumerate(zip(*before, strict=True)):
        alone = np.isin(score, [s for s in score if (everything[row] == s).sum() == 1]) & (ids >= 0)
        assert new_label[ids[alone]].tolist() == after[0][row][alone].tolist()


@given(problem=problems())
@settings(max_examples=FULL, deadline=None)
def test_only_seen_labels_and_candidates_come_back(problem: Problem) -> None:
    ids, scores = problem.ask()
    allowed = np.flatnonzero(allowed_labels(problem))
    assert np.isin(ids[ids >= 0], allowed).all()
    assert ((ids == -1) == (scores == -np.inf)).all()
    assert ((ids >= 0).sum(axis=1) == min(problem.k, len(allowed))).all()
    if problem.seen is not None:
        assert_same(problem.ask(seen=np.packbits(problem.seen, bitorder="little")), (ids, scores))


@given(problem=problems(), seed=st.integers(0, 2**32))
@settings(max_examples=FULL, deadline=None)
def test_candidates_are_a_set(problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = rng.integers(0, problem.partition.n_labels, 20).astype(np.int64)
    expected = problem.ask(candidates=candidates)
    shuffled = rng.permutation(np.concatenate([candidates, candidates]))
    assert_same(problem.ask(candidates=shuffled), expected)
    assert_same(problem.ask(candidates=np.unique(candidates).astype(np.uint32), method="search"), expected)


@given(problem=problems())
@example(Problem(np.zeros((1, 1, 1), np.float32), HashPartition(1, 1, 1, 0), 3, "softmax", "unbiased"))
@settings(max_examples=FULL, deadline=None)
def test_more_k_only_adds_at_the_end(problem: Problem) -> None:
    ids, scores = problem.ask()
    longer = problem.ask(k=problem.k + 5)
    assert_same((longer[0][:, : problem.k], longer[1][:, : problem.k]), (ids, scores))


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_come_by_increasing_id(method: str) -> None:
    for n_labels in (7, 5000):
        flat = np.zeros((2, 3, 11), np.float32)
        ids, scores = top_k(flat, HashPartition(n_labels, 11, 3, 0), 5, loss="bce", estimator="mean", method=method)
        assert ids.tolist() == [[0, 1, 2, 3, 4]] * 2
        assert (scores == 0.5).all()


def test_a_large_model_is_searched_as_it_is_scanned() -> None:
    """Buckets of more than one chunk of members, and hashes of 18 bits of which 235,000 values are labels."""
    rng = np.random.default_rng(2)
    for n_buckets in (20, 400):
        partition = HashPartition(235_000, n_buckets, 3, 7)
        logits = sketch("peaked", (2, 3, n_buckets), rng)
        arguments: dict[str, Any] = {"loss": "softmax", "estimator": "mean"}
        scanned = top_k(logits, partition, 50, method="scan", **arguments)
        assert_same(top_k(logits, partition, 50, method="search", **arguments), scanned)


def test_as_many_labels_as_there_can_be() -> None:
    """K = 2**32 - 1: ids, places and hashes at the edge of 32 bits, in the kernels."""
    n_labels, n_buckets = 2**32 - 1, 2**20 - 3
    partition, labels = HashPartition(n_labels, n_buckets, 2, 3), np.array([0, 1, n_labels - 1])
    logits = np.full((1, 2, n_buckets), -20, np.float32)
    for r in range(2):
        logits[0, r, partition.buckets(labels, r)] = [5, 4, 3]
    ids, scores = top_k(logits, partition, 3, loss="bce", estimator="logit")
    assert ids.tolist() == [labels.tolist()]
    np.testing.assert_allclose(scores[0], 1 / (1 + np.exp([-5.0, -4.0, -3.0])), rtol=1e-6)
    assert top_k(logits, partition, 3, loss="bce", estimator="logit", candidates=labels)[0].tolist() == ids.tolist()


def test_no_queries() -> None:
    ids, scores = top_k(np.empty((0, 2, 5), np.float32), HashPartition(9, 5, 2, 0), 3, loss="bce", estimator="mean")
    assert ids.shape == scores.shape == (0, 3)


def test_inputs_may_be_read_only_and_are_not_changed() -> None:
    rng = np.random.default_rng(0)
    logits, table = rng.standard_normal((9, 2, 5)).astype(np.float32), rng.integers(0, 5, (2, 40)).astype(np.uint32)
    seen, copy = np.packbits(rng.random(40) < 0.5, bitorder="little"), logits.copy()
    for array in (logits, table, seen):
        array.flags.writeable = False
    for estimator in ESTIMATORS:
        for method in METHODS:
            partition = TablePartition(table, 5)
            top_k(logits, partition, 3, loss="bce", estimator=estimator, method=method, seen=seen)
            top_k(logits[::-1], partition, 3, loss="bce", estimator=estimator, method=method)
    assert np.array_equal(logits, copy)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"k": 0}, SettingError, r"'k' parameter of top_k must be an int in \[1, inf\). Got 0 instead"),
    ({"k": 2.5}, SettingError, "'k' parameter"),
    ({"jobs": 0}, SettingError, "'jobs' parameter"),
    ({"method": "magic"}, SettingError, "'method' parameter of top_k must be one of"),
    ({"loss": "hinge"}, SettingError, "'loss' parameter of top_k must be one of"),
    ({"estimator": "max"}, SettingError, "'estimator' parameter of top_k must be one of"),
    ({"logits": np.zeros((1, 2, 6), np.float32)}, DataError, r"expected logits float32 \[queries, 2, 5\]"),
    ({"logits": np.zeros((1, 2, 5))}, DataError, "got float64"),
    ({"logits": np.full((1, 2, 5), np.nan, np.float32)}, DataError, "not finite"),
    ({"logits": np.full((1, 2, 5), np.inf, np.float32)}, DataError, "not finite"),
    ({"seen": np.ones(8, np.bool_)}, DataError, r"expected seen labels as bool \[9\]"),
    ({"seen": np.ones(9, np.uint8)}, DataError, r"uint8 \[2\], got uint8 \[9\]"),
    ({"candidates": np.array([0, 9])}, DataError, r"candidate label id 9 is out of range: expected ids in \[0, 9\)"),
    ({"candidates": np.array([-1, 3])}, DataError, "candidate label id -1 is out of range"),
    ({"candidates": np.array([0.5])}, DataError, "expected candidates as a list of label ids"),
    ({"candidates": np.array([[1]])}, DataError, "expected candidates as a list of label ids"),
    ({"partition": SimpleNamespace(n_labels=9, n_buckets=5, n_repetitions=2)}, SettingError, "got a SimpleNamespace"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_what_does_not_fit_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    problem = Problem(np.zeros((1, 2, 5), np.float32), HashPartition(9, 5, 2, 0), 3, "bce", "mean")
    with pytest.raises(error, match=message):
        problem.ask(**change)


def assert_same(got: tuple[Int64, Float32], expected: tuple[Int64, Float32]) -> None:
    assert got[0].tolist() == expected[0].tolist()
    assert got[1].tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_search_proves_what_stands_out_and_gives_up_on_what_does_not(estimator: str) -> None:
    from machxc.retrieval.heap import NO_LABEL
    from machxc.retrieval.retrieve import lookup_of
    from machxc.retrieval.search import search

    n_labels, n_buckets, n_repetitions, k = 50_000, 500, 6, 5
    partition = HashPartition(n_labels, n_buckets, n_repetitions, 1)
    logits = np.full((2, n_repetitions, n_buckets), -6, np.float32)
    for r in range(n_repetitions):
        logits[0, r, partition.buckets(np.array([7, 70, 700, 7000, 49_999]), r)] = 2
    values = contributions(logits, "bce", estimator)[..., None]
    scores, labels = np.full((2, k), -np.inf, np.float32), np.full((2, k), NO_LABEL)
    proven = np.zeros(2, np.bool_)
    lookup = lookup_of(partition, inverted=True)
    search(values, lookup, np.empty(0, np.uint8), merge_of(estimator), n_labels // 8, False, scores, labels, proven)
    assert proven.tolist() == [True, False]
    assert labels[0].tolist() == [7, 70, 700, 7000, 49_999]
