"""Scores and labels as integers, and how the best of them are found: against sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.compiled import kernel, larger
from machxc.retrieval.heap import NO_LABEL
from machxc.retrieval.keys import key_of, nth_largest, take_best
from machxc.samples import Float32, Int64, UInt32

SCORES = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])


@kernel
def best(scores: Float32, labels: UInt32, keys: Int64, best_scores: Float32, best_labels: Int64) -> None:
    for i in range(len(scores)):
        keys[i] = key_of(scores[i], labels[i])
    take_best(keys, len(scores), best_scores, best_labels)


@kernel
def bound(numbers: Float32, n: int) -> np.float32:
    return nth_largest(numbers, n)


@kernel
def largest(numbers: Float32) -> np.float32:
    top = numbers[0]
    for number in numbers:
        top = larger(top, number)
    return np.float32(top)


@given(
    scores=st.lists(SCORES, min_size=1, max_size=60)
    | st.lists(st.sampled_from([0.0, -0.0, 2.0]), min_size=1)
    | st.lists(SCORES, min_size=120, max_size=140),  # by rank, or by a heap
    k=st.integers(1, 80) | st.just(150),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=200)
def test_the_best_are_those_of_a_sort_by_score_then_label(scores: list[float], k: int, seed: int) -> None:
    given = np.array(scores, np.float32)
    labels = np.random.default_rng(seed).choice(2**32 - 1, len(given), replace=False).astype(np.uint32)
    found, ids = np.full(k, -np.inf, np.float32), np.full(k, NO_LABEL, np.int64)
    best(given, labels, np.empty(len(given), np.int64), found, ids)
    order = np.lexsort((labels, -given))[:k]
    assert ids[: len(order)].tolist() == labels[order].tolist()
    assert np.array_equal(found[: len(order)], given[order])
    assert (ids[len(order) :] == NO_LABEL).all()


@given(numbers=st.lists(SCORES, min_size=1, max_size=80), n=st.integers(1, 100))
@settings(deadline=None, max_examples=200)
def test_n_numbers_reach_the_bound_and_no_more_than_need(numbers: list[float], n: int) -> None:
    given = np.array(numbers, np.float32)
    least = bound(given, n)
    if n >= len(given):
        assert (given >= least).all()
        return
    nth = np.sort(given)[::-1][n - 1]
    assert (given >= least).sum() == (given >= nth).sum()


@given(numbers=st.lists(SCORES | st.just(-np.inf), min_size=1, max_size=300))
@settings(deadline=None, max_examples=100)
def test_the_larger_of_many(numbers: list[float]) -> None:
    given = np.array(numbers, np.float32)
    assert largest(given) == given.max()
