"""Runs from a file to a model folder; bad data and full disks on the way leave nothing half-done behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from machxc import files, run
from machxc.data import convert, read
from machxc.errors import DataError, MemoryBudgetError, OutputError
from machxc.folder import repetition_file
from machxc.run import plan_run, run_folder, train_run
from machxc.training import train
from run_tools import SETTINGS, digests, names, stop_after

pytestmark = pytest.mark.usefixtures("quick_fsync")


# ---- a run that nothing disturbs


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_model_is_the_one_trained_in_memory(tmp_path: Path, data: Path, jobs: int) -> None:
    model = train_run(data, tmp_path / "model", SETTINGS, jobs=jobs)
    dataset = read(data)
    expected = train(dataset.samples, dataset.names, SETTINGS, text=dataset.text)
    assert model.config == expected.config
    assert model.numbers == expected.numbers == [0, 1, 2, 3]
    for r in model.numbers:
        found, wanted = model.data.repetitions[r], expected.data.repetitions[r]
        assert {n: t.tobytes() for n, t in found.items()} == {n: t.tobytes() for n, t in wanted.items()}
    assert model.label_counts.tobytes() == expected.label_counts.tobytes()
    assert model.names == dataset.names
    assert model.n_samples == 200
    assert names(tmp_path) == {"data.jsonl", "model"}  # nothing is left of the run


def test_a_store_gives_the_same_model(tmp_path: Path, data: Path, uninterrupted: dict[str, str]) -> None:
    convert(data, tmp_path / "store")
    train_run(tmp_path / "store", tmp_path / "model", SETTINGS)
    assert digests(tmp_path / "model") == uninterrupted
    assert names(tmp_path) == {"data.jsonl", "store", "model"}


def test_the_plan_is_told_before_training_and_progress_to_the_end(tmp_path: Path, data: Path) -> None:
    told: list[Any] = []
    read_bytes: list[int] = []
    train_run(
        data,
        tmp_path / "model",
        SETTINGS,
        on_plan=lambda plan, reason: told.append((plan, reason)),
        progress=lambda done, total: told.append((done, total)),
        reading=lambda done, total: read_bytes.append(done),
    )
    plan, reason = told[0]
    assert plan.config == plan_run(data, SETTINGS).config
    assert "words" in reason
    assert [done for done, _ in told[1:]] == list(range(200, 1601, 200))
    assert {total for _, total in told[1:]} == {1600}
    assert read_bytes[-1] == data.stat().st_size
    assert names(tmp_path) == {"data.jsonl", "model"}


# ---- trouble with the disk and the data


def test_a_full_disk_leaves_a_run_that_goes_on(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    write = files._write_new

    def full(path: Path, parts: Any) -> None:
        if "repetition-00002" in path.name:
            path.write_bytes(b"half of i")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, parts)

    monkeypatch.setattr(files, "_write_new", full)
    with pytest.raises(OutputError, match=r"repetition-00002.*No space left.*free some space"):
        train_run(data, output, SETTINGS)
    left = {name for name in names(run_folder(output)) if not name.startswith("attempt-")}
    assert left == {"run.json", "plan.json", "data", "lock", repetition_file(0), repetition_file(1)}
    monkeypatch.setattr(files, "_write_new", write)
    train_run(data, output, SETTINGS)
    assert digests(output) == uninterrupted


@pytest.mark.parametrize("function", ["replace_folder", "finish_model"])
def test_a_disk_that_is_full_at_the_end_loses_nothing(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    output = tmp_path / "model"

    def full(*arguments: Any, **named: Any) -> None:
        with files.output_errors(output):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run, function, full)
        with pytest.raises(OutputError, match="free some space"):
            train_run(data, output, SETTINGS)
    assert names(tmp_path) == {"data.jsonl", run_folder(output).name}
    train_run(data, output, SETTINGS, progress=stop_after(0))  # nothing is left to train
    assert digests(output) == uninterrupted


def test_without_links_files_are_copied(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    train_run(data, tmp_path / "model", SETTINGS)
    assert digests(tmp_path / "model") == uninterrupted


def test_an_output_that_exists_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    with pytest.raises(OutputError, match="exists already"):
        train_run(tmp_path / "no such data", output, SETTINGS)
    assert names(tmp_path) == {"model"}


def test_a_folder_that_is_no_model_is_never_overwritten(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        train_run(data, output, SETTINGS, overwrite=True)
    assert names(tmp_path) == {"data.jsonl", "model"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{\n", "line 1"),
        ('{"text": "a", "labels": ["x"]}\n{"text": "b"}\n', "line 2"),
        ('{"text": "a", "labels": []}\n', "label"),
    ],
)
def test_bad_data_leaves_nothing_behind(tmp_path: Path, content: str, message: str) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(content)
    with pytest.raises(DataError, match=message):
        train_run(data, tmp_path / "model", SETTINGS)
    assert names(tmp_path) == {"data.jsonl"}


def test_what_does_not_fit_the_budget_is_refused_before_training(tmp_path: Path, data: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="memory budget is 1 MB"):
        train_run(data, tmp_path / "model", memory_budget=10**6, progress=stop_after(0))
    assert names(tmp_path) == {"data.jsonl"}


def test_planning_leaves_nothing_behind(tmp_path: Path, data: Path) -> None:
    plan = plan_run(data, jobs=3)
    assert (plan.facts.n_samples, plan.facts.n_labels, plan.jobs) == (200, 20, 3)
    assert names(tmp_path) == {"data.jsonl"}


def test_weights_of_samples_are_used(tmp_path: Path, data: Path) -> None:
    lines = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    weighted = tmp_path / "weighted.jsonl"
    weighted.write_text("".join(json.dumps({**line, "weight": i % 3}) + "\n" for i, line in enumerate(lines)))
    model = train_run(weighted, tmp_path / "model", SETTINGS)
    dataset = read(weighted)
    assert dataset.samples.weights is not None
    np.testing.assert_array_equal(dataset.samples.weights, np.arange(200) % 3)
    expected = train(dataset.samples, dataset.names, SETTINGS, text=dataset.text)
    for name, array in expected.data.repetitions[0].items():
        assert model.data.repetitions[0][name].tobytes() == array.tobytes(), name
