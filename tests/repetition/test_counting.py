"""Counted weights against dictionaries and the formulas of the module, in double precision."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import config_of, encoded, features_of, labels_of, sparse_rows

from machxc.config import Config
from machxc.folder import ModelData
from machxc.label_counts import LabelCounts
from machxc.labels import LabelNames
from machxc.model import Model, partition_of
from machxc.partition import HashPartition, Partition, TablePartition
from machxc.repetition import counting, windows
from machxc.repetition.counting import count_repetition
from machxc.repetition.counts import CALM, LENGTH, POWER, PRIOR, UNSEEN, Pairs
from machxc.repetition.encode import encoder_of, slot_hash
from machxc.repetition.linear import LinearScorer
from machxc.repetition.stored import unpack
from machxc.samples import Array, Samples
from machxc.testing import make_samples
from machxc.training import run_repetitions

K, D = 12, 50
COUNTED: dict[str, Any] = {"learner": "counts", "n_labels": K, "n_features": D, "repetitions": 1, "buckets": 16}


def counted(**changed: Any) -> Config:
    return config_of(**{**COUNTED, **changed})


def plain_counts(samples: Samples, config: Config, partition: Partition, r: int) -> tuple[dict[Any, float], Array]:
    """c(slot, bucket) where it is above 0, and the samples of each bucket."""
    hashed = tuple(int(number) for number in slot_hash(config, r))
    met: dict[tuple[int, int], float] = defaultdict(float)
    share = np.zeros(config.buckets)
    for i, row in enumerate(encoded(samples.features, config, hashed)):  # type: ignore[arg-type]
        weight = 1.0 if samples.weights is None else float(samples.weights[i])
        labels = samples.labels.indices[samples.labels.indptr[i] : samples.labels.indptr[i + 1]]
        of_labels = partition.buckets(labels, r).tolist()
        for bucket in of_labels:
            share[bucket] += weight
        for bucket in set(of_labels):
            for slot, value in row:
                if weight * value > 0:
                    met[slot, bucket] += weight * value
    return met, share


def plain_weights(samples: Samples, config: Config, partition: Partition, r: int) -> tuple[dict[Any, float], Array]:
    """w(slot, bucket) as the docstring has it, before any is left out, and the biases."""
    met, share = plain_counts(samples, config, partition, r)
    lengths: dict[int, float] = defaultdict(float)
    pairs: dict[int, int] = defaultdict(int)
    for (slot, bucket), count in met.items():
        lengths[bucket] += count
        pairs[slot] += 1
    weights = {}
    calm = min(1.0, CALM / math.sqrt(max(1.0, len(samples.features.indices) / max(1, len(samples)))))
    for (slot, bucket), count in met.items():
        background = config.smoothing * pairs[slot] / len(met)
        penalty = LENGTH * math.log1p(lengths[bucket] / config.smoothing)
        weights[slot, bucket] = calm * (math.log1p(count**POWER / background) - penalty)
    return weights, calm * PRIOR * np.log(np.maximum(share, UNSEEN))


def stored_weights(tensors: dict[str, Array], config: Config) -> dict[tuple[int, int], float]:
    """The weights of the tensors, by slot and bucket, each row's buckets checked to rise."""
    found = {}
    starts, buckets, weights = unpack(tensors)
    for slot, row in enumerate(encoder_of(config, 0, tensors).slots.tolist()):
        if row >= 0:
            entries = slice(starts[row], starts[row + 1])
            here = buckets[entries].tolist()
            assert here == sorted(set(here))
            found.update({(slot, b): w for b, w in zip(here, weights[entries].tolist(), strict=True)})
    return found


def check_against_plain(samples: Samples, config: Config, partition: Partition, r: int) -> None:
    tensors = count_repetition(samples, config, partition, r)
    expected, bias = plain_weights(samples, config, partition, r)
    np.testing.assert_allclose(tensors["bias"], bias, rtol=1e-5, atol=1e-6)
    assert [tensors[name].dtype for name in ("levels", "bias")] == [np.float32, np.float32]
    assert tensors["lengths"].sum() == len(tensors["entries"])
    found = stored_weights(tensors, config)
    assert found.keys() <= expected.keys()
    for place, weight in expected.items():
        if place in found:
            assert found[place] == pytest.approx(weight, rel=1e-2, abs=1e-2)
            assert weight > config.prune - 2e-3
        else:
            assert weight <= config.prune + 2e-3


@st.composite
def problems(draw: st.DrawFn) -> tuple[Samples, Config, Partition, int]:
    rows = draw(sparse_rows(D))
    labels = draw(st.lists(st.sets(st.integers(0, K - 1), max_size=4), min_size=len(rows), max_size=len(rows)))
    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(rows), max_size=len(rows)))
    samples = Samples(
        features_of(rows, D),
        labels_of([sorted(one) for one in labels], K),
        None if weights is None else np.array(weights, np.float32),
    )
    config = counted(
        repetitions=3,
        buckets=draw(st.sampled_from([1, 5, 16, 40])),
        feature_bits=draw(st.sampled_from([2, 4, 6])),  # room for all is 6
        min_count=draw(st.integers(1, 3)),
        prune=draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])),
        smoothing=draw(st.sampled_from([0.01, 1.0, 30.0])),
        l2=draw(st.sampled_from([True, True, False])),
        seed=draw(st.integers(0, 9)),
    )
    hashed = HashPartition(K, config.buckets, 3, config.seed)
    table = np.random.default_rng(config.seed).integers(0, config.buckets, (3, K))
    partition: Partition = hashed
    if draw(st.booleans()):
        partition = TablePartition(table, config.buckets)
    return samples, config, partition, draw(st.integers(0, 2))


@given(problem=problems())
@settings(deadline=None, max_examples=200)
def test_weights_are_those_of_the_formulas(problem: tuple[Samples, Config, Partition, int]) -> None:
    check_against_plain(*problem)


@pytest.mark.parametrize("buckets", [20, 70_000])
def test_many_samples_are_counted_as_few(buckets: int) -> None:
    """More samples than are encoded at a time, with several labels, into narrow entries and wide ones."""
    samples = make_samples(5000, 20, labels_per_sample=2, noise=4)
    config = counted(n_labels=20, n_features=80, feature_bits=7, buckets=buckets)
    check_against_plain(samples, config, partition_of(config), 0)


@pytest.mark.parametrize("window", [1 << 20, 300, 70])
def test_a_store_beyond_memory_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Samples dealt out by their buckets, and those that are left out or compared copied, instead of read at random."""
    samples = make_samples(500, 20, labels_per_sample=2, noise=4)
    weighted = Samples(samples.features, samples.labels, np.random.default_rng(0).uniform(0, 2, 500).astype(np.float32))
    learning = {"left_out": 700, "associations": 400}
    config = counted(n_labels=20, n_features=80, feature_bits=7, buckets=20, repetitions=2, **learning)
    in_memory = [count_repetition(read, config, partition_of(config), 1) for read in (samples, weighted)]
    monkeypatch.setattr(windows, "physical_memory", lambda: 1)
    monkeypatch.setattr(windows, "WINDOW", window)
    told: list[int] = []
    for read, expected in zip((samples, weighted), in_memory, strict=True):
        found = count_repetition(read, config, partition_of(config), 1, told.append)
        assert found.keys() == expected.keys()
        assert all(found[name].tobytes() == expected[name].tobytes() for name in found)
    assert sum(told) == 2 * len(samples)


@pytest.mark.parametrize("step", [1, 3, 7, 200])
def test_the_size_of_chunks_changes_no_byte(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    samples = make_samples(200, 20, labels_per_sample=3)
    config = counted(n_labels=20, n_features=80, feature_bits=5, buckets=10, repetitions=2)
    whole = count_repetition(samples, config, partition_of(config), 1)
    monkeypatch.setattr(counting, "chunk_size", lambda features: step)
    again = count_repetition(samples, config, partition_of(config), 1)
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {n: t.tobytes() for n, t in whole.items()}


def test_jobs_change_no_byte() -> None:
    samples = make_samples(300, 20, labels_per_sample=2)
    config = counted(n_labels=20, n_features=80, feature_bits=5, buckets=10, repetitions=4)
    found: list[dict[int, dict[str, bytes]]] = []
    for jobs in (1, 3):
        kept: dict[int, dict[str, bytes]] = {}

        def store(r: int, tensors: dict[str, Array], kept: dict[int, dict[str, bytes]] = kept) -> None:
            kept[r] = {name: tensor.tobytes() for name, tensor in tensors.items()}

        run_repetitions(samples, config, range(4), store, jobs)
        found.append(kept)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]  # each has hashes of its own


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 400),
    labels_per_sample=st.integers(1, 3),
    buckets=st.sampled_from([1, 7, 32]),
    threads=st.integers(2, 9),
    weighted=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_threads_change_no_byte(
    seed: int, n: int, labels_per_sample: int, buckets: int, threads: int, weighted: bool
) -> None:
    """Buckets without samples, and fewer buckets than threads, too."""
    samples = make_samples(n, 20, labels_per_sample=labels_per_sample, noise=4, seed=seed)
    if weighted:
        weights = np.random.default_rng(seed).uniform(0, 2, n).astype(np.float32)
        samples = Samples(samples.features, samples.labels, weights)
    config = counted(
        n_labels=20, n_features=80, feature_bits=7, buckets=buckets, left_out=600, associations=300, seed=seed
    )
    told: list[int] = []
    one = count_repetition(samples, config, partition_of(config), 0)
    many = count_repetition(samples, config, partition_of(config), 0, told.append, threads)
    assert {name: tensor.tobytes() for name, tensor in many.items()} == {n: t.tobytes() for n, t in one.items()}
    assert sum(told) == n


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=30), n=st.integers(1, 12))
def test_parts_of_pairs_share_no_bucket(sizes: list[int], n: int) -> None:
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    nothing = np.zeros(starts[-1], np.uint32)
    parts = Pairs(nothing, nothing, np.ones(len(nothing), np.float32), starts).parts(n)
    assert 1 <= len(parts) <= n
    assert [0, *(part.stop for part in parts)] == [*(part.start for part in parts), len(nothing)]
    assert all(part.stop in starts for part in parts)
    assert max(part.stop - part.start for part in parts) <= len(nothing) / n + max(sizes) + 1


@pytest.mark.parametrize("n_labels_each", [0, 1, 3])
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_progress_adds_up_to_all_samples(monkeypatch: pytest.MonkeyPatch, n_labels_each: int, step: int) -> None:
    samples = make_samples(100, 20, labels_per_sample=max(1, n_labels_each))
    if not n_labels_each:
        samples = Samples(samples.features, labels_of([[]] * 100, 20))
    config = counted(n_labels=20, n_features=80, feature_bits=7)
    monkeypatch.setattr(counting, "chunk_size", lambda features: step)
    told: list[int] = []
    count_repetition(samples, config, partition_of(config), 0, told.append)
    assert sum(told) == 100
    assert all(n >= 0 for n in told)


def test_what_is_raised_while_progress_is_told_ends_counting() -> None:
    def stop(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_repetition(make_samples(), counted(n_labels=20, n_features=80), HashPartition(20, 16, 1, 0), 0, stop)
    with pytest.raises(KeyboardInterrupt):
        count_repetition(make_samples(), counted(n_labels=20, n_features=80), HashPartition(20, 16, 1, 0), 0, stop, 3)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [([{0: 1.0}, {1: 2.0}], [[], []]), ([{}, {}], [[0], [1]]), ([{}], [[]]), ([{3: 0.0}], [[2]])],
    ids=["no labels", "no features", "nothing", "only a zero"],
)
def test_without_what_meets_there_are_no_weights(rows: list[dict[int, float]], labels: list[list[int]]) -> None:
    samples = Samples(features_of(rows, D), labels_of(labels, K))
    config = counted()
    tensors = count_repetition(samples, config, partition_of(config), 0)
    assert len(tensors["entries"]) == 0
    assert not tensors["lengths"].any()
    assert len(tensors["lengths"]) == tensors["repeats"].sum()
    check_against_plain(samples, config, partition_of(config), 0)


def test_what_adds_nothing_is_as_if_it_were_not_there() -> None:
    """Zeros that are stored, and samples of weight 0, change no weight of others."""
    config = counted()
    rows, labels = [{0: 1.0, 1: 2.0}, {1: 1.0}, {2: 3.0}], [[0], [1], [2]]
    samples = Samples(features_of(rows, D), labels_of(labels, K))
    more = Samples(
        features_of([{**rows[0], 2: 0.0}, {0: 0.0, **rows[1]}, rows[2], {0: 1.0}], D),
        labels_of([*labels, [1]], K),
        np.array([1, 1, 1, 0], np.float32),
    )
    one, other = (stored_weights(count_repetition(s, config, partition_of(config), 0), config) for s in (samples, more))
    assert one == other != {}


def test_the_tensors_are_scored_as_a_linear_repetition() -> None:
    samples = make_samples(300, 20)
    for buckets in (32, 70_000):
        config = counted(n_labels=20, n_features=80, feature_bits=7, buckets=buckets)
        tensors = count_repetition(samples, config, partition_of(config), 0)
        rows = encoder_of(config, 0, tensors)(samples.features)
        out = np.empty((len(samples), buckets), np.float32)
        LinearScorer(tensors).logits(rows, out)
        table = np.zeros((len(tensors["lengths"]), buckets), np.float32)
        starts, met, weights = unpack(tensors)
        table[np.repeat(np.arange(len(table)), np.diff(starts)), met] = weights
        for i in range(0, len(samples), 37):
            some = slice(rows.indptr[i], rows.indptr[i + 1])
            expected = tensors["bias"] + rows.weights[some] @ table[rows.rows[some]]
            np.testing.assert_allclose(out[i], expected, rtol=1e-5, atol=1e-5)


def test_a_bucket_of_one_sample_is_learnt() -> None:
    """What counting is for: labels of one sample each, where steps have hardly begun."""
    samples = make_samples(200, 200, noise=0)
    config = counted(n_labels=200, n_features=800, feature_bits=10, buckets=256)
    kept: dict[int, dict[str, Array]] = {}
    run_repetitions(samples, config, [0], kept.__setitem__, 1)
    model = Model(ModelData(config, LabelNames.ids(200), LabelCounts.of(samples.labels), 200, kept))
    found = model.top_k(samples.features, 1)[0][:, 0]
    has_any = np.diff(samples.features.indptr) > 0
    assert (found == np.arange(200))[has_any].all()
