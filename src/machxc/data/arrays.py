"""What Python programs hold in memory (lists, NumPy arrays, SciPy matrices, pandas objects) as samples and label sets.

Features: texts, a sparse matrix, a dense 2-D array, or a DataFrame. Labels: one a sample, a set a sample, or an
indicator matrix. Nothing given is changed; SciPy and pandas are never imported: what is given tells what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from machxc.config import TextConfig
from machxc.errors import DataError
from machxc.features.text import N_TOKENS, choose_text_config, token_features
from machxc.labels import LabelNames
from machxc.samples import Array, Features, Float32, Int64, Labels

Form = Literal["labels", "sets", "indicator", "sparse"]

_DENSE = 1 << 20  # values of a dense array made sparse in one step
_SETS = (list, tuple, set, frozenset, np.ndarray)
_TWO_D = "expected a list of texts, or a 2-D array or sparse matrix of numbers (one row a sample)"


def features_of(
    X: Any, *, text: TextConfig | None = None, n_features: int | None = None
) -> tuple[Features, TextConfig | None]:
    """The features of samples ``X``, and how they came from text (None: they were numbers).

    Texts: a list, array or Series of str, or a DataFrame (or 2-D array) whose only column is text. ``text`` says how
    to read them; None chooses. Numbers: a SciPy sparse matrix or array (any format and index type; duplicates are
    summed), a 2-D array or nested list, a DataFrame of numeric columns; zeros are left out.

    For samples of a trained model give its ``text``, or its ``n_features``: X of the other sort, or of another width,
    is a DataError, and so are NaN, infinite, complex and missing values.
    """
    texts = texts_of(X)
    if texts is None and text is not None and not _is_empty_list(X):
        raise DataError(f"expected texts, got {_described(X)}; the settings or the model are for text")
    if texts is None and text is None:
        return _numeric(X, n_features), None
    if n_features is not None and text is None:
        raise DataError(f"expected samples with {n_features} numeric features, as in training, got texts")
    config = text or choose_text_config(texts or [])[0]
    return token_features(texts or [], config), config


def texts_of(X: Any) -> list[Any] | None:
    """The items of X if it is a sequence of texts (some may be missing; `token_features` refuses those), else None."""
    if isinstance(X, str | bytes):
        raise DataError(f"expected a list of texts, got one {type(X).__name__}; put it in a list")
    if isinstance(X, list | tuple):
        return list(X) if _begins_with_text(X) else None
    if _is_sparse(X) or (_is_frame(X) and X.shape[1] != 1):
        return None
    array = np.asarray(X)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "OUT":
        return None
    items: list[Any] = array.tolist()
    return items if _begins_with_text(items) else None


def labels_of(y: Any, names: LabelNames | None = None) -> tuple[Labels, LabelNames]:
    """The label sets ``y`` and the names of their labels.

    One label a sample: a sequence of str or integers. Label sets: a sequence of lists, tuples, sets or arrays of
    them. An indicator matrix of 0 and 1, dense or sparse: labels are its column numbers (nested lists of 0 and 1, all
    as long, are one too, as in scikit-learn). Names are sorted.

    With ``names`` (a model's), labels are looked up there; one that is unknown is a DataError (`match_labels` counts
    such instead).
    """
    return parsed_labels(y, names)[:2]


def parsed_labels(y: Any, names: LabelNames | None = None) -> tuple[Labels, LabelNames, Form]:
    """`labels_of`, and what ``y`` was: one of "labels" (one a sample), "sets", "indicator" (dense), "sparse"."""
    given = _given(y, names)
    if names is not None:
        labels, unknown = _matched(given, names)
        if unknown.any():
            raise DataError(_unknown_label(given, int(np.argmax(unknown > 0)), names))
        return labels, names, given.form
    distinct, codes = _distinct(given.flat)
    names = _names_of(distinct) if given.columns is None else LabelNames.ids(given.columns)
    if not len(names):
        raise DataError(f"expected at least one label, got none in {len(given.indptr) - 1} samples")
    ids = codes if given.columns is None else given.flat
    return _labels(given.rows(), ids, given, len(names)), names, given.form


def match_labels(y: Any, names: LabelNames) -> tuple[Labels, Int64]:
    """The labels of ``y`` (see `labels_of`) that ``names`` has, and how many it lacks of each sample (int64 [N])."""
    return _matched(_given(y, names), names)


def weights_of(sample_weight: Any, n_samples: int) -> Float32 | None:
    """Sample weights as float32 [N], or None for None. DataError unless finite, not negative and not all zero."""
    if sample_weight is None:
        return None
    given = _as_array(sample_weight, "sample weights")
    if given.dtype.kind not in "biuf":
        raise DataError(f"expected sample weights as numbers, got {_described(given)}")
    weights = _float32(given)
    if weights.shape != (n_samples,):
        raise DataError(f"expected one sample weight for each of {n_samples} samples, got shape {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError("expected sample weights that are finite and not negative")
    if n_samples and not weights.any():
        raise DataError("expected sample weights of which at least one is not zero; all are zero")
    return weights


# Features


def _numeric(X: Any, n_features: int | None) -> Features:
    features = _from_sparse(X) if _is_sparse(X) else _from_dense(_matrix(X))
    if features.n_features < 1 or features.n_features > N_TOKENS:
        raise DataError(f"expected between 1 and {N_TOKENS} features, got {features.n_features}")
    if n_features is not None and features.n_features != n_features:
        raise DataError(f"expected samples with {n_features} features, as in training, got {features.n_features}")
    features.check()
    return features


def _from_sparse(X: Any) -> Features:
    matrix = _csr(X)
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"expected a sparse matrix of real numbers, got {matrix.dtype}{_complex_hint(matrix.dtype)}")
    if not matrix.has_canonical_format:
        matrix = matrix.copy() if matrix is X else matrix
        matrix.sum_duplicates()
    values, indptr = _float32(matrix.data), np.asarray(matrix.indptr, np.int64)
    indices = np.asarray(matrix.indices)
    kept = values != 0
    if not kept.all():
        indptr = np.concatenate(([0], np.cumsum(kept)))[indptr]
        values, indices = values[kept], indices[kept]
    return Features(indptr, indices.astype(np.uint32), values, int(matrix.shape[1]))


def _from_dense(array: Array) -> Features:
    """What is not 0, some rows at a time: beside the array there is little more than the 8 bytes of each value."""
    n, width = array.shape
    step = max(1, _DENSE // max(1, width))
    parts = [slice(start, start + step) for start in range(0, n, step)]
    sizes = [np.count_nonzero(_float32(array[part]), axis=1) for part in parts]
    indptr = np.concatenate([np.zeros(1, np.int64), *sizes]).cumsum(dtype=np.int64)
    indices, values = np.empty(indptr[-1], np.uint32), np.empty(indptr[-1], np.float32)
    for part in parts:
        block = _float32(array[part])
        first, last = indptr[part.start], indptr[min(part.stop, n)]
        indices[first:last] = np.nonzero(block)[1]
        values[first:last] = block[block != 0]
    return Features(indptr, indices, values, width)


def _matrix(X: Any) -> Array:
    array = _frame_values(X) if _is_frame(X) else _as_array(X, "features")
    if array.dtype.kind == "O":
        array = _floats(array)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{_TWO_D}, got {_described(array)}{_complex_hint(array.dtype)}")
    if array.ndim != 2:
        hint = "; reshape one sample to (1, -1)" if array.ndim == 1 else ""
        raise DataError(f"{_TWO_D}, got {_described(array)}{hint}")
    return array


def _frame_values(frame: Any) -> Array:
    """Column by column, so that what is not numeric is refused by its name."""
    values = np.empty(frame.shape, np.float64)
    for place, name in enumerate(frame.columns):
        try:
            values[:, place] = _column(frame.iloc[:, place] if hasattr(frame, "iloc") else frame[name])
        except (TypeError, ValueError):
            raise DataError(
                f"column {name!r} is not numeric; expected numeric columns, or one column of text"
            ) from None
    return values


def _column(series: Any) -> Array:
    if np.asarray(series[:1]).dtype.kind in "UTMmc" or _begins_with_text(series[:1]):
        raise TypeError
    if hasattr(series, "array"):  # pandas: missing values of its own kinds become NaN
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(series, np.float64)


def _floats(array: Array) -> Array:
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{_TWO_D}, got an array of objects: {error}") from None


def _float32(array: Array) -> Float32:
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 becomes infinite, and is refused
        return np.asarray(array).astype(np.float32, copy=False)


# Labels


@dataclass(frozen=True)
class _Given:
    """Label sets as given: sample i has flat[indptr[i] : indptr[i + 1]], names, or column numbers of an indicator."""

    indptr: Int64
    flat: Int64 | list[str]
    form: Form
    columns: int | None = None

    def rows(self) -> Int64:
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))


def _given(y: Any, names: LabelNames | None) -> _Given:
    if y is None:
        raise DataError("labels are needed: training requires y to be passed, but the target y is None")
    if isinstance(y, str | bytes | dict):
        raise DataError(f"expected a sequence of labels or label sets, got {_described(y)}")
    if _is_sparse(y):
        return _given_sparse(y)
    array: Array = np.empty(0) if isinstance(y, list | tuple) else np.asarray(y)
    if array.ndim == 2 and array.shape[1] != 1:
        return _given_indicator(array)
    rows: Any = y if isinstance(y, list | tuple) else array.ravel() if array.ndim == 2 else array
    if array.ndim > 2 or array.ndim < 1:
        raise DataError(f"expected labels as a 1-D sequence or an indicator matrix, got {_described(array)}")
    if len(rows) and isinstance(rows[0], _SETS):
        return _given_sets(rows, names)
    return _Given(np.arange(len(rows) + 1, dtype=np.int64), _flat(rows), "labels")


def _given_sets(rows: Sequence[Any], names: LabelNames | None) -> _Given:
    wrong = next((i for i, row in enumerate(rows) if not isinstance(row, _SETS)), None)
    if wrong is not None:
        raise DataError(f"sample {wrong}: expected a list of labels as in sample 0, got {rows[wrong]!r:.60}")
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    flat = _flat(list(chain.from_iterable(rows)))
    if _looks_like_indicator(rows, sizes, flat, names):
        return _given_indicator(np.asarray(flat).reshape(len(rows), -1))
    return _Given(np.concatenate(([0], np.cumsum(sizes))), flat, "sets")


def _looks_like_indicator(rows: Sequence[Any], sizes: Int64, flat: Int64 | list[str], names: LabelNames | None) -> bool:
    """Whether nested lists are an indicator: rows of one length, from 2, of 0 and 1. (A set repeats no label.)"""
    width = int(sizes[0])
    regular = width >= 2 and (sizes == width).all() and not isinstance(rows[0], set | frozenset)
    if not regular or isinstance(flat, list) or (names is not None and len(names) != width):
        return False
    return bool(((flat == 0) | (flat == 1)).all())


def _given_indicator(array: Array) -> _Given:
    if array.dtype.kind == "O":
        array = _floats(array)
    if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
        raise DataError(
            f"expected an indicator matrix of 0 and 1, got other values in {_described(array)}; "
            "label names go in a list of lists"
        )
    rows, columns = np.nonzero(array)
    sizes = np.bincount(rows, minlength=len(array))
    return _Given(np.concatenate(([0], np.cumsum(sizes))), columns.astype(np.int64), "indicator", array.shape[1])


def _given_sparse(y: Any) -> _Given:
    matrix = _csr(y)
    kept = np.asarray(matrix.data) != 0
    if not (np.asarray(matrix.data)[kept] == 1).all():
        raise DataError("expected a sparse indicator matrix of 0 and 1, got other values")
    indptr = np.concatenate(([0], np.cumsum(kept)))[matrix.indptr].astype(np.int64)
    return _Given(indptr, np.asarray(matrix.indices)[kept].astype(np.int64), "sparse", int(matrix.shape[1]))


def _flat(items: Sequence[Any] | Array) -> Int64 | list[str]:
    """Labels one after the other: int64, or str. DataError when they are anything else, or some of each."""
    if isinstance(items, np.ndarray) and items.dtype.kind in "OUT":
        items = items.tolist()
    if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items) and len(items):
        return [str(item) for item in items]
    array: Array = _as_array(items, "labels") if len(items) else np.empty(0, np.int64)
    if array.dtype.kind == "O" and all(isinstance(item, int | np.integer) for item in items):
        raise DataError("expected integer labels between -2**63 and 2**63 - 1, got one beyond")
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        kinds = sorted({type(item).__name__ for item in items})
        raise DataError(f"Unknown label type: expected labels that are all str or all integers, got {kinds}")
    return _integers(array)


def _integers(array: Array) -> Int64:
    if array.dtype.kind == "f":
        wrong = array[~(np.isfinite(array) & (array == np.floor(array)))]
        if len(wrong):
            raise DataError(f"Unknown label type: expected str or integers, got continuous or missing: {wrong[0]}")
    if array.dtype.kind in "fu" and array.size and max(int(array.max()), -int(array.min())) >= 2**63:
        raise DataError("expected integer labels between -2**63 and 2**63 - 1, got one beyond")
    return array.astype(np.int64)


def _distinct(flat: Int64 | list[str]) -> tuple[Int64 | list[str], Int64]:
    """The distinct labels, sorted, and of each item which one it is."""
    if not isinstance(flat, list):
        values, codes = np.unique(flat, return_inverse=True)
        return values, codes.astype(np.int64)
    names = sorted(set(flat))
    code = {name: i for i, name in enumerate(names)}
    return names, np.fromiter(map(code.__getitem__, flat), np.int64, len(flat))


def _names_of(distinct: Int64 | list[str]) -> LabelNames:
    if isinstance(distinct, list):
        return LabelNames.strings(distinct)
    counted = len(distinct) == 0 or (int(distinct[0]) == 0 and int(distinct[-1]) == len(distinct) - 1)
    return LabelNames.ids(len(distinct)) if counted else LabelNames.integers(distinct)


def _matched(given: _Given, names: LabelNames) -> tuple[Labels, Int64]:
    if given.columns is not None and given.columns != len(names):
        raise DataError(f"expected an indicator matrix of {len(names)} columns, as in training, got {given.columns}")
    if given.columns is not None:
        return _labels(given.rows(), np.asarray(given.flat), given, len(names)), _no_unknown(given)
    distinct, codes = _distinct(given.flat)
    rows, codes = _unique_pairs(given.rows(), codes, max(len(distinct), 1))
    ids = names.ids_of(distinct)[codes]
    unknown = np.bincount(rows[ids < 0], minlength=len(given.indptr) - 1)
    return _labels(rows[ids >= 0], ids[ids >= 0], given, len(names)), unknown.astype(np.int64)


def _unknown_label(given: _Given, row: int, names: LabelNames) -> str:
    labels = given.flat[int(given.indptr[row]) : int(given.indptr[row + 1])]
    listed = labels if isinstance(labels, list) else labels.tolist()
    label = next(label for label, i in zip(listed, names.ids_of(labels), strict=True) if i < 0)
    return f"sample {row} has the label {label!r}, which the model does not know: expected one of its {len(names)}"


def _no_unknown(given: _Given) -> Int64:
    return np.zeros(len(given.indptr) - 1, np.int64)


def _labels(rows: Int64, ids: Any, given: _Given, n_labels: int) -> Labels:
    """Label sets from pairs (row, id) in any order, repeated or not."""
    if len(ids) and not 0 <= int(np.min(ids)) <= int(np.max(ids)) < n_labels:
        raise DataError(f"an indicator matrix has a column number out of range: expected [0, {n_labels})")
    rows, ids = _unique_pairs(rows, np.asarray(ids, np.int64), max(n_labels, 1))
    sizes = np.bincount(rows, minlength=len(given.indptr) - 1)
    return Labels(np.concatenate(([0], np.cumsum(sizes))).astype(np.int64), ids.astype(np.uint32), n_labels)


def _unique_pairs(rows: Int64, ids: Int64, n_ids: int) -> tuple[Int64, Int64]:
    pairs = np.unique(rows * n_ids + ids)
    return pairs // n_ids, pairs % n_ids


# What is what


def _is_sparse(X: Any) -> bool:
    return hasattr(X, "tocsr") and hasattr(X, "nnz")


def _is_frame(X: Any) -> bool:
    return hasattr(X, "columns") and hasattr(X, "shape") and len(X.shape) == 2


def _is_empty_list(X: Any) -> bool:
    return not _is_sparse(X) and not _is_frame(X) and np.ndim(X) == 1 and len(X) == 0


def _begins_with_text(items: Iterable[Any]) -> bool:
    """Whether the first item that is not missing is a str."""
    for item in items:
        if isinstance(item, str):
            return True
        if item is not None and not isinstance(item, float) and type(item).__name__ != "NAType":
            return False
    return False


def _csr(X: Any) -> Any:
    if X.ndim != 2:
        raise DataError(f"expected a 2-D sparse matrix (one row a sample), got {X.ndim}-D")
    matrix = X.tocsr()
    indices = np.asarray(matrix.indices)
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < matrix.shape[1]:
        raise DataError(f"a sparse matrix has a column number out of range: expected [0, {matrix.shape[1]})")
    return matrix


def _as_array(values: Any, what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"expected {what} as an array, got a sequence that makes none: {error}") from None


def _described(X: Any) -> str:
    shape, dtype = getattr(X, "shape", None), getattr(X, "dtype", None)
    if shape is None:
        return type(X).__name__
    return f"{type(X).__name__} of shape {tuple(shape)}" + (f" of {dtype}" if dtype is not None else "")


def _complex_hint(dtype: np.dtype[Any]) -> str:
    return ". Complex data not supported" if dtype.kind == "c" else ""
