"""The order of an epoch: a permutation, every one as likely, and the same whichever way the samples are read."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from machxc.repetition import random, windows
from machxc.repetition.chunks import WINDOW
from machxc.repetition.windows import at_hand, in_order, shuffled
from machxc.samples import Features, Int64, Labels, Samples


def make_samples(n: int, *, weighted: bool = False) -> Samples:
    """Sample i has i % 4 features, of which the first is i, and i % 3 labels, of which the first is i."""
    sizes, n_labels = np.arange(n) % 4, np.arange(n) % 3
    indptr, label_indptr = (np.concatenate([[0], np.cumsum(counts)]).astype(np.int64) for counts in (sizes, n_labels))
    indices, ids = np.repeat(np.arange(n), sizes), np.repeat(np.arange(n), n_labels)
    features = Features(indptr, indices.astype(np.uint32), (indices / 2).astype(np.float32), n)
    weights = np.arange(n, dtype=np.float32) if weighted else None
    return Samples(features, Labels(label_indptr, ids.astype(np.uint32), n), weights)


def listed(samples: Samples, order: Int64) -> list[tuple[list[float], list[int], float]]:
    """Features, labels and weight of each sample, in this order."""
    features, labels = samples.features, samples.labels
    rows = []
    for i in order.tolist():
        values = features.values[features.indptr[i] : features.indptr[i + 1]].tolist()
        ids = labels.indices[labels.indptr[i] : labels.indptr[i + 1]].tolist()
        rows.append((values, ids, 1.0 if samples.weights is None else float(samples.weights[i])))
    return rows


def epoch_of(samples: Samples, chosen: Int64, seed: int = 0, r: int = 0, epoch: int = 0) -> list[object]:
    return [row for window in shuffled(samples, chosen, seed, r, epoch) for row in listed(window.samples, window.order)]


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def samples(request: pytest.FixtureRequest) -> Samples:
    return make_samples(1000, weighted=request.param)


def test_few_samples_are_one_window_that_is_not_copied(samples: Samples) -> None:
    (window,) = shuffled(samples, np.arange(1000), 0, 3, 2)
    assert window.samples is samples
    order = np.arange(1000)
    random.shuffle(order, random.stream(0, random.SHUFFLE, 3, 2))
    assert window.order.tolist() == order.tolist()


@pytest.mark.parametrize("size", [1, 7, 300, 999])
def test_windows_have_each_sample_once(samples: Samples, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(windows, "WINDOW", size)
    chosen = np.flatnonzero(np.arange(1000) % 5)
    found = epoch_of(samples, chosen)
    assert sorted(map(repr, found)) == sorted(map(repr, listed(samples, chosen)))
    assert found != listed(samples, chosen)
    assert found == epoch_of(samples, chosen)
    others = [epoch_of(samples, chosen, *path) for path in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(found != other for other in others)


@pytest.mark.parametrize("files", [2, 512])
def test_samples_dealt_out_to_files_are_the_same(samples: Samples, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(windows, "WINDOW", 130)
    monkeypatch.setattr(windows, "_DEALT", 64)
    monkeypatch.setattr(windows, "_MOST_FILES", files)
    chosen = np.flatnonzero(np.arange(1000) % 5)
    in_memory = epoch_of(samples, chosen)
    monkeypatch.setattr(windows, "physical_memory", lambda: 1)
    assert epoch_of(samples, chosen) == in_memory


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("size", [1, 7, 300, 5000])
def test_samples_are_read_in_any_order(
    samples: Samples, monkeypatch: pytest.MonkeyPatch, size: int, beyond: bool
) -> None:
    monkeypatch.setattr(windows, "WINDOW", size)
    monkeypatch.setattr(windows, "_DEALT", 64)
    monkeypatch.setattr(windows, "physical_memory", lambda: 1 if beyond else 1 << 40)
    members = np.random.default_rng(size).integers(0, 1000, 1500 if size > 1 else 40).astype(np.uint32)
    parts = [(*in_order(samples, members),), (at_hand(samples, members.astype(np.int64)),)]
    for part in parts:
        found = [
            features.values[features.indptr[i] : features.indptr[i + 1]].tolist()
            for features, places in part
            for i in places.tolist()
        ]
        assert found == [row[0] for row in listed(samples, members.astype(np.int64))]
    assert not list(in_order(samples, members[:0]))


def test_every_order_over_windows_is_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", 2)
    samples, chosen = make_samples(4, weighted=True), np.arange(4)
    seen: Counter[tuple[float, ...]] = Counter()
    for seed in range(4800):
        rows = (listed(window.samples, window.order) for window in shuffled(samples, chosen, seed, 1, 2))
        seen[tuple(row[2] for part in rows for row in part)] += 1
    assert set(seen) == set(itertools.permutations(map(float, range(4))))
    chi_square = sum((count - 200) ** 2 / 200 for count in seen.values())
    assert chi_square < 23 + 4 * 46**0.5 + 4  # mean and standard deviation of chi-square, and its skew


def test_a_window_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(1000)
    assert windows.window_size(samples) == WINDOW
    monkeypatch.setattr(windows, "WINDOW_BYTES", 3000)
    assert windows.window_size(samples) == 3000 // (windows.samples_bytes(samples) // 1000)
