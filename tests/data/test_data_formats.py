"""Every format, written from random samples by obvious code and read back."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_writers import (
    Sample,
    assert_valid,
    compressed,
    features_of,
    float32,
    jsonl,
    labels_of,
    parquet,
    saved,
    svmlight,
    table,
    weights_of,
    xmc,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machxc.config import TextConfig
from machxc.data import ReadOptions, batches, read, source
from machxc.features.text import token_features
from machxc.labels import LabelNames

DATA = Path(__file__).parents[3] / "shared" / "data"
D, K = 40, 30
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

values = st.floats(width=32, allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=30)
samples = st.lists(
    st.builds(
        Sample,
        labels=st.lists(st.integers(0, K - 1), unique=True, max_size=4),
        features=st.dictionaries(st.integers(0, D - 1), values, max_size=6),
        text=texts,
        weight=st.floats(0, 1000, width=32),
    ),
    min_size=1,
    max_size=12,
).filter(lambda rows: any(row.labels for row in rows))


@pytest.fixture(params=[7, 64, 1 << 22], ids=lambda n: f"block {n}")
def any_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that they end everywhere."""
    monkeypatch.setattr(source, "BLOCK", request.param)


def check(path: Path, rows: list[Sample], options: ReadOptions | None = None, *, text: bool = False) -> None:
    dataset = read(path, options, text=TextConfig() if text else None)
    assert_valid(dataset)
    assert labels_of(dataset) == [sorted(row.labels) for row in rows]
    if text:
        expected = token_features([row.text for row in rows], TextConfig())
        np.testing.assert_array_equal(dataset.samples.features.indices, expected.indices)
        np.testing.assert_array_equal(dataset.samples.features.indptr, expected.indptr)
    else:
        assert features_of(dataset) == [{id_: v for id_, v in sorted(row.features.items()) if v} for row in rows]


@quick
@given(samples)
def test_xmc_round_trip(any_block: None, tmp_path: Path, rows: list[Sample]) -> None:
    path = saved(tmp_path, "data.xmc", xmc(rows, D, K))
    check(path, rows)
    dataset = read(path)
    assert (dataset.samples.features.n_features, dataset.names.kind, len(dataset.names)) == (D, "ids", K)


@quick
@given(samples)
def test_svmlight_round_trip(any_block: None, tmp_path: Path, rows: list[Sample]) -> None:
    rows = [row for row in rows if row.features or row.labels] + [Sample([], {0: 1.0})]
    path = saved(tmp_path, "data.svm", svmlight(rows))
    check(path, rows)
    assert read(path).samples.features.n_features == max(id_ + 1 for row in rows for id_ in row.features)


@quick
@given(samples, st.sampled_from(["object", "pairs", "dense"]))
def test_jsonl_features_round_trip(any_block: None, tmp_path: Path, rows: list[Sample], kind: str) -> None:
    rows = [*rows, Sample([], {D - 1: 1.0})]
    path = saved(tmp_path, "data.jsonl", jsonl(rows, kind, D))
    check(path, rows)
    assert weights_of(read(path)) == [row.weight for row in rows]


@quick
@given(samples, st.sampled_from(["jsonl", "csv", "tsv", "parquet"]), st.sampled_from(["", ".gz", ".zst"]))
def test_text_round_trip(any_block: None, tmp_path: Path, rows: list[Sample], format: str, suffix: str) -> None:
    data = {
        "jsonl": lambda: jsonl(rows, "text"),
        "csv": lambda: table(rows, ",", "|"),
        "tsv": lambda: table(rows, "\t", "|"),
        "parquet": lambda: parquet(rows),
    }[format]()
    options = ReadOptions(label_separator="|", weight_column="weight" if format == "jsonl" else "w")
    path = saved(tmp_path, f"data.{format}{suffix}", compressed(data, suffix))
    check(path, rows, options, text=True)
    assert weights_of(read(path, options)) == [row.weight for row in rows]


@quick
@given(st.lists(st.from_regex(r"\A[-+]?([0-9]{1,25}\.?[0-9]{0,25}|\.[0-9]{1,25})([eE][-+]?[0-9]{1,2})?\Z"), min_size=1))
def test_numbers_are_read_as_python_reads_them(tmp_path: Path, numbers: list[str]) -> None:
    numbers = [number for number in numbers if abs(float(number)) < 3e38]
    data = f"{len(numbers) + 1} 1 1\n" + "".join(f"0 0:{number}\n" for number in [*numbers, "1"])
    found = [row.get(0, 0.0) for row in features_of(read(saved(tmp_path, "data.txt", data)))]
    np.testing.assert_array_max_ulp(
        np.array(found, np.float32), np.array([float(number) for number in [*numbers, "1"]], np.float32), 1
    )


ROWS = [Sample([1, 2], {0: 0.5, 3: 2.0}, "a b"), Sample([], {1: 1.0}, "c"), Sample([0], {}, "d e f")]
FILES: dict[str, tuple[bytes, str]] = {
    "xmc": (xmc(ROWS, 4, 3), "xmc"),
    "svmlight": (svmlight(ROWS), "svmlight"),
    "svmlight after a comment": (b"# made by hand\n\n1 0:1\n", "svmlight"),
    "svmlight without labels": (b"0:1 2:5\n1 0:1\n", "svmlight"),
    "jsonl": (jsonl(ROWS, "text"), "jsonl"),
    "csv": (table(ROWS, ",", "|"), "csv"),
    "tsv": (table(ROWS, "\t", "|"), "tsv"),
    "parquet": (parquet(ROWS), "parquet"),
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("what", FILES)
def test_formats_are_found_by_their_first_bytes(tmp_path: Path, what: str, suffix: str) -> None:
    data, format = FILES[what]
    path = saved(tmp_path, f"data{suffix}", compressed(data, suffix))
    found = read(path, ReadOptions(label_separator="|")).source
    assert found is not None
    assert (found.format, found.name, found.size) == (format, path.name, path.stat().st_size)


class Piped(io.BytesIO):
    """Standard input that comes in small pieces."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size, 10) if size and size > 0 else size)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("what", FILES)
def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, suffix: str) -> None:
    data, _ = FILES[what]
    options = ReadOptions(label_separator="|")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Piped(compressed(data, suffix))))
    given, expected = read("-", options), read(saved(tmp_path, "data", data), options)
    assert (labels_of(given), features_of(given)) == (labels_of(expected), features_of(expected))
    assert given.source is not None
    assert given.source.name == "-"


def test_compressed_files_of_several_members(tmp_path: Path) -> None:
    one, two = b"2 4 3\n1 0:1\n", b"2 1:1\n"
    for suffix in (".gz", ".zst"):
        path = saved(tmp_path, f"data.xmc{suffix}", compressed(one, suffix) + compressed(two, suffix))
        assert labels_of(read(path)) == [[1], [2]]


@pytest.mark.parametrize(
    ("line", "labels", "features"),
    [
        ("", [], {}),
        (" ", [], {}),
        (" 1:2", [], {1: 2.0}),
        ("1:2", [], {1: 2.0}),
        ("\t1:2 ", [], {1: 2.0}),
        ("2", [2], {}),
        ("2,0,2", [0, 2], {}),
        ("2 3:1 1:2", [2], {1: 2.0, 3: 1.0}),
        ("2 3:1 1:2 3:.5\t1:-2\r", [2], {3: 1.5}),
        ("02 03:+1e-1", [2], {3: float32(0.1)}),
    ],
)
def test_lines_of_xmc_files(tmp_path: Path, line: str, labels: list[int], features: dict[int, float]) -> None:
    for end in ("\n", "\n\n \n", "")[: 3 if line else 2]:
        dataset = read(saved(tmp_path, "data.txt", f"2 4 3\n0 0:1\n{line}{end}"))
        assert (labels_of(dataset)[1:], features_of(dataset)[1:]) == ([labels], [features])


def test_lines_of_svmlight_files(tmp_path: Path) -> None:
    data = "\ufeff# a comment\n-1 3:1 # 7:7\n\n+1,2 0:1\n\r\n5:1\n"
    dataset = read(saved(tmp_path, "data.svm", data))
    assert labels_of(dataset) == [[-1], [1, 2], []]
    assert features_of(dataset) == [{3: 1.0}, {0: 1.0}, {5: 1.0}]


def test_texts_of_several_columns_are_joined(tmp_path: Path) -> None:
    rows = [{"title": "a", "body": "b c", "labels": 1}, {"title": "d", "labels": 0}]
    data = "".join(json.dumps(row) + "\n" for row in rows)
    options = ReadOptions(text_column=("title", "body"))
    both = read(saved(tmp_path, "data.jsonl", data), options, text=TextConfig())
    expected = token_features(["a b c", "d"], TextConfig())
    np.testing.assert_array_equal(both.samples.features.indices, expected.indices)
    table = read(saved(tmp_path, "data.csv", "labels,title,body\nx,a,b c\ny,d,\n"), options, text=TextConfig())
    np.testing.assert_array_equal(table.samples.features.indices, expected.indices)


def test_quoted_cells_may_hold_lines_and_separators(tmp_path: Path) -> None:
    data = 'text,labels\n"one, two\nthree ""four""",x\n\nfive,y\n'
    dataset = read(saved(tmp_path, "data.csv", data), text=TextConfig(words=1))
    expected = token_features(['one, two\nthree "four"', "five"], TextConfig(words=1))
    np.testing.assert_array_equal(dataset.samples.features.indices, expected.indices)
    assert labels_of(dataset) == [["x"], ["y"]]


def test_other_encodings(tmp_path: Path) -> None:
    path = saved(tmp_path, "data.csv", "text,labels\ncafé,thé\n".encode("latin-1"))
    assert labels_of(read(path, ReadOptions(encoding="latin-1"))) == [["thé"]]


def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path: Path) -> None:
    for name, (data, _) in FILES.items():
        if name != "parquet":
            path = saved(tmp_path, "data", b"\xef\xbb\xbf" + data)
            assert len(read(path, ReadOptions(label_separator="|"))) >= 1


def test_weights_may_begin_late(tmp_path: Path) -> None:
    data = '{"text": "a", "labels": 1}\n{"text": "b", "labels": 1, "weight": 2}\n'
    assert weights_of(read(saved(tmp_path, "data.jsonl", data))) == [1.0, 2.0]


def test_samples_to_predict_need_no_labels(tmp_path: Path) -> None:
    names = LabelNames.strings(["x"])
    for name, data in {"a.jsonl": '{"text": "a"}\n', "a.csv": "text\na\n"}.items():
        dataset = read(saved(tmp_path, name, data), ReadOptions(labels_required=False), names=names, text=TextConfig())
        assert labels_of(dataset) == [[]]


@pytest.mark.parametrize("what", ["xmc", "jsonl", "csv"])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_batches_are_the_rows_of_the_whole(tmp_path: Path, any_block: None, what: str, size: int) -> None:
    rows = ROWS * 5
    data = {"xmc": xmc(rows, 4, 3), "jsonl": jsonl(rows, "text"), "csv": table(rows, ",", "|")}[what]
    path = saved(tmp_path, f"data.{what}", data)
    facts: dict[str, Any] = {"names": LabelNames.ids(3)}
    facts |= {"n_features": 4} if what == "xmc" else {"text": TextConfig()}
    options = ReadOptions(label_separator="|")
    whole = read(path, options, **facts)
    parts = list(batches(path, options, size=size, **facts))
    assert all(1 <= len(part) <= size for part in parts)
    assert [row for part in parts for row in labels_of(part)] == labels_of(whole)
    assert [row for part in parts for row in features_of(part)] == features_of(whole)


def test_progress_tells_the_bytes_of_the_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = saved(tmp_path, "data.xmc", xmc(ROWS * 100, 4, 3))
    read(path, progress=lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert seen[-1] == (size, size)
    assert sorted(seen) == seen


@pytest.mark.skipif(not DATA.exists(), reason="the shared datasets are not here")
@pytest.mark.parametrize(
    ("name", "n", "k"), [("delicious", 12920, 983), ("bibtex", 4880, 159), ("cooking_se", 12404, 736)]
)
def test_real_datasets(name: str, n: int, k: int) -> None:
    path = next((DATA / name).glob("train.*"))
    dataset = read(path, ReadOptions(label_names=DATA / name / "labels.txt"))
    assert (len(dataset), len(dataset.names), dataset.names.kind) == (n, k, "strings")
    assert_valid(dataset.rows(0, 500))
