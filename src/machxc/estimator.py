"""MACHClassifier: machxc as a scikit-learn estimator. What it adds to training and model is scikit-learn's manners.

Two more than training has: rows in another order give the same model, and weight 2 is the sample twice (see
`machxc.reordering`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from joblib import effective_n_jobs  # type: ignore[import-untyped]  # scikit-learn brings it
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from tqdm import tqdm

from machxc.config import Config, Settings, TextConfig, check_bound
from machxc.data.arrays import Form, features_of, match_labels, parsed_labels, texts_of, weights_of
from machxc.errors import DataError, MemoryBudgetError, SettingError
from machxc.metrics import check_count, hits
from machxc.model import Model
from machxc.reordering import samples_of
from machxc.samples import Array, Features, Float32, Int64
from machxc.torch.device import check_device
from machxc.training import train

Float64 = npt.NDArray[np.float64]

_SETTINGS = tuple(field.name for field in dataclasses.fields(Settings) if field.name != "seed")
_TEXT = tuple(field.name for field in dataclasses.fields(TextConfig))
_MAX_SCORES = 1 << 27  # scores that a dense answer may have: 1 GiB of float64
_TINY = float(np.finfo(np.float32).tiny)  # the least that a score above 0 may be
_QUERIES = 4096  # samples whose labels are thresholded in one step
_FIRST_LABELS = 32  # how many labels of a sample are looked at first


class MACHClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Extreme classification with MACH: the right few labels out of very many, in a small, known amount of memory.

    R small classifiers, each over B buckets of labels; a label's score is merged from the scores of its R buckets.

    X may be a list (array, Series, one-column DataFrame) of texts, a sparse matrix (32- or 64-bit indices), a 2-D
    array or a DataFrame of numbers; y one label a sample (str or integers), or a set of labels a sample (lists, or an
    indicator matrix, sparse or dense). The order of the samples makes no difference to the model.

    Parameters
    ----------
    learner, repetitions, buckets, hidden, normalisation, hidden_dropout, negatives, loss, epochs, learning_rate, \
    dropout, smoothing, left_out, associations, prune, feature_bits, min_count, sublinear_tf, idf, l2, estimator, \
    validation_fraction, patience : default=None
        See `machxc.config.Settings`. None: chosen from the data. ``estimator`` names how the scores of a label's R
        buckets become its score; it is a str, not an estimator object.
    words, chars_min, chars_max : int, default=None
        Which n-grams of texts are taken: word n-grams of up to ``words`` words, character n-grams of ``chars_min`` to
        ``chars_max``.
    fold : bool, default=None
        Whether letters of texts are compared without their diacritical marks. This and the three above all None: chosen
        from the texts; one set: the others are as in `machxc.config.TextConfig`.
    threshold : float in [0, 1], default=0.5
        The score from which `predict` gives a label, when samples have label sets.
    random_state : int, RandomState instance or None, default=0
        The seed. The same one gives the same model, whatever ``n_jobs``; None draws another at every fit.
    n_jobs : int, default=None
        Cores to train and answer with; None is 1, -1 all of them. It changes no result.
    device : str, default="cpu"
        What trains and answers: "cpu", the kernels, or a GPU by PyTorch: "cuda" (all of them; the first answers),
        "cuda:1", "auto" (those that are there, if any). See docs/gpu.md.
    memory_budget : int, default=None
        The bytes that training may take; what cannot fit is refused before it begins.
    verbose : bool, default=False
        Whether training shows a progress bar.

    Attributes
    ----------
    model_ : machxc.model.Model
        The trained model: its ``config`` tells what the settings became.
    classes_ : array of shape (K,)
        The names of the labels, made anew at every access: str objects or int64.
    multilabel_ : bool
        Whether samples have label sets (else one label each).
    n_features_in_, feature_names_in_
        As in scikit-learn, when X is numeric.
    """

    def __init__(
        self,
        *,
        learner: str | None = None,
        repetitions: int | None = None,
        buckets: int | None = None,
        hidden: int | Sequence[int] | None = None,
        normalisation: str | None = None,
        hidden_dropout: float | None = None,
        negatives: int | None = None,
        loss: str | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        dropout: float | None = None,
        smoothing: float | None = None,
        left_out: int | None = None,
        associations: int | None = None,
        prune: float | None = None,
        feature_bits: int | None = None,
        min_count: int | None = None,
        sublinear_tf: bool | None = None,
        idf: bool | None = None,
        l2: bool | None = None,
        estimator: str | None = None,
        validation_fraction: float | None = None,
        patience: int | None = None,
        words: int | None = None,
        chars_min: int | None = None,
        chars_max: int | None = None,
        fold: bool | None = None,
        threshold: float = 0.5,
        random_state: Any = 0,
        n_jobs: int | None = None,
        device: str = "cpu",
        memory_budget: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.learner = learner
        self.repetitions = repetitions
        self.buckets = buckets
        self.hidden = hidden
        self.normalisation = normalisation
        self.hidden_dropout = hidden_dropout
        self.negatives = negatives
        self.loss = loss
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.dropout = dropout
        self.smoothing = smoothing
        self.left_out = left_out
        self.associations = associations
        self.prune = prune
        self.feature_bits = feature_bits
        self.min_count = min_count
        self.sublinear_tf = sublinear_tf
        self.idf = idf
        self.l2 = l2
        self.estimator = estimator
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.words = words
        self.chars_min = chars_min
        self.chars_max = chars_max
        self.fold = fold
        self.threshold = threshold
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.memory_budget = memory_budget
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on samples ``X`` with labels ``y``, and optionally a weight each (not negative; 0 leaves out).

        SettingError (a ValueError) when a parameter is out of its bounds, DataError (a ValueError) when X, y or the
        weights are not what the class description allows, MemoryBudgetError when training cannot fit the budget.
        """
        settings, text, jobs = self._settings(), self._text_config(), self._jobs()
        check_device(self.device)
        _warn_of_column(y)
        features, text = self._features(X, text, None)
        labels, names, form = parsed_labels(y)
        samples = samples_of(features, labels, weights_of(sample_weight, len(features)))
        del features, labels  # samples are a copy, and training takes long
        with tqdm(desc="training", unit=" samples", unit_scale=True, disable=not self.verbose) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            model = train(
                samples, names, settings, text=text, jobs=jobs, memory_budget=_plain(self.memory_budget),
                device=self.device, progress=progress,
            )  # fmt: skip
        self.model_: Model = model
        self._form: Form = form
        return self

    def top_k(self, X: Any, k: int = 10, *, candidates: Any = None, return_ids: bool = False) -> tuple[Array, Float32]:
        """The k best labels of each sample, best first, and their scores: two arrays of shape (n, k).

        Labels are names (int64, or str objects), or with ``return_ids`` label ids (int64; the places in `classes_`).
        Where there are fewer than k labels they are None (-1 for integers) and the score is -inf. ``candidates``:
        names of the labels to choose among; DataError when one is unknown.
        """
        check_is_fitted(self)
        chosen = None if candidates is None else self._ids_of(candidates)
        ids, scores = self._model_top_k(self._queries(X), check_count("k", k), chosen)
        return (ids if return_ids else self.model_.names.names(ids)), scores

    def top_k_within(
        self,
        X: Any,
        k: int = 10,
        *,
        budget: int | None = None,
        deadline: float | None = None,
        return_ids: bool = False,
    ) -> tuple[Array, Float32, Array]:
        """`top_k` in bounded time: the best labels found, their scores, and which rankings are proven: bool (n,).

        Either a ``budget`` or a ``deadline``, in milliseconds a query: see `Model.top_k_within`.
        """
        check_is_fitted(self)
        ids, scores, proven = self._answering().top_k_within(
            self._queries(X), check_count("k", k), budget=budget, deadline=deadline, jobs=self._jobs()
        )
        return (ids if return_ids else self.model_.names.names(ids)), scores, proven

    def predict(self, X: Any) -> Any:
        """The label of each sample; or, where samples have label sets, all labels with a score from ``threshold``.

        One label each: array (n,). Label sets: in the form that `fit` was given, an indicator matrix (n, K) of int64,
        dense or CSR, or a list of lists of names, best first; a sample's set may be empty. (A loaded model answers
        with CSR if labels are column numbers, else with lists.) For a ranking use `top_k`.
        """
        check_is_fitted(self)
        features = self._queries(X)
        if not self.multilabel_:
            return self.model_.names.names(self._model_top_k(features, 1)[0][:, 0])
        indptr, ids = self._above_threshold(features)
        if self._form == "sets":
            names = self.model_.names.names(ids).tolist()
            return [names[first:last] for first, last in pairwise(indptr.tolist())]
        return self._indicator(indptr, ids)

    def predict_proba(self, X: Any) -> Float64:
        """Scores as probabilities: float64 (n, K).

        One label each: the scores scaled to sum to 1 over all labels. Label sets: each label's own, in (0, 1).
        MemoryBudgetError for more than 2**27 of them (1 GiB); `top_k` has no such limit.
        """
        scores = self._all_scores(X)
        if self.multilabel_:
            return _inside(scores)
        best = scores.argmax(axis=1)[:, None]
        scores = np.maximum(scores, 0.0)
        np.put_along_axis(scores, best, np.maximum(np.take_along_axis(scores, best, 1), _TINY), 1)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    def decision_function(self, X: Any) -> Float64:
        """Scores of all labels, float64: the higher, the likelier; limits as in `predict_proba`.

        One label each: the scores (n, K), or for two labels the log-odds (n,) of the second. Label sets: scores less
        the threshold (n, K), so that what is not negative is predicted. A label never seen in training has score -1.
        """
        scores = self._all_scores(X)
        if self.multilabel_:
            return scores - self.threshold
        if scores.shape[1] == 2:
            return np.asarray(np.diff(np.log(_inside(scores)), axis=1)[:, 0])
        return scores

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of samples whose best label is right: accuracy, or where samples have label sets precision at 1."""
        check_is_fitted(self)
        ids, _ = self._model_top_k(self._queries(X), 1)
        labels, _ = match_labels(y, self.model_.names)
        if len(labels) != len(ids):
            raise DataError(f"expected as many label sets as samples ({len(ids)}), got {len(labels)}")
        weights = weights_of(sample_weight, len(ids))
        return float(np.average(hits(ids, labels)[:, 0], weights=weights)) if len(ids) else 0.0

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write the model to a folder (see `machxc.model.Model.save`); of this estimator it keeps the settings."""
        check_is_fitted(self)
        self.model_.save(path, overwrite)

    @classmethod
    def load(cls, path: Path | str, **params: Any) -> Self:
        """A fitted estimator from a model folder, however it was trained; no code is run, nothing is unpickled.

        Its parameters are what the settings had become; ``params`` sets those that a model does not hold
        (``threshold``, ``n_jobs``, ...). Samples are taken to have label sets unless every one in training had one
        label. ModelError when the folder is not a model.
        """
        model = Model.load(path)
        settings = {name: getattr(model.config, name) for name in _SETTINGS} | {"random_state": model.config.seed}
        text = {} if model.config.text is None else dataclasses.asdict(model.config.text)
        loaded = cls(**(settings | text | params))
        loaded.model_ = model
        exclusive = model.data.label_counts.n_pairs == model.n_samples
        loaded._form = "labels" if exclusive else "sparse" if model.names.kind == "ids" else "sets"
        if model.config.text is None:
            loaded.n_features_in_ = model.config.n_features
        return loaded

    @property
    def classes_(self) -> Array:
        """The names of the labels, in the order of their ids."""
        return self.model_.names.names(np.arange(len(self.model_.names)))

    @property
    def multilabel_(self) -> bool:
        """Whether samples have label sets, not one label each."""
        check_is_fitted(self)
        return self._form != "labels"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.input_tags.sparse = True
        return tags

    def _settings(self) -> Settings:
        given = {name: _plain(getattr(self, name)) for name in (*_SETTINGS, *_TEXT)}
        for name, value in given.items():
            if value is not None:
                check_bound(type(self).__name__, name, value)
        threshold = _plain(self.threshold)
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise self._error("threshold", "a number in [0, 1]")
        if self.memory_budget is not None:
            check_count("memory_budget", self.memory_budget)
        return Settings(**{name: given[name] for name in _SETTINGS}, seed=self._seed())

    def _seed(self) -> int:
        state = _plain(self.random_state)
        if isinstance(state, int) and not isinstance(state, bool) and 0 <= state < 2**63:
            return state
        if state is None or isinstance(state, np.random.RandomState):
            return int(check_random_state(state).randint(2**31 - 1))
        raise self._error("random_state", "an int in [0, 9223372036854775807], a RandomState or None")

    def _text_config(self) -> TextConfig | None:
        given = {name: _plain(getattr(self, name)) for name in _TEXT if getattr(self, name) is not None}
        return TextConfig(**given) if given else None

    def _jobs(self) -> int:
        jobs = _plain(self.n_jobs)
        if jobs is None or (isinstance(jobs, int) and not isinstance(jobs, bool) and jobs != 0):
            return int(effective_n_jobs(jobs))
        raise self._error("n_jobs", "None or an int other than 0")

    def _error(self, name: str, expected: str) -> SettingError:
        value = getattr(self, name)
        return SettingError(
            f"The '{name}' parameter of {type(self).__name__} must be {expected}. Got {value!r} instead."
        )

    def _features(self, X: Any, text: TextConfig | None, fitted: Config | None) -> tuple[Features, TextConfig | None]:
        """Features of X; numeric ones are first looked at by scikit-learn (column names and number, NaN, shape)."""
        if text is None and texts_of(X) is None:
            X = validate_data(self, X, accept_sparse="csr", reset=fitted is None)
        elif fitted is None:
            for name in ("n_features_in_", "feature_names_in_"):  # of an earlier fit
                self.__dict__.pop(name, None)
        return features_of(X, text=text, n_features=None if fitted is None else fitted.n_features)

    def _queries(self, X: Any) -> Features:
        return self._features(X, self.model_.config.text, self.model_.config)[0]

    def _model_top_k(self, features: Features, k: int, candidates: Int64 | None = None) -> tuple[Int64, Float32]:
        return self._answering().top_k(features, k, candidates=candidates, jobs=self._jobs())

    def _answering(self) -> Model:
        return self.model_.to(self.device)

    def _ids_of(self, candidates: Any) -> Int64:
        names = list(candidates)
        ids = self.model_.names.ids_of(names)
        if (ids < 0).any():
            unknown = names[int(np.argmax(ids < 0))]
            raise DataError(
                f"the model does not know the candidate label {unknown!r}; expected one of its {len(self.model_.names)}"
            )
        return ids

    def _all_scores(self, X: Any) -> Float64:
        """The score of every label for every sample, -1 (no score is below) for labels never seen in training."""
        check_is_fitted(self)
        features, n_labels = self._queries(X), len(self.model_.names)
        _refuse_large(len(features), n_labels)
        scores = self._answering().label_scores(features, np.arange(n_labels), jobs=self._jobs()).astype(np.float64)
        scores[:, self.model_.label_counts == 0] = -1.0
        return scores

    def _above_threshold(self, features: Features) -> tuple[Int64, Int64]:
        """The labels from the threshold up, best first, as CSR offsets (int64 [n + 1]) and ids."""
        sizes, found = [np.zeros(1, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(features), _QUERIES):
            ids, above = self._block_above(features.rows(start, min(start + _QUERIES, len(features))))
            sizes.append(above.sum(axis=1))
            found.append(ids[above])
        return np.cumsum(np.concatenate(sizes)), np.concatenate(found)

    def _block_above(self, features: Features) -> tuple[Int64, npt.NDArray[np.bool_]]:
        """Look at ever more labels until no sample's last one is above the threshold."""
        k, n_labels = _FIRST_LABELS, len(self.model_.names)
        while True:
            k = min(k, n_labels)
            _refuse_large(len(features), k)
            ids, scores = self._model_top_k(features, k)
            above = (scores.astype(np.float64) >= self.threshold) & (ids >= 0)
            if k == n_labels or not above[:, -1].any():
                return ids, above
            k *= 4

    def _indicator(self, indptr: Int64, ids: Int64) -> Any:
        shape = len(indptr) - 1, len(self.model_.names)
        matrix = csr_array((np.ones(len(ids), np.int64), ids, indptr), shape=shape)
        matrix.sort_indices()
        if self._form == "sparse":
            return matrix
        _refuse_large(*shape)
        return matrix.toarray()


def _plain(value: Any) -> Any:
    """A NumPy scalar (as parameter grids have them) as the Python number it stands for; also those in a list."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _inside(scores: Float64) -> Float64:
    """Scores moved into the open interval (0, 1), by less than float32 can tell."""
    return np.clip(scores, _TINY, 1.0 - 2.0**-30)


def _refuse_large(n: int, n_labels: int) -> None:
    if n * n_labels > _MAX_SCORES:
        most = max(1, _MAX_SCORES // n_labels)
        what = f"{n} samples x {n_labels} labels are more than {_MAX_SCORES} scores"
        raise MemoryBudgetError(f"{what}; use top_k, or give at most {most} samples at a time")


def _warn_of_column(y: Any) -> None:
    if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1 and not hasattr(y, "tocsr"):
        message = "A column-vector y was passed when a 1d array was expected; give it the shape (n_samples,)"
        warnings.warn(message, DataConversionWarning, stacklevel=3)
