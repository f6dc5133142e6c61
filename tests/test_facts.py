from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.facts import Facts, facts_of
from machxc.samples import Features, Labels, Samples

Rows = list[dict[int, float]]


def samples_of(rows: Rows, n_features: int, labels: list[list[int]], n_labels: int) -> Samples:
    indices = np.array([index for row in rows for index in row], np.uint32)
    values = np.array([value for row in rows for value in row.values()], np.float32)
    features = Features(np.cumsum([0, *map(len, rows)], dtype=np.int64), indices, values, n_features)
    label_ids = np.array([label for row in labels for label in row], np.uint32)
    return Samples(features, Labels(np.cumsum([0, *map(len, labels)], dtype=np.int64), label_ids, n_labels))


def check(rows: Rows, n_features: int, labels: list[list[int]], n_labels: int, *, text: bool) -> None:
    facts = facts_of(samples_of(rows, n_features, labels, n_labels), text=text)
    times = Counter(index for row in rows for index in row)
    values = [value for row in rows for value in row.values()]
    assert facts == Facts(
        n_samples=len(rows),
        n_labels=n_labels,
        n_seen=len({label for row in labels for label in row}),
        n_pairs=sum(map(len, labels)),
        most_labels=max(map(len, labels), default=0),
        n_features=n_features,
        n_values=len(values),
        n_distinct=len(times),
        n_repeated=sum(n > 1 for n in times.values()),
        n_frequent=sum(n > 2 for n in times.values()),
        counts=all(value > 0 and value == int(value) for value in values),
        dense=not text and len(values) > 0.5 * len(rows) * n_features,
        n_met=len({(index, label) for row, ids in zip(rows, labels, strict=True) for index in row for label in ids}),
        text=text,
    )


@given(st.data(), st.booleans(), st.sampled_from([3, 40, 1 << 22]))
@settings(deadline=None, max_examples=200)
def test_facts_are_those_of_a_plain_count(data: st.DataObject, text: bool, n_features: int) -> None:
    value = st.one_of(st.integers(1, 300).map(float), st.sampled_from([0.0, 0.5, -1.0, 1e30]))
    row = st.dictionaries(st.integers(0, n_features - 1), value, max_size=3)
    rows = data.draw(st.lists(row, max_size=8))
    label_set = st.sets(st.integers(0, 9), max_size=4).map(sorted)
    labels = data.draw(st.lists(label_set, min_size=len(rows), max_size=len(rows)))
    check(rows, n_features, labels, 10, text=text)


@given(st.lists(st.dictionaries(st.integers(0, 2**32 - 1), st.just(1.0), max_size=6), max_size=30))
@settings(deadline=None, max_examples=50)
def test_few_token_hashes_are_told_apart(rows: Rows) -> None:
    check(rows, 2**32, [[0]] * len(rows), 1, text=True)


@pytest.mark.parametrize(
    ("n_distinct", "n_repeated", "n_frequent"),
    [(10_000, 0, 0), (10_000, 10_000, 10_000), (400_000, 100_000, 20_000), (3_000_000, 900_000, 300_000)],
)
def test_many_token_hashes_are_estimated(n_distinct: int, n_repeated: int, n_frequent: int) -> None:
    ids = np.random.default_rng(0).choice(2**32, n_distinct, replace=False).astype(np.uint32)
    indices = np.concatenate([ids, ids[:n_repeated], ids[:n_frequent]])
    indptr = np.array([0, n_distinct, n_distinct + n_repeated, len(indices)], np.int64)
    features = Features(indptr, indices, np.ones(len(indices), np.float32), 2**32)
    facts = facts_of(Samples(features, Labels(np.arange(4), np.zeros(3, np.uint32), 1)), text=True)
    assert facts.n_distinct == pytest.approx(n_distinct, rel=0.005)
    assert facts.n_repeated == pytest.approx(n_repeated, rel=0.02, abs=100)
    assert facts.n_frequent == pytest.approx(n_frequent, rel=0.02, abs=100)
    assert [facts.rows(n) for n in (1, 2, 3, 7)] == [
        facts.n_distinct,
        facts.n_repeated,
        facts.n_frequent,
        facts.n_frequent,
    ]


def test_means() -> None:
    facts = facts_of(samples_of([{0: 1.0, 1: 1.0}, {1: 1.0}], 5, [[0, 3], [3]], 9), text=False)
    assert facts.per_sample == 1.5
    assert facts.per_label == 1.5


def test_no_samples() -> None:
    facts = facts_of(samples_of([], 5, [], 9), text=False)
    assert (facts.n_samples, facts.n_seen, facts.per_sample, facts.per_label) == (0, 0, 0.0, 0.0)


@pytest.mark.parametrize("n", [400_000, 3_000_000])
def test_many_pairs_of_features_and_labels_are_estimated(n: int) -> None:
    indptr, ids = np.arange(0, 2 * n + 1, 2), np.arange(2 * n) // 4 * 7  # two samples alike, each of two equal ids
    labels = Labels(np.arange(n + 1), (np.arange(n) // 2).astype(np.uint32), n)
    features = Features(indptr, (ids + np.arange(2 * n) % 2).astype(np.uint32), np.ones(2 * n, np.float32), 2**32)
    assert facts_of(Samples(features, labels), text=True).n_met == pytest.approx(n, rel=0.0 if n < 500_000 else 0.01)
