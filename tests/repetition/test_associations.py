"""Associated features against dictionaries and the formulas of the module, in double precision."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from plain import features_of, labels_of
from test_counting import counted, problems, stored_weights

from machxc.config import Config
from machxc.model import partition_of
from machxc.partition import Partition
from machxc.repetition import associations, counting
from machxc.repetition.associations import DOUBT, MOST_LEFT_OUT, STRENGTH, table_of
from machxc.repetition.chunks import MEMBERS, MOST_ROWS
from machxc.repetition.counting import count_repetition
from machxc.repetition.counts import LENGTH, POWER, Counts, Pairs
from machxc.repetition.encode import Encoder
from machxc.samples import Array, Samples
from machxc.testing import make_samples


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples show little: believe all of it, and count it in more than one band."""
    for name, value in {"BAND": 5, "FEWEST_MET": 1, "FEWEST": 1, "LIFT": 0.5, "LEAST": 0.01}.items():
        monkeypatch.setattr(associations, name, value)


class Plain:
    """The formulas: ``chance`` has E(f, b) by row and bucket; ``weight`` has w(f, b)."""

    def __init__(self, samples: Samples, encoder: Encoder, pairs: Pairs, counts: Counts, config: Config) -> None:
        self.samples, self.encoder, self.pairs, self.counts = samples, encoder, pairs, counts
        met = np.diff(counts.starts) >= associations.FEWEST_MET
        self.n_rows = min(MOST_ROWS, int(met.sum()))
        self.has = {
            bucket: {f for f in range(self.n_rows) if bucket in counts.entries[counts.starts[f] : counts.starts[f + 1]]}
            for bucket in range(config.buckets)
        }
        t = self.chances_of_features()
        self.chance: dict[tuple[int, int], float] = {}
        for bucket in np.flatnonzero(counts.shares > 0).tolist():
            for f in set(range(self.n_rows)) - self.has[bucket]:
                none = math.prod(1.0 - t.get((f, g), 0.0) for g in self.has[bucket])
                if 1.0 - none > 1e-12:
                    self.chance[f, bucket] = 1.0 - none

    def features(self, pair: int) -> set[int]:
        rows = self.encoder(self.samples.features, self.pairs.members[[pair]].astype(np.int64))
        return {row for row, x in zip(rows.rows.tolist(), rows.weights.tolist(), strict=True) if x > 0} & set(
            range(self.n_rows)
        )

    def chances_of_features(self) -> dict[tuple[int, int], float]:
        """t(f | g), all pairs with company left out once."""
        together: Counter[tuple[int, int]] = Counter()
        having: Counter[int] = Counter()
        lacking: Counter[int] = Counter()
        n = 0
        of_bucket = {b: np.flatnonzero(self.pairs.buckets == b).tolist() for b in self.has}
        for pair in range(len(self.pairs)):
            company = of_bucket[int(self.pairs.buckets[pair])]
            rest = sum(float(self.pairs.weights[other]) for other in company if other != pair)
            if not (self.pairs.weights[pair] > 0 and rest > 1e-3 * self.pairs.weights[pair]):
                continue
            n += 1
            others = set().union(*(self.features(other) for other in company[:MEMBERS] if other != pair))
            new = self.features(pair) - others
            having.update(others)
            lacking.update(new)
            together.update((f, g) for f in new for g in others)
        t = {}
        for (f, g), count in together.items():
            share = lacking[f] / n
            chance = (count + DOUBT * share) / (having[g] + DOUBT) - share
            if chance >= associations.LEAST and chance >= associations.LIFT * share and count >= associations.FEWEST:
                t[f, g] = chance
        return t

    def weight(self, f: int, bucket: int) -> float:
        c = self.counts
        count = STRENGTH * float(c.shares[bucket]) * float(c.mean_value) * self.chance[f, bucket]
        penalty = LENGTH * math.log1p(float(c.lengths[bucket]) / float(c.smoothing))
        return max(0.0, math.log1p(count**POWER / float(c.background[f])) - penalty)


def added_weights(samples: Samples, config: Config, partition: Partition, r: int) -> tuple[dict[Any, float], Plain]:
    """What `associate` adds, by row and bucket, and what it was to add."""
    seen: list[tuple[Any, Plain]] = []
    with pytest.MonkeyPatch.context() as patch:

        def watch(*given: Any) -> Any:
            samples, encoder, pairs, counts = given[:4]
            plain = Plain(samples, encoder, pairs, counts, config)
            added = associations.associate(samples, encoder, pairs, counts, np.ones_like(given[4]), *given[5:])
            seen.append((added, plain))
            return added

        patch.setattr(counting, "associate", watch)
        count_repetition(samples, config, partition, r)
    added, plain = seen[0]
    found = {}
    for row in range(len(added.starts) - 1):
        entries = slice(added.starts[row], added.starts[row + 1])
        buckets = added.entries[entries].tolist()
        assert buckets == sorted(set(buckets))
        found.update({(row, b): w for b, w in zip(buckets, added.weights[entries].tolist(), strict=True)})
    return found, plain


@given(problem=problems())
@settings(deadline=None, max_examples=100)
def test_what_is_added_is_that_of_the_formulas(problem: tuple[Samples, Config, Partition, int]) -> None:
    samples, config, partition, r = problem
    config = Config.from_dict({**config.to_dict(), "associations": 100, "text": None})
    found, plain = added_weights(samples, config, partition, r)
    for place, weight in found.items():
        assert weight == pytest.approx(plain.weight(*place), rel=1e-3, abs=1e-4)
    most = len(plain.counts.entries)
    likely = sorted((c for c in plain.chance.values() if c > associations.LEAST + 1e-5), reverse=True)
    assert len(found) <= most
    if len(likely) <= most:  # nothing need be left out
        assert len(found) >= len(likely)
    elif found:
        least = min(plain.chance[place] for place in found)
        assert least >= likely[most] - 1e-5
        assert len(found) >= sum(c > likely[most] + 1e-5 for c in likely)


def test_one_feature_that_always_brings_another() -> None:
    """Some labels have a sample with 'a' and one with 'b'; some 'a' twice, and are given 'b'; most have neither."""
    a, b, c = 60, 61, 62
    rows: list[dict[int, float]] = []
    labels: list[list[int]] = []
    for label in range(60):
        for feature in (c, c) if label >= 20 else (a, b) if label % 2 else (a, a):
            rows.append({label: 1.0, feature: 1.0})
            labels.append([label])
    samples = Samples(features_of(rows, 63), labels_of(labels, 60))
    config = counted(n_labels=60, n_features=63, feature_bits=6, buckets=64)
    partition = partition_of(config)
    plain = stored_weights(count_repetition(samples, config, partition, 0), config)
    config = Config.from_dict({**config.to_dict(), "associations": 100, "text": None})
    more = stored_weights(count_repetition(samples, config, partition, 0), config)
    assert {place: more[place] for place in plain} == plain
    bucket = partition.buckets(np.arange(60), 0).tolist()
    assert more.keys() - plain.keys() == {(b, bucket[label]) for label in range(0, 20, 2)}
    assert all(more[b, bucket[label]] < more[b, bucket[label + 1]] for label in range(0, 20, 2))


def test_the_size_of_batches_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(400, 30, labels_per_sample=2, noise=4)
    config = counted(n_labels=30, n_features=120, feature_bits=7, buckets=32, left_out=50, associations=300)
    whole = count_repetition(samples, config, partition_of(config), 0)
    without = Config.from_dict({**config.to_dict(), "associations": 0})
    assert len(whole["entries"]) > len(count_repetition(samples, without, partition_of(config), 0)["entries"])
    for name, value in {"BATCH": 7, "_BLOCK": 3, "_BUCKETS": 5}.items():
        monkeypatch.setattr(associations, name, value)
    again = count_repetition(samples, config, partition_of(config), 0)
    assert {n: t.tobytes() for n, t in again.items()} == {n: t.tobytes() for n, t in whole.items()}


def test_what_is_expected_is_told_by_some_of_the_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(2000, 300, labels_per_sample=1, noise=6)
    config = counted(n_labels=300, n_features=1200, feature_bits=11, buckets=512, associations=1000)
    partition = partition_of(config)
    n_counted = len(
        count_repetition(samples, counted(**{**config.to_dict(), "associations": 0}), partition, 0)["entries"]
    )
    monkeypatch.setattr(associations, "_LOOKED_AT", 40)
    n_added = len(count_repetition(samples, config, partition, 0)["entries"]) - n_counted
    assert 0.5 * n_counted < n_added < 1.5 * n_counted


def test_counts_of_samples_fit_sixteen_bits() -> None:
    """As many samples as may be left out, all with the same two features."""
    together = np.full((2, 2), MOST_LEFT_OUT, np.uint16)
    having = np.full(2, 2 * MOST_LEFT_OUT, np.int64)
    table = table_of(together, having, np.full(2, 1000, np.int64), 2 * MOST_LEFT_OUT)
    assert table.starts.tolist() == [0, 2, 4]
    assert table.rows.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(table.chances, 0.5 - 1000 / (2 * MOST_LEFT_OUT), atol=1e-4)


def test_what_is_raised_while_associating_ends_it() -> None:
    samples = make_samples(400, 30, labels_per_sample=1)
    config = counted(n_labels=30, n_features=120, feature_bits=7, buckets=32, associations=300)

    def stop(n: int) -> None:
        if n == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_repetition(samples, config, partition_of(config), 0, stop)


def test_nothing_goes_with_anything_where_no_bucket_has_two_samples() -> None:
    samples = make_samples(60, 60, noise=0)
    samples = Samples(samples.features, labels_of([[i] for i in range(60)], 60))
    config = counted(n_labels=60, n_features=240, feature_bits=8, buckets=64, associations=100)
    partition = partition_of(config)
    taught: dict[str, Array] = count_repetition(samples, config, partition, 0)
    plain = count_repetition(samples, counted(**{**config.to_dict(), "associations": 0}), partition, 0)
    assert {n: t.tobytes() for n, t in taught.items()} == {n: t.tobytes() for n, t in plain.items()}
