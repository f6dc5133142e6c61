"""The sieve against the scan, at sizes that it is made for; answers in bounded time; ids at the edge of 32 bits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.compiled import kernel
from machxc.errors import DataError, SettingError
from machxc.partition import HashPartition, Partition, TablePartition, permute
from machxc.retrieval import budget_within, top_k, top_k_within
from machxc.retrieval.chance import reached
from machxc.retrieval.coarse import coarse_scan
from machxc.retrieval.estimators import SUM, contributions
from machxc.retrieval.heap import NO_LABEL
from machxc.retrieval.permutation import permute32
from machxc.retrieval.retrieve import lookup_of
from machxc.retrieval.scan import scan
from machxc.retrieval.sieve import sieve
from machxc.samples import Array, Float32, Int64, UInt32

SUMS = ("mean", "unbiased", "log-probability", "logit")
KINDS = ("peaked", "shared", "noise", "coarse", "flat")


def sketch(kind: str, partition: HashPartition, n: int, rng: np.random.Generator) -> Float32:
    """Logits [n, R, B]: labels that stand out, or many that share their evidence; noise; ties; all the same."""
    shape = (n, partition.n_repetitions, partition.n_buckets)
    logits = rng.standard_normal(shape) if kind != "flat" else np.zeros(shape)
    for query in logits if kind in ("peaked", "shared") else ():
        labels = rng.integers(0, partition.n_labels, 3 if kind == "peaked" else 200)
        height = np.full((len(labels), shape[1]), 6.0) if kind == "peaked" else rng.random((len(labels), shape[1])) * 5
        for r in range(shape[1]):
            query[r, partition.buckets(labels, r)] += height[:, r]
    return (np.round(logits) if kind == "coarse" else logits).astype(np.float32)


def assert_same(given: tuple[Int64, Float32], expected: tuple[Int64, Float32]) -> None:
    assert np.array_equal(given[0], expected[0])
    assert np.array_equal(given[1], expected[1])


@pytest.mark.parametrize("estimator", SUMS)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), k=st.sampled_from([1, 10, 300]), part=st.booleans())
@settings(max_examples=12, deadline=None)
def test_sieves_what_is_scanned(estimator: str, seed: int, kind: str, k: int, part: bool) -> None:
    rng = np.random.default_rng(seed)
    partition = HashPartition(30_000, 300, int(rng.integers(2, 9)), seed)
    logits, loss = sketch(kind, partition, 2, rng), ("softmax", "bce")[seed % 2]
    arguments: dict[str, Any] = {"loss": loss, "estimator": estimator}
    arguments["seen"] = rng.random(partition.n_labels) < 0.01 if part else None
    expected = top_k(logits, partition, k, method="scan", **arguments)
    assert_same(top_k(logits, partition, k, method="sieve", **arguments), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_chooses_to_sieve_many_labels_and_is_exact(kind: str) -> None:
    rng = np.random.default_rng(3)
    partition = HashPartition(600_000, 1_000, 8, 5)
    logits = sketch(kind, partition, 3, rng)
    for estimator in ("mean", "log-probability"):
        expected = top_k(logits, partition, 100, loss="softmax", estimator=estimator, method="scan")
        assert_same(top_k(logits, partition, 100, loss="softmax", estimator=estimator), expected)


def test_probes_deeper_where_a_proof_is_to_be_hoped_for() -> None:
    """Labels that are a little better than chance in every repetition: the first probes find too few of them."""
    partition, rng = HashPartition(2_000_000, 2_000, 16, 1), np.random.default_rng(5)
    logits = rng.standard_normal((1, 16, 2_000)).astype(np.float32)
    labels = rng.integers(0, partition.n_labels, 60)
    for r in range(16):
        logits[0, r, partition.buckets(labels, r)] += 2 + rng.random(60, np.float32)
    values = contributions(logits, "softmax", "log-probability")
    scores, found = np.full((1, 20), -np.inf, np.float32), np.full((1, 20), NO_LABEL, np.int64)
    proven, limit = np.zeros(1, np.bool_), 16e6
    lookup = lookup_of(partition, inverted=True)
    sieve(values, lookup, np.empty(0, np.uint8), limit / 64, limit, scores, found, proven)
    assert proven.all()
    expected, _ = top_k(logits, partition, 20, loss="softmax", estimator="log-probability", method="scan")
    assert np.array_equal(found, expected)


def test_foretells_how_many_labels_find_their_dues_in_a_cell() -> None:
    """Against the gains of members dealt into cells at random, small ones first."""
    rng, n_cells, n_members = np.random.default_rng(1), 20_000, 400
    counts = np.zeros(33)
    counts[[1, 2, 3, 7, 12, 20, 32]] = [40, 30, 20, 8, 5, 2, 1]
    cells, counted = np.zeros(n_cells, np.int64), 0
    for gain in np.repeat(np.arange(33), counts.astype(int)):
        for cell in rng.integers(0, n_cells, n_members):
            cells[cell] += gain
            counted += cells[cell] >= 32
    foretold = reached(counts, n_members / n_cells, np.empty(33)) * n_members
    assert abs(counted - foretold) < 0.1 * counted


def test_sieves_a_given_assignment() -> None:
    rng = np.random.default_rng(4)
    hashed = HashPartition(50_000, 400, 6, 2)
    labels = np.arange(hashed.n_labels)
    table = TablePartition(np.stack([hashed.buckets(labels, r) for r in range(6)]), 400)
    logits = sketch("peaked", hashed, 2, rng)
    expected = top_k(logits, hashed, 20, loss="softmax", estimator="mean", method="scan")
    assert_same(top_k(logits, table, 20, loss="softmax", estimator="mean", method="sieve"), expected)


@pytest.mark.parametrize("estimator", [*SUMS, "min", "median"])
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), budget=st.sampled_from([1, 1_000, 50_000, 10**7]))
@settings(max_examples=15, deadline=None)
def test_in_bounded_time_what_is_called_proven_is_exact(estimator: str, seed: int, kind: str, budget: int) -> None:
    rng = np.random.default_rng(seed)
    partition: Partition = HashPartition(*((40_000, 300) if seed % 2 else (600_000, 2_000)), 5, seed)
    assert isinstance(partition, HashPartition)
    logits = sketch(kind, partition, 2, rng)
    ids, scores, proven = top_k_within(logits, partition, 10, budget, loss="softmax", estimator=estimator)
    expected = top_k(logits, partition, 10, loss="softmax", estimator=estimator, method="scan")
    for i in range(2):
        if proven[i]:
            assert_same((ids[i], scores[i]), (expected[0][i], expected[1][i]))
        assert (scores[i] <= expected[1][i]).all()
        assert (scores[i][:-1] >= scores[i][1:]).all()
        found = ids[i][ids[i] >= 0]
        assert len(set(found.tolist())) == len(found)


def test_what_stands_out_is_proven_within_a_small_part_of_a_scan() -> None:
    partition = HashPartition(1_000_000, 1_000, 16, 1)
    logits = sketch("peaked", partition, 4, np.random.default_rng(1)) * 2
    _, _, proven = top_k_within(logits, partition, 3, 400_000, loss="softmax", estimator="mean")
    assert proven.all()
    _, _, proven = top_k_within(logits * 0, partition, 3, 400_000, loss="softmax", estimator="mean")
    assert not proven.any()


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), k=st.sampled_from([1, 10, 300]), part=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_coarse_scan_finds_what_the_scan_finds(seed: int, kind: str, k: int, part: bool) -> None:
    rng = np.random.default_rng(seed)
    partition = HashPartition(int(rng.integers(300, 20_000)), 200, int(rng.integers(2, 20)), seed)
    values = contributions(sketch(kind, partition, 1, rng), "softmax", SUMS[seed % 4])
    seen = np.packbits(rng.random(partition.n_labels) < 0.1) if part else np.empty(0, np.uint8)
    lookup = lookup_of(partition, inverted=False)
    found = []
    for _ in range(2):
        found.append((np.full((1, k), NO_LABEL, np.int64), np.full((1, k), -np.inf, np.float32)))
    scan(values[0][..., None], lookup, np.empty(0, np.uint32), seen, SUM, found[0][1], found[0][0])
    coarse_scan(values[0], lookup, seen, found[1][1][0], found[1][0][0])
    assert_same(found[0], found[1])
    again = found[1][0][:, ::-1].copy(), found[1][1][:, ::-1].copy()  # from the best that there are, the worst first
    coarse_scan(values[0], lookup, seen, again[1][0], again[0][0])
    assert_same(again, found[0])


def test_one_query_without_a_proof_is_scanned() -> None:
    partition = HashPartition(600_000, 1_000, 8, 5)
    logits = sketch("noise", partition, 1, np.random.default_rng(6))
    for estimator in ("mean", "log-probability"):
        expected = top_k(logits, partition, 100, loss="softmax", estimator=estimator, method="scan")
        assert_same(top_k(logits, partition, 100, loss="softmax", estimator=estimator), expected)


def test_a_budget_too_small_for_the_proof_finds_most_of_the_best() -> None:
    partition = HashPartition(1_000_000, 1_000, 16, 1)
    logits = sketch("shared", partition, 3, np.random.default_rng(2))
    expected, _ = top_k(logits, partition, 20, loss="softmax", estimator="mean")
    ids, _, proven = top_k_within(logits, partition, 20, 300_000, loss="softmax", estimator="mean")
    assert not proven.any()
    assert np.mean([np.isin(a, b).mean() for a, b in zip(expected, ids, strict=True)]) >= 0.9


def test_a_longer_deadline_is_a_larger_budget() -> None:
    partition = HashPartition(1_000_000, 1_000, 16, 1)
    short, long = (budget_within(milliseconds, partition) for milliseconds in (20, 2_000))
    assert 1 <= short < long
    assert budget_within(1e-9, partition) == 1
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="milliseconds above 0"):
            budget_within(wrong, partition)


def test_one_repetition_with_a_bucket_a_label_is_always_proven() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 1, 64)).astype(np.float32)
    partition = HashPartition(64, 64, 1, 0)
    ids, scores, proven = top_k_within(logits, partition, 5, 1, loss="softmax", estimator="mean")
    assert proven.all()
    assert_same((ids, scores), top_k(logits, partition, 5, loss="softmax", estimator="mean"))


def test_refuses_a_budget_of_nothing_and_sketches_that_do_not_fit() -> None:
    partition, logits = HashPartition(9, 5, 2, 0), np.zeros((1, 2, 5), np.float32)
    with pytest.raises(SettingError, match="'budget' parameter"):
        top_k_within(logits, partition, 3, 0, loss="bce", estimator="mean")
    with pytest.raises(DataError, match=r"expected logits float32 \[queries, 2, 5\]"):
        top_k_within(logits[:, :1], partition, 3, 5, loss="bce", estimator="mean")


@pytest.mark.parametrize("estimator", SUMS)
@pytest.mark.parametrize("n_labels", [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1])
def test_labels_at_the_edges_of_32_bits_are_found(n_labels: int, estimator: str) -> None:
    labels = np.array([0, 1, 2**31 - 5, n_labels - 2, n_labels - 1])
    partition = HashPartition(n_labels, 2**20 - 3, 3, 9)
    logits = np.full((1, 3, 2**20 - 3), -20, np.float32)
    for r in range(3):
        logits[0, r, partition.buckets(labels, r)] = [9, 8, 7, 6, 5]
    arguments: dict[str, Any] = {"loss": "bce", "estimator": estimator}
    ids, scores, proven = top_k_within(logits, partition, 5, 10**7, **arguments)
    assert ids.tolist() == [labels.tolist()]
    assert proven.all()
    assert_same((ids, scores), top_k(logits, partition, 5, method="sieve", **arguments))
    assert_same((ids, scores), top_k(logits, partition, 5, candidates=labels, **arguments))


@kernel
def _permuted(x: UInt32, p: Array, shift: int, mask: int, out: UInt32) -> None:
    for j in range(len(x)):
        out[j] = permute32(
            x[j], np.uint32(p[0]), np.uint32(p[1]), np.uint32(p[2]), np.uint32(p[3]), np.uint32(p[4]), np.uint32(p[5]),
            np.uint32(shift), np.uint32(mask),
        )  # fmt: skip


@given(n_labels=st.integers(1, 2**32 - 1) | st.sampled_from([1, 2, 2**31, 2**32 - 1]), seed=st.integers(0, 2**62))
@settings(max_examples=100, deadline=None)
def test_the_permutation_in_32_bits_is_the_one_in_64(n_labels: int, seed: int) -> None:
    partition = HashPartition(n_labels, 1, 1, seed)
    mask = (1 << partition.bits) - 1
    x = np.append(np.random.default_rng(seed).integers(0, mask + 1, 50), [0, mask]).astype(np.uint32)
    for p in (partition.forward[0], partition.inverse[0]):
        out = np.empty_like(x)
        _permuted(x, p, partition.shift, mask, out)
        p0, p1, p2, p3, p4, p5 = p
        expected = permute(x.astype(np.uint64), p0, p1, p2, p3, p4, p5, np.uint64(partition.shift), np.uint64(mask))
        assert np.array_equal(out, expected)


_MEMORY = """
import resource
import numpy as np
from machxc.partition import HashPartition
from machxc.retrieval import top_k_within

def ask(n_labels, n_buckets, logits):
    partition = HashPartition(n_labels, n_buckets, 32, 0)
    top_k_within(logits, partition, 100, 3_000_000, loss="softmax", estimator="mean")

logits = np.random.default_rng(0).standard_normal((1, 32, 10_000)).astype(np.float32)
ask(600_000, 100, np.ascontiguousarray(logits[:, :, :100]))  # compiles
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ask(50_000_000, 10_000, logits)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
def test_no_index_is_held_in_memory() -> None:
    """50 million labels: what is allocated goes with the sketch and the result, not with K."""
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10
