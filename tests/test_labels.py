from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.errors import DataError, ModelError
from machxc.labels import LabelNames
from machxc.packed import Strings

# few letters, of one to four bytes and zero: many common beginnings
texts = st.text("a\0bé京😀", min_size=1, max_size=30) | st.text(st.characters(codec="utf-8"), min_size=1)
name_lists = st.lists(texts, unique=True, max_size=30)
quick = settings(deadline=None, max_examples=150)


def restored(names: LabelNames) -> LabelNames:
    return LabelNames.from_arrays(names.kind, len(names), names.arrays())


@given(name_lists, st.lists(texts, max_size=10))
@quick
def test_strings_answer_like_a_dictionary(listed: list[str], others: list[str]) -> None:
    oracle = {name: i for i, name in enumerate(listed)}
    for names in (LabelNames.strings(iter(listed)), restored(LabelNames.strings(listed))):
        assert len(names) == len(listed)
        assert names.ids_of(listed).tolist() == list(range(len(listed)))
        assert names.ids_of(others).tolist() == [oracle.get(name, -1) for name in others]
        assert names.names(np.arange(len(listed))).tolist() == listed


@given(name_lists)
@quick
def test_packed_names_are_the_same(listed: list[str]) -> None:
    names = LabelNames.strings(listed)
    packed = LabelNames.packed(Strings.of(listed))
    assert packed == names
    assert packed.arrays().keys() == names.arrays().keys()
    for wrong in ([*listed, *listed[:1]], ["", *listed]) if listed else ():
        with pytest.raises(DataError) as expected:
            LabelNames.strings(wrong)
        with pytest.raises(DataError) as given:
            LabelNames.packed(Strings.of(wrong))
        assert str(given.value) == str(expected.value)


@given(name_lists)
@quick
def test_the_order_is_stored_only_when_needed(listed: list[str]) -> None:
    in_order = [name.encode() for name in listed] == sorted(name.encode() for name in listed)
    expected = {"coded", "blocks"} if in_order else {"bytes", "offsets", "order"}
    assert set(LabelNames.strings(listed).arrays()) == expected


@given(st.sets(st.integers(-(2**63), 2**63 - 1), max_size=30), st.lists(st.integers(-(2**70), 2**70), max_size=10))
@quick
def test_integers_answer_like_a_dictionary(chosen: set[int], others: list[int]) -> None:
    listed = sorted(chosen)
    oracle = {name: i for i, name in enumerate(listed)}
    names = restored(LabelNames.integers(np.array(listed, np.int64)))
    assert names.ids_of(listed).tolist() == list(range(len(listed)))
    assert names.ids_of(np.array(listed, np.int64)).tolist() == list(range(len(listed)))
    assert names.ids_of(others).tolist() == [oracle.get(name, -1) for name in others]
    assert names.names(list(range(len(listed)))).tolist() == listed


def test_ids_name_themselves() -> None:
    names = LabelNames.ids(3)
    assert names.arrays() == {}
    assert names.names([[0, 2], [-1, 1]]).tolist() == [[0, 2], [-1, 1]]
    assert names.ids_of([0, 2, 3, -1, 2**70]).tolist() == [0, 2, -1, -1, -1]
    assert names.ids_of(np.array([2, 2**63], np.uint64)).tolist() == [2, -1]
    assert names.ids_of([]).tolist() == []


@pytest.mark.parametrize("unlike", [["1"], ["1", 1], [1.0], [None], [True], np.array(["1"]), np.array([1.0])])
def test_what_is_not_an_integer_is_unknown(unlike: Any) -> None:
    for names in (LabelNames.ids(5), LabelNames.integers([1])):
        found = names.ids_of(unlike)
        assert found.dtype == np.int64
        assert found.tolist() == [{5: 1, 1: 0}[len(names)] if type(name) is int else -1 for name in unlike]


def test_what_is_not_a_string_is_unknown() -> None:
    names = LabelNames.strings(["1", "None"])
    assert names.ids_of([1, "1", "", "\ud800", np.str_("None")]).tolist() == [-1, 0, -1, -1, 1]
    assert names.ids_of(np.array(["None", "x"])).tolist() == [1, -1]


def test_names_keep_the_shape_and_mark_what_is_missing() -> None:
    ids = np.array([[[1, -1], [0, 1]]])
    strings = LabelNames.strings(["b", "a"]).names(ids)
    assert strings.dtype == object
    assert strings.tolist() == [[["a", None], ["b", "a"]]]
    integers = LabelNames.integers([-7, 9]).names(ids)
    assert integers.dtype == np.int64
    assert integers.tolist() == [[[9, -1], [-7, 9]]]
    assert LabelNames.integers([]).names([[-1]]).tolist() == [[-1]]
    assert LabelNames.strings([]).names(np.empty((0, 5), int)).shape == (0, 5)


@pytest.mark.parametrize("ids", [[2], [-2], [0, 2**40]])
@pytest.mark.parametrize(
    "names", [LabelNames.ids(2), LabelNames.strings(["a", "b"]), LabelNames.integers([5, 6])], ids=repr
)
def test_ids_out_of_range_are_refused(names: LabelNames, ids: list[int]) -> None:
    with pytest.raises(DataError, match=r"expected label ids in \[-1, 2\)"):
        names.names(ids)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["a", "b", "a"], "labels 0 and 2 have the same name 'a'"),
        (["a", ""], "label 1: expected a name that is a string and not empty, got ''"),
        (["a", 5], "label 1: expected a name that is a string and not empty, got 5"),
        (["\ud800"], "label 0: .* is not valid Unicode"),
    ],
)
def test_strings_refuse(listed: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelNames.strings(listed)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([1, 1], "got 1 before 1"),
        ([2, 1], "got 2 before 1"),
        ([1.5], "integer label names, got float64"),
        ([[1]], "one-dimensional"),
        (np.array([2**63], np.uint64), "below 2"),
    ],
)
def test_integers_refuse(listed: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelNames.integers(listed)


def test_too_many_labels() -> None:
    with pytest.raises(DataError, match="expected between 0 and 4294967295 labels"):
        LabelNames.ids(2**32)


def test_equality_and_repr() -> None:
    assert LabelNames.ids(2) == LabelNames.ids(2) != LabelNames.ids(3)
    assert LabelNames.strings(["a", "b"]) != LabelNames.strings(["b", "a"])
    assert LabelNames.ids(2) != LabelNames.integers([0, 1])
    assert LabelNames.ids(2) != "ids"
    assert repr(LabelNames.strings(["a"])) == "<LabelNames: 1 strings>"


def arrays_of(listed: list[bytes], order: list[int] | None = None) -> dict[str, Any]:
    offsets = np.cumsum([0, *map(len, listed)]).astype(np.uint64)
    arrays: dict[str, Any] = {"bytes": np.frombuffer(b"".join(listed), np.uint8), "offsets": offsets}
    return arrays if order is None else {**arrays, "order": np.array(order, np.uint32)}


@given(st.lists(texts, min_size=1, max_size=12), st.data())
@quick
def test_from_arrays_accepts_sorted_distinct_names_and_nothing_else(listed: list[str], data: st.DataObject) -> None:
    encoded = [name.encode() for name in listed]
    if data.draw(st.booleans()):
        encoded = sorted(encoded)
    order = data.draw(st.none() | st.just(sorted(range(len(listed)), key=encoded.__getitem__)))
    ranked = encoded if order is None else [encoded[i] for i in order]
    if all(one < other for one, other in pairwise(ranked)):
        assert len(LabelNames.from_arrays("strings", len(listed), arrays_of(encoded, order))) == len(listed)
    else:
        with pytest.raises(ModelError, match="expected distinct names"):
            LabelNames.from_arrays("strings", len(listed), arrays_of(encoded, order))


@given(st.binary(min_size=1, max_size=12), st.data())
@quick
def test_from_arrays_accepts_utf8_names_and_nothing_else(text: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(text)))
    listed = sorted(name for name in (text[:cut], text[cut:]) if name)
    try:
        valid = len({name.decode() for name in listed}) == len(listed)
    except UnicodeDecodeError:
        valid = False
    if valid:
        names = LabelNames.from_arrays("strings", len(listed), arrays_of(listed))
        assert names.names(np.arange(len(listed))).tolist() == [name.decode() for name in listed]
    else:
        with pytest.raises(ModelError, match="label names"):
            LabelNames.from_arrays("strings", len(listed), arrays_of(listed))


@pytest.mark.parametrize(
    ("kind", "n", "arrays", "message"),
    [
        ("other", 1, {}, "expected a kind of"),
        ("ids", -1, {}, "expected a kind of"),
        ("ids", 2**32, {}, "expected a kind of"),
        ("ids", True, {"x": np.zeros(1)}, "expected the arrays"),
        ("integers", 1, {}, "expected the arrays"),
        ("integers", 2, {"integers": np.zeros(1, np.int64)}, "to be int64 of shape"),
        ("integers", 1, {"integers": np.zeros(1, np.int32)}, "to be int64 of shape"),
        ("integers", 2, {"integers": np.array([1, 1])}, "increasing order"),
        ("strings", 1, arrays_of([b"a", b"b"]), r"'offsets' to be uint64 of shape \(2,\)"),
        ("strings", 2, arrays_of([b"a", b""]), "offsets that rise from 0 to 1"),
        ("strings", 1, {**arrays_of([b"ab"]), "offsets": np.array([0, 1], np.uint64)}, "rise from 0 to 2"),
        ("strings", 1, {**arrays_of([b"ab"]), "offsets": np.array([1, 2], np.uint64)}, "rise from 0 to 2"),
        ("strings", 2, {**arrays_of([b"ab"]), "offsets": np.array([0, 2**64 - 1, 2], np.uint64)}, "rise from 0 to 2"),
        ("strings", 1, {**arrays_of([b"ab"]), "bytes": np.zeros((1, 2), np.uint8)}, "'bytes' to be uint8 of shape"),
        ("strings", 2, arrays_of([b"a", b"b"], [0, 2]), "expected the order to hold ids below 2"),
        ("strings", 2, arrays_of([b"b", b"a"], [1, 1]), "expected distinct names"),
        ("strings", 2, arrays_of([b"b", b"a"], [0, 1]), "expected distinct names"),
        ("strings", 2, arrays_of([b"\xc3", b"\xa9"]), "inside a character"),
        ("strings", 1, arrays_of([b"a\xff"]), "UTF-8"),
        ("strings", 1, arrays_of([b"a\xc3"]), "UTF-8"),
    ],
)
def test_from_arrays_refuses(kind: str, n: int, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LabelNames.from_arrays(kind, n, arrays)


def test_checks_work_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from machxc import labels

    monkeypatch.setattr(labels, "_BLOCK", 3)
    listed = [f"{i:02d}é" for i in range(20)]
    assert restored(LabelNames.strings(listed)).names([19]).tolist() == ["19é"]
    for i in range(19):
        swapped = [*listed[:i], listed[i + 1], listed[i], *listed[i + 2 :]]
        with pytest.raises(ModelError, match="expected distinct names"):
            LabelNames.from_arrays("strings", 20, arrays_of([name.encode() for name in swapped]))


@pytest.mark.parametrize("prefix", ["", "http://example.org/resource/", "x" * 100], ids=["short", "address", "long"])
def test_lookups_among_235_000_names_are_quick(prefix: str) -> None:
    listed = [f"{prefix}{i * 7919 % 1_000_003}-näme" for i in range(235_000)]
    start = time.process_time()
    names = LabelNames.strings(listed)
    built = time.process_time()
    restored(names)
    checked = time.process_time()
    found = names.ids_of(listed[::24] + ["unknown"] * 100)
    looked_up = time.process_time()
    assert (found[:-100] == np.arange(0, 235_000, 24)).all()
    assert (found[-100:] == -1).all()
    assert names.names(found[:-100]).tolist() == listed[::24]
    assert built - start < 1.5
    assert checked - built < 1.5
    assert looked_up - checked < 0.5


def test_names_kind_ids_may_be_claimed_for_any_model() -> None:
    """Only the author of a model can, who could have saved it so: it is a valid model."""
    assert LabelNames.from_arrays("ids", 5, {}) == LabelNames.ids(5)
