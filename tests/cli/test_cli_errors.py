"""What is given is wrong: one line that says so, exit code 2, nothing half-written, nothing harmed."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cli_tools import Program, assert_one_error, spawn, text_samples, write_jsonl
from machxc.cli import main

GOOD = '{"text": "a b", "labels": ["x"]}\n'

# what is wrong with a file to train from -> its name, its content, what the error says
BAD_DATA: dict[str, tuple[str, str | bytes, str]] = {
    "malformed line": ("a.jsonl", GOOD + "{nonsense\n", "a.jsonl, line 2: expected one JSON object a line"),
    "malformed sparse line": ("a.xmc", "2 5 3\n1 0:1\n1 x\n", "a.xmc, line 3: .*'x'"),
    "feature out of range": ("a.xmc", "1 5 3\n1 5:1\n", r"a.xmc, line 2: the feature is out of range: .*\[0, 5\)"),
    "label out of range": ("a.xmc", "1 5 3\n3 0:1\n", r"a.xmc, line 2: the label is out of range: .*\[0, 3\)"),
    "NaN": ("a.xmc", "1 5 3\n1 0:nan\n", "a.xmc, line 2: expected a finite number .*'0:nan'"),
    "infinite value": ("a.svm", "1 0:inf\n", "a.svm, line 1: expected a finite number"),
    "wrong header count": ("a.xmc", "3 5 3\n1 0:1\n", "a.xmc, line 1: the header says 3 samples, the file has 1"),
    "empty file": ("a.jsonl", "", "a.jsonl: is empty"),
    "wrong encoding": ("a.jsonl", GOOD.encode() + b'{"text": "\xe9"}\n', "a.jsonl, line 2: expected utf-8.*0xe9"),
    "missing column": ("a.csv", "title,labels\na,b\n", "a.csv, line 1: expected a column 'text'.* found 'title'"),
    "unknown format": ("a.dat", "hello\n", "a.dat, line 1: the format is not clear"),
    "no labels": ("a.jsonl", '{"text": "a", "labels": []}\n', "a.jsonl: has no labels"),
    "no samples": ("a.xmc", "0 5 3\n", "a.xmc, line 1: the header says 0 samples"),
    "no label ids": ("a.xmc", "1 5 0\n0:1\n", "a.xmc, line 1: the header says 0 labels"),
    "not gzip": ("a.jsonl.gz", GOOD, "a.jsonl.gz: is not gzip data"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """All that is there, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(machxc: Program, tmp_path: Path, case: str) -> None:
    name, content, error = BAD_DATA[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for arguments in (
        ("train", tmp_path / name, "--output", tmp_path / "m"),
        ("convert", tmp_path / name, tmp_path / "s"),
        ("plan", tmp_path / name),
    ):
        done = machxc(*arguments)
        assert (done.code, done.out) == (2, "")
        assert_one_error(done.err, error)
        assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("case", ["malformed line", "NaN", "missing column", "empty file"])
def test_bad_test_data_is_found_before_training(machxc: Program, files: Path, tmp_path: Path, case: str) -> None:
    name, content, error = BAD_DATA[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = machxc("train", files / "train.jsonl", "--output", tmp_path / "m", "--test", tmp_path / name)
    assert done.code == 2
    assert_one_error(done.err, error)
    assert os.listdir(tmp_path) == [name]


def test_test_data_from_standard_input_is_refused(machxc: Program, files: Path, tmp_path: Path) -> None:
    done = machxc("train", files / "train.jsonl", "--output", tmp_path / "m", "--test", "-")
    assert done.code == 2
    assert_one_error(done.err, "--test cannot be standard input")


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_bad_data_late_in_the_file(machxc: Program, files: Path, tmp_path: Path, verb: str) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", text_samples(9000, 5))
    with data.open("a") as file:
        file.write("{nonsense\n")
    option = {"evaluate": "--predictions", "predict": "--output"}[verb]
    done = machxc(verb, files / "texts", data, option, tmp_path / "p.npz")
    assert (done.code, done.out) == (2, "")
    assert_one_error(done.err, "a.jsonl, line 9001: expected one JSON object")
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_unknown_label_at_evaluation(machxc: Program, files: Path, tmp_path: Path) -> None:
    known, unknown = text_samples(1, 6)[0], {"text": "w1a", "labels": ["topic 01", "nobody knows this"]}
    data = write_jsonl(tmp_path / "a.jsonl", [known, unknown])
    done = machxc("evaluate", files / "texts", data)
    assert done.code == 2
    assert_one_error(done.err, "a.jsonl, line 2: the label 'nobody knows this' is unknown")
    counted = machxc("evaluate", files / "texts", data, "--unknown-labels", "count", "--k", 1)
    assert counted.code == 0
    assert "1 label that the model does not have" in counted.out


def test_one_sample_and_one_label(machxc: Program, tmp_path: Path) -> None:
    for content in ("1 5 3\n1 0:1\n", "2 5 1\n0 0:1\n0 1:1\n", "1 5 1\n0 0:1\n"):
        (tmp_path / "a.xmc").write_text(content)
        assert machxc("train", tmp_path / "a.xmc", "--output", tmp_path / "m", "--overwrite").code == 0
        assert machxc("evaluate", tmp_path / "m", tmp_path / "a.xmc", "--json").json["P@1"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("train", "data", "--output", "m", "--repetitions", 0), r"'repetitions' .* int in \[1, 4096\]. Got 0"),
        (("train", "data", "--output", "m", "--dropout", 1), r"'dropout' .* Got 1.0"),
        (("train", "data", "--output", "m", "--dropout", "nan"), r"'dropout' .* Got nan"),
        (("train", "data", "--output", "m", "--epochs", "two"), "--epochs: invalid int value: 'two'"),
        (("train", "data", "--output", "m", "--loss", "hinge"), "--loss: invalid choice: 'hinge'"),
        (("train", "data", "--output", "m", "--memory", "much"), "--memory: expected a size .* got 'much'"),
        (("train", "data", "--output", "m", "--jobs", "0"), "--jobs: expected a whole number, 1 or more, got '0'"),
        (("train", "data", "--output", "m", "--chars", "4-2"), "'chars_min' .* Got 4 and 2"),
        (("train", "data", "--output", "m", "--no-fold"), "--no-fold need --words or --chars"),
        (("train", "data", "--output", "m", "--config", "no.toml"), "no.toml: cannot read settings"),
        (("train", "data", "--output", "m", "--encoding", "klingon"), "'encoding' .* Got 'klingon'"),
        (("train", "data", "--output", "m", "--overwri"), "unrecognized arguments: --overwri"),
        (("train", "data"), "the following arguments are required: --output"),
        (("train", "data", "--output", "m"), "data: no such file"),
        (("evaluate", "texts", "test.jsonl", "--k", "1,x"), "--k: expected a whole number, 1 or more, got 'x'"),
        (("evaluate", "texts", "test.jsonl", "--propensity-b", -1), r"'b' must be a number in \(0, inf\)"),
        (("evaluate", "texts", "test.jsonl", "--estimator", "best"), "--estimator: invalid choice"),
        (("evaluate", "none", "test.jsonl"), "none: expected a model folder, found none"),
        (("evaluate", "train.jsonl", "test.jsonl"), "train.jsonl: expected a model folder"),
        (("evaluate", "texts", "test.xmc"), "test.xmc, line 2: .*numeric features"),
        (("evaluate", "numbers", "test.jsonl"), "test.jsonl, line 1: this sample is a text"),
        (("predict", "texts", "test.jsonl", "--output", "p.txt"), "p.txt: expected a name that ends in"),
        (("predict", "texts", "no.jsonl", "--output", "p.npz"), "no.jsonl: no such file"),
        (("predict", "texts", "test.jsonl", "--output", "p.npz", "--top-k", "0"), "--top-k: expected a whole number"),
        (("predict", "texts", "test.jsonl", "--output", "p.npz", "--candidates", "train.xmc"), "line 1: .*no label"),
        (("query", "numbers", "a text"), "trained on numeric features, .* use predict"),
        (("query", "texts", "half \udcff"), "text 1 is not valid Unicode"),
        (("info", "none"), "none: expected a model folder, found none"),
        (("plan", "no.jsonl"), "no.jsonl: no such file"),
        (("convert", "no.jsonl", "s"), "no.jsonl: no such file"),
        ((), "the following arguments are required: VERB"),
        (("learn",), "invalid choice: 'learn'"),
    ],
)
def test_wrong_arguments(
    machxc: Program, files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], error: str
) -> None:
    monkeypatch.chdir(files)
    before = contents(files)
    done = machxc(*arguments)
    assert (done.code, done.out) == (2, "")
    assert_one_error(done.err, error)
    assert contents(files) == before


def test_query_without_a_text_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["query", "anything"]) == 2
    assert_one_error(capsys.readouterr().err, "query needs a text")


def test_query_of_bytes_that_are_no_text(machxc: Program, files: Path) -> None:
    done = machxc("query", files / "texts", "-", stdin=b"fine\n\xff\xfe\n")
    assert done.code == 2
    assert_one_error(done.err, "standard input, line 2: expected UTF-8")


def test_outputs_that_exist_are_refused_and_not_harmed(machxc: Program, files: Path, tmp_path: Path) -> None:
    for name in ("m", "s"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("data")
    (tmp_path / "p.npz").write_text("data")
    before = contents(tmp_path)
    for arguments in (
        ("train", files / "train.jsonl", "--output", tmp_path / "m"),
        ("train", files / "train.jsonl", "--output", tmp_path / "m", "--overwrite"),
        ("train", files / "train.jsonl", "--output", tmp_path / "p.npz"),
        ("convert", files / "train.jsonl", tmp_path / "s"),
        ("predict", files / "texts", files / "test.jsonl", "--output", tmp_path / "p.npz"),
        ("evaluate", files / "texts", files / "test.jsonl", "--predictions", tmp_path / "p.npz"),
    ):
        done = machxc(*arguments)
        assert (done.code, done.out) == (2, "")
        assert_one_error(done.err, "cannot (over)?write .*(exists|no part of a model)")
        assert contents(tmp_path) == before


def test_overwrite_replaces(machxc: Program, files: Path, tmp_path: Path) -> None:
    for epochs in (1, 2):
        options = ("--output", tmp_path / "m", "--overwrite", "--epochs", epochs)
        assert machxc("train", files / "train.jsonl", *options).code == 0
        assert machxc("info", tmp_path / "m", "--json").json["config"]["epochs"] == epochs
    for verb, option in (("predict", "--output"), ("evaluate", "--predictions")):
        (tmp_path / "p.npz").write_text("older")
        arguments = (verb, files / "texts", files / "test.jsonl", option, tmp_path / "p.npz", "--overwrite")
        assert machxc(*arguments).code == 0
        assert (tmp_path / "p.npz").read_bytes()[:2] == b"PK"
    assert machxc("convert", files / "train.jsonl", tmp_path / "s").code == 0
    assert machxc("convert", files / "train.jsonl", tmp_path / "s", "--overwrite").code == 0
    assert sorted(os.listdir(tmp_path)) == ["m", "p.npz", "s"]


def test_outputs_that_cannot_be_written(machxc: Program, files: Path) -> None:
    for arguments in (
        ("train", files / "train.jsonl", "--output", "/proc/none/m"),
        ("convert", files / "train.jsonl", "/proc/none/s"),
        ("predict", files / "texts", files / "test.jsonl", "--output", "/proc/none/p.jsonl"),
    ):
        done = machxc(*arguments)
        assert (done.code, done.out) == (2, "")
        assert_one_error(done.err, "cannot write /proc/none")


@pytest.mark.parametrize("verb", ["train", "convert", "predict", "evaluate"])
def test_disk_full(files: Path, tmp_path: Path, verb: str) -> None:
    """No file may grow beyond 2,000 bytes: a stand-in for a full disk that needs no disk."""
    arguments: dict[str, tuple[object, ...]] = {
        "train": ("train", files / "train.jsonl", "--output", tmp_path / "m", "--quiet"),
        "convert": ("convert", files / "train.jsonl", tmp_path / "s"),
        "predict": ("predict", files / "texts", files / "test.jsonl", "--output", tmp_path / "p.jsonl"),
        "evaluate": ("evaluate", files / "texts", files / "test.jsonl", "--predictions", tmp_path / "p.npz"),
    }
    done = spawn(*arguments[verb], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert (done.code, done.out) == (2, "")
    assert_one_error(done.err, "cannot write .*larger than allowed")
    assert os.listdir(tmp_path) == []


def test_output_that_nobody_reads(files: Path) -> None:
    command = [sys.executable, "-m", "machxc.cli", "query", str(files / "texts"), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"w1a\n" * 1000)
        process.stdin.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_output_to_a_full_device(files: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "machxc.cli", "info", str(files / "texts")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert_one_error(done.stderr, "cannot write standard output: No space left on device")
