"""MACHClassifier: scikit-learn's own checks, every form of input and output, and the tools it must work in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from machxc.config import ESTIMATORS, LOSSES, Settings, TextConfig
from machxc.data.arrays import features_of, labels_of
from machxc.errors import DataError, MachxcError, MemoryBudgetError, ModelError, OutputError, SettingError
from machxc.estimator import MACHClassifier
from machxc.metrics import precision_at_k, precision_at_k_scorer
from machxc.reordering import samples_of
from machxc.samples import Features, Samples

COLOURS = ["red", "green", "blue", "white", "black", "yellow"]
THINGS = ["apple", "car", "house", "shoe", "cat"]
SMALL: dict[str, Any] = {"repetitions": 4, "buckets": 16, "epochs": 8, "feature_bits": 12}


def texts_and_sets(n: int = 240) -> tuple[list[str], list[list[str]]]:
    """Texts that name a colour and a thing, labelled with both."""
    random = np.random.default_rng(0)
    pairs = [(COLOURS[i], THINGS[j]) for i, j in zip(random.integers(0, 6, n), random.integers(0, 5, n), strict=True)]
    return [f"the {colour} {thing} over there" for colour, thing in pairs], [list(pair) for pair in pairs]


TEXTS, SETS = texts_and_sets()
FIRST = [one[0] for one in SETS]
NAMES = sorted({*COLOURS, *THINGS})
INDICATOR = np.array([[int(name in one) for name in NAMES] for one in SETS])
NUMBERS = TfidfVectorizer().fit_transform(TEXTS)


def classifier(**params: Any) -> MACHClassifier:
    return MACHClassifier(**(SMALL | params))


@pytest.fixture(scope="module")
def by_text() -> MACHClassifier:
    return classifier().fit(TEXTS, FIRST)


@pytest.fixture(scope="module")
def by_sets() -> MACHClassifier:
    return classifier().fit(TEXTS, SETS)


@pytest.fixture(scope="module")
def by_indicator() -> MACHClassifier:
    return classifier().fit(NUMBERS, INDICATOR)


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks_all_pass() -> None:
    results = check_estimator(MACHClassifier(), on_skip=None, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed == {}
    assert [result["check_name"] for result in results if result["status"] == "xfail"] == []
    assert sum(result["status"] == "passed" for result in results) >= 55
    assert any("multilabel" in result["check_name"] for result in results)


def test_every_setting_is_a_parameter() -> None:
    settings = set(Settings.__dataclass_fields__) - {"seed"}
    assert settings | {"random_state", "words", "chars_min", "chars_max", "fold"} <= set(MACHClassifier().get_params())


def test_folded_letters_are_compared_without_their_marks() -> None:
    model = classifier(words=1, fold=True).fit(["a río", "a lago"], ["river", "lake"])
    assert model.model_.config.text == TextConfig(words=1, fold=True)
    assert model.top_k(["rio"], k=2)[1].tolist() == model.top_k(["Río"], k=2)[1].tolist()


def test_from_texts_to_names(by_text: MACHClassifier) -> None:
    assert by_text.predict(["a blue shoe", "my white cat"]).tolist() == ["blue", "white"]
    assert by_text.score(TEXTS, FIRST) == 1.0
    assert by_text.classes_.tolist() == sorted(COLOURS)
    assert not by_text.multilabel_
    assert not hasattr(by_text, "n_features_in_")


def test_top_k_gives_two_arrays(by_sets: MACHClassifier) -> None:
    names, scores = by_sets.top_k(["a blue shoe", "green house", "nothing of it"], k=2)
    assert names.shape == scores.shape == (3, 2)
    assert scores.dtype == np.float32
    assert [set(row) for row in names[:2].tolist()] == [{"blue", "shoe"}, {"green", "house"}]
    assert (scores[:, 0] >= scores[:, 1]).all()
    ids, same = by_sets.top_k(["a blue shoe", "green house", "nothing of it"], k=2, return_ids=True)
    assert ids.dtype == np.int64
    assert by_sets.classes_[ids].tolist() == names.tolist()
    np.testing.assert_array_equal(scores, same)


def test_top_k_in_bounded_time(by_sets: MACHClassifier) -> None:
    names, scores, proven = by_sets.top_k_within(["a blue shoe", "green house"], k=2, budget=10**9)
    exact = by_sets.top_k(["a blue shoe", "green house"], k=2)
    assert proven.tolist() == [True, True]
    assert (names.tolist(), scores.tolist()) == (exact[0].tolist(), exact[1].tolist())


def test_top_k_beyond_all_labels_is_padded(by_sets: MACHClassifier) -> None:
    names, scores = by_sets.top_k(["a blue shoe"], k=14)
    assert set(names[0, :11]) == set(NAMES)
    assert names[0, 11:].tolist() == [None] * 3
    assert (scores[0, 11:] == -np.inf).all()


def test_top_k_among_candidates(by_sets: MACHClassifier) -> None:
    names, _ = by_sets.top_k(["a blue shoe", "green house"], k=1, candidates=["red", "green", "shoe"])
    assert names[:, 0].tolist() == ["shoe", "green"]
    with pytest.raises(DataError, match="does not know the candidate label 'pink'"):
        by_sets.top_k(["a blue shoe"], candidates=["red", "pink"])


@pytest.mark.parametrize("k", [0, -1, 2.0, True])
def test_top_k_refuses_what_is_no_k(by_sets: MACHClassifier, k: Any) -> None:
    with pytest.raises(SettingError, match="'k' parameter must be an int in"):
        by_sets.top_k(["x"], k=k)


def test_no_queries_are_no_answers(by_sets: MACHClassifier) -> None:
    names, scores = by_sets.top_k([], k=3)
    assert names.shape == scores.shape == (0, 3)
    assert by_sets.predict([]) == []


def test_label_sets_come_back_as_lists(by_sets: MACHClassifier) -> None:
    found = by_sets.predict(["a blue shoe", "white cat"])
    assert isinstance(found, list)
    assert [set(one) for one in found] == [{"blue", "shoe"}, {"white", "cat"}]
    assert by_sets.score(TEXTS, SETS) == 1.0


def test_indicators_come_back_in_kind(by_indicator: MACHClassifier) -> None:
    dense = by_indicator.predict(NUMBERS)
    assert isinstance(dense, np.ndarray)
    assert dense.dtype == np.int64
    assert (dense == INDICATOR).mean() > 0.99
    sparse = classifier().fit(NUMBERS, sp.csr_array(INDICATOR)).predict(NUMBERS)
    assert sp.issparse(sparse)
    assert sparse.format == "csr"
    np.testing.assert_array_equal(sparse.toarray(), dense)


def test_probabilities_and_decisions_agree_with_predictions(
    by_text: MACHClassifier, by_indicator: MACHClassifier
) -> None:
    probability = by_text.predict_proba(TEXTS)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0)
    assert by_text.classes_[probability.argmax(axis=1)].tolist() == by_text.predict(TEXTS).tolist()
    assert by_text.classes_[by_text.decision_function(TEXTS).argmax(axis=1)].tolist() == by_text.predict(TEXTS).tolist()
    predicted = by_indicator.predict(NUMBERS)
    np.testing.assert_array_equal(by_indicator.predict_proba(NUMBERS) >= 0.5, predicted)
    np.testing.assert_array_equal(by_indicator.decision_function(NUMBERS) >= 0, predicted)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n_labels", [2, 6])
def test_every_estimator_agrees_with_itself(loss: str, estimator: str, n_labels: int) -> None:
    """Few buckets, so that labels collide and scores are equal, or below 0 with the unbiased estimator."""
    y = [COLOURS.index(colour) % n_labels for colour in FIRST]
    model = classifier(loss=loss, estimator=estimator, buckets=2, repetitions=3, epochs=1).fit(TEXTS, y)
    predicted, decision = model.predict(TEXTS), model.decision_function(TEXTS)
    probability = model.predict_proba(TEXTS)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0)
    np.testing.assert_array_equal(probability.argmax(axis=1), predicted)
    np.testing.assert_array_equal(decision > 0 if n_labels == 2 else decision.argmax(axis=1), predicted)


def test_the_threshold_is_a_score(by_sets: MACHClassifier) -> None:
    lenient = clone(by_sets).set_params(threshold=0.0).fit(TEXTS, SETS)
    assert {len(one) for one in lenient.predict(TEXTS[:5])} == {11}
    strict = clone(by_sets).set_params(threshold=1.0).fit(TEXTS, SETS)
    assert max(len(one) for one in strict.predict(["nothing of it"])) == 0


def test_thresholds_look_as_far_as_needed() -> None:
    """More labels above the threshold than are looked at first."""
    X = [f"word{i % 3}" for i in range(60)]
    y = [[f"label{j}" for j in range(200)] if i % 3 == 0 else [f"label{i % 3}"] for i in range(60)]
    found = classifier(buckets=64, epochs=20).fit(X, y).predict(["word0", "word1"])
    assert len(found[0]) > 100
    assert found[1][0] == "label1"


def test_labels_never_seen_are_never_given() -> None:
    y = np.hstack([INDICATOR, np.zeros((len(INDICATOR), 2), int)])
    model = classifier(threshold=0.0).fit(NUMBERS, y)
    assert not model.predict(NUMBERS)[:, 11:].any()
    names, _ = model.top_k(NUMBERS, k=13)
    assert names.max() == 10
    assert (names[:, 11:] == -1).all()


@pytest.mark.parametrize("form", ["csr", "csc", "int64", "dense", "frame"])
def test_numbers_of_any_form_give_the_same_model(by_indicator: MACHClassifier, form: str) -> None:
    X: Any = NUMBERS.asformat("csc") if form == "csc" else NUMBERS.toarray()
    if form in ("csr", "int64"):
        X = NUMBERS.copy()
    if form == "int64":
        X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    if form == "frame":
        X = pd.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])])
    model = classifier().fit(X, INDICATOR)
    np.testing.assert_array_equal(model.predict_proba(X), by_indicator.predict_proba(NUMBERS))
    assert model.n_features_in_ == NUMBERS.shape[1]


def test_texts_of_a_frame(by_text: MACHClassifier) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": FIRST})
    model = classifier().fit(frame[["text"]], frame["label"])
    assert model.predict(frame["text"][:9]).tolist() == by_text.predict(TEXTS[:9]).tolist()


def test_the_order_of_the_samples_does_not_matter(by_text: MACHClassifier) -> None:
    order = np.random.default_rng(1).permutation(len(TEXTS))
    other = classifier().fit([TEXTS[i] for i in order], [FIRST[i] for i in order])
    np.testing.assert_array_equal(other.predict_proba(TEXTS), by_text.predict_proba(TEXTS))


def test_whole_weights_repeat_and_zero_leaves_out() -> None:
    weights = np.random.default_rng(2).integers(0, 3, 60)
    repeated = np.repeat(np.arange(60), weights).tolist()
    weighted = classifier().fit(TEXTS[:60], SETS[:60], sample_weight=weights)
    same = classifier().fit([TEXTS[i] for i in repeated], [SETS[i] for i in repeated])
    np.testing.assert_array_equal(weighted.predict_proba(TEXTS), same.predict_proba(TEXTS))


def test_weights_decide_a_tie() -> None:
    X, y = ["word"] * 20, ["a", "b"] * 10
    for heavy in ("a", "b"):
        weights = [1.5 if label == heavy else 0.25 for label in y]
        assert classifier().fit(X, y, sample_weight=weights).predict(["word"]).tolist() == [heavy]


def test_samples_keep_their_weights_and_labels_when_reordered() -> None:
    features, _ = features_of(np.arange(1.0, 13).reshape(6, 2))
    labels, _ = labels_of([[0, 2], [1], [], [2], [0], [1, 2]])
    weights = np.array([0.5, 1.5, 2.5, 0, 4.5, 5.5], np.float32)
    samples = samples_of(features, labels, weights)
    assert samples.weights is not None
    rows = sorted(zip(cells(samples), samples.weights.tolist(), strict=True))
    assert rows == [
        (((1, 2), (0, 2)), 0.5),
        (((3, 4), (1,)), 1.5),
        (((5, 6), ()), 2.5),
        (((9, 10), (0,)), 4.5),
        (((11, 12), (1, 2)), 5.5),
    ]


def cells(samples: Samples) -> list[tuple[tuple[float, ...], tuple[int, ...]]]:
    values, labels = samples.features, samples.labels
    return [
        (tuple(values.rows(i, i + 1).values.tolist()), tuple(labels.rows(i, i + 1).indices.tolist()))
        for i in range(len(samples))
    ]


def test_many_repeats_stay_weights() -> None:
    features, _ = features_of(np.eye(3))
    labels, _ = labels_of([0, 1, 2])
    samples = samples_of(features, labels, np.array([1, 1000, 0], np.float32))
    assert len(samples) == 2
    assert samples.weights is not None
    assert sorted(samples.weights.tolist()) == [1, 1000]


def test_the_seed_decides() -> None:
    def probabilities(random_state: Any) -> Any:
        return classifier(random_state=random_state).fit(TEXTS, FIRST).predict_proba(TEXTS[:20])

    np.testing.assert_array_equal(probabilities(3), probabilities(np.int64(3)))
    np.testing.assert_array_equal(probabilities(np.random.RandomState(3)), probabilities(np.random.RandomState(3)))
    assert (probabilities(3) != probabilities(4)).any()
    assert (probabilities(None) != probabilities(None)).any()


def test_jobs_change_no_result(by_text: MACHClassifier) -> None:
    for jobs in (2, -1):
        model = classifier(n_jobs=jobs).fit(TEXTS, FIRST)
        np.testing.assert_array_equal(model.predict_proba(TEXTS), by_text.predict_proba(TEXTS))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"buckets": -3},
            r"'buckets' parameter of MACHClassifier must be an int in \[1, 4294967295\]. Got -3 instead.",
        ),
        ({"repetitions": 2.0}, r"The 'repetitions' parameter of MACHClassifier must be an int in \[1, 4096\]. Got 2.0"),
        ({"loss": "hinge"}, "The 'loss' parameter of MACHClassifier must be one of .* Got 'hinge' instead."),
        ({"estimator": "sum"}, "The 'estimator' parameter of MACHClassifier must be one of"),
        ({"words": 9}, r"The 'words' parameter of MACHClassifier must be an int in \[0, 5\]. Got 9"),
        ({"fold": 1}, "The 'fold' parameter of MACHClassifier must be True or False. Got 1 instead"),
        ({"threshold": 1.5}, r"The 'threshold' parameter of MACHClassifier must be a number in \[0, 1\]. Got 1.5"),
        ({"random_state": -1}, "The 'random_state' parameter of MACHClassifier must be an int in"),
        ({"random_state": "x"}, "The 'random_state' parameter of MACHClassifier must be an int in"),
        ({"n_jobs": 0}, "The 'n_jobs' parameter of MACHClassifier must be None or an int other than 0. Got 0"),
        ({"memory_budget": -1}, "The 'memory_budget' parameter must be an int in"),
        ({"chars_min": 3}, "both 0, or 1 <= chars_min <= chars_max"),
    ],
)
def test_bad_parameters_are_refused_at_fit_in_scikit_learns_words(params: dict[str, Any], message: str) -> None:
    model = MACHClassifier(**params)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(TEXTS, FIRST)
    assert isinstance(caught.value, MachxcError)


def test_numpy_numbers_are_numbers() -> None:
    model = classifier(buckets=np.int64(16), learning_rate=np.float64(0.5), idf=np.bool_(True)).fit(TEXTS, FIRST)
    assert model.model_.config.buckets == 16


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (TEXTS, FIRST[:-1], "as many label sets as samples"),
        ([*TEXTS[:-1], None], FIRST, "text 239 is not a str"),
        (TEXTS, [*FIRST[:-1], None], "all str or all integers"),
        (TEXTS, [[] for _ in TEXTS], "at least one label"),
        ("text", ["a"], "put it in a list"),
        (np.array([["a", 1.0]], object), ["a"], "could not convert|expected"),
        ([[np.nan, 1.0]], ["a"], "NaN"),
        ([1.0, 2.0], ["a", "b"], "2D array"),
    ],
)
def test_bad_data_is_refused(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier().fit(X, y)


def test_queries_of_another_sort_are_refused(by_text: MACHClassifier, by_indicator: MACHClassifier) -> None:
    with pytest.raises(DataError, match="expected texts, got"):
        by_text.predict(NUMBERS)
    with pytest.raises(DataError, match="numeric features, as in training, got texts"):
        by_indicator.predict(TEXTS)
    with pytest.raises(ValueError, match="features"):
        by_indicator.predict(NUMBERS[:, :3])


def test_an_answer_too_large_is_refused(by_indicator: MACHClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machxc.estimator._MAX_SCORES", 100)
    for method in ("predict_proba", "decision_function", "predict"):
        with pytest.raises(MemoryBudgetError, match="240 samples x 11 labels are more than 100 scores; use top_k"):
            getattr(by_indicator, method)(NUMBERS)


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    classifier().fit(TEXTS, FIRST)
    assert capsys.readouterr() == ("", "")
    classifier(verbose=True).fit(TEXTS, FIRST)
    assert "training: 100%" in capsys.readouterr().err


def test_a_column_of_labels_is_taken_with_a_warning() -> None:
    with pytest.warns(DataConversionWarning, match="column-vector"):
        model = classifier().fit(NUMBERS, np.array(FIRST)[:, None])
    assert model.predict(NUMBERS).tolist() == FIRST


def test_a_budget_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(MemoryBudgetError, match="budget"):
        classifier(memory_budget=1000).fit(TEXTS, FIRST)


def test_before_fit_it_says_so() -> None:
    for method in ("predict", "predict_proba", "decision_function", "top_k"):
        with pytest.raises(NotFittedError):
            getattr(MACHClassifier(), method)(TEXTS)
    assert not hasattr(MACHClassifier(), "classes_")


def test_save_and_load(tmp_path: Path, by_sets: MACHClassifier, by_text: MACHClassifier) -> None:
    for fitted in (by_sets, by_text):
        folder = tmp_path / str(fitted.multilabel_)
        fitted.save(folder)
        with pytest.raises(OutputError, match="exists"):
            fitted.save(folder)
        fitted.save(folder, overwrite=True)
        loaded = MACHClassifier.load(folder, n_jobs=2)
        assert np.array_equal(loaded.predict(TEXTS[:9]), fitted.predict(TEXTS[:9]))
        assert loaded.top_k(TEXTS, 3)[1].tolist() == fitted.top_k(TEXTS, 3)[1].tolist()
        assert (loaded.buckets, loaded.n_jobs, loaded.multilabel_) == (16, 2, fitted.multilabel_)
        again = clone(loaded).fit(TEXTS, SETS if fitted.multilabel_ else FIRST)
        np.testing.assert_array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_a_loaded_model_of_column_numbers_answers_sparse(tmp_path: Path, by_indicator: MACHClassifier) -> None:
    by_indicator.save(tmp_path / "model")
    loaded = MACHClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(NUMBERS).toarray(), by_indicator.predict(NUMBERS))
    assert loaded.n_features_in_ == NUMBERS.shape[1]


def test_what_is_no_model_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        MACHClassifier.load(tmp_path)


def test_it_survives_pickling(by_sets: MACHClassifier) -> None:
    copy = pickle.loads(pickle.dumps(by_sets))
    assert copy.predict(TEXTS[:9]) == by_sets.predict(TEXTS[:9])


def test_fitting_again_forgets_the_first_time() -> None:
    model = classifier().fit(NUMBERS, INDICATOR).fit(TEXTS, FIRST)
    assert not hasattr(model, "n_features_in_")
    assert model.predict(["a blue shoe"]).tolist() == ["blue"]


def test_behind_a_vectorizer() -> None:
    pipeline = make_pipeline(TfidfVectorizer(), classifier()).fit(TEXTS, FIRST)
    assert pipeline.predict(["a blue shoe"]).tolist() == ["blue"]
    assert pipeline.score(TEXTS, FIRST) == 1.0
    assert precision_at_k_scorer(1)(pipeline, TEXTS, FIRST) == 1.0


def test_cross_validation_with_precision_at_k() -> None:
    scores = cross_val_score(classifier(), TEXTS, SETS, cv=KFold(3), scoring=precision_at_k_scorer(2))
    assert scores.shape == (3,)
    assert scores.min() > 0.95
    by_default = cross_val_score(classifier(), NUMBERS, INDICATOR, cv=3)
    assert by_default.min() > 0.95


@pytest.mark.parametrize("pipeline", [False, True])
def test_grid_search_with_precision_at_k(pipeline: bool) -> None:
    estimator = make_pipeline(TfidfVectorizer(), classifier()) if pipeline else classifier()
    name = "machclassifier__learning_rate" if pipeline else "learning_rate"
    search = GridSearchCV(estimator, {name: np.array([1e-9, 3.0])}, cv=KFold(2), scoring=precision_at_k_scorer(2))
    search.fit(TEXTS, SETS)
    assert search.best_params_[name] == 3.0
    assert precision_at_k_scorer(2)(search, TEXTS, SETS) == search.score(TEXTS, SETS) > 0.95


def test_the_scorer_is_precision_at_k(by_sets: MACHClassifier) -> None:
    queries = ["a blue shoe", "green house", "red"]
    best = by_sets.top_k(queries, 1)[0][:, 0].tolist()
    truth = [[best[0], "unheard of"], ["unheard of"], []]
    assert precision_at_k_scorer(1)(by_sets, queries, truth) == pytest.approx(1 / 3)
    ids, _ = by_sets.top_k(TEXTS, 5, return_ids=True)
    labels, _ = labels_of(SETS, by_sets.model_.names)
    assert precision_at_k_scorer(5)(by_sets, TEXTS, SETS) == precision_at_k(ids, labels, 5)
    assert pickle.loads(pickle.dumps(precision_at_k_scorer(3))) == precision_at_k_scorer(3)


def test_the_scorer_says_what_it_is_for() -> None:
    from sklearn.dummy import DummyClassifier

    with pytest.raises(SettingError, match=r"expects a MACHClassifier\. Got DummyClassifier"):
        precision_at_k_scorer(1)(DummyClassifier().fit([[0]], [0]), [[0]], [0])
    with pytest.raises(SettingError, match="'k' parameter"):
        precision_at_k_scorer(0)


def test_a_score_with_weights(by_text: MACHClassifier) -> None:
    assert by_text.score(["a blue shoe", "a red car"], ["blue", "green"], sample_weight=[3, 1]) == 0.75
    with pytest.raises(DataError, match="as many label sets as samples"):
        by_text.score(["a blue shoe"], ["blue", "green"])


def test_nothing_given_is_changed() -> None:
    X = NUMBERS.copy()
    weights = np.ones(X.shape[0])
    classifier().fit(X, INDICATOR, sample_weight=weights).predict(X)
    assert (X != NUMBERS).nnz == 0
    assert (weights == 1).all()
    assert isinstance(features_of(X)[0], Features)
