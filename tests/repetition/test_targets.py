from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import features_of, labels_of

from machxc.partition import HashPartition, Partition, TablePartition
from machxc.repetition import targets as module
from machxc.repetition.targets import bucket_counts, bucket_targets
from machxc.samples import Samples

K = 30
LABEL_SETS = st.lists(st.sets(st.integers(0, K - 1), max_size=8).map(sorted), min_size=1, max_size=15)
PARTITIONS = st.one_of(
    st.builds(HashPartition, st.just(K), st.sampled_from([1, 2, 7, 40]), st.just(3), st.integers(0, 99)),
    st.builds(
        lambda seed: TablePartition(np.random.default_rng(seed).integers(0, 5, (3, K)).astype(np.uint32), 5),
        st.integers(0, 99),
    ),
)


def samples_of(rows: list[list[int]], weights: list[float] | None = None) -> Samples:
    features = features_of([{} for _ in rows], 1)
    return Samples(features, labels_of(rows, K), None if weights is None else np.array(weights, np.float32))


@given(LABEL_SETS, PARTITIONS, st.integers(0, 2), st.data())
@settings(deadline=None, max_examples=200)
def test_targets_are_the_sets_of_buckets(
    rows: list[list[int]], partition: Partition, r: int, data: st.DataObject
) -> None:
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    weights = [float(i) for i in range(len(rows))]
    found = bucket_targets(samples_of(rows, weights), np.array(order, np.int64), partition, r)
    bucket = partition.buckets(np.arange(K), r)
    expected = [sorted({int(bucket[label]) for label in rows[i]}) for i in order]
    assert [found.buckets[found.indptr[i] : found.indptr[i + 1]].tolist() for i in range(len(order))] == expected
    assert found.weights.tolist() == [weights[i] for i in order]
    assert [str(a.dtype) for a in (found.indptr, found.buckets, found.weights)] == ["int64", "int32", "float32"]
    assert found.indptr[-1] == len(found.buckets)


def test_labels_that_share_a_bucket_are_one_target() -> None:
    partition = TablePartition(np.array([[0, 1] * (K // 2)], np.uint32), 2)
    found = bucket_targets(samples_of([[0, 2, 4], [1, 2], [5]]), np.arange(3), partition, 0)
    assert found.indptr.tolist() == [0, 1, 3, 4]
    assert found.buckets.tolist() == [0, 0, 1, 1]
    assert found.weights.tolist() == [1, 1, 1]


@given(LABEL_SETS, PARTITIONS, st.integers(0, 2), st.booleans())
@settings(deadline=None, max_examples=100)
def test_counts_are_of_pairs_with_their_weights(
    rows: list[list[int]], partition: Partition, r: int, weighted: bool
) -> None:
    weights = [0.5 * i for i in range(len(rows))] if weighted else None
    expected = np.zeros(partition.n_buckets)
    for i, row in enumerate(rows):
        for label in row:
            expected[partition.buckets(np.array([label]), r)[0]] += 1 if weights is None else weights[i]
    np.testing.assert_allclose(bucket_counts(samples_of(rows, weights), partition, r), expected)


def test_counts_are_added_up_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[i % K, (7 * i + 1) % K] for i in range(50)]
    samples, partition = samples_of(rows, [1.0 + i % 3 for i in range(50)]), HashPartition(K, 7, 1, 0)
    whole = bucket_counts(samples, partition, 0)
    monkeypatch.setattr(module, "_CHUNK", 8)
    np.testing.assert_allclose(bucket_counts(samples, partition, 0), whole)
