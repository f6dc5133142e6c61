"""Files of label names: the same arrays as names in memory give, however few of them are looked at at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_writers import saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machxc.data import ReadOptions, convert, name_files, open_store, source
from machxc.data.columns import FileColumns, MemoryColumns
from machxc.data.name_files import ids_of_file, names_of_file
from machxc.errors import DataError
from machxc.labels import LabelNames
from machxc.packed import Strings, is_rising

NAMES = st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=40, unique=True)
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def lines(folder: Path, names: list[str]) -> Path:
    return saved(folder, "names.txt", "".join(f"{name}\n" for name in names))


@pytest.fixture(autouse=True, params=[1 << 20, 7, 1], ids="{} at a time".format)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few names, from blocks of a few bytes."""
    monkeypatch.setattr(name_files, "_PART", request.param)
    monkeypatch.setattr(source, "BLOCK", max(16, min(request.param, 1 << 22)))


def check_names(found: LabelNames, expected: LabelNames) -> None:
    assert found.arrays().keys() == expected.arrays().keys()
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
        assert found.arrays()[name].dtype == array.dtype
    LabelNames.from_arrays(found.kind, len(found), found.arrays())


@quick
@given(names=NAMES, in_order=st.booleans())
def test_names_of_a_file_are_those_of_a_list(tmp_path: Path, names: list[str], in_order: bool) -> None:
    names = sorted(names, key=str.encode) if in_order else names
    expected = LabelNames.strings(names)
    check_names(names_of_file(lines(tmp_path, names), MemoryColumns()), expected)
    assert is_rising(Strings.of(names)) == ("coded" in expected.arrays())


@pytest.mark.parametrize("in_order", [False, True])
def test_names_in_the_files_of_a_store(tmp_path: Path, in_order: bool) -> None:
    names = [f"name {i:03}" for i in range(100)] if in_order else [f"name {i * 37 % 100}" for i in range(100)]
    with FileColumns(tmp_path) as columns:
        check_names(names_of_file(lines(tmp_path, names), columns), LabelNames.strings(names))
        kept = {"names.coded", "names.blocks"} if in_order else {"names.bytes", "names.offsets", "names.order"}
        assert set(columns.kept_facts()) == kept
    data = saved(tmp_path, "data.jsonl", "".join(json.dumps({"text": "a b", "labels": [i]}) + "\n" for i in (99, 5)))
    dataset = convert(data, tmp_path / "store", ReadOptions(label_names=tmp_path / "names.txt"))
    assert dataset.names.names(dataset.samples.labels.indices).tolist() == [names[99], names[5]]
    assert open_store(tmp_path / "store").names == LabelNames.strings(names)
    arrays = {path.stem for path in (tmp_path / "store").iterdir() if path.name.startswith("names.")}
    assert arrays == kept


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["b", "c", "a", "c", "b", "c"], "labels 0 and 4 have the same name 'b'"),
        (["b", "b"], "labels 0 and 1 have the same name 'b'"),
        (["a"] * 9, "labels 0 and 1 have the same name 'a'"),
        (["a", "b", "", "c"], r"label 2: expected a name .* \(label i is on line i \+ 1\)"),
    ],
)
def test_names_that_are_wrong(tmp_path: Path, names: list[str], error: str, kind: str) -> None:
    path = lines(tmp_path, names)
    with FileColumns(tmp_path) as files, pytest.raises(DataError, match=error):
        names_of_file(path, MemoryColumns() if kind == "memory" else files)


def test_no_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        names_of_file(lines(tmp_path, []), MemoryColumns())


def test_names_of_a_model_are_looked_up(tmp_path: Path) -> None:
    asked = ["b", "nowhere", "é", "a", "b", "abc"]
    for names in (["a", "abc", "b", "é"], ["é", "b", "abc", "a"]):
        found = ids_of_file(lines(tmp_path, asked), LabelNames.strings(names))
        assert found.tolist() == [names.index(name) if name in names else -1 for name in asked]
    assert ids_of_file(lines(tmp_path, asked), LabelNames.strings([])).tolist() == [-1] * 6
