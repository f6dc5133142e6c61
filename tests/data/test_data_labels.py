"""Which label ids and names come out of the labels of a file; with a trained model, and without one."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_writers import compressed, features_of, labels_of, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machxc.config import TextConfig
from machxc.data import Dataset, ReadOptions, batches, collect, convert, raw, read, source
from machxc.data.source import packed_lines
from machxc.errors import DataError, SettingError
from machxc.labels import LabelNames
from machxc.samples import starts_of

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = TextConfig(words=1)


def jsonl_of(folder: Path, label_sets: list[Any], name: str = "data.jsonl") -> Path:
    return saved(folder, name, "".join(json.dumps({"text": "a", "labels": labels}) + "\n" for labels in label_sets))


def both_ways(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Read in memory, which must agree with a converted store."""
    dataset = read(path, options)
    stored = convert(path, path.with_suffix(".store"), options, overwrite=True)
    assert stored.names == dataset.names
    np.testing.assert_array_equal(stored.samples.labels.indices, dataset.samples.labels.indices)
    np.testing.assert_array_equal(stored.samples.labels.indptr, dataset.samples.labels.indptr)
    return dataset


@pytest.mark.parametrize(
    ("label_sets", "kind", "k"),
    [
        ([[0, 2], [1]], "ids", 3),
        ([0, 1031], "ids", 1032),  # 4 * 2 + 1024
        ([0, 1032], "integers", 2),
        ([-1, 1], "integers", 2),
        ([2**40, 5, -(2**63)], "integers", 3),
        ([["b", "a"], [], "é", "Z"], "strings", 4),
        (["5", "7"], "strings", 2),
    ],
)
def test_kinds_of_json_labels(tmp_path: Path, label_sets: list[Any], kind: str, k: int) -> None:
    dataset = both_ways(jsonl_of(tmp_path, label_sets))
    assert (dataset.names.kind, len(dataset.names), dataset.samples.labels.n_labels) == (kind, k, k)
    as_lists = [labels if isinstance(labels, list) else [labels] for labels in label_sets]
    assert labels_of(dataset) == [sorted(labels) for labels in as_lists]


@pytest.mark.parametrize(
    ("cells", "kind", "names"),
    [
        (["1|0", "", "2"], "ids", [[0, 1], [], [2]]),
        (["5000000000|-3", "7"], "integers", [[-3, 5000000000], [7]]),
        (["1|x", "2"], "strings", [["1", "x"], ["2"]]),
        (["01", "2"], "strings", [["01"], ["2"]]),
        (["1" * 30], "strings", [["1" * 30]]),
        ([" a b | c||"], "strings", [["a b", "c"]]),
    ],
)
def test_cells_of_a_table_are_integers_if_all_are(
    tmp_path: Path, cells: list[str], kind: str, names: list[list[Any]]
) -> None:
    path = saved(tmp_path, "data.csv", "text,labels\n" + "".join(f"a,{cell}\n" for cell in cells))
    dataset = both_ways(path, ReadOptions(label_separator="|"))
    assert (dataset.names.kind, labels_of(dataset)) == (kind, names)


def test_a_cell_is_one_label_without_a_separator(tmp_path: Path) -> None:
    dataset = read(saved(tmp_path, "data.csv", 'text,labels\na,"one, two"\nb,\n'))
    assert labels_of(dataset) == [["one, two"], []]


def test_negative_labels_of_svmlight(tmp_path: Path) -> None:
    dataset = both_ways(saved(tmp_path, "data.svm", "-1 0:1\n+1 0:1\n"))
    assert (dataset.names.kind, labels_of(dataset)) == ("integers", [[-1], [1]])


@quick
@given(st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=4), min_size=1, max_size=8), st.randoms())
def test_label_ids_do_not_depend_on_the_order_of_samples(
    tmp_path: Path, label_sets: list[list[str]], dice: random.Random
) -> None:
    label_sets = [[label.encode("utf-8", "ignore").decode() or "x" for label in labels] for labels in label_sets]
    label_sets.append(["last"])
    dataset = both_ways(jsonl_of(tmp_path, label_sets))
    distinct = {label for labels in label_sets for label in labels}
    assert dataset.names.names(np.arange(len(distinct))).tolist() == sorted(distinct, key=str.encode)
    assert labels_of(dataset) == [sorted(set(labels), key=str.encode) for labels in label_sets]
    dice.shuffle(label_sets)
    assert read(jsonl_of(tmp_path, label_sets)).names == dataset.names


@quick
@given(st.lists(st.lists(st.integers(-5, 5000), max_size=5), min_size=1, max_size=8).filter(any))
def test_integers_keep_their_values(tmp_path: Path, label_sets: list[list[int]]) -> None:
    dataset = both_ways(jsonl_of(tmp_path, label_sets))
    assert labels_of(dataset) == [sorted(set(labels)) for labels in label_sets]
    distinct = {label for labels in label_sets for label in labels}
    is_ids = min(distinct) >= 0 and max(distinct) + 1 <= 4 * len(distinct) + 1024
    assert (dataset.names.kind, len(dataset.names)) == (
        ("ids", max(distinct) + 1) if is_ids else ("integers", len(distinct))
    )


def test_distinct_integers_are_merged_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "PART", 2)
    path = saved(tmp_path, "data.jsonl", "".join(f'{{"text": "a", "labels": {9999 * (i % 7)}}}\n' for i in range(9000)))
    assert labels_of(read(path, text=TEXT)) == [[9999 * (i % 7)] for i in range(9000)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_names_integer_labels(tmp_path: Path, suffix: str) -> None:
    names = saved(tmp_path, f"names.txt{suffix}", compressed("zoo\r\né\n a b\nant".encode(), suffix))
    for name, data in {
        "a.xmc": "3 1 4\n3,0 0:1\n1 0:1\n0:1\n",
        "a.jsonl": '{"text": "a", "labels": [3, 0]}\n{"text": "a", "labels": 1}\n{"text": "a", "labels": []}\n',
        "a.csv": "text,labels\na,3|0\na,1\na,\n",
    }.items():
        dataset = both_ways(saved(tmp_path, name, data), ReadOptions(label_names=names, label_separator="|"))
        assert dataset.names.names(np.arange(4)).tolist() == ["zoo", "é", " a b", "ant"]
        assert labels_of(dataset) == [["zoo", "ant"], ["é"], []]


@pytest.mark.parametrize(
    ("names", "data", "line", "words"),
    [
        ("a\nb\n", "1 1 9\n2 0:1\n", 2, "label 2 is unknown; .*names.txt names the labels 0 to 1"),
        ("a\nb\na\n", "1 1 9\n0 0:1\n", None, "labels 0 and 2 have the same name 'a'"),
        ("a\n\nb\n", "1 1 9\n0 0:1\n", None, "label 1: .*not empty"),
        ("\n", "1 1 9\n0 0:1\n", None, "label 0: .*not empty"),
    ],
)
def test_bad_files_of_names(tmp_path: Path, names: str, data: str, line: int | None, words: str) -> None:
    options = ReadOptions(label_names=saved(tmp_path, "names.txt", names))
    with pytest.raises(DataError, match=words) as caught:
        read(saved(tmp_path, "data.xmc", data), options)
    assert caught.value.line == line


def test_a_file_of_names_does_not_name_strings(tmp_path: Path) -> None:
    options = ReadOptions(label_names=saved(tmp_path, "names.txt", "a\nb\n"))
    with pytest.raises(DataError, match="line 1: expected integer labels, got the string 'a'"):
        read(jsonl_of(tmp_path, ["a"]), options)


STRINGS = LabelNames.strings(["ant", "bee", "cat", "7"])


def test_labels_of_a_model_by_name(tmp_path: Path) -> None:
    path = jsonl_of(tmp_path, [["cat", "ant"], [], "bee"])
    dataset = read(path, names=STRINGS, text=TEXT)
    assert dataset.names is STRINGS
    assert [row.tolist() for row in np.split(dataset.samples.labels.indices, [2, 2])] == [[0, 2], [], [1]]
    assert dataset.unknown_labels == 0
    assert dataset.unknown.tolist() == [0, 0, 0]
    path = saved(tmp_path, "data.csv", "text,labels\na,7\nb,cat\n")
    assert labels_of(read(path, names=STRINGS, text=TEXT)) == [["7"], ["cat"]]


def test_unknown_names_are_an_error_unless_counted(tmp_path: Path) -> None:
    path = jsonl_of(tmp_path, [["cat", "ant"], ["dog", "cat", "dog", "elk"], ["elk"], []])
    with pytest.raises(DataError, match=r"line 2: the label 'dog' is unknown; train with it.*counted") as caught:
        read(path, names=STRINGS, text=TEXT)
    assert caught.value.line == 2
    dataset = read(path, names=STRINGS, text=TEXT, unknown_labels="count")
    assert labels_of(dataset) == [["ant", "cat"], ["cat"], [], []]
    assert dataset.unknown.tolist() == [0, 2, 1, 0]
    assert (dataset.unknown_labels, dataset.rows(1, 3).unknown.tolist()) == (3, [2, 1])
    parts = list(batches(path, names=STRINGS, text=TEXT, unknown_labels="count", size=1))
    assert [part.unknown.tolist() for part in parts] == [[0], [2], [1], [0]]
    with pytest.raises(SettingError, match="'unknown_labels' option must be one of"):
        read(path, names=STRINGS, text=TEXT, unknown_labels="drop")


@pytest.mark.parametrize("names", [LabelNames.ids(3), LabelNames.integers([0, 1, 2])], ids=repr)
def test_unknown_integers_are_counted_unless_an_error(tmp_path: Path, names: LabelNames) -> None:
    path = saved(tmp_path, "data.xmc", "3 1 99\n2,5,6 0:1\n7 0:1\n1 0:1\n")
    dataset = read(path, names=names, n_features=1)
    assert (labels_of(dataset), dataset.unknown.tolist()) == ([[2], [], [1]], [2, 1, 0])
    with pytest.raises(DataError, match="line 2: the label 5 is unknown"):
        read(path, names=names, n_features=1, unknown_labels="error")
    path = saved(tmp_path, "data.csv", "text,labels\na,2|x|02\nb,9\n")
    dataset = read(path, ReadOptions(label_separator="|"), names=names, text=TEXT)
    assert (labels_of(dataset), dataset.unknown.tolist()) == ([[2], []], [2, 1])


def test_labels_of_another_kind_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: expected labels by their names.*integer 5.*label_names"):
        read(jsonl_of(tmp_path, [[], [5]]), names=STRINGS, text=TEXT)
    with pytest.raises(DataError, match="line 1: expected integer labels, got the string 'x'"):
        read(jsonl_of(tmp_path, ["x"]), names=LabelNames.ids(3), text=TEXT)


def test_a_file_of_names_for_a_model_with_names(tmp_path: Path) -> None:
    options = ReadOptions(label_names=saved(tmp_path, "names.txt", "cat\nelk\nant\n"))
    path = jsonl_of(tmp_path, [[0, 2], [1]])
    dataset = read(path, options, names=STRINGS, text=TEXT, unknown_labels="count")
    assert (labels_of(dataset), dataset.unknown.tolist()) == ([["ant", "cat"], []], [0, 1])
    with pytest.raises(DataError, match="line 2: the label 1 is unknown"):
        read(path, options, names=STRINGS, text=TEXT)
    with pytest.raises(DataError, match="names labels, but the model was trained with integer labels"):
        read(path, options, names=LabelNames.ids(3), text=TEXT)


def test_features_that_the_model_does_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = LabelNames.ids(3)
    path = saved(tmp_path, "data.svm", "1 0:1 5:2 7:3\n2 9:1\n0 4:4\n")
    with caplog.at_level(logging.WARNING, "machxc"):
        dataset = read(path, names=names, n_features=5)
    assert (dataset.samples.features.n_features, features_of(dataset)) == (5, [{0: 1.0}, {}, {4: 4.0}])
    assert [record.message[:16] for record in caplog.records] == ["3 feature values"]
    assert [row for part in batches(path, names=names, n_features=5, size=1) for row in features_of(part)] == [
        {0: 1.0},
        {},
        {4: 4.0},
    ]
    path = saved(tmp_path, "data.xmc", "1 6 3\n1 0:1\n")
    assert read(path, names=names, n_features=7).samples.features.n_features == 7
    with pytest.raises(DataError, match="line 1: the header says 6 features, the model has 5"):
        read(path, names=names, n_features=5)


def test_texts_for_a_model_of_features_and_the_other_way_round(tmp_path: Path) -> None:
    names = LabelNames.ids(3)
    with pytest.raises(DataError, match="line 1: this sample is a text, but the model was trained with numeric"):
        read(jsonl_of(tmp_path, [1]), names=names, n_features=5)
    with pytest.raises(DataError, match="line 2: this sample has numeric features, but expected texts"):
        read(saved(tmp_path, "data.xmc", "1 6 3\n1 0:1\n"), names=names, text=TEXT)


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=5), max_size=12)


@given(LINES, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.integers(1, 9))
@quick
def test_packed_lines_are_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], ended: bool, feed: str, size: int
) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes((feed.join(lines) + (feed if ended and lines else "")).encode())
    monkeypatch.setattr(source, "BLOCK", size)
    if path.stat().st_size:
        expected = path.read_bytes().decode().split("\n")
        expected = expected[:-1] if not expected[-1] else expected
        assert packed_lines(path).tolist() == [line.removesuffix("\r") for line in expected]


@quick
@given(st.lists(st.lists(st.integers(0, 10**18) | st.integers(0, 30), max_size=80), max_size=6))
def test_labels_are_sorted_and_kept_once(rows: list[list[int]]) -> None:
    indptr = starts_of([len(row) for row in rows])
    ends, values = raw.tidy_labels(indptr, np.array([value for row in rows for value in row], np.int64))
    parts = np.split(values, ends[1:-1]) if rows else []
    assert [part.tolist() for part in parts] == [sorted(set(row)) for row in rows]
    assert ends[-1] == len(values)
