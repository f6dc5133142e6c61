from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from machxc import training
from machxc.config import ESTIMATORS, Settings, TextConfig
from machxc.data.arrays import features_of, labels_of
from machxc.errors import DataError, MachxcError, SettingError
from machxc.features.text import token_features
from machxc.folder import check_repetition
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.repetition.linear import LinearLearner
from machxc.samples import Array, Features, Labels, Samples
from machxc.testing import make_samples, make_texts, tiny_model, word
from machxc.training import CancelledError, run_repetitions, train

SAMPLES = make_samples(200, 20)
SETTINGS = Settings(repetitions=5, buckets=16, epochs=3)


def trained(samples: Samples, settings: Settings | None = None, **asked: Any) -> Model:
    return train(samples, LabelNames.ids(samples.labels.n_labels), settings, **asked)


def tensors_of(model: Model) -> dict[int, dict[str, bytes]]:
    return {r: {n: t.tobytes() for n, t in tensors.items()} for r, tensors in model.data.repetitions.items()}


# ---- one model, however it is made


@pytest.mark.parametrize(
    "settings", [SETTINGS, replace(SETTINGS, hidden=8, dropout=0.2), replace(SETTINGS, loss="bce")]
)
def test_the_model_does_not_depend_on_the_jobs(settings: Settings) -> None:
    models = [trained(SAMPLES, settings, jobs=jobs) for jobs in (1, 2, 4, 9)]
    assert all(tensors_of(model) == tensors_of(models[0]) for model in models)
    assert all(model.numbers == [0, 1, 2, 3, 4] for model in models)


def test_the_model_does_not_depend_on_the_order_of_repetitions() -> None:
    model = trained(SAMPLES, SETTINGS)
    for numbers in ([4, 2, 0, 1, 3], [3], [2, 1]):
        found: dict[int, dict[str, Array]] = {}
        run_repetitions(SAMPLES, model.config, numbers, found.__setitem__, jobs=2)
        assert sorted(found) == sorted(numbers)
        for r in numbers:
            assert {n: t.tobytes() for n, t in found[r].items()} == tensors_of(model)[r]


def test_repetitions_differ_from_each_other_and_seeds_from_seeds() -> None:
    one, other = (tensors_of(trained(SAMPLES, replace(SETTINGS, seed=seed))) for seed in (0, 1))
    bias = [tensors["bias"] for model in (one, other) for tensors in model.values()]
    assert len(set(bias)) == 10


@pytest.mark.parametrize("hidden", [0, 8])
def test_every_repetition_is_one_that_a_model_folder_takes(hidden: int) -> None:
    model = trained(SAMPLES, replace(SETTINGS, hidden=hidden))
    for tensors in model.data.repetitions.values():
        check_repetition(model.config, tensors)


def test_defaults_learn() -> None:
    for each in (1, 3):
        samples = make_samples(400, 20, labels_per_sample=each)
        ids, _ = trained(samples).top_k(samples.features, each)
        wanted = samples.labels.indices.reshape(-1, each)
        right = np.mean([len(np.intersect1d(a, b)) / each for a, b in zip(ids, wanted, strict=True)])
        assert right > 0.9


def test_weights_change_the_model() -> None:
    weights = np.linspace(0, 1, 200).astype(np.float32)
    plain, weighted = trained(SAMPLES, SETTINGS), trained(replace(SAMPLES, weights=weights), SETTINGS)
    assert tensors_of(plain) != tensors_of(weighted)
    ones = trained(replace(SAMPLES, weights=np.ones(200, np.float32)), SETTINGS)
    assert tensors_of(plain) == tensors_of(ones)


# ---- progress and trouble


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_progress_rises_to_its_end(jobs: int, fraction: float) -> None:
    told: list[tuple[int, int]] = []
    settings = replace(SETTINGS, validation_fraction=fraction, patience=1, epochs=30)
    trained(SAMPLES, settings, jobs=jobs, progress=lambda done, total: told.append((done, total)))
    done = [done for done, _ in told]
    assert {total for _, total in told} == {int(5 * 30 * 200 * (1 - fraction))}
    assert done == sorted(done)
    assert done[-1] == told[0][1]


def test_one_repetition_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    started = threading.Barrier(2, timeout=10)

    def repetition(
        samples: Any, config: Any, partition: Any, r: int, on_samples: Any, threads: int
    ) -> dict[str, Array]:
        started.wait()
        if r == 0:
            raise DataError("repetition 0 diverged")
        try:
            while True:
                on_samples(0)
        except CancelledError:
            ended.append(r)
            raise

    monkeypatch.setattr(training, "train_repetition", repetition)
    with pytest.raises(DataError, match="repetition 0 diverged"):
        trained(SAMPLES, SETTINGS, jobs=2)
    assert ended == [1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_progress_raises_comes_out(jobs: int) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(SAMPLES, SETTINGS, jobs=jobs, progress=stop)


def test_divergence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinearLearner, "train", lambda *arguments: np.nan)
    with pytest.raises(DataError, match="diverged"):
        trained(SAMPLES, SETTINGS, jobs=2)


# ---- the edges: a defined result, or a named error


def samples_of(
    rows: list[dict[int, float]],
    labels: list[list[int]],
    *,
    n_features: int = 6,
    n_labels: int = 4,
    weights: list[float] | None = None,
) -> Samples:
    indices = np.array([i for row in rows for i in row], np.uint32)
    values = np.array([v for row in rows for v in row.values()], np.float32)
    features = Features(np.cumsum([0, *map(len, rows)], dtype=np.int64), indices, values, n_features)
    ids = np.array([i for row in labels for i in row], np.uint32)
    sets = Labels(np.cumsum([0, *map(len, labels)], dtype=np.int64), ids, n_labels)
    return Samples(features, sets, None if weights is None else np.array(weights, np.float32))


A, B, C = {0: 1.0, 1: 1.0}, {2: 1.0, 3: 1.0}, {4: 1.0}
THREE = samples_of([A, B, C], [[0], [1], [2]])

TWICE = Samples(
    Features(np.array([0, 2]), np.zeros(2, np.uint32), np.ones(2, np.float32), 6),
    Labels(np.array([0, 1]), np.zeros(1, np.uint32), 4),
)

# name -> (samples, settings, the best label of each training sample if it is sure to be that, labels that were seen)
EDGES: dict[str, tuple[Samples, dict[str, Any], list[int] | None, set[int]]] = {
    "three samples": (THREE, {}, [0, 1, 2], {0, 1, 2}),
    "one sample": (samples_of([A], [[3]]), {}, [3], {3}),
    "one sample of one label": (samples_of([{0: 1.0}], [[0]], n_features=1, n_labels=1), {}, [0], {0}),
    "one sample of all labels": (samples_of([A], [[0, 1, 2, 3]]), {}, None, {0, 1, 2, 3}),
    "one label": (samples_of([A, B, C], [[0], [0], [0]], n_labels=1), {}, [0, 0, 0], {0}),
    "one label of many": (samples_of([A, B, C], [[2], [2], [2]]), {}, [2, 2, 2], {2}),
    "two labels": (samples_of([A, B], [[0], [1]], n_labels=2), {}, [0, 1], {0, 1}),
    "a million labels": (samples_of([A, B], [[5], [999_999]], n_labels=10**6), {}, [5, 999_999], {5, 999_999}),
    "empty label sets, softmax": (samples_of([A, B, C], [[0], [], [2]]), {}, None, {0, 2}),
    "empty label sets, bce": (samples_of([A, B, C], [[0, 1], [], [2]]), {}, None, {0, 1, 2}),
    "softmax over label sets": (samples_of([A, B, C], [[0, 1], [], [2]]), {"loss": "softmax"}, None, {0, 1, 2}),
    "a row without features": (samples_of([A, {}, C], [[0], [1], [2]]), {}, [0, 1, 2], {0, 1, 2}),
    "no features at all": (samples_of([{}, {}, {}], [[1], [1], [2]]), {}, [1, 1, 1], {1, 2}),
    "one column": (samples_of([{0: 1.0}, {0: -1.0}], [[0], [1]], n_features=1), {}, [0, 1], {0, 1}),
    "samples that contradict": (samples_of([A, A, A], [[0], [0], [1]]), {}, [0, 0, 0], {0, 1}),
    "a feature twice in a row": (TWICE, {}, [0], {0}),
    "a label twice in a row": (samples_of([A, B], [[1, 1], [3]]), {}, [1, 3], {1, 3}),
    "labels in falling order": (samples_of([A, B], [[3, 1], [2]]), {}, None, {1, 2, 3}),
    "stored zeros": (samples_of([{0: 0.0, 1: 1.0}, {0: 0.0, 2: 1.0}], [[0], [1]]), {}, [0, 1], {0, 1}),
    "negative values": (samples_of([{0: -1.0}, {0: 1.0}], [[0], [1]]), {}, [0, 1], {0, 1}),
    "huge values": (samples_of([{0: 1e30}, {1: -1e30}], [[0], [1]]), {}, [0, 1], {0, 1}),
    "tiny values": (samples_of([{0: 1e-30}, {1: 1e-30}], [[0], [1]]), {}, [0, 1], {0, 1}),
    "weights of 0": (samples_of([A, B], [[0], [1]], weights=[0.0, 0.0]), {}, None, {0, 1}),
    "huge weights": (samples_of([A, B], [[0], [1]], weights=[1e15, 1.0]), {}, None, {0, 1}),
    "more buckets than labels": (THREE, {"buckets": 1000}, [0, 1, 2], {0, 1, 2}),
    "one bucket": (THREE, {"buckets": 1}, None, {0, 1, 2}),
    "one bucket, bce": (THREE, {"buckets": 1, "loss": "bce"}, None, {0, 1, 2}),
    "one bucket, hidden": (THREE, {"buckets": 1, "hidden": 4}, None, {0, 1, 2}),
    "the most buckets of a linear model": (THREE, {"buckets": 65536, "repetitions": 1}, [0, 1, 2], {0, 1, 2}),
    "more buckets with a hidden layer": (THREE, {"buckets": 65537, "hidden": 4, "repetitions": 1}, None, {0, 1, 2}),
    "one hidden unit": (THREE, {"hidden": 1}, None, {0, 1, 2}),
    "one negative": (THREE, {"hidden": 16, "negatives": 1, "loss": "softmax"}, None, {0, 1, 2}),
    "more negatives than buckets": (THREE, {"hidden": 16, "negatives": 1000, "loss": "bce"}, [0, 1, 2], {0, 1, 2}),
    "no feature is frequent enough": (THREE, {"min_count": 3}, None, {0, 1, 2}),
    "no feature is frequent enough, hidden": (THREE, {"min_count": 3, "hidden": 4}, None, {0, 1, 2}),
    "all weights pruned": (THREE, {"prune": 1e6}, None, {0, 1, 2}),
    "two slots": (THREE, {"feature_bits": 1}, None, {0, 1, 2}),
    "most features dropped": (THREE, {"dropout": 0.99}, None, {0, 1, 2}),
    "a tiny learning rate": (THREE, {"learning_rate": 1e-9, "epochs": 1}, None, {0, 1, 2}),
    "a huge learning rate": (THREE, {"learning_rate": 1e6}, None, {0, 1, 2}),
    "a huge learning rate, hidden": (THREE, {"learning_rate": 1e6, "hidden": 8}, None, {0, 1, 2}),
    "one held out": (samples_of([A, B], [[0], [1]]), {"validation_fraction": 0.5}, None, {0, 1}),
    "none to hold out": (samples_of([A], [[0]]), {"validation_fraction": 0.5}, [0], {0}),
    "one repetition": (THREE, {"repetitions": 1}, [0, 1, 2], {0, 1, 2}),
    "many repetitions": (THREE, {"repetitions": 100, "epochs": 1}, None, {0, 1, 2}),
    "a part of more samples": (
        Samples(SAMPLES.features.rows(40, 60), SAMPLES.labels.rows(40, 60)), {}, list(range(20)), set(range(20)),
    ),
    "everything weighted": (
        samples_of([{0: 3.0, 1: 1.0}, B], [[0], [1]]), {"sublinear_tf": True, "idf": True, "l2": False}, [0, 1], {0, 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES)
def test_edges_train_and_answer(edge: str) -> None:
    samples, settings, best, seen = EDGES[edge]
    model = trained(samples, Settings(**settings))
    for tensors in model.data.repetitions.values():
        check_repetition(model.config, tensors)
    k = samples.labels.n_labels + 2 if samples.labels.n_labels < 100 else 5
    for estimator in ESTIMATORS:
        ids, scores = model.top_k(samples.features, k, estimator=estimator)
        for row, values in zip(ids, scores, strict=True):
            assert set(row[row >= 0].tolist()) == seen
            assert row[len(seen) :].tolist() == [-1] * (k - len(seen))
            assert np.isfinite(values[: len(seen)]).all()
            assert (values[len(seen) :] == -np.inf).all()
    if best is not None:
        assert model.top_k(samples.features, 1)[0][:, 0].tolist() == best
    strange = Features(np.array([0, 0, 1]), np.zeros(1, np.uint32), np.full(1, 1e30, np.float32), 1)
    assert np.isin(model.top_k(strange, 1)[0], list(seen)).all()


def broken(**changed: Any) -> Samples:
    """`THREE` with some of its arrays replaced."""
    features, labels = THREE.features, THREE.labels
    features = replace(
        features, **{n: v for n, v in changed.items() if n in ("indices", "values", "indptr", "n_features")}
    )
    labels = replace(labels, **{n.removeprefix("label_"): v for n, v in changed.items() if n.startswith("label_")})
    labels = replace(labels, n_labels=changed.get("n_labels", labels.n_labels))
    return Samples(features, labels, changed.get("weights"))


INF = np.array([1, 1, np.inf, 1, 1], np.float32)
NAN = np.array([1, 1, 1, 1, np.nan], np.float32)
ERRORS: dict[str, tuple[Any, dict[str, Any], type[MachxcError], str]] = {
    "no samples": (lambda: samples_of([], []), {}, DataError, "nothing to learn: 0 samples"),
    "no labels": (lambda: samples_of([A, B], [[], []]), {}, DataError, "2 samples with 0 labels"),
    "no label names": (lambda: samples_of([A], [[]], n_labels=0), {}, DataError, "1 samples with 0 labels"),
    "no features": (lambda: samples_of([{}], [[0]], n_features=0), {}, SettingError, "'n_features'"),
    "feature out of range": (lambda: broken(n_features=4), {}, DataError, "feature id 4 is out of range"),
    "label out of range": (lambda: broken(n_labels=2), {}, DataError, "label id 2 is out of range"),
    "infinite value": (lambda: broken(values=INF), {}, DataError, "sample 1 has a feature value that is NaN or inf"),
    "NaN": (lambda: broken(values=NAN), {}, DataError, "sample 2 has a feature value that is NaN or infinite"),
    "offsets fall": (lambda: broken(indptr=np.array([0, 4, 2, 5])), {}, DataError, "offsets of the features"),
    "offsets end early": (lambda: broken(indptr=np.array([0, 2, 3, 4])), {}, DataError, "offsets of the features"),
    "label offsets": (lambda: broken(label_indptr=np.array([0, 2, 1, 3])), {}, DataError, "offsets of the labels"),
    "values missing": (lambda: broken(values=NAN[:3]), {}, DataError, "as many feature values as ids"),
    "label sets missing": (lambda: broken(label_indptr=np.array([0, 3])), {}, DataError, "as many label sets"),
    "weights missing": (lambda: broken(weights=np.ones(2, np.float32)), {}, DataError, "one weight a sample"),
    "negative weight": (lambda: broken(weights=np.array([1, -1, 1], np.float32)), {}, DataError, "sample weights"),
    "NaN weight": (lambda: broken(weights=NAN[2:]), {}, DataError, "sample weights that are finite"),
    "too many linear buckets": (lambda: THREE, {"buckets": 65537, "hidden": 0}, SettingError, "'buckets'"),
    "negatives of a linear model": (lambda: THREE, {"negatives": 2, "hidden": 0}, SettingError, "'negatives'"),
    "an unknown estimator": (lambda: THREE, {"estimator": "mode"}, SettingError, "'estimator'"),
    "no repetitions": (lambda: THREE, {"repetitions": 0}, SettingError, "'repetitions'"),
    "no epochs": (lambda: THREE, {"epochs": 0}, SettingError, "'epochs'"),
    "everything dropped": (lambda: THREE, {"dropout": 1.0}, SettingError, "'dropout'"),
    "a negative rate": (lambda: THREE, {"learning_rate": -1.0}, SettingError, "'learning_rate'"),
    "a negative seed": (lambda: THREE, {"seed": -1}, SettingError, "'seed'"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_edges_that_cannot_be_are_named_errors(error: str) -> None:
    make, settings, kind, message = ERRORS[error]
    with pytest.raises(kind, match=message):
        trained(make(), Settings(**settings))


def test_names_must_be_as_many_as_labels() -> None:
    with pytest.raises(DataError, match=r"as many label names as labels \(4\), got 3"):
        train(THREE, LabelNames.ids(3))


# ---- inputs that must come to the same


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("container", ["csr_matrix", "csr_array", "csc_array", "coo_array"])
def test_sparse_matrices_of_any_index_type_give_the_same_model(dtype: Any, container: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    f = SAMPLES.features
    matrix = sparse.csr_matrix((f.values, f.indices.astype(dtype), f.indptr.astype(dtype)), (200, f.n_features))
    matrix.indices, matrix.indptr = matrix.indices.astype(dtype), matrix.indptr.astype(dtype)
    features, text = features_of(getattr(sparse, container)(matrix))
    labels, names = labels_of(SAMPLES.labels.indices.astype(np.int64))
    assert text is None
    model = train(Samples(features, labels), names, SETTINGS)
    assert tensors_of(model) == tensors_of(trained(SAMPLES, SETTINGS))


def test_dense_arrays_give_the_same_model_as_sparse_ones() -> None:
    f = SAMPLES.features
    dense = np.zeros((200, f.n_features))
    dense[np.repeat(np.arange(200), np.diff(f.indptr)), f.indices] = f.values
    features, _ = features_of(dense)
    model = trained(Samples(features, SAMPLES.labels), SETTINGS)
    assert tensors_of(model) == tensors_of(trained(SAMPLES, SETTINGS))


def test_arrays_that_cannot_be_written_to_are_fine() -> None:
    samples = make_samples(200, 20)
    for array in (samples.features.indptr, samples.features.indices, samples.features.values, samples.labels.indices):
        array.flags.writeable = False
    assert tensors_of(trained(samples, SETTINGS)) == tensors_of(trained(SAMPLES, SETTINGS))


def test_texts_are_learnt() -> None:
    texts, sets = make_texts(300, 20)
    config = TextConfig(words=1)
    labels, names = labels_of(sets)
    model = train(Samples(token_features(texts, config), labels), names, text=config)
    others, wanted = make_texts(100, 20, seed=1)
    ids, _ = model.top_k(token_features(others, config), 1)
    assert np.mean(model.names.names(ids)[:, 0] == np.array([row[0] for row in wanted], object)) > 0.9
    nothing, _ = model.top_k(token_features(["", "?!", "unheard-of"], config), 3)
    assert (nothing >= 0).all()


# ---- machxc.testing


def test_made_up_samples_are_what_they_say() -> None:
    samples = make_samples(50, 7, labels_per_sample=2, noise=3, seed=4)
    samples.features.check()
    samples.labels.check()
    assert (len(samples), samples.labels.n_labels, samples.features.n_features) == (50, 7, 28)
    assert np.diff(samples.labels.indptr).tolist() == [2] * 50
    for n in range(50):
        labels = samples.labels.indices[2 * n : 2 * n + 2]
        features = samples.features.indices[samples.features.indptr[n] : samples.features.indptr[n + 1]]
        assert n % 7 in labels
        assert labels[0] < labels[1]
        assert (np.diff(features.astype(int)) > 0).all()
        assert np.isin(features // 4, labels).sum() >= len(features) - 3


def test_made_up_data_is_always_the_same() -> None:
    one, two, other = make_samples(), make_samples(), make_samples(seed=1)
    assert one.features.indices.tobytes() == two.features.indices.tobytes() != other.features.indices.tobytes()
    # these are promised to stay as they are: tests of others may count on them
    assert make_samples(3, 2).features.indices.tolist() == [1, 2, 3, 4, 4, 5, 6, 7, 0, 1, 2, 3, 7]
    assert make_texts(2, 2) == (["de fi go ku", "ku la me ni"], [["label 0"], ["label 1"]])
    assert tensors_of(tiny_model()) == tensors_of(tiny_model())


def test_made_up_texts_have_a_word_for_every_feature() -> None:
    samples = make_samples(30, 5, labels_per_sample=2, seed=3)
    texts, labels = make_texts(30, 5, labels_per_text=2, seed=3)
    for n, (text, names) in enumerate(zip(texts, labels, strict=True)):
        features = samples.features.indices[samples.features.indptr[n] : samples.features.indptr[n + 1]]
        assert sorted(text.split()) == sorted(word(int(i)) for i in features)
        assert names == [f"label {i}" for i in samples.labels.indices[2 * n : 2 * n + 2]]
    assert len({word(n) for n in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "wrong", [{"n_samples": -1}, {"labels_per_sample": 0}, {"labels_per_sample": 21}, {"noise": -1}]
)
def test_made_up_data_that_cannot_be_is_an_error(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match=r"1 <= labels of a sample <= n_labels"):
        make_samples(**wrong)


def test_a_tiny_model_takes_settings() -> None:
    model = tiny_model(hidden=4, buckets=8)
    assert (model.config.hidden, model.config.buckets, model.config.repetitions) == (4, 8, 2)
