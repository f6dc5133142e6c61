"""What is learnt of features from left-out samples, against dictionaries and the formulas of the module."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from plain import features_of, labels_of
from test_counting import counted, problems, stored_weights

from machxc.config import Config
from machxc.model import partition_of
from machxc.partition import Partition
from machxc.repetition import counting, leave_one_out
from machxc.repetition.chunks import CANDIDATES, MEMBERS
from machxc.repetition.counting import count_repetition
from machxc.repetition.counts import LENGTH, POWER, PRIOR, UNSEEN, Counts, Pairs
from machxc.repetition.encode import Encoder
from machxc.repetition.leave_one_out import PRIOR_RATE, RATE, Learnt
from machxc.samples import Array, Samples
from machxc.testing import make_samples

Occurrences = list[tuple[int, float]]
"""Rows and values of a sample's features."""


@dataclass
class Recorded:
    """What `learn` was given and gave, and the candidates it chose: their pair and buckets, in the order of steps."""

    encoder: Encoder
    pairs: Pairs
    counts: Counts
    weights: Array
    calm: float
    learnt: Learnt
    chosen: list[int] = field(default_factory=list)
    near: list[list[int]] = field(default_factory=list)


def recorded(samples: Samples, config: Config, partition: Partition, r: int) -> Recorded:
    """Count a repetition, and look on as it learns."""
    seen: list[Recorded] = []
    near: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        candidates, learn = leave_one_out._candidates, leave_one_out.learn

        def watch_candidates(*given: Any) -> Any:
            found = candidates(*given)
            near.extend([bucket for bucket in row if bucket >= 0] for row in found.tolist())
            return found

        def watch(*given: Any) -> Learnt:
            _, encoder, _, pairs, counts, weights, _, _, calm, *_ = given
            learnt = learn(*given)
            chosen = leave_one_out._left_out(pairs, config, r).tolist()
            copies = (Counts(counts.starts.copy(), counts.entries.copy(), *_rest(counts)), weights.copy())
            seen.append(Recorded(encoder, pairs, *copies, float(calm), learnt, chosen, near))
            return learnt

        patch.setattr(leave_one_out, "_candidates", watch_candidates)
        patch.setattr(counting, "learn", watch)
        count_repetition(samples, config, partition, r)
    return seen[0]


def _rest(counts: Counts) -> tuple[Any, ...]:
    return counts.counts, counts.background, counts.shares, counts.lengths, counts.features, counts.smoothing


class Plain:
    """The formulas, in double precision: ``scale``, ``lack`` and ``prior`` after all steps."""

    def __init__(self, samples: Samples, of: Recorded) -> None:
        self.of, self.samples = of, samples
        self.scale: dict[int, float] = defaultdict(lambda: 1.0)
        self.lack: dict[int, float] = defaultdict(float)
        self.prior = PRIOR
        self.squares: dict[tuple[str, int], float] = defaultdict(lambda: 1.0)
        counts = of.counts
        self.met = {
            (row, int(counts.entries[e])): float(counts.counts[e])
            for row in range(len(counts.starts) - 1)
            for e in range(counts.starts[row], counts.starts[row + 1])
        }
        for step, (pair, near) in enumerate(zip(of.chosen, of.near, strict=True)):
            self.step(pair, near, 1.0 - step / len(of.chosen))

    def sample(self, pair: int) -> Occurrences:
        rows = self.of.encoder(self.samples.features, self.of.pairs.members[[pair]].astype(np.int64))
        return list(zip(rows.rows.tolist(), rows.weights.tolist(), strict=True))

    def step(self, pair: int, near: list[int], fall: float) -> None:
        weight = float(self.of.pairs.weights[pair])
        found = [self.candidate(pair, bucket, own=k == 0) for k, bucket in enumerate(near)]
        z = self.of.calm * np.array([score for score, *_ in found])
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        slope = 0.0
        for k, (_, log_share, said, lacked) in enumerate(found):
            g = weight * (p[k] - (k == 0))
            slope += g * log_share
            for row, value in said:
                self.scale[row] -= fall * RATE * self.adagrad("scale", row, g * value)
            for row, value in lacked.items():
                self.lack[row] -= fall * RATE * self.adagrad("lack", row, g * value)
        self.prior -= fall * PRIOR_RATE * self.adagrad("prior", 0, slope)

    def adagrad(self, name: str, row: int, gradient: float) -> float:
        self.squares[name, row] += gradient**2
        return gradient / math.sqrt(self.squares[name, row])

    def candidate(self, pair: int, bucket: int, *, own: bool) -> tuple[float, float, Occurrences, dict[int, float]]:
        """Score, ln n(b), what each feature of the query says, and e(f, b) (x / m - 1) by row."""
        counts, query = self.of.counts, self.sample(pair)
        share, length, n = (float(x[bucket]) for x in (counts.shares, counts.lengths, counts.features))
        weight = float(self.of.pairs.weights[pair]) if own else 0.0
        length = max(1e-6, length - weight * sum(max(0.0, x) for _, x in query)) if own else length
        n = max(0.0, n - weight * sum(x > 0 for _, x in query))
        log_share = math.log(share - weight) if own else math.log(max(UNSEEN, share))
        penalty = LENGTH * math.log1p(length / float(counts.smoothing))
        said: Occurrences = []
        lacked: dict[int, float] = defaultdict(float)
        for row, value in query:
            count = self.met.get((row, bucket), 0.0) - weight * sum(max(0.0, x) for other, x in query if other == row)
            if count > 1e-6:
                w = max(0.0, math.log1p(count**POWER / float(counts.background[row])) - penalty)
                said.append((row, value * w))
                lacked[row] += value / float(counts.mean_value) * count * n / ((share - weight) * length)
        others = [other for other in self.members(bucket) if not (own and other == pair)]
        total = sum(float(self.of.pairs.weights[other]) for other in others)
        for other in others:
            for row, value in self.sample(other):
                lacked[row] -= float(self.of.pairs.weights[other]) / total * max(0.0, value) * n / length
        score = self.prior * log_share + sum(self.scale[row] * s for row, s in said)
        return score + sum(self.lack[row] * v for row, v in lacked.items()), log_share, said, lacked

    def members(self, bucket: int) -> list[int]:
        return [int(pair) for pair in np.flatnonzero(self.of.pairs.buckets == bucket)[:MEMBERS]]


def check(samples: Samples, config: Config, partition: Partition, r: int) -> Recorded:
    found = recorded(samples, config, partition, r)
    expected = Plain(samples, found)
    n_rows = len(found.encoder.row_weights)
    np.testing.assert_allclose(found.learnt.scale, [expected.scale[i] for i in range(n_rows)], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.learnt.lack, [expected.lack[i] for i in range(n_rows)], rtol=2e-3, atol=2e-3)
    assert float(found.learnt.prior[0]) == pytest.approx(expected.prior, rel=1e-3, abs=1e-3)
    return found


@given(problem=problems())
@settings(deadline=None, max_examples=200)
def test_what_is_learnt_is_that_of_the_formulas(problem: tuple[Samples, Config, Partition, int]) -> None:
    samples, config, partition, r = problem
    changed = {**config.to_dict(), "left_out": 50, "l2": True, "text": None}
    check(samples, Config.from_dict(changed), partition, r)


@pytest.mark.parametrize("weighted", [False, True])
def test_what_many_samples_teach(weighted: bool) -> None:
    """More buckets than are compared, more samples a bucket than are looked at, several labels a sample."""
    samples = make_samples(900, 60, labels_per_sample=2, noise=4)
    if weighted:
        weights = np.random.default_rng(0).uniform(0.5, 2.0, 900).astype(np.float32)
        samples = Samples(samples.features, samples.labels, weights)
    config = counted(n_labels=60, n_features=240, feature_bits=8, buckets=40, left_out=300)
    found = check(samples, config, partition_of(config), 0)
    assert len(found.chosen) == 300
    assert max(map(len, found.near)) == 1 + CANDIDATES
    assert float(np.abs(found.learnt.scale - 1).max()) > 0.05
    assert float(np.abs(found.learnt.lack).max()) > 0.05


def test_candidates_are_the_nearest_that_are_no_targets() -> None:
    samples = make_samples(400, 60, labels_per_sample=2, noise=4)
    config = counted(n_labels=60, n_features=240, feature_bits=8, buckets=64, left_out=400)
    partition = partition_of(config)
    found = recorded(samples, config, partition, 0)
    for pair, near in zip(found.chosen, found.near, strict=True):
        member = int(found.pairs.members[pair])
        labels = samples.labels.indices[samples.labels.indptr[member] : samples.labels.indptr[member + 1]]
        targets = set(partition.buckets(labels, 0).tolist())
        assert near[0] == found.pairs.buckets[pair]
        assert not targets & set(near[1:])
        scores = PRIOR * found.counts.log_shares.astype(np.float64)
        met = np.zeros(config.buckets, bool)
        rows = found.encoder(samples.features, np.array([member]))
        for row, value in zip(rows.rows, rows.weights, strict=True):
            entries = slice(found.counts.starts[row], found.counts.starts[row + 1])
            scores[found.counts.entries[entries]] += value * found.weights[entries]
            met[found.counts.entries[entries]] |= found.weights[entries] > 0
        others = [b for b in np.flatnonzero(met) if b not in targets]
        assert len(near) == 1 + min(CANDIDATES, len(others))
        best = sorted((scores[b] for b in others), reverse=True)[:CANDIDATES]
        np.testing.assert_allclose([scores[b] for b in near[1:]], best, rtol=1e-4)


def test_nothing_is_learnt_where_no_bucket_has_two_samples() -> None:
    samples = make_samples(60, 60, noise=0)
    samples = Samples(samples.features, labels_of([[i] for i in range(60)], 60))
    config = counted(n_labels=60, n_features=240, feature_bits=8, buckets=64, left_out=100)
    partition = partition_of(config)
    taught = count_repetition(samples, config, partition, 0)
    plain = count_repetition(samples, counted(**{**config.to_dict(), "left_out": 0}), partition, 0)
    assert {n: t.tobytes() for n, t in taught.items()} == {n: t.tobytes() for n, t in plain.items()}


def test_the_size_of_batches_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(300, 20, labels_per_sample=2)
    config = counted(n_labels=20, n_features=80, feature_bits=7, buckets=32, left_out=200)
    whole = count_repetition(samples, config, partition_of(config), 0)
    monkeypatch.setattr(leave_one_out, "LEFT_OUT_BATCH", 7)
    again = count_repetition(samples, config, partition_of(config), 0)
    assert {n: t.tobytes() for n, t in again.items()} == {n: t.tobytes() for n, t in whole.items()}


def test_a_feature_that_tells_labels_apart_gains_and_what_all_have_loses() -> None:
    """Each label has a feature of its own; a common one is in half of its samples, at random."""
    rng = np.random.default_rng(0)
    rows: list[dict[int, float]] = []
    labels = [[label] for label in range(40) for _ in range(8)]
    for (label,) in labels:
        rows.append({label: 1.0, **{40 + int(f): 1.0 for f in rng.choice(20, 3, replace=False)}})
    samples = Samples(features_of(rows, 60), labels_of(labels, 40))
    config = counted(n_labels=40, n_features=60, feature_bits=6, buckets=64, left_out=300)
    found = recorded(samples, config, partition_of(config), 0)
    slot_of_row = {int(row): slot for slot, row in enumerate(found.encoder.slots) if row >= 0}
    scale = {slot_of_row[row]: float(s) for row, s in enumerate(found.learnt.scale)}
    assert np.mean([scale[f] for f in range(40)]) > 1.0 > np.mean([scale[f] for f in range(40, 60)])


def test_the_weights_take_in_what_was_learnt() -> None:
    samples = make_samples(300, 20, noise=4)
    config = counted(n_labels=20, n_features=80, feature_bits=7, buckets=32, left_out=200)
    partition = partition_of(config)
    found = recorded(samples, config, partition, 0)
    tensors = count_repetition(samples, config, partition, 0)
    slot_of_row = {int(row): slot for slot, row in enumerate(found.encoder.slots) if row >= 0}
    stored, bias = stored_weights(tensors, config), found.learnt.prior[0] * found.counts.log_shares.astype(np.float64)
    counts = found.counts
    for row in range(len(counts.starts) - 1):
        for e in range(counts.starts[row], counts.starts[row + 1]):
            bucket = int(counts.entries[e])
            share = counts.counts[e] * counts.features[bucket] / (counts.shares[bucket] * counts.lengths[bucket])
            lacked = float(found.learnt.lack[row] * share)
            bias[bucket] -= lacked
            weight = found.calm * (found.learnt.scale[row] * found.weights[e] + lacked / float(counts.mean_value))
            assert stored.get((slot_of_row[row], bucket), 0.0) == pytest.approx(weight, rel=1e-2, abs=1e-2)
    np.testing.assert_allclose(tensors["bias"], found.calm * bias, rtol=1e-4, atol=1e-4)
