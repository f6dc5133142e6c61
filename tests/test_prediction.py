"""Bulk predictions: every format holds what the model answers, and nothing is left of what fails."""

from __future__ import annotations

import builtins
import errno
import json
import os
import stat
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from machxc import prediction
from machxc.config import Settings, TextConfig
from machxc.data import ReadOptions, convert
from machxc.errors import DataError, MissingExtraError, OutputError, SettingError
from machxc.features.text import token_features
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.prediction import answer, candidate_ids, named, predict
from machxc.samples import Features, Samples
from machxc.testing import make_samples, make_texts
from machxc.training import train

K = 20
NAMES = {
    "ids": LabelNames.ids(K),
    "integers": LabelNames.integers(np.arange(K) * 1000 - 5000),
    "strings": LabelNames.strings([f"Größe {i}" for i in range(K)]),
}
QUICK = Settings(repetitions=2, buckets=16, epochs=3)


def trained(names: LabelNames) -> Model:
    return train(make_samples(n_labels=K), names, QUICK)


def trained_on_texts() -> Model:
    texts, _ = make_texts(n_labels=K)
    names = LabelNames.strings(f"label {label}" for label in range(K))
    samples = make_samples(n_labels=K)
    features = token_features(texts, TextConfig(1))
    return train(Samples(features, samples.labels), names, QUICK, text=TextConfig(1))


def write(path: Path, samples: Samples) -> Path:
    """The samples as svmlight."""
    features = samples.features
    rows = []
    for i in range(len(samples)):
        row = features.rows(i, i + 1)
        rows.append(f"{i % K} " + " ".join(f"{j}:{v:g}" for j, v in zip(row.indices, row.values, strict=True)))
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    return trained(NAMES[request.param])


@pytest.fixture(scope="module")
def numbers() -> Model:
    return trained(NAMES["ids"])


@pytest.fixture(scope="module")
def samples() -> Samples:
    return make_samples(50, K, seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, samples: Samples) -> Path:
    return write(tmp_path_factory.mktemp("data") / "data.svm", samples)


def of_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of_parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def of_npz(path: Path) -> list[dict[str, Any]]:
    arrays = np.load(path, allow_pickle=False)
    idx, scores = arrays["idx"], arrays["scores"]
    assert (idx.dtype, scores.dtype, idx.shape) == (np.int64, np.float32, scores.shape)
    assert (np.isneginf(scores) == (idx < 0)).all()
    names = {i: i for i in range(K)}
    if "label_ids" in arrays:
        assert arrays["label_ids"].tolist() == np.unique(idx[idx >= 0]).tolist()
        names = dict(zip(arrays["label_ids"].tolist(), arrays["label_names"].tolist(), strict=True))
    return [
        {"labels": [names[i] for i in row[row >= 0].tolist()], "scores": values[row >= 0].tolist()}
        for row, values in zip(idx, scores, strict=True)
    ]


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": of_jsonl,
    ".parquet": of_parquet,
    ".npz": of_npz,
}


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("k", [1, 4, K + 7])
def test_formats_hold_what_the_model_answers(
    model: Model, samples: Samples, data: Path, tmp_path: Path, format: str, k: int
) -> None:
    ids, scores = model.top_k(samples.features, k)
    assert predict(model, data, tmp_path / f"p{format}", k=k) == 50
    rows = READERS[format](tmp_path / f"p{format}")
    expected = [row[row >= 0] for row in ids]
    assert [row["labels"] for row in rows] == [model.names.names(row).tolist() for row in expected]
    found = np.array([np.float32(score) for row in rows for score in row["scores"]])
    assert found.tolist() == np.concatenate([row[: len(e)] for row, e in zip(scores, expected, strict=True)]).tolist()
    assert len(rows[0]["labels"]) == min(k, K)


def test_formats_are_all_tested() -> None:
    assert tuple(sorted(READERS)) == prediction.FORMATS


def test_batches_do_not_show(model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in READERS:
        predict(model, data, tmp_path / f"whole{format}", k=3)
    monkeypatch.setattr(prediction, "_RANKED", 21)
    monkeypatch.setattr(prediction, "_NAMES", 3)
    for format, reader in READERS.items():
        predict(model, data, tmp_path / f"parts{format}", k=3)
        assert reader(tmp_path / f"parts{format}") == reader(tmp_path / f"whole{format}")
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_labels_of_the_data_are_not_looked_at(tmp_path: Path, numbers: Model) -> None:
    lines = [{"features": {"1": 1}}, {"features": {"2": 1}, "labels": "no id"}, {"features": {"2": 1}, "labels": [-7]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for named_model in (numbers, trained(NAMES["strings"])):
        assert predict(named_model, tmp_path / "a.jsonl", tmp_path / "p.npz", overwrite=True) == 3
        assert len(of_npz(tmp_path / "p.npz")) == 3


@pytest.mark.parametrize("kind", NAMES)
def test_stores_are_read_whatever_their_label_names(data: Path, tmp_path: Path, numbers: Model, kind: str) -> None:
    (tmp_path / "names").write_text("\n".join(NAMES["strings"].names(np.arange(K))) + "\n")
    convert(data, tmp_path / "store", ReadOptions(label_names=tmp_path / "names" if kind == "strings" else None))
    predict(numbers, tmp_path / "store", tmp_path / "store.npz")
    predict(numbers, data, tmp_path / "file.npz")
    assert (tmp_path / "store.npz").read_bytes() == (tmp_path / "file.npz").read_bytes()


def test_scores_have_the_digits_of_float32() -> None:
    ids, scores = np.array([[0, 1, -1]]), np.array([[0.1, 1 / 3, -np.inf]], np.float32)
    assert list(named(LabelNames.strings(["a", "b"]), ids, scores)) == [(["a", "b"], [0.1, 0.33333334])]


@pytest.mark.parametrize("format", READERS)
def test_an_error_leaves_nothing_and_harms_nothing(numbers: Model, data: Path, tmp_path: Path, format: str) -> None:
    bad = tmp_path / "bad.svm"
    bad.write_text(data.read_text() + "1 0:nan\n")
    output = tmp_path / f"p{format}"
    for before in (None, b"precious"):
        if before is not None:
            output.write_bytes(before)
        with pytest.raises(DataError, match="line 51"):
            predict(numbers, bad, output, overwrite=True)
        assert sorted(os.listdir(tmp_path)) == ["bad.svm"] + ([] if before is None else [output.name])
    assert output.read_bytes() == b"precious"


def test_outputs_that_are_refused(numbers: Model, data: Path, tmp_path: Path) -> None:
    (tmp_path / "there.npz").write_bytes(b"precious")
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    for name, error in (
        ("there.npz", "exists already"),
        ("folder.npz", "not an ordinary file"),
        ("pipe.npz", "not an ordinary file"),
    ):
        with pytest.raises(OutputError, match=error):
            predict(numbers, data, tmp_path / name, overwrite=name != "there.npz")
    assert (tmp_path / "there.npz").read_bytes() == b"precious"
    for name in ("p.csv", "p", "npz"):
        with pytest.raises(SettingError, match=rf"{name}: expected a name that ends in one of .*\.npz"):
            predict(numbers, data, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["folder.npz", "pipe.npz", "there.npz"]


def test_what_a_link_points_to_is_replaced(numbers: Model, data: Path, tmp_path: Path) -> None:
    (tmp_path / "real.npz").write_bytes(b"older")
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    predict(numbers, data, tmp_path / "link.npz", overwrite=True)
    assert (tmp_path / "link.npz").is_symlink()
    assert len(of_npz(tmp_path / "real.npz")) == 50


@pytest.mark.parametrize("format", READERS)
def test_full_disk_at_every_write(
    numbers: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """The n-th call to write, fsync or rename fails, n = 1, 2, ... until none does."""
    output = tmp_path / f"p{format}"
    output.write_bytes(b"precious")
    for n in range(1, 200):
        with monkeypatch.context() as patch:
            calls = fail_at(n, patch)
            error = outcome(lambda: predict(numbers, data, output, overwrite=True))
        if len(calls) < n:
            break
        assert error is None or "the disk is full" in str(error)
        changed = error is None or calls[-1] == "fsync of a folder"  # the very last step
        assert changed or output.read_bytes() == b"precious"
        assert os.listdir(tmp_path) == [output.name]
        output.write_bytes(b"precious")
    assert error is None
    assert n > 4
    assert len(READERS[format](output)) == 50


def outcome(function: Callable[[], object]) -> OutputError | None:
    try:
        function()
    except OutputError as error:
        return error
    return None


def fail_at(n: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the n-th step that writes fail; returns the steps taken."""
    calls: list[str] = []

    def step(name: str) -> None:
        calls.append(name)
        if len(calls) == n:
            raise OSError(errno.ENOSPC, "No space left on device")

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            step(name)
            return function(*arguments, **options)

        return call

    def fsync(descriptor: int) -> None:
        step("fsync of a folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync")

    patch.setattr(os, "fsync", fsync)
    for name in ("replace", "mkdir"):
        patch.setattr(os, name, counted(name, getattr(os, name)))

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "x" in mode:
            step("open")
        return open_(file, mode, *arguments, **options)

    open_ = builtins.open
    patch.setattr(builtins, "open", opened)
    patch.setattr(np.lib.format, "write_array_header_1_0", counted("header", np.lib.format.write_array_header_1_0))
    return calls


def test_memory_does_not_grow_with_the_data(
    numbers: Model, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "_RANKED", 5000)  # batches of 500
    monkeypatch.setattr("machxc.data.source.BLOCK", 1 << 15)
    few = write(tmp_path / "few.svm", make_samples(2000, K))
    many = tmp_path / "many.svm"
    many.write_text(few.read_text() * 10)
    for format in READERS:
        peaks = []
        for data in (few, few, many):  # the first warms up
            tracemalloc.start()
            predict(numbers, data, tmp_path / f"p{format}", overwrite=True)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[2] < 1.2 * peaks[1] + 100_000


def test_parquet_without_pyarrow(numbers: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'machxc\[parquet\]'"):
        predict(numbers, data, tmp_path / "p.parquet")
    assert os.listdir(tmp_path) == []


def test_progress_reaches_the_size_of_the_file(numbers: Model, data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    predict(numbers, data, tmp_path / "p.npz", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (data.stat().st_size, data.stat().st_size)


def test_answers_to_texts() -> None:
    model = trained_on_texts()
    texts, labels = make_texts(30, K, seed=3)
    ids, scores = answer(model, texts, k=2)
    assert ids.shape == scores.shape == (30, 2)
    assert np.mean(model.names.names(ids[:, 0]) == [row[0] for row in labels]) > 0.8
    assert answer(model, [], k=2)[0].shape == (0, 2)


def test_answers_of_a_model_of_numbers(numbers: Model) -> None:
    with pytest.raises(DataError, match=r"numeric features.* use predict"):
        answer(numbers, ["a text"])


def test_candidates(tmp_path: Path, model: Model, data: Path) -> None:
    names = model.names.names(np.array([7, 2])).tolist()
    (tmp_path / "few").write_text("".join(f"{name}\r\n" for name in names), encoding="utf-8")
    ids = candidate_ids(model.names, tmp_path / "few")
    assert ids.tolist() == [7, 2]
    predict(model, data, tmp_path / "p.jsonl", k=5, candidates=ids)
    assert all(sorted(row["labels"]) == sorted(names) for row in of_jsonl(tmp_path / "p.jsonl"))
    for wrong in ("nobody", "99", "1" * 40, ""):
        (tmp_path / "few").write_text(f"{names[0]}\n{wrong}\n", encoding="utf-8")
        with pytest.raises(DataError, match=rf"few, line 2: the model has no label '{wrong}'"):
            candidate_ids(model.names, tmp_path / "few")
    (tmp_path / "few").write_bytes(b"\n")
    with pytest.raises(DataError, match="line 1"):
        candidate_ids(model.names, tmp_path / "few")


def test_features_that_the_model_does_not_have(numbers: Model, tmp_path: Path) -> None:
    (tmp_path / "a.xmc").write_text("1 500 3\n0:1 499:1\n")
    with pytest.raises(DataError, match="500 features, the model has 80"):
        predict(numbers, tmp_path / "a.xmc", tmp_path / "p.npz")
    assert isinstance(make_samples().features, Features)


def test_answers_in_bounded_time_say_whether_they_are_proven(numbers: Model, samples: Samples, tmp_path: Path) -> None:
    data = write(tmp_path / "data.svm", samples)
    for suffix in prediction.FORMATS:
        predict(numbers, data, tmp_path / f"all{suffix}", k=3, budget=10**9)
    ids, _, proven = numbers.top_k_within(samples.features, 3, budget=10**9)
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["proven"] for line in lines] == proven.tolist()
    assert parquet.read_table(tmp_path / "all.parquet")["proven"].to_pylist() == proven.tolist()
    with np.load(tmp_path / "all.npz") as arrays:
        assert np.array_equal(arrays["proven"], proven)
        assert np.array_equal(arrays["idx"], ids)
    with pytest.raises(SettingError, match="either candidates or a bound"):
        predict(numbers, data, tmp_path / "both.npz", candidates=np.arange(2), deadline=5.0)
