"""Every in-memory form of the same samples gives the same arrays; what is not samples is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from machxc.config import TextConfig
from machxc.data.arrays import features_of, labels_of, match_labels, weights_of
from machxc.errors import DataError
from machxc.features.text import choose_text_config, token_features
from machxc.labels import LabelNames
from machxc.samples import Features, Labels

DENSE = np.array([[0.0, 1.5, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.25, 0.0]])
TEXTS = ["red apples", "", "red cars and red bicycles"]


def as_dense(features: Features) -> np.ndarray[Any, Any]:
    dense = np.zeros((len(features), features.n_features), np.float32)
    rows = np.repeat(np.arange(len(features)), np.diff(features.indptr))
    dense[rows, features.indices] = features.values
    return dense


def as_sets(labels: Labels, names: LabelNames) -> list[list[Any]]:
    flat = names.names(labels.indices).tolist()
    return [flat[a:b] for a, b in zip(labels.indptr[:-1], labels.indptr[1:], strict=True)]


def check_types(features: Features) -> None:
    features.check()
    arrays = (features.indptr, features.indices, features.values)
    assert [array.dtype.name for array in arrays] == ["int64", "uint32", "float32"]
    assert all((np.diff(features.indices[a:b].astype(np.int64)) > 0).all() for a, b in spans(features))
    assert (features.values != 0).all()


def spans(features: Features) -> list[tuple[int, int]]:
    return list(zip(features.indptr[:-1].tolist(), features.indptr[1:].tolist(), strict=True))


def untidy_csr(index_type: type[np.signedinteger[Any]]) -> sp.csr_matrix:
    """DENSE with unsorted columns, a duplicate, and an explicit zero."""
    data = np.array([-2.0, 1.0, 0.5, 0.0, 0.25, 3.0])
    columns, indptr = np.array([3, 1, 1, 0, 2, 0], index_type), np.array([0, 4, 4, 6], index_type)
    return sp.csr_matrix((data, columns, indptr), shape=(3, 4))


NUMERIC_FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: DENSE,
    "float32": lambda: DENSE.astype(np.float32),
    "fortran": lambda: np.asfortranarray(DENSE),
    "objects": lambda: DENSE.astype(object),
    "lists": lambda: DENSE.tolist(),
    "frame": lambda: pd.DataFrame(DENSE),
    "frame, two columns of one name": lambda: pd.DataFrame(DENSE, columns=["a", "b", "a", "c"]),
    "csr": lambda: sp.csr_matrix(DENSE),
    "csr array": lambda: sp.csr_array(DENSE),
    "csc": lambda: sp.csc_matrix(DENSE),
    "coo": lambda: sp.coo_array(DENSE),
    "lil": lambda: sp.lil_matrix(DENSE),
    "dok": lambda: sp.dok_matrix(DENSE),
    "untidy csr": lambda: untidy_csr(np.int32),
    "untidy csr, int64": lambda: untidy_csr(np.int64),
}


@pytest.mark.parametrize("form", NUMERIC_FORMS)
def test_numbers_of_any_form(form: str) -> None:
    features, text = features_of(NUMERIC_FORMS[form]())
    assert text is None
    check_types(features)
    np.testing.assert_array_equal(as_dense(features), DENSE.astype(np.float32))


def test_nothing_given_is_changed() -> None:
    matrix = untidy_csr(np.int64)
    before = [array.copy() for array in (matrix.data, matrix.indices, matrix.indptr)]
    features_of(matrix)
    for array, copy in zip((matrix.data, matrix.indices, matrix.indptr), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-9, 9, width=32)),
    st.sampled_from(["csr", "csc", "coo", "lil"]),
)
def test_dense_and_sparse_agree(dense: np.ndarray[Any, Any], form: str) -> None:
    features, _ = features_of(dense)
    sparse, _ = features_of(sp.coo_matrix(dense).asformat(form))
    check_types(features)
    np.testing.assert_array_equal(as_dense(features), dense)
    np.testing.assert_array_equal(features.indptr, sparse.indptr)
    np.testing.assert_array_equal(features.indices, sparse.indices)
    np.testing.assert_array_equal(features.values, sparse.values)


def test_a_frame_with_columns_of_many_types() -> None:
    frame = pd.DataFrame({"i": [1, 2], "b": [True, False], "n": pd.array([3, 4], "Int64"), "f": [0.5, 0.0]})
    np.testing.assert_array_equal(as_dense(features_of(frame)[0]), [[1, 1, 3, 0.5], [2, 0, 4, 0]])


TEXT_FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: TEXTS,
    "tuple": lambda: tuple(TEXTS),
    "array": lambda: np.array(TEXTS),
    "objects": lambda: np.array(TEXTS, object),
    "a column of an array": lambda: np.array(TEXTS, object)[:, None],
    "series": lambda: pd.Series(TEXTS, index=[7, 8, 9]),
    "series of objects": lambda: pd.Series(TEXTS, dtype=object),
    "frame of one column": lambda: pd.DataFrame({"title": TEXTS}),
}


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_texts_of_any_form(form: str) -> None:
    features, config = features_of(TEXT_FORMS[form]())
    assert config == choose_text_config(TEXTS)[0]
    expected = token_features(TEXTS, config)
    assert features.n_features == 2**32
    np.testing.assert_array_equal(features.indices, expected.indices)
    np.testing.assert_array_equal(features.indptr, expected.indptr)


def test_texts_are_read_as_told() -> None:
    told = TextConfig(words=0, chars_min=3, chars_max=3)
    features, config = features_of(TEXTS, text=told)
    assert config == told
    np.testing.assert_array_equal(features.indices, token_features(TEXTS, told).indices)
    assert len(features_of([], text=told)[0]) == 0


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA], ids=["None", "nan", "NA"])
def test_a_missing_text_is_named(missing: object) -> None:
    for X in (["a", missing], [missing, "a"], pd.Series(["a", missing], dtype=object)):
        with pytest.raises(DataError, match=r"text [01] is not a str"):
            features_of(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.array([[1.0, np.nan], [0, 0]]), "sample 0 has a feature value that is NaN or infinite"),
        (sp.csr_matrix([[0.0, 0], [0, np.inf]]), "sample 1 has a feature value that is NaN or infinite"),
        (np.array([[1e300]]), "sample 0 has a feature value that is NaN or infinite"),
        (pd.DataFrame({"n": pd.array([1, None], "Int64")}), "sample 1 has a feature value that is NaN"),
        (np.array([[1j]]), "Complex data not supported"),
        (sp.csr_matrix([[1j]]), "Complex data not supported"),
        (np.zeros((3, 0)), "between 1 and 4294967296 features, got 0"),
        (np.array([1.0, 2.0]), r"got ndarray of shape \(2,\) of float64; reshape one sample"),
        (np.zeros((2, 2, 2)), r"got ndarray of shape \(2, 2, 2\)"),
        ([], r"got ndarray of shape \(0,\)"),
        ([[1.0], [1.0, 2.0]], "got a sequence that makes none"),
        (np.array([["a", "b"]]), r"got ndarray of shape \(1, 2\)"),
        (np.array([[{}, 1.0]], object), "got an array of objects: float\\(\\) argument must be"),
        (pd.DataFrame({"n": [1], "s": ["a"]}), "column 's' is not numeric"),
        (pd.DataFrame({"n": [1], "d": pd.to_datetime(["2020-01-01"])}), "column 'd' is not numeric"),
        (sp.coo_array(np.array([1.0, 2.0])), "2-D sparse matrix .* got 1-D"),
        ("one text", "a list of texts, got one str"),
        (None, "expected a list of texts"),
        (7, "expected a list of texts"),
    ],
)
def test_what_is_no_samples_is_refused(X: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        features_of(X)


def test_a_damaged_sparse_matrix_is_refused() -> None:
    matrix = sp.csr_matrix(DENSE)
    matrix.indices[0] = -1
    with pytest.raises(DataError, match=r"column number out of range: expected \[0, 4\)"):
        features_of(matrix)


def test_samples_of_another_sort_than_the_models_are_refused() -> None:
    with pytest.raises(DataError, match="3 features, as in training, got 4"):
        features_of(DENSE, n_features=3)
    with pytest.raises(DataError, match="3 numeric features, as in training, got texts"):
        features_of(TEXTS, n_features=3)
    with pytest.raises(DataError, match=r"expected texts, got ndarray of shape \(3, 4\)"):
        features_of(DENSE, text=TextConfig())


SETS = [["b", "a"], [], ["c", "a"]]
SET_FORMS: dict[str, Callable[[], Any]] = {
    "lists": lambda: SETS,
    "sets": lambda: [set(row) for row in SETS],
    "tuples": lambda: tuple(map(tuple, SETS)),
    "arrays": lambda: [np.array(row, object) for row in SETS],
    "series of lists": lambda: pd.Series(SETS),
    "with repeats": lambda: [["b", "a", "b"], [], ["a", "c", "a"]],
}


@pytest.mark.parametrize("form", SET_FORMS)
def test_label_sets_of_any_form(form: str) -> None:
    labels, names = labels_of(SET_FORMS[form]())
    assert (names.kind, len(names)) == ("strings", 3)
    assert as_sets(labels, names) == [["a", "b"], [], ["a", "c"]]
    assert [labels.indptr.dtype.name, labels.indices.dtype.name] == ["int64", "uint32"]


INDICATOR = np.array([[0, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]])
INDICATOR_FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: INDICATOR,
    "bool": lambda: INDICATOR.astype(bool),
    "float": lambda: INDICATOR.astype(float),
    "frame": lambda: pd.DataFrame(INDICATOR),
    "nested lists": lambda: INDICATOR.tolist(),
    "list of arrays": lambda: list(INDICATOR),
    "csr": lambda: sp.csr_matrix(INDICATOR),
    "csc array, bool": lambda: sp.csc_array(INDICATOR.astype(bool)),
    "csr with explicit zeros": lambda: sp.csr_matrix(
        ([1, 0, 1, 1, 1], ([0, 0, 0, 2, 3], [2, 0, 1, 1, 2])), shape=(4, 3)
    ),
    "csr with a repeat": lambda: sp.csr_matrix((np.ones(5), [2, 1, 2, 1, 2], [0, 3, 3, 4, 5]), shape=(4, 3)),
}


@pytest.mark.parametrize("form", INDICATOR_FORMS)
def test_indicators_of_any_form(form: str) -> None:
    labels, names = labels_of(INDICATOR_FORMS[form]())
    assert (names.kind, len(names)) == ("ids", 3)  # column 0 counts, though no sample has it
    assert as_sets(labels, names) == [[1, 2], [], [1], [2]]


ONE_EACH: dict[str, tuple[Any, str, list[Any]]] = {
    "ids": ([2, 0, 1, 0], "ids", [2, 0, 1, 0]),
    "integers": ([7, -3, 7, 100], "integers", [7, -3, 7, 100]),
    "integers from 1": (np.array([2, 1], np.int32), "integers", [2, 1]),
    "unsigned": (np.array([5, 9], np.uint64), "integers", [5, 9]),
    "whole floats": (np.array([1.0, -1.0]), "integers", [1, -1]),
    "bools": (np.array([True, False]), "ids", [1, 0]),
    "objects": (np.array([4, 5], object), "integers", [4, 5]),
    "strings": (["b", "a", "b"], "strings", ["b", "a", "b"]),
    "array of strings": (np.array(["b", "é"]), "strings", ["b", "é"]),
    "series": (pd.Series(["x", "y"]), "strings", ["x", "y"]),
    "categories": (pd.Series(["x", "y"], dtype="category"), "strings", ["x", "y"]),
    "column": (np.array([[3], [8]]), "integers", [3, 8]),
    "nullable": (pd.array([3, 8], "Int64"), "integers", [3, 8]),
}


@pytest.mark.parametrize("form", ONE_EACH)
def test_one_label_a_sample(form: str) -> None:
    y, kind, expected = ONE_EACH[form]
    labels, names = labels_of(y)
    assert names.kind == kind
    assert as_sets(labels, names) == [[label] for label in expected]
    assert names.names(np.arange(len(names))).tolist() == sorted(set(expected))


def test_sets_of_integers() -> None:
    labels, names = labels_of([[10, 3], {3}, np.array([], np.int64)])
    assert as_sets(labels, names) == [[3, 10], [3], []]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(-5, 30), max_size=5) | st.sets(st.integers(-5, 30)), min_size=1, max_size=8))
def test_label_sets_come_back(sets: list[Any]) -> None:
    distinct = set().union(*map(set, sets))
    if not distinct or distinct <= {0, 1}:
        return  # no label; or it may be an indicator
    labels, names = labels_of(sets)
    labels.check()
    assert as_sets(labels, names) == [sorted(set(one)) for one in sets]
    again, unknown = match_labels(sets, names)
    np.testing.assert_array_equal(again.indices, labels.indices)
    assert not unknown.any()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), max_size=6))
def test_unknown_labels_are_counted_once_each(sets: list[list[str]]) -> None:
    names = LabelNames.strings(["d", "b"])
    labels, unknown = match_labels(sets, names)
    assert as_sets(labels, names) == [[name for name in "db" if name in one] for one in sets]
    assert unknown.tolist() == [len(set(one) - {"b", "d"}) for one in sets]


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(DataError, match="sample 1 has the label 'z', which the model does not know"):
        labels_of([["a"], ["a", "z"]], LabelNames.strings(["a", "b"]))
    with pytest.raises(DataError, match="sample 0 has the label 5"):
        labels_of([5], LabelNames.ids(5))
    with pytest.raises(DataError, match="sample 0 has the label 1"):
        labels_of([1], LabelNames.strings(["1"]))


def test_nested_lists_are_an_indicator_only_of_the_models_width() -> None:
    labels, _ = labels_of([[0, 1]], LabelNames.ids(2))
    assert labels.indices.tolist() == [1]
    labels, _ = labels_of([[0, 1]], LabelNames.ids(9))
    assert labels.indices.tolist() == [0, 1]


def test_an_indicator_of_another_width_is_refused() -> None:
    for y in (INDICATOR, sp.csr_matrix(INDICATOR)):
        with pytest.raises(DataError, match="5 columns, as in training, got 3"):
            labels_of(y, LabelNames.ids(5))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.5, 1.0], "Unknown label type: expected str or integers, got continuous or missing: 0.5"),
        (np.array([1.0, np.nan]), "continuous or missing: nan"),
        (np.array([1.0, np.inf]), "continuous or missing: inf"),
        (["a", None], r"all str or all integers, got \['NoneType', 'str'\]"),
        (["a", 1], r"all str or all integers, got \['int', 'str'\]"),
        ([["a"], [1]], r"all str or all integers, got \['int', 'str'\]"),
        ([b"a"], r"all str or all integers, got \['bytes'\]"),
        ([["a"], "b"], "sample 1: expected a list of labels as in sample 0, got 'b'"),
        ([1, [2]], "expected labels as an array"),
        ([["a"], None], "sample 1: expected a list of labels"),
        (["a", ""], "not empty"),
        ([2**70], "between -2\\*\\*63 and 2\\*\\*63 - 1"),
        (np.array([2**63], np.uint64), "between -2\\*\\*63 and 2\\*\\*63 - 1"),
        (np.array([1e30]), "between -2\\*\\*63 and 2\\*\\*63 - 1"),
        (np.array([[0, 2]]), "indicator matrix of 0 and 1, got other values"),
        (np.array([["a", "b"]]), "indicator matrix of 0 and 1, got other values"),
        (sp.csr_matrix([[0, 2]]), "sparse indicator matrix of 0 and 1"),
        (np.zeros((2, 2, 2)), "1-D sequence or an indicator matrix"),
        ([[], []], "at least one label, got none in 2 samples"),
        ([], "at least one label, got none in 0 samples"),
        ("ab", "expected a sequence of labels or label sets, got str"),
        (None, "requires y to be passed, but the target y is None"),
        ({"a": 1}, "expected a sequence of labels or label sets, got dict"),
    ],
)
def test_what_is_no_labels_is_refused(y: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels_of(y)


def test_weights() -> None:
    assert weights_of(None, 3) is None
    weights = weights_of(pd.Series([1, 0, 2.5]), 3)
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == [1, 0, 2.5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "each of 2 samples, got shape \\(1,\\)"),
        ([[1.0], [1.0]], "each of 2 samples, got shape \\(2, 1\\)"),
        ([1.0, -1.0], "finite and not negative"),
        ([1.0, np.nan], "finite and not negative"),
        ([0.0, 0.0], "at least one is not zero"),
        (["a", "b"], "sample weights as numbers"),
    ],
)
def test_bad_weights_are_refused(weights: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        weights_of(weights, 2)
