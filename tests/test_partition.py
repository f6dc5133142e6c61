"""The label hash: its inverse, its collisions, its independence; and the same contract kept by a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.errors import DataError, SettingError
from machxc.partition import HashPartition, Partition, TablePartition, permute
from machxc.samples import Array, Int64

MAX = 2**32 - 1
SIZES = [(1, 1), (1, 7), (2, 1), (2, 3), (17, 5), (64, 64), (64, 7), (100, 1000), (1000, 128), (4099, 61)]


def assign(partition: Partition) -> Int64:
    """Every label's bucket in every repetition [R, K]."""
    labels = np.arange(partition.n_labels)
    return np.stack([partition.buckets(labels, r) for r in range(partition.n_repetitions)]).astype(np.int64)


def hash_by_definition(label: int, n_buckets: int, bits: int, numbers: tuple[int, ...]) -> int:
    """h(i) = (((a * mix(i) + c) mod 2**w) * B) >> w in plain integers."""
    m0, k0, m1, k1, a, c = numbers
    modulus, half = 2**bits, (bits + 1) // 2
    x = (label * m0 + k0) % modulus
    x ^= x >> half
    x = (x * m1 + k1) % modulus
    x ^= x >> half
    return int(((a * x + c) % modulus) * n_buckets >> bits)


@pytest.mark.parametrize(("n_labels", "n_buckets"), SIZES)
@pytest.mark.parametrize("kind", ["hash", "table"])
def test_members_invert_buckets(n_labels: int, n_buckets: int, kind: str) -> None:
    partition: Partition = HashPartition(n_labels, n_buckets, 3, seed=5)
    assigned = assign(partition)
    if kind == "table":
        partition = TablePartition(assigned, n_buckets)
    for r in range(3):
        for bucket in range(n_buckets):
            members = partition.members(bucket, r)
            assert members.dtype == np.int64
            assert members.tolist() == np.flatnonzero(assigned[r] == bucket).tolist()


@pytest.mark.parametrize(("n_labels", "n_buckets"), SIZES)
def test_the_hash_is_the_formula(n_labels: int, n_buckets: int) -> None:
    partition = HashPartition(n_labels, n_buckets, 2, seed=11)
    assert partition.bits == max(1, int(np.ceil(np.log2(n_labels))))
    for r in range(2):
        numbers = partition.parameters(r)
        expected = [hash_by_definition(i, n_buckets, partition.bits, numbers) for i in range(n_labels)]
        assert partition.buckets(np.arange(n_labels), r).tolist() == expected


def test_hash_values_are_frozen() -> None:
    """Models store no table: these numbers may never change."""
    partition = HashPartition(1000, 50, 2, seed=42)
    assert partition.parameters(0) == (993, 456, 823, 387, 373, 661)
    assert partition.buckets(np.arange(8), 1).tolist() == [14, 15, 11, 20, 43, 11, 41, 21]


@given(
    n_labels=st.one_of(st.integers(1, MAX), st.integers(MAX - 3, MAX), st.integers(0, 31).map(lambda w: 2**w)),
    n_buckets=st.one_of(st.integers(1, MAX), st.integers(MAX - 3, MAX), st.integers(0, 31).map(lambda w: 2**w)),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_arithmetic_at_the_edges(n_labels: int, n_buckets: int, seed: int, data: st.DataObject) -> None:
    partition = HashPartition(n_labels, n_buckets, 2, seed)
    ids = [0, n_labels - 1, data.draw(st.integers(0, n_labels - 1))]
    buckets = partition.buckets(np.array(ids, np.uint32), 1).tolist()
    assert buckets == [hash_by_definition(i, n_buckets, partition.bits, partition.parameters(1)) for i in ids]
    if 2**partition.bits // n_buckets <= 1 << 16:
        for label, bucket in zip(ids, buckets, strict=True):
            members = partition.members(bucket, 1)
            assert label in members
            assert (np.diff(members) > 0).all()
            assert members[-1] < n_labels


@given(bits=st.integers(1, 32), seed=st.integers(0, 2**63 - 1), data=st.data())
@settings(max_examples=200, deadline=None)
def test_permute_has_an_inverse(bits: int, seed: int, data: st.DataObject) -> None:
    partition = HashPartition(min(2**bits, MAX), 10, 1, seed)
    x = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=20)), np.uint64)
    shift, mask = np.uint64(partition.shift), np.uint64(2**bits - 1)
    p0, p1, p2, p3, p4, p5 = partition.forward[0]
    q0, q1, q2, q3, q4, q5 = partition.inverse[0]
    y = permute(x, p0, p1, p2, p3, p4, p5, shift, mask)
    assert partition.bits == bits
    assert permute(y, q0, q1, q2, q3, q4, q5, shift, mask).tolist() == x.tolist()


def test_as_many_buckets_as_ids_is_one_to_one() -> None:
    partition = HashPartition(2**10, 2**10, 3, seed=1)
    for row in assign(partition):
        assert sorted(row) == list(range(2**10))
    wide = assign(HashPartition(700, 5000, 3, seed=1))
    assert all(len(set(row)) == 700 for row in wide.tolist())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_pair_collides_more_often_than_multiply_shift_guarantees(bits: int, seed: int) -> None:
    """Every pair of labels, over all odd a and all c, with a given mix."""
    size = 2**bits
    p0, p1, p2, p3 = HashPartition(size, 1, 1, seed).forward[0, :4]
    grid: Any = np.ogrid[:size, 1:size:2, :size]
    x, a, c = (axis.astype(np.uint64) for axis in grid)
    shift, mask = np.uint64((bits + 1) // 2), np.uint64(size - 1)
    y = permute(x, p0, p1, p2, p3, a, c, shift, mask).astype(np.int64).reshape(size, -1)
    for n_buckets in sorted({1, 2, 3, 5, size // 2 + 1, size - 1, size, size + 1, 3 * size} - {0}):
        h = (y * n_buckets) >> bits
        rate = max(((h[:-d] == h[d:]).mean(axis=1).max() for d in range(1, size)), default=0)
        assert rate <= -(-size // n_buckets) / size <= 2 / n_buckets if n_buckets < size else rate == 0


def pairs_of(labels: Int64, count: int, rng: np.random.Generator) -> Array:
    first, second = rng.choice(labels, (2, count))
    return np.stack([first, second])[:, first != second]


PROGRESSIONS: dict[str, Callable[[int, np.random.Generator], Int64]] = {
    "any": lambda k, rng: rng.integers(0, k, 4096),
    "consecutive": lambda k, rng: np.arange(4096) + int(rng.integers(0, k - 4096)),
    "step 2": lambda k, rng: np.arange(4096) * 2,
    "step 1000": lambda k, rng: np.arange(4096) * (k // 5000),
    "step 256": lambda k, rng: np.arange(k // 256) * 256,
    "step 4096": lambda k, rng: np.arange(k // 4096) * 4096,
}


@pytest.mark.parametrize("ids", PROGRESSIONS)
@pytest.mark.parametrize("n_buckets", [10, 500, 1021])
def test_the_collision_rate_is_one_in_b(ids: str, n_buckets: int) -> None:
    """Pairs of K = 2**20 ids, where dealing without replacement is as good as independent throws."""
    n_labels, draws, count = 2**20, 40, 5000
    rng = np.random.default_rng(n_buckets)
    partition = HashPartition(n_labels, n_buckets, draws, seed=77)
    hits = total = 0
    for r in range(draws):
        first, second = pairs_of(PROGRESSIONS[ids](n_labels, rng), count, rng)
        hits += int((partition.buckets(first, r) == partition.buckets(second, r)).sum())
        total += len(first)
    sigma = np.sqrt((1 / n_buckets) * (1 - 1 / n_buckets) / total)
    assert abs(hits / total - 1 / n_buckets) < 4 * sigma


@pytest.mark.parametrize(("n_labels", "n_buckets"), [(983, 100), (3993, 500), (30938, 2000)])
def test_small_sets_collide_as_if_dealt_without_replacement(n_labels: int, n_buckets: int) -> None:
    partition = HashPartition(n_labels, n_buckets, 30, seed=3)
    assigned, size = assign(partition), 2**partition.bits
    ranges = np.diff(-(-np.arange(n_buckets + 1) * size // n_buckets))
    expected = (ranges * (ranges - 1)).sum() / (size * (size - 1))
    counts = np.stack([np.bincount(row, minlength=n_buckets) for row in assigned])
    rates = (counts * (counts - 1)).sum(axis=1) / (n_labels * (n_labels - 1))
    assert expected <= 1 / n_buckets
    assert abs(rates.mean() - expected) < 4 * rates.std() / np.sqrt(len(rates))
    assert np.abs(counts - n_labels / n_buckets).max() < 8 * np.sqrt(n_labels / n_buckets)


@pytest.mark.parametrize(("n_labels", "n_buckets"), [(159, 20), (983, 100), (2000, 250)])
def test_repetitions_are_independent(n_labels: int, n_buckets: int) -> None:
    """How many pairs of labels share a bucket in two repetitions at once: mean and spread of independent hashes.

    With one mix for all repetitions the spread is 13 to 44 times as large; that is why each has its own.
    """
    partition = HashPartition(n_labels, n_buckets, 24, seed=9)
    first, second = np.triu_indices(n_labels, 1)
    together = np.stack([row[first] == row[second] for row in assign(partition)])
    both = np.array([(together[r] & together[s]).sum() for r in range(24) for s in range(r)])
    expected = len(first) * together.mean() ** 2
    assert abs(both.mean() - expected) < 4 * np.sqrt(expected / len(both))
    assert both.std() < 1.3 * np.sqrt(expected)
    assert both.max() < expected + 6 * np.sqrt(expected)


def test_seeds_and_repetitions_differ() -> None:
    rows = [tuple(row) for seed in (0, 1, 2**63 - 1) for row in assign(HashPartition(500, 40, 8, seed)).tolist()]
    assert len(set(rows)) == 24


def test_shape_and_dtype_of_buckets() -> None:
    for partition in (HashPartition(10, 4, 2, 0), TablePartition(np.zeros((2, 10), np.uint8), 4)):
        assert partition.buckets(np.zeros((3, 2), np.int32), 1).shape == (3, 2)
        assert partition.buckets(np.zeros((3, 2), np.uint32), 1).dtype == np.uint32
        assert partition.buckets(np.array([], np.int64), 0).shape == (0,)


def test_many_labels_are_hashed_in_chunks_alike() -> None:
    partition = HashPartition(10**6, 100, 1, 0)
    ids = np.arange(200_000)
    parts = [partition.buckets(ids[start : start + 999], 0) for start in range(0, 200_000, 999)]
    assert np.array_equal(partition.buckets(ids, 0), np.concatenate(parts))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 5, 2, 0), "n_labels"),
        ((2**32, 5, 2, 0), "n_labels"),
        ((5, 0, 2, 0), "n_buckets"),
        ((5, 2**32, 2, 0), "n_buckets"),
        ((5, 5, 0, 0), "n_repetitions"),
        ((5, 5, 2, -1), "seed"),
        ((5, 5.0, 2, 0), "n_buckets"),
    ],
)
def test_settings_out_of_bounds(arguments: tuple[int, int, int, int], name: str) -> None:
    with pytest.raises(SettingError, match=rf"'{name}' parameter of HashPartition must be an int in"):
        HashPartition(*arguments)


@pytest.mark.parametrize("partition", [HashPartition(10, 4, 2, 0), TablePartition(np.zeros((2, 10), int), 4)])
def test_what_is_out_of_range_is_named(partition: Partition) -> None:
    with pytest.raises(DataError, match=r"label id 10 is out of range: expected ids in \[0, 10\)"):
        partition.buckets(np.array([3, 10]), 0)
    with pytest.raises(DataError, match="label id -1 is out of range"):
        partition.buckets(np.array([-1]), 0)
    with pytest.raises(DataError, match="integers"):
        partition.buckets(np.array([0.5]), 0)
    with pytest.raises(DataError, match=r"bucket 4 does not exist; expected one in \[0, 4\)"):
        partition.members(4, 0)
    with pytest.raises(SettingError, match="repetition 2 does not exist"):
        partition.members(0, 2)


def test_a_table_must_hold_buckets() -> None:
    with pytest.raises(DataError, match="repetition 1 assigns label 2 to bucket 4"):
        TablePartition(np.array([[0, 1, 2], [0, 1, 4]]), 4)
    with pytest.raises(DataError, match="repetition 0 assigns label 0 to bucket -1"):
        TablePartition(np.array([[-1]]), 4)
    with pytest.raises(DataError, match="must be a table of integers"):
        TablePartition(np.zeros(3, np.uint32), 4)
    with pytest.raises(DataError, match="must be a table of integers"):
        TablePartition(np.zeros((2, 3)), 4)
    with pytest.raises(SettingError, match="'n_buckets' parameter of TablePartition"):
        TablePartition(np.zeros((2, 3), np.uint32), 0)
