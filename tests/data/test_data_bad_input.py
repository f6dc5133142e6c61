"""Bad input: one DataError that names file and line. And garbage: an error or a valid dataset, never anything else."""

from __future__ import annotations

import builtins
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_writers import Sample, assert_valid, compressed, jsonl, parquet, saved, svmlight, table, xmc

from machxc.data import ReadOptions, batches, convert, read, source
from machxc.errors import DataError, MissingExtraError, SettingError
from machxc.labels import LabelNames

GOOD = '{"text": "a", "labels": [1]}\n'
XMC = "2 5 3\n1 0:1\n2 4:1\n"

# what is wrong -> the file's name, its content, the line of the error (None: of the whole file), words of the message
BAD: dict[str, tuple[str, str | bytes, int | None, str]] = {
    "label is no number": ("a.xmc", "1 5 3\nx 0:1\n", 2, "integer labels.*'x'"),
    "label list ends in a comma": ("a.xmc", "1 5 3\n1, 0:1\n", 2, "integer labels"),
    "label is negative": ("a.xmc", "1 5 3\n-1 0:1\n", 2, "integer labels"),
    "label = K": ("a.xmc", "2 5 3\n1 0:1\n3 1:1\n", 3, r"label.*\[0, 3\).*'3'"),
    "label of many digits": ("a.svm", "9" * 30 + " 0:1\n", 1, "label.*18 digits"),
    "feature = D": ("a.xmc", "1 5 3\n1 5:1\n", 2, r"feature.*\[0, 5\).*header.*'5:1'"),
    "feature = 2**32": ("a.svm", "1 4294967296:1\n", 1, r"feature.*\[0, 4294967296\)"),
    "feature of many digits": ("a.svm", f"1 {'9' * 40}:1\n", 1, "feature"),
    "feature is negative": ("a.svm", "1 -1:1\n", 1, 'id:value".*-1:1'),
    "feature without a value": ("a.xmc", "1 5 3\n1 0:\n", 2, "finite number.*'0:'"),
    "feature without a colon": ("a.xmc", "1 5 3\n1 0\n", 2, "id:value"),
    "value is NaN": ("a.xmc", "1 5 3\n1 0:nan\n", 2, "finite number.*'0:nan'"),
    "value is infinite": ("a.svm", "1 0:1\n1 0:inf\n", 2, "finite number.*'0:inf'"),
    "value is too large": ("a.svm", "1 0:1e39\n", 1, "finite number"),
    "value with a tail": ("a.svm", "1 0:1x\n", 1, "finite number"),
    "value with two points": ("a.svm", "1 0:1.2.3\n", 1, "finite number"),
    "exponent without digits": ("a.svm", "1 0:1e\n", 1, "finite number"),
    "values add up to infinity": ("a.svm", "1 0:1\n1 0:3e38 0:3e38\n", 2, "add up"),
    "fewer samples than the header says": ("a.xmc", "3 5 3\n1 0:1\n2 4:1\n", 1, "3 samples.*has 2"),
    "more samples than the header says": ("a.xmc", "1 5 3\n1 0:1\n2 4:1\n", 3, "1 samples.*one more"),
    "no header": ("a.xmc", "1 0:1\n2 4:1\n", 1, "three numbers.*'1 0:1'"),
    "N = 0": ("a.xmc", "0 5 3\n", 1, "0 samples"),
    "D = 0": ("a.xmc", "1 0 3\n1\n", 1, "0 features"),
    "K = 0": ("a.xmc", "1 5 0\n0:1\n", 1, "0 labels"),
    "K = 2**32": ("a.xmc", "1 5 4294967296\n0 0:1\n", 1, "labels"),
    "header of many digits": ("a.xmc", "9" * 5000 + " 5 3\n", 1, "three numbers"),
    "empty": ("a.xmc", "", None, "empty"),
    "empty and compressed": ("a.jsonl.gz", compressed(b"", ".gz"), None, "empty"),
    "blank lines only": ("a.jsonl", "\n \n", None, "no samples"),
    "comments only": ("a.svm", "# nothing\n", None, "no samples"),
    "header of a table only": ("a.csv", "text,labels\n", None, "no samples"),
    "no feature at all": ("a.svm", "1\n2\n", None, "no features"),
    "no label at all": ("a.svm", "0:1\n1:1\n", None, "no labels"),
    "UTF-16": ("a.jsonl", GOOD.encode("utf-16"), 1, "UTF-16.*UTF-8"),
    "not UTF-8": ("a.jsonl", GOOD.encode() * 2 + b'{"text": "caf\xe9", "labels": 1}\n', 3, "utf-8.*0xe9"),
    "not UTF-8, table": ("a.csv", b"text,labels\na,b\ncaf\xe9,1\n", 3, "utf-8.*0xe9"),
    "not UTF-8, sparse": ("a.xmc", b"1 5 3\n\xe9 0:1\n", 2, "integer labels"),
    "broken JSON": ("a.jsonl", GOOD + '{"text": "b", "labels": [1}\n', 2, "JSON object a line.*column"),
    "JSON over several lines": ("a.jsonl", '{\n "text": "b"}\n', 1, "JSON object a line"),
    "JSON list": ("a.jsonl", f"[{GOOD.strip()}]\n", 1, "JSON object a line"),
    "JSON without end": ("a.jsonl", "[" * 100_000, 1, "JSON object a line"),
    "JSON number of many digits": ("a.jsonl", '{"text": "a", "labels": ' + "9" * 5000 + "}\n", 1, "JSON object a line"),
    "neither text nor features": (
        "a.jsonl",
        '{"title": "b", "labels": 1}\n',
        1,
        "neither 'text' nor 'features'.*'title'",
    ),
    "both text and features": ("a.jsonl", '{"text": "b", "features": {}, "labels": 1}\n', 1, "both"),
    "features after texts": (
        "a.jsonl",
        GOOD + '{"features": {"1": 1}, "labels": 1}\n',
        2,
        "has features.*before have a text",
    ),
    "text is a number": ("a.jsonl", '{"text": 5, "labels": 1}\n', 1, "'text' to be a string, got 5"),
    "half a character": ("a.jsonl", '{"text": "\\ud83d", "labels": 1}\n', 1, "not valid Unicode"),
    "no labels key": ("a.jsonl", GOOD + '{"text": "b"}\n', 2, "no 'labels'.*found 'text'"),
    "label is a float": ("a.jsonl", '{"text": "b", "labels": [1.5]}\n', 1, "label.*1.5"),
    "label is true": ("a.jsonl", '{"text": "b", "labels": true}\n', 1, "label.*True"),
    "label is empty": ("a.jsonl", '{"text": "b", "labels": [""]}\n', 1, "non-empty"),
    "label is half a character": ("a.jsonl", '{"text": "b", "labels": "\\ud83d"}\n', 1, "label"),
    "label beyond 64 bits": ("a.jsonl", GOOD + '{"text": "b", "labels": 9223372036854775808}\n', 2, "64 bits"),
    "labels of two kinds": ("a.jsonl", GOOD + '{"text": "b", "labels": ["x"]}\n', 2, "'x' is a string.*integers"),
    "labels of two kinds, far apart": (
        "a.jsonl",
        GOOD * 9000 + '{"text": "b", "labels": ["x"]}\n' * 9000,
        9001,
        "'x' is a string.*integers",
    ),
    "feature id is no number": ("a.jsonl", '{"features": {"x": 1}, "labels": 1}\n', 1, "feature id.*'x'"),
    "feature id = 2**32, JSON": ("a.jsonl", '{"features": [[4294967296, 1]], "labels": 1}\n', 1, "feature id"),
    "feature id beyond 64 bits": (
        "a.jsonl",
        '{"features": [[99999999999999999999, 1]], "labels": 1}\n',
        1,
        "feature id",
    ),
    "feature value NaN, JSON": ("a.jsonl", '{"features": {"1": NaN}, "labels": 1}\n', 1, "finite number, got nan"),
    "feature value is a string": ("a.jsonl", '{"features": {"1": "2"}, "labels": 1}\n', 1, "finite number, got '2'"),
    "feature value is null": ("a.jsonl", '{"features": [1, null], "labels": 1}\n', 1, "finite number, got None"),
    "feature value of many digits": (
        "a.jsonl",
        '{"features": [1' + "0" * 400 + '], "labels": 1}\n',
        1,
        "finite number",
    ),
    "feature values add up": ("a.jsonl", '{"features": [[1, 3e38], [1, 3e38]], "labels": 1}\n', 1, "add up"),
    "features are a number": ("a.jsonl", '{"features": 5, "labels": 1}\n', 1, "object or a list, got 5"),
    "a pair of three": ("a.jsonl", '{"features": [[1, 2, 3]], "labels": 1}\n', 1, r"\[id, value\]"),
    "dense of two lengths": (
        "a.jsonl",
        '{"features": [1, 2], "labels": 1}\n{"features": [1, 2, 3], "labels": 1}\n',
        2,
        "expected 2 feature values.*got 3",
    ),
    "negative weight": ("a.jsonl", GOOD + '{"text": "b", "labels": 1, "weight": -1}\n', 2, "weight.*-1"),
    "weight is infinite": ("a.jsonl", '{"text": "b", "labels": 1, "weight": Infinity}\n', 1, "weight.*inf"),
    "weight is a string": ("a.jsonl", '{"text": "b", "labels": 1, "weight": "2"}\n', 1, "weight.*'2'"),
    "no text column": ("a.csv", "title,labels\na,b\n", 1, "column 'text'.*found 'title', 'labels'"),
    "no label column": ("a.tsv", "text\ttags\na\tb\n", 1, "column 'labels'.*found 'text', 'tags'"),
    "a column twice": ("a.csv", "text,text,labels\na,b,c\n", 1, "2 of that name"),
    "a cell too few": ("a.csv", "text,labels\na,b\nc\n", 3, "expected 2 cells.*got 1"),
    "a cell too many": ("a.csv", "text,labels\na,b\nc,d,e\n", 3, "expected 2 cells.*got 3"),
    "a quote never closed": ("a.csv", 'text,labels\na,b\n"c,d\ne,f\n', 3, "quote"),
    "text after a quote": ("a.csv", 'text,labels\n"a"b,c\n', 2, "quote"),
    "gzip cut off": ("a.jsonl.gz", compressed(GOOD.encode() * 1000, ".gz")[:-9], None, "middle of its gzip data"),
    "zstd cut off": ("a.jsonl.zst", compressed(GOOD.encode() * 1000, ".zst")[:-3], None, "middle of its zstd data"),
    "gzip damaged": ("a.jsonl.gz", compressed(GOOD.encode(), ".gz")[:-8] + b"\xff" * 8, None, "damaged gzip"),
    "zstd damaged": ("a.jsonl.zst", compressed(GOOD.encode(), ".zst")[:6] + b"\xff" * 30, None, "damaged zstd"),
    "gzip only by name": ("a.jsonl.gz", GOOD, None, "not gzip data"),
    "zstd only by name": ("a.jsonl.zst", GOOD, None, "not zstd data"),
    "no known format": ("a.bin", "hello\nworld\n", 1, "format is not clear.*'hello'"),
    "not Parquet": ("a.parquet", "PAR1 is what it says", None, "not a Parquet file"),
    "Parquet cut off": ("a.parquet", parquet([Sample([1], {}, "a")])[:-9], None, "not a Parquet file"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_error_with_file_and_line(tmp_path: Path, what: str) -> None:
    name, data, line, words = BAD[what]
    path = saved(tmp_path, name, data)
    with pytest.raises(DataError, match=f"(?s){words}") as caught:
        read(path)
    assert (caught.value.path, caught.value.line) == (str(path), line)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(DataError, match=f"(?s){words}"):
        convert(path, tmp_path / "store")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_lines_are_counted_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 50)
    for name, data in {
        "a.xmc": "101 5 3\n" + "1 0:1\n" * 100 + "1 x\n",
        "a.svm": "1 0:1\n\n" * 50 + "1 0:1\n1 x\n",
        "a.jsonl": GOOD * 50 + "\n" * 51 + "x\n",
        "a.csv": "text,labels\n" + 'a,b\n"c\nd",e\n' * 33 + "a,b\nx\n",
    }.items():
        with pytest.raises(DataError) as caught:
            read(saved(tmp_path, name, data))
        assert caught.value.line == 102


def test_bad_tables_by_options(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.csv", "text,labels,w\na,x,1\nb,y,-2\n")
    with pytest.raises(DataError, match=r"line 3: expected a weight.*-2"):
        read(path, ReadOptions(weight_column="w"))
    with pytest.raises(DataError, match=r"line 1: expected a column 'weight' for the weights.*'w'"):
        read(path, ReadOptions(weight_column="weight"))
    path = saved(tmp_path, "b.csv", "text,labels,w\na,x,heavy\n")
    with pytest.raises(DataError, match=r"line 2: expected a weight.*'heavy'"):
        read(path, ReadOptions(weight_column="w"))
    with pytest.raises(DataError, match="line 1: the sample has no weight 'w'"):
        read(saved(tmp_path, "c.jsonl", GOOD), ReadOptions(weight_column="w"))


def test_bad_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "labels": [1.0, 2.5]}), path)
    with pytest.raises(DataError, match=r"line 1: expected a label"):
        read(path)
    pq.write_table(pa.table({"text": ["a", "b"], "labels": [["x"], ["y"]]}), path)
    with pytest.raises(DataError, match=r"column 'title'.*found 'text', 'labels'"):
        read(path, ReadOptions(text_column="title"))
    pq.write_table(pa.table({"text": [1, 2], "labels": ["x", "y"]}), path)
    with pytest.raises(DataError, match=r"line 1: expected a text, got 1"):
        read(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"Parquet files.*machxc\[parquet\]"):
        read(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="folder, but not a converted store"):
        read(tmp_path)
    with pytest.raises(DataError, match="expected the folder of a converted store"):
        read(saved(tmp_path, "a.jsonl", GOOD), ReadOptions(format="store"))
    with pytest.raises(DataError, match="no such file"):
        read(saved(tmp_path, "a.jsonl", GOOD), ReadOptions(label_names=tmp_path / "names"))


def test_a_disk_that_fails_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "a.jsonl", GOOD)

    class Failing:
        def read(self, size: int) -> bytes:
            raise OSError(5, "Input/output error")

        def fileno(self) -> int:
            raise OSError

        def close(self) -> None: ...

    monkeypatch.setattr(source, "open", lambda *args, **settings: Failing(), raising=False)
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        read(path)
    assert builtins.open is not source.open  # type: ignore[attr-defined]


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 100)
    monkeypatch.setattr(source, "MAX_LINE", 1000)
    with pytest.raises(DataError, match="line 2: the line is longer"):
        read(saved(tmp_path, "a.jsonl", GOOD + "x" * 5000))


@pytest.mark.parametrize(
    "options",
    [
        {"format": "excel"},
        {"encoding": "utf-16"},
        {"encoding": "rot13"},
        {"encoding": "nothing"},
        {"label_separator": ""},
        {"text_column": ()},
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"'{next(iter(options))}' option must"):
        ReadOptions(**options)


def test_errors_come_from_batches_too(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.xmc", "1 5 3\n1 9:1\n")
    with pytest.raises(DataError, match="line 2"):
        list(batches(path, names=LabelNames.ids(3), n_features=5))
    with pytest.raises(DataError, match="no samples"):
        list(batches(saved(tmp_path, "a.svm", "\n"), names=LabelNames.ids(3), n_features=5))


ROWS = [
    Sample([int(label) for label in np.unique([i % 7, i % 3])], {i % 11: i / 4, 20: -1.5}, f"some text number {i}", 1.5)
    for i in range(30)
]
VALID: dict[str, Callable[[], bytes]] = {
    "xmc": lambda: xmc(ROWS, 30, 9),
    "svmlight": lambda: svmlight(ROWS),
    "text.jsonl": lambda: jsonl(ROWS, "text"),
    "object.jsonl": lambda: jsonl(ROWS, "object"),
    "pairs.jsonl": lambda: jsonl(ROWS, "pairs"),
    "dense.jsonl": lambda: jsonl(ROWS, "dense", 25),
    "csv": lambda: table(ROWS, ",", "|"),
    "tsv": lambda: table(ROWS, "\t", "|"),
    "jsonl.gz": lambda: compressed(jsonl(ROWS, "text"), ".gz"),
    "xmc.zst": lambda: compressed(xmc(ROWS, 30, 9), ".zst"),
    "parquet": lambda: parquet(ROWS),
}
TOKENS = [
    *(b"nan", b"-1", b"1e999", b"-0", b"9" * 25, b"4294967295", b"4294967296", b"1e-400", b"0x1", b"."),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"\r", b"\r\n", b"\n", b"\n\n", b"\t", b" "),
    *(b'"', b"'", b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b"[[", b":", b",", b"|", b"#", b"null", b"true", b"{}"),
]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """One to four random changes: bits flipped, pieces taken out, put in, repeated; cut off."""
    for _ in range(dice.randint(1, 4)):
        at, end = sorted(dice.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + 40)
        flipped = bytes(byte ^ 1 << dice.randrange(8) for byte in data[at : at + 1])
        data = dice.choice(
            [
                data[:at] + flipped + data[at + 1 :],
                data[:at] + data[end:],
                data[:at] + dice.choice(TOKENS) + data[end:],
                data[:at] + dice.choice(TOKENS) + data[at:],
                data[:end] + data[at:],
                data[:at] if dice.random() < 0.3 else data,
            ]
        )
    return data


def refusal(path: Path, options: ReadOptions | None = None) -> DataError | None:
    """Why a file is refused, None when it is read; the file is one or the other."""
    try:
        dataset = read(path, options)
    except DataError as error:
        return error
    assert_valid(dataset)
    return None


@pytest.mark.parametrize("what", VALID)
def test_generated_garbage(tmp_path: Path, what: str) -> None:
    dice, n_refused = random.Random(what), 0
    whole_file = re.compile("empty|no samples|no labels|no features|gzip|zstd|Parquet")
    for _ in range(60):
        path = saved(tmp_path, f"data.{what}", mutated(VALID[what](), dice))
        error = refusal(path, ReadOptions(label_separator=dice.choice([None, "|"])))
        if error is not None:
            n_refused += 1
            assert error.path == str(path)
            assert error.line is not None or whole_file.search(str(error)), error
    assert n_refused


def test_garbage_that_is_json(tmp_path: Path) -> None:
    """Every value of a small zoo in every place of a sample."""
    zoo: list[Any] = [None, True, 0, -1, 2**40, 2**70, 1.5, 1e300, "", "x", "1"]
    zoo += [[], {}, [[]], [1, "x"], [[1, 2]], {"a": 1}]
    of_text, of_features = {"text": "a", "labels": [1]}, {"features": {"1": 1}, "labels": [1]}
    n_refused = 0
    for key in ("text", "features", "labels", "weight"):
        good = of_text if key in ("text", "labels") else of_features
        for value in zoo:
            for wrapped in (value, [value], [1, value], {"1": value}, [[1, value]], [[value, 1]]):
                data = f"{json.dumps({**good, key: wrapped})}\n{json.dumps(good)}\n"
                error = refusal(saved(tmp_path, "a.jsonl", data))
                n_refused += error is not None
                assert error is None or error.line in (1, 2)
    assert n_refused > 200
