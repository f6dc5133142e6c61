from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from machxc import model as module
from machxc import retrieval
from machxc.config import ESTIMATORS, Settings
from machxc.errors import DataError, ModelError, SettingError
from machxc.folder import ModelData
from machxc.label_counts import LabelCounts
from machxc.labels import LabelNames
from machxc.model import Model, partition_of
from machxc.partition import HashPartition, TablePartition
from machxc.repetition.encode import encoder_of
from machxc.repetition.scorer import scorer_of
from machxc.samples import Features, Samples
from machxc.testing import make_samples, tiny_model
from machxc.training import train

KINDS: dict[str, dict[str, Any]] = {
    "linear": {"hidden": 0},
    "hidden": {"hidden": 16},
    "bce": {"loss": "bce", "hidden": 0},
    "negatives": {"loss": "bce", "hidden": 16, "negatives": 5},
}
QUERIES = make_samples(60, 20, seed=5).features


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(repetitions=4, **KINDS[request.param])


def same(a: Any, b: Any) -> bool:
    return all(x.tobytes() == y.tobytes() and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def test_it_says_what_it_is(model: Model) -> None:
    assert (model.config.repetitions, model.n_repetitions, model.numbers) == (4, 4, [0, 1, 2, 3])
    assert len(model.names) == model.config.n_labels == 20
    assert model.n_samples == 200
    np.testing.assert_array_equal(model.label_counts, np.full(20, 10))
    assert isinstance(model.partition, HashPartition)
    numbers = model.numbers
    numbers.clear()  # a copy
    assert model.numbers == [0, 1, 2, 3]


def test_the_sketch_is_what_every_repetition_scores(model: Model) -> None:
    sketch = model.sketch(QUERIES)
    assert sketch.shape == (60, 4, 16)
    assert sketch.dtype == np.float32
    for r, tensors in model.data.repetitions.items():
        alone = np.empty((60, 16), np.float32)
        scorer_of(model.config, tensors).logits(encoder_of(model.config, r, tensors)(QUERIES), alone)
        np.testing.assert_array_equal(sketch[:, r], alone)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_answers_are_those_of_retrieval_on_the_sketch(model: Model, estimator: str) -> None:
    loss, seen = model.config.loss, np.asarray(model.label_counts) > 0
    expected = retrieval.top_k(model.sketch(QUERIES), model.partition, 7, loss=loss, estimator=estimator, seen=seen)
    assert same(model.top_k(QUERIES, 7, estimator=estimator), expected)
    ids, scores = model.top_k(QUERIES, 20, estimator=estimator)
    given = model.label_scores(QUERIES, np.arange(20), estimator=estimator)
    np.testing.assert_array_equal(np.take_along_axis(given, ids, axis=1), scores)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_few_seen_labels_are_scanned_and_the_answers_are_the_same(model: Model, estimator: str) -> None:
    spread = replace(model.config, n_labels=4000)
    counts = np.zeros(4000, np.uint32)
    counts[::40] = 1
    data = replace(model.data, config=spread, names=LabelNames.ids(4000), label_counts=LabelCounts.dense(counts))
    few, k = Model(data), 120
    expected = retrieval.top_k(
        few.sketch(QUERIES), few.partition, k, loss=spread.loss, estimator=estimator, seen=counts > 0, method="scan"
    )
    assert same(few.top_k(QUERIES, k, estimator=estimator), expected)
    assert same(few.top_k(QUERIES, k, estimator=estimator, method="search"), expected)
    assert (expected[0][:, 99] >= 0).all()
    assert (expected[0][:, 100:] == -1).all()


def test_the_estimator_of_the_model_is_the_default(model: Model) -> None:
    assert same(model.top_k(QUERIES, 3), model.top_k(QUERIES, 3, estimator=model.config.estimator))


def test_it_has_learnt(model: Model) -> None:
    ids, scores = model.top_k(QUERIES, 5)
    assert (ids[:, 0] == np.arange(60) % 20).mean() > 0.8
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("block", [1, 7, 59, 60, 1000])
@pytest.mark.parametrize("jobs", [1, 3])
def test_queries_are_answered_alike_in_blocks_of_any_size_and_by_any_jobs(
    model: Model, monkeypatch: pytest.MonkeyPatch, block: int, jobs: int
) -> None:
    whole, some = model.top_k(QUERIES, 5), model.label_scores(QUERIES, np.array([3, 1, 4]))
    monkeypatch.setattr(module, "_SKETCH_BYTES", block * 4 * 4 * 16)
    assert same(model.top_k(QUERIES, 5, jobs=jobs), whole)
    assert same([model.label_scores(QUERIES, np.array([3, 1, 4]), jobs=jobs)], [some])


def test_many_queries_are_shared_out_to_threads(model: Model) -> None:
    many = make_samples(500, 20, seed=6).features
    assert model.sketch(many, jobs=3).tobytes() == model.sketch(many).tobytes()


def test_many_queries_have_the_sketches_of_few_to_the_last_bit(model: Model) -> None:
    many = make_samples(100, 20, seed=6).features  # more are scored repetition by repetition
    few = [model.sketch(many.rows(start, start + 20)) for start in range(0, 100, 20)]
    assert np.concatenate(few).tobytes() == model.sketch(many).tobytes()


def test_queries_one_by_one_give_the_same(model: Model) -> None:
    ids, scores = model.top_k(QUERIES, 5)
    for i in range(0, 60, 7):
        assert same(model.top_k(QUERIES.rows(i, i + 1), 5), (ids[i : i + 1], scores[i : i + 1]))


def test_candidates_are_all_that_is_returned(model: Model) -> None:
    ids, scores = model.top_k(QUERIES, 5, candidates=np.array([17, 2, 2, 9]))
    assert (np.sort(ids[:, :3], axis=1) == [2, 9, 17]).all()
    assert (ids[:, 3:] == -1).all()
    assert (scores[:, 3:] == -np.inf).all()


# ---- some of the repetitions


@pytest.mark.parametrize("numbers", [[0], [2], [1, 3], [0, 1, 2]])
def test_a_part_of_the_repetitions_answers_as_that_part(
    model: Model, numbers: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "machxc"):
        part = model.subset(numbers)
    assert f"answering from {len(numbers)} of 4 repetitions" in caplog.text
    assert part.numbers == numbers
    sketch = model.sketch(QUERIES)[:, numbers]
    assert part.sketch(QUERIES).tobytes() == sketch.tobytes()
    whole = model.partition
    table = np.stack([whole.buckets(np.arange(20), r) for r in numbers])
    expected = retrieval.top_k(
        np.ascontiguousarray(sketch),
        TablePartition(table, 16),
        5,
        loss=model.config.loss,
        estimator=model.config.estimator,
    )
    assert same(part.top_k(QUERIES, 5), expected)


def test_a_part_is_saved_and_loaded_as_a_part(model: Model, tmp_path: Path) -> None:
    part = model.subset([1, 3])
    part.save(tmp_path / "part")
    again = Model.load(tmp_path / "part")
    assert again.numbers == [1, 3]
    assert same(again.top_k(QUERIES, 5), part.top_k(QUERIES, 5))


def test_a_whole_model_says_nothing(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "machxc"):
        model.subset([0, 1, 2, 3]).top_k(QUERIES)
    assert caplog.text == ""


def test_a_repetition_that_is_not_there_cannot_be_chosen(model: Model) -> None:
    with pytest.raises(SettingError, match=r"no repetition 4; expected numbers among \[0, 1, 2, 3\]"):
        model.subset([1, 4])
    with pytest.raises(ModelError, match="no repetition"):
        model.subset([])


# ---- on the disk


def test_a_model_that_was_saved_and_loaded_is_the_same(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.config == model.config
    assert again.names == model.names
    assert again.n_samples == model.n_samples
    assert again.label_counts.tobytes() == model.label_counts.tobytes()
    for r in model.numbers:
        one, other = model.data.repetitions[r], again.data.repetitions[r]
        assert {n: t.tobytes() for n, t in one.items()} == {n: t.tobytes() for n, t in other.items()}
        assert not any(tensor.flags.writeable for tensor in other.values())
    assert same(again.top_k(QUERIES, 5), model.top_k(QUERIES, 5))
    again.save(tmp_path / "copy")
    assert Model.load(tmp_path / "copy").config == model.config


def test_names_are_kept(tmp_path: Path) -> None:
    samples = make_samples(100, 3)
    names = LabelNames.strings(["b", "ä", "京都"])
    train(samples, names, Settings(repetitions=2)).save(tmp_path / "model")
    model = Model.load(tmp_path / "model", verify=False)
    ids, _ = model.top_k(samples.features.rows(0, 3), 4)
    assert model.names.names(ids)[:, 0].tolist() == ["b", "ä", "京都"]
    assert model.names.names(ids)[:, 3].tolist() == [None] * 3


def test_a_given_assignment_of_labels_is_used(tmp_path: Path) -> None:
    data = tiny_model(repetitions=4).data
    hashed = partition_of(data.config)
    table = np.stack([hashed.buckets(np.arange(20), r) for r in range(4)])
    model = Model(replace(data, assignment=table))
    assert isinstance(model.partition, TablePartition)
    assert same(model.top_k(QUERIES, 5), Model(data).top_k(QUERIES, 5))
    assert same(model.subset([1, 2]).top_k(QUERIES, 5), Model(data).subset([1, 2]).top_k(QUERIES, 5))
    model.save(tmp_path / "model")
    assert same(Model.load(tmp_path / "model").top_k(QUERIES, 5), model.top_k(QUERIES, 5))


# ---- what can go wrong


@pytest.mark.parametrize("method", ["auto", "scan", "search"])
def test_labels_that_training_never_saw_are_never_returned(method: str) -> None:
    samples = make_samples(200, 20)
    features = samples.features
    more = replace(samples.labels, n_labels=1000, indices=(samples.labels.indices * 7 + 3).astype(np.uint32))
    model = train(Samples(features, more), LabelNames.ids(1000), Settings(repetitions=2, buckets=10))
    ids, scores = model.top_k(features, 50, method=method)
    assert (np.sort(ids[:, :20], axis=1) == np.arange(20) * 7 + 3).all()
    assert (ids[:, 20:] == -1).all()
    assert (scores[:, 20:] == -np.inf).all()
    assert (model.top_k(features, 3, candidates=np.array([0, 1, 2]))[0] == -1).all()


def test_a_model_without_repetitions_is_none() -> None:
    data = tiny_model().data
    with pytest.raises(ModelError, match="no repetition"):
        Model(ModelData(data.config, data.names, data.label_counts, data.n_samples, {}))


def features_of(indices: list[int], values: list[float], n_features: int) -> Features:
    return Features(np.array([0, len(indices)]), np.array(indices, np.uint32), np.array(values, np.float32), n_features)


@pytest.mark.parametrize(
    ("indices", "values", "n_features", "message"),
    [
        ([0], [1.0], 81, "trained on 80 features; expected no more, got 81"),
        ([80], [1.0], 80, r"feature id 80 is out of range: expected ids in \[0, 80\)"),
        ([4_000_000_000], [1.0], 80, "feature id 4000000000 is out of range"),
        ([1], [np.nan], 80, "NaN or infinite"),
        ([1], [-np.inf], 80, "NaN or infinite"),
    ],
)
def test_features_that_do_not_fit_are_an_error(
    model: Model, indices: list[int], values: list[float], n_features: int, message: str
) -> None:
    queries = features_of(indices, values, n_features)
    for ask in (model.sketch, model.top_k, lambda features: model.label_scores(features, np.arange(3))):
        with pytest.raises(DataError, match=message):
            ask(queries)


def test_fewer_features_than_in_training_are_fine(model: Model) -> None:
    few = features_of([0, 2], [1.0, 1.0], 3)
    assert same(model.top_k(few, 3), model.top_k(replace(few, n_features=80), 3))


@pytest.mark.parametrize("n_queries", [0, 2, 60])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, r"'k'.*\[1, inf\). Got 0"),
        ({"k": -3}, "'k'.*Got -3"),
        ({"k": 2.5}, r"'k'.*Got 2\.5"),
        ({"k": True}, "'k'.*Got True"),
        ({"k": "5"}, "'k'.*Got '5'"),
        ({"jobs": 0}, "'jobs'.*Got 0"),
        ({"method": "guess"}, "'method'.*Got 'guess'"),
        ({"estimator": "mode"}, "'estimator'.*Got 'mode'"),
    ],
)
def test_parameters_out_of_bounds_are_an_error(
    model: Model, n_queries: int, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        model.top_k(QUERIES.rows(0, n_queries), **asked)


@pytest.mark.parametrize("candidates", [[20], [-1], [0.5], [[1]]])
def test_candidates_that_are_no_labels_are_an_error(model: Model, candidates: Any) -> None:
    for n_queries in (0, 2):
        with pytest.raises(DataError, match="candidate"):
            model.top_k(QUERIES.rows(0, n_queries), 3, candidates=np.array(candidates))


def test_no_queries_have_no_answers(model: Model) -> None:
    ids, scores = model.top_k(QUERIES.rows(0, 0), np.int64(3))  # type: ignore[arg-type]
    assert ids.shape == scores.shape == (0, 3)
    assert [ids.dtype.name, scores.dtype.name] == ["int64", "float32"]
    assert model.sketch(QUERIES.rows(0, 0)).shape == (0, 4, 16)
    assert model.label_scores(QUERIES.rows(0, 0), np.arange(3)).shape == (0, 3)


def test_in_bounded_time_it_answers_as_retrieval_does(model: Model) -> None:
    ids, scores, proven = model.top_k_within(QUERIES, 5, budget=10**9)
    assert proven.all()
    assert same((ids, scores), model.top_k(QUERIES, 5))
    assert model.top_k_within(QUERIES, 5, deadline=1000)[0].shape == (len(QUERIES), 5)
    for bounds in ({}, {"budget": 10, "deadline": 1.0}):
        with pytest.raises(SettingError, match="either a budget or a deadline"):
            model.top_k_within(QUERIES, 5, **bounds)  # type: ignore[arg-type]
