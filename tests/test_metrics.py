"""Metrics against a slow oracle that is plainly the definition, and against cases computed by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.errors import DataError, SettingError
from machxc.metrics import Evaluation, ndcg_at_k, precision_at_k, propensities, psp_at_k, recall_at_k
from machxc.samples import Int64, Labels


def labels_of(sets: list[list[int]], n_labels: int) -> Labels:
    indptr = np.cumsum([0, *map(len, sets)]).astype(np.int64)
    flat = [label for one in sets for label in sorted(one)]
    return Labels(indptr, np.array(flat, np.uint32), n_labels)


def ranking(rows: list[list[int]]) -> Int64:
    width = max(map(len, rows), default=0)
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int64).reshape(len(rows), width)


def oracle(
    rows: list[list[int]], truth: list[list[int]], unknown: list[int], counts: list[int], n: int, k: int
) -> dict[str, float]:
    """Sample by sample, place by place."""
    c = (math.log(n) - 1) * (1.5 + 1) ** 0.55
    inverse = [1 + c * (count + 1.5) ** -0.55 for count in counts]
    never_seen = 1 + c * 1.5**-0.55
    precision, recall, ndcg, gain, best = [], [], [], 0.0, 0.0
    for row, true, extra in zip(rows, truth, unknown, strict=True):
        places: dict[int, int] = {}
        for place, label in enumerate(row[:k]):
            if label in true:
                places.setdefault(label, place)
        precision.append(len(places) / k)
        gain += sum(inverse[label] for label in places)
        best += sum(sorted([inverse[label] for label in true] + [never_seen] * extra, reverse=True)[:k])
        if true or extra:
            recall.append(len(places) / (len(true) + extra))
            dcg = sum(1 / math.log2(place + 2) for place in places.values())
            ndcg.append(dcg / sum(1 / math.log2(place + 2) for place in range(min(k, len(true) + extra))))
    mean = [sum(values) / len(values) if values else 0.0 for values in (precision, recall, ndcg)]
    names = [f"P@{k}", f"R@{k}", f"nDCG@{k}", f"PSP@{k}"]
    return dict(zip(names, [*mean, gain / best if best else 0.0], strict=True))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int], list[int], int]:
    n, n_labels = draw(st.integers(0, 6)), draw(st.integers(1, 8))
    label = st.integers(0, n_labels - 1)
    width = draw(st.integers(0, 7))
    rows = [draw(st.lists(label | st.just(-1), min_size=width, max_size=width)) for _ in range(n)]  # repeats, gaps
    truth = [draw(st.lists(label, unique=True, max_size=n_labels)) for _ in range(n)]
    unknown = [draw(st.integers(0, 3)) for _ in range(n)]
    counts = draw(st.lists(st.integers(0, 50), min_size=n_labels, max_size=n_labels))
    return rows, truth, unknown, counts, draw(st.integers(3, 1000))


@settings(deadline=None, max_examples=200)
@given(cases(), st.integers(1, 10), st.integers(1, 10))
def test_every_metric_is_the_oracles(
    case: tuple[list[list[int]], list[list[int]], list[int], list[int], int], k: int, other: int
) -> None:
    rows, truth, unknown, counts, n = case
    ids, labels, extra = ranking(rows), labels_of(truth, len(counts)), np.array(unknown, np.int64)
    evaluation = Evaluation((k, other), np.array(counts), n)
    evaluation.add(ids, labels, extra)
    result = evaluation.result()
    expected = oracle(rows, truth, unknown, counts, n, k) | oracle(rows, truth, unknown, counts, n, other)
    assert result == pytest.approx(expected | {"n_samples": len(rows)}, abs=1e-12)
    assert precision_at_k(ids, labels, k) == pytest.approx(expected[f"P@{k}"])
    assert recall_at_k(ids, labels, k, extra) == pytest.approx(expected[f"R@{k}"])
    assert ndcg_at_k(ids, labels, k, extra) == pytest.approx(expected[f"nDCG@{k}"])
    psp = psp_at_k(ids, labels, k, np.array(counts), n, unknown=extra)
    assert psp == pytest.approx(expected[f"PSP@{k}"])


@settings(deadline=None, max_examples=50)
@given(cases(), st.integers(0, 6))
def test_batches_add_up_to_the_whole(
    case: tuple[list[list[int]], list[list[int]], list[int], list[int], int], cut: int
) -> None:
    rows, truth, unknown, counts, n = case
    ids, labels, extra = ranking(rows), labels_of(truth, len(counts)), np.array(unknown, np.int64)
    whole, parts = Evaluation((1, 3), np.array(counts), n), Evaluation((1, 3), np.array(counts), n)
    whole.add(ids, labels, extra)
    cut = min(cut, len(rows))
    parts.add(ids[:cut], labels.rows(0, cut), extra[:cut])
    parts.add(ids[cut:], labels.rows(cut, len(rows)), extra[cut:])
    assert parts.result() == pytest.approx(whole.result(), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(cases())
def test_unknown_labels_weigh_as_labels_never_seen(
    case: tuple[list[list[int]], list[list[int]], list[int], list[int], int],
) -> None:
    rows, truth, unknown, counts, n = case
    extended = [
        true + list(range(len(counts), len(counts) + extra)) for true, extra in zip(truth, unknown, strict=True)
    ]
    as_unknown, as_labels = Evaluation((2, 5), np.array(counts), n), Evaluation((2, 5), np.array([*counts, 0, 0, 0]), n)
    as_unknown.add(ranking(rows), labels_of(truth, len(counts)), unknown)
    as_labels.add(ranking(rows), labels_of(extended, len(counts) + 3))
    assert as_unknown.result() == pytest.approx(as_labels.result(), abs=1e-12)


def test_by_hand() -> None:
    ids = np.array([[2, 0, 1], [3, 1, -1]])
    labels = labels_of([[0, 2, 3, 4], [1]], 5)
    assert precision_at_k(ids, labels, 1) == 1 / 2
    assert precision_at_k(ids, labels, 3) == (2 / 3 + 1 / 3) / 2
    assert recall_at_k(ids, labels, 3) == (2 / 4 + 1 / 1) / 2
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert ndcg_at_k(ids, labels, 3) == pytest.approx(((1 + second) / (1 + second + third) + second / 1) / 2)


def test_precision_is_divided_by_k_not_by_the_number_of_labels() -> None:
    assert precision_at_k(np.array([[4, 0, 1, 2, 3]]), labels_of([[4]], 5), 5) == 1 / 5


def test_propensities_by_hand() -> None:
    c = (math.log(1000) - 1) * 2.5**0.55
    expected = [1 / (1 + c * 1.5**-0.55), 1 / (1 + c * 101.5**-0.55)]
    np.testing.assert_allclose(propensities([0, 100], 1000), expected, rtol=1e-14)
    other = 1 / (1 + (math.log(1000) - 1) * 3.6**0.5 * 12.6**-0.5)
    np.testing.assert_allclose(propensities([10], 1000, a=0.5, b=2.6), [other], rtol=1e-14)


@pytest.mark.parametrize("n_samples", [0, 1, 2])
def test_propensities_of_almost_no_samples_are_one(n_samples: int) -> None:
    assert propensities(np.array([0, 1, 2]), n_samples).tolist() == [1.0, 1.0, 1.0]


def test_psp_by_hand() -> None:
    counts = np.array([100, 1])
    frequent, rare = 1 / propensities(counts, 1000)
    found = psp_at_k(np.array([[0], [1]]), labels_of([[0, 1], [0]], 2), 1, counts, 1000)
    assert found == pytest.approx(frequent / (rare + frequent))


def test_a_label_ranked_twice_counts_once_at_its_better_place() -> None:
    ids, labels = np.array([[1, 0, 0, 0]]), labels_of([[0]], 2)
    assert precision_at_k(ids, labels, 4) == 1 / 4
    assert recall_at_k(ids, labels, 4) == 1
    assert ndcg_at_k(ids, labels, 4) == pytest.approx(1 / math.log2(3))


def test_no_sample_and_no_label_are_zero_not_an_error() -> None:
    nothing = Evaluation((1, 5), np.array([3, 4]), 7).result()
    assert nothing == dict.fromkeys(nothing, 0.0)
    unlabelled = Evaluation((1,), np.array([3, 4]), 7)
    unlabelled.add(np.array([[0], [1]]), labels_of([[], []], 2))
    assert unlabelled.result() == {"n_samples": 2, "P@1": 0.0, "R@1": 0.0, "nDCG@1": 0.0, "PSP@1": 0.0}


def test_samples_without_labels_count_in_precision_only() -> None:
    ids, labels = np.array([[0], [0]]), labels_of([[0], []], 1)
    assert precision_at_k(ids, labels, 1) == 1 / 2
    assert recall_at_k(ids, labels, 1) == 1
    assert ndcg_at_k(ids, labels, 1) == 1


def test_k_beyond_the_width_of_the_rankings() -> None:
    ids, labels = np.array([[0]]), labels_of([[0, 1]], 2)
    assert precision_at_k(ids, labels, 4) == 1 / 4
    assert recall_at_k(np.empty((1, 0), np.int64), labels, 4) == 0


def test_without_counts_there_is_no_psp() -> None:
    assert set(Evaluation((1, 10)).result()) == {"n_samples", "P@1", "R@1", "nDCG@1", "P@10", "R@10", "nDCG@10"}


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_ids_of_any_integer_type(dtype: type) -> None:
    assert precision_at_k(np.array([[1]], dtype), labels_of([[1]], 4_000_000_000), 1) == 1


def test_ids_near_the_largest_number_of_labels() -> None:
    top = 2**32 - 2
    ids, labels = np.array([[top], [0], [top]]), labels_of([[top], [top], [0, top]], 2**32 - 1)
    assert precision_at_k(ids, labels, 1) == 2 / 3


@pytest.mark.parametrize(
    ("ids", "unknown", "message"),
    [
        (np.array([[0], [1], [2]]), None, "one ranking a sample \\(2\\), got 3"),
        (np.array([0, 1]), None, "2-D int array, got 1-D int64"),
        (np.array([[0.0], [1.0]]), None, "2-D int array, got 2-D float64"),
        (np.array([[0], [3]]), None, "ranked label id 3 is out of range"),
        (np.array([[-2], [0]]), None, "ranked label id -2 is out of range"),
        (np.array([[0], [1]]), [1], "count of unknown labels for each of 2 samples"),
        (np.array([[0], [1]]), [1, -1], "count of unknown labels for each of 2 samples"),
    ],
)
def test_what_cannot_be_a_ranking_is_refused(ids: Int64, unknown: list[int] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Evaluation((1,)).add(ids, labels_of([[0], [1]], 3), unknown)


def test_unsorted_labels_are_refused_rather_than_missed() -> None:
    labels = Labels(np.array([0, 2]), np.array([1, 0], np.uint32), 2)
    with pytest.raises(DataError, match="sorted and without repeats"):
        Evaluation((1,)).add(np.array([[0]]), labels)


def test_counts_of_other_labels_are_refused() -> None:
    with pytest.raises(DataError, match="labels out of 3 as in training, got 2"):
        Evaluation((1,), np.array([1, 2, 3]), 5).add(np.array([[0]]), labels_of([[0]], 2))


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "1"])
def test_bad_k_is_refused(k: object) -> None:
    with pytest.raises(SettingError, match=r"'k' parameter must be an int in \[1, inf\)"):
        Evaluation((k,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b", "name"), [(-1.0, 1.5, "a"), (0.5, 0.0, "b"), (math.nan, 1.5, "a"), (0.5, math.inf, "b")]
)
def test_bad_propensity_parameters_are_refused_at_once(a: float, b: float, name: str) -> None:
    with pytest.raises(SettingError, match=f"propensity parameter '{name}'"):
        Evaluation((1,), np.array([1]), 10, a, b)


def test_no_k_is_refused() -> None:
    with pytest.raises(SettingError, match="at least one k"):
        Evaluation(())


def test_twenty_thousand_rankings_of_a_hundred_take_a_moment() -> None:
    random = np.random.default_rng(0)
    ids = np.argsort(random.random((20_000, 150)), axis=1)[:, :100].astype(np.int64)
    labels = labels_of([sorted(random.choice(150, 5, replace=False).tolist()) for _ in range(20_000)], 150)
    evaluation = Evaluation((1, 3, 5, 10, 100), labels.counts(), 20_000)
    start = time.process_time()
    evaluation.add(ids, labels)
    assert time.process_time() - start < 2.0  # 0.3 s where it was written; the margin is for busy machines
    assert evaluation.result()["R@100"] == pytest.approx(100 / 150, abs=0.01)
