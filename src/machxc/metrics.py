"""How good a ranking is: precision, recall, nDCG and propensity-scored precision at k, for sparse label sets.

Definitions, with y the set of true labels of a sample and hit_j = 1 when the j-th ranked label is in y:

====== ======================================================================== ===========================
P@k    sum_{j<=k} hit_j / k                                                     mean over all samples
R@k    sum_{j<=k} hit_j / |y|                                                   mean over samples with labels
nDCG@k sum_{j<=k} hit_j / log2(j + 1), over its value for a perfect ranking     mean over samples with labels
PSP@k  sum_{j<=k} hit_j / p_j, p the label's propensity (`propensities`)        sum over samples, over the
                                                                                sum of the best attainable
====== ======================================================================== ===========================

P@k is divided by k, never by min(k, |y|). A label ranked twice counts once, at its better place. A sample may carry
labels that the model cannot know (``unknown``): they are never hit, but count wherever the true labels are counted,
as labels never seen in training do. What there is nothing to measure of (no sample, no label) is 0.

Pure NumPy; nothing of length K is made, so that evaluation at a hundred million labels takes what its batch takes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from machxc.errors import DataError, SettingError
from machxc.label_counts import LabelCounts
from machxc.samples import Int64, Labels

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

DEFAULT_KS = (1, 3, 5, 10, 100)
PROPENSITY_A = 0.55
PROPENSITY_B = 1.5
_BLOCK = 1 << 21  # ranked ids looked up at a time: bounds the memory of one `add` of a whole test set


def propensities(
    label_counts: npt.ArrayLike, n_samples: int, a: float = PROPENSITY_A, b: float = PROPENSITY_B
) -> Float64:
    """Probability that a true label was recorded: p = 1 / (1 + C (n_l + b)^-a), C = (ln N - 1) (b + 1)^a.

    Jain, Prabhu and Varma, "Extreme multi-label loss functions", KDD 2016, equation 3. ``label_counts`` is n_l, how
    many of the ``n_samples`` N training samples carry each label; the result is float64 of its shape. C is taken as 0
    (every propensity 1) for N <= 2, where the formula would turn negative. SettingError when a parameter is out of
    its bounds.
    """
    n_samples = check_count("n_samples", n_samples, 0)
    if not (math.isfinite(a) and a >= 0):
        raise SettingError(f"The propensity parameter 'a' must be a number in [0, inf). Got {a!r} instead.")
    if not (math.isfinite(b) and b > 0):
        raise SettingError(f"The propensity parameter 'b' must be a number in (0, inf). Got {b!r} instead.")
    c = max(math.log(n_samples) - 1.0, 0.0) * (b + 1.0) ** a if n_samples else 0.0
    counts = np.asarray(label_counts, dtype=np.float64)
    return np.asarray(1.0 / (1.0 + c * (counts + b) ** -a), dtype=np.float64)


@dataclass
class _Sums:
    """What adds up over samples, for one k."""

    hits: int = 0
    recall: float = 0.0
    ndcg: float = 0.0
    gain: float = 0.0
    best: float = 0.0


@dataclass(frozen=True)
class _Batch:
    """Rankings and truth of a few samples: which places hit, how many labels each has."""

    ids: Int64
    hits: Bool
    labels: Labels
    unknown: Int64

    @property
    def n_true(self) -> Int64:
        return np.diff(self.labels.indptr) + self.unknown


@dataclass(eq=False)
class Evaluation:
    """Adds up the metrics batch by batch, so that nobody holds all rankings.

    ``ks``: the depths to report. ``label_counts`` (int [K], or a `LabelCounts`) and ``n_samples`` describe the
    TRAINING set and are what PSP@k needs; without them there is no PSP@k. ``a`` and ``b``: see `propensities`.
    """

    ks: Iterable[int] = DEFAULT_KS
    label_counts: npt.NDArray[Any] | LabelCounts | None = None
    n_samples: int = 0
    a: float = PROPENSITY_A
    b: float = PROPENSITY_B
    _evaluated: int = field(default=0, init=False)
    _with_labels: int = field(default=0, init=False)
    _sums: dict[int, _Sums] = field(init=False)

    def __post_init__(self) -> None:
        self.ks = tuple(sorted({check_count("k", k) for k in self.ks}))
        if not self.ks:
            raise SettingError("The 'ks' parameter of Evaluation must name at least one k. Got none instead.")
        self._sums = {k: _Sums() for k in self.ks}
        self._inverse_propensity(np.zeros(1, np.int64))  # bad parameters are refused here, not at the first batch

    def add(self, ids: npt.ArrayLike, labels: Labels, unknown: npt.ArrayLike | None = None) -> None:
        """Take in rankings ``ids`` (int [n, width], best first, -1 where there is none) of n samples and their truth.

        ``unknown`` (int [n]): how many further true labels of each sample the model does not know. DataError when
        the lengths differ, an id is neither -1 nor a label, or the labels of a sample are not sorted and unique.
        """
        ranked = np.asarray(ids)
        extra = np.zeros(len(labels), np.int64) if unknown is None else np.asarray(unknown)
        _check(ranked, labels, extra)
        if self.label_counts is not None and len(self.label_counts) != labels.n_labels:
            raise DataError(f"expected labels out of {len(self.label_counts)} as in training, got {labels.n_labels}")
        for start, stop in _blocks(len(labels), max(self._sums)):
            rows = labels.rows(start, stop)
            top = ranked[start:stop, : max(self._sums)].astype(np.int64, copy=False)
            self._add(_Batch(top, hits(top, rows), rows, extra[start:stop].astype(np.int64)))

    def result(self) -> dict[str, float]:
        """The metrics of what was added: "P@1", "R@1", "nDCG@1", "PSP@1", ... and "n_samples" (how many were added)."""
        found: dict[str, float] = {"n_samples": self._evaluated}
        for k, sums in self._sums.items():
            found[f"P@{k}"] = _ratio(sums.hits, self._evaluated * k)
            found[f"R@{k}"] = _ratio(sums.recall, self._with_labels)
            found[f"nDCG@{k}"] = _ratio(sums.ndcg, self._with_labels)
            if self.label_counts is not None:
                found[f"PSP@{k}"] = _ratio(sums.gain, sums.best)
        return found

    def _add(self, batch: _Batch) -> None:
        n_true = batch.n_true
        self._evaluated += len(n_true)
        self._with_labels += int((n_true > 0).sum())
        discounts = 1.0 / np.log2(np.arange(2, max(self._sums) + 2))
        ideal = np.concatenate(([1.0], np.cumsum(discounts)))  # of 0 labels: 1, where the sum above it is 0
        for k, sums in self._sums.items():
            found = batch.hits[:, :k]
            sums.hits += int(found.sum())
            sums.recall += float((found.sum(axis=1) / np.maximum(n_true, 1)).sum())
            sums.ndcg += float((found @ discounts[: found.shape[1]] / ideal[np.minimum(n_true, k)]).sum())
        if self.label_counts is not None:
            self._add_propensity_scored(batch)

    def _add_propensity_scored(self, batch: _Batch) -> None:
        assert self.label_counts is not None
        place = np.nonzero(batch.hits)[1]
        gains = self._inverse_propensity(self.label_counts[batch.ids[batch.hits]])
        attainable, rank = self._attainable(batch)
        (highest,) = self._inverse_propensity(np.zeros(1, np.int64))
        for k, sums in self._sums.items():
            sums.gain += float(gains[place < k].sum())
            sums.best += float(attainable[rank < k].sum() + highest * np.minimum(batch.unknown, k).sum())

    def _attainable(self, batch: _Batch) -> tuple[Float64, Int64]:
        """The gain of every true label and its rank in a perfect ranking, behind the unknown ones (none gains more)."""
        assert self.label_counts is not None
        sizes = np.diff(batch.labels.indptr)
        rows = np.repeat(np.arange(len(sizes)), sizes)
        gains = self._inverse_propensity(self.label_counts[batch.labels.indices])
        gains = gains[np.lexsort((-gains, rows))]
        return gains, np.arange(len(rows)) - np.repeat(batch.labels.indptr[:-1] - batch.unknown, sizes)

    def _inverse_propensity(self, counts: npt.ArrayLike) -> Float64:
        return np.asarray(1.0 / propensities(counts, self.n_samples, self.a, self.b))


def precision_at_k(ids: npt.ArrayLike, labels: Labels, k: int) -> float:
    """P@k: the share of the first k ranked labels that are true; mean over all samples. Arguments: `Evaluation.add`."""
    return _one("P", k, ids, labels, None)


def recall_at_k(ids: npt.ArrayLike, labels: Labels, k: int, unknown: npt.ArrayLike | None = None) -> float:
    """R@k: the share of the true labels that are among the first k; mean over samples with labels."""
    return _one("R", k, ids, labels, unknown)


def ndcg_at_k(ids: npt.ArrayLike, labels: Labels, k: int, unknown: npt.ArrayLike | None = None) -> float:
    """nDCG@k with gains 0 and 1 and discount log2(1 + place); mean over samples with labels."""
    return _one("nDCG", k, ids, labels, unknown)


def psp_at_k(
    ids: npt.ArrayLike,
    labels: Labels,
    k: int,
    label_counts: npt.NDArray[Any],
    n_samples: int,
    *,
    a: float = PROPENSITY_A,
    b: float = PROPENSITY_B,
    unknown: npt.ArrayLike | None = None,
) -> float:
    """PSP@k, over the best attainable; ``label_counts`` (int [K]) and ``n_samples`` are those of the training set."""
    evaluation = Evaluation((k,), label_counts, n_samples, a, b)
    evaluation.add(ids, labels, unknown)
    return evaluation.result()[f"PSP@{k}"]


@dataclass(frozen=True)
class PrecisionAtK:
    """A scorer for cross-validation and searches: call it with (estimator, X, y). See `precision_at_k_scorer`."""

    k: int = 1

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        """P@k of a fitted MACHClassifier, alone, at the end of a Pipeline, or the best of a search."""
        from machxc.data.arrays import match_labels  # it compiles kernels, which nothing else here needs

        classifier, X = _last_step(estimator, X)
        if not hasattr(classifier, "top_k"):
            given = type(classifier).__name__
            raise SettingError(f"precision_at_k_scorer expects a MACHClassifier. Got {given} instead.")
        ids, _ = classifier.top_k(X, self.k, return_ids=True)
        labels, _ = match_labels(y, classifier.model_.names)
        return precision_at_k(ids, labels, self.k)


def precision_at_k_scorer(k: int = 1) -> PrecisionAtK:
    """A scorer that gives P@k: ``cross_val_score(MACHClassifier(), X, y, scoring=precision_at_k_scorer(5))``.

    Divided by k, mean over all samples; a label that the training part did not have is one that is missed.
    """
    return PrecisionAtK(check_count("k", k))


def _one(metric: str, k: int, ids: npt.ArrayLike, labels: Labels, unknown: npt.ArrayLike | None) -> float:
    evaluation = Evaluation((k,))
    evaluation.add(ids, labels, unknown)
    return evaluation.result()[f"{metric}@{k}"]


def hits(ids: Int64, labels: Labels) -> Bool:
    """Which places of the rankings ``ids`` (int64 [n, width]) hold a true label; of a label ranked twice, the first."""
    sizes = np.diff(labels.indptr)
    rows = np.arange(len(sizes), dtype=np.int64)
    truth = np.repeat(rows, sizes) * labels.n_labels + labels.indices  # rising: rows rise, and labels within a row
    if (np.diff(truth) <= 0).any():
        raise DataError("expected the labels of every sample sorted and without repeats; machxc's readers give them so")
    if not len(truth):
        return np.zeros(ids.shape, bool)
    keys = (ids + rows[:, None] * labels.n_labels).ravel()
    at = np.minimum(np.searchsorted(truth, keys), len(truth) - 1)
    places = np.flatnonzero((truth[at] == keys) & (ids.ravel() >= 0))
    found = np.zeros(ids.size, bool)
    found[places[np.unique(at[places], return_index=True)[1]]] = True
    return found.reshape(ids.shape)


def _check(ids: npt.NDArray[Any], labels: Labels, unknown: npt.NDArray[Any]) -> None:
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise DataError(f"expected ranked label ids as a 2-D int array, got {ids.ndim}-D {ids.dtype}")
    if len(ids) != len(labels):
        raise DataError(f"expected one ranking a sample ({len(labels)}), got {len(ids)}")
    if ids.size and not (int(ids.min()) >= -1 and int(ids.max()) < labels.n_labels):
        wrong = int(ids.min()) if int(ids.min()) < -1 else int(ids.max())
        raise DataError(f"ranked label id {wrong} is out of range: expected -1 or ids in [0, {labels.n_labels})")
    if unknown.shape != (len(labels),) or (unknown.size and unknown.dtype.kind not in "iu") or (unknown < 0).any():
        raise DataError(f"expected a count of unknown labels for each of {len(labels)} samples, got {unknown!r}")


def _blocks(n: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // width)
    return ((start, min(start + step, n)) for start in range(0, n, step))


def check_count(name: str, value: Any, low: int = 1) -> int:
    """``value`` as an int; SettingError unless it is one and at least ``low``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or isinstance(value, bool):
        raise SettingError(f"The '{name}' parameter must be an int in [{low}, inf). Got {value!r} instead.")
    return number


def _last_step(estimator: Any, X: Any) -> tuple[Any, Any]:
    """The classifier inside searches and pipelines, and X as it sees it."""
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    if not hasattr(estimator, "steps"):
        return estimator, X
    before = estimator[:-1]
    return _last_step(estimator[-1], before.transform(X) if len(before) else X)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
