"""Repetitions come and go: models that lack some answer, and runs that add some touch none of those that are there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from machxc.errors import DataError, OutputError, SettingError
from machxc.folder import repetition_file
from machxc.model import Model
from machxc.run import Execution, run_folder, train_run
from machxc.runs.status import status_of
from run_tools import SETTINGS, StopNowError, digests, names, stop_after, undisturbed, write_jsonl

MORE = replace(SETTINGS, repetitions=7)


@pytest.fixture
def model(tmp_path: Path, data: Path) -> Path:
    train_run(data, tmp_path / "model", SETTINGS)
    return tmp_path / "model"


def without(model: Path, *numbers: int) -> None:
    """Take repetitions away, as an administrator would who has no room for them."""
    manifest = json.loads((model / "manifest.json").read_bytes())
    for r in numbers:
        (model / repetition_file(r)).unlink()
        del manifest["files"][repetition_file(r)]
    (model / "manifest.json").write_text(json.dumps(manifest))


def inodes(model: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.stat()) for path in model.glob("repetition-*"))
    return {path.name: (status.st_ino, status.st_mtime_ns) for path, status in found}


@pytest.mark.parametrize("settings", [MORE, replace(MORE, buckets=None, epochs=None)])
def test_repetitions_are_added_without_touching_those_there(
    tmp_path: Path, data: Path, model: Path, settings: Any
) -> None:
    before, steps = inodes(model), list[int]()
    grown = train_run(data, model, settings, progress=lambda done, total: steps.append(total))
    assert grown.numbers == list(range(7))
    assert before.items() <= inodes(model).items()
    assert set(steps) == {3 * 400}
    train_run(data, tmp_path / "expected", MORE)
    assert digests(model) == digests(tmp_path / "expected")
    assert names(tmp_path) == {"data.jsonl", "model", "expected"}


def test_a_model_that_lacks_repetitions_answers_says_so_and_is_completed(
    tmp_path: Path, data: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without(model, 0, 2)
    loaded = Model.load(model)
    assert (loaded.n_repetitions, loaded.numbers) == (2, [1, 3])
    assert "answering from 2 of 4 repetitions" in caplog.text
    assert [r.state for r in status_of(model).repetitions] == ["missing", "done", "missing", "done"]
    train_run(data, model, SETTINGS)
    assert digests(model) == undisturbed()


def test_resume_completes_a_model_that_lacks_repetitions(data: Path, model: Path) -> None:
    without(model, 1)
    train_run(data, model, resume=True)
    assert digests(model) == undisturbed()


def test_growing_that_is_interrupted_goes_on_and_loses_nothing(tmp_path: Path, data: Path, model: Path) -> None:
    for _ in range(2):
        with pytest.raises(StopNowError):
            train_run(data, model, MORE, progress=stop_after(3))
        assert digests(model) == undisturbed()  # the older model, until there is a new one
    assert train_run(data, model, SETTINGS, resume=True).numbers == [0, 1, 2, 3]  # still that
    steps: list[int] = []
    train_run(data, model, MORE, progress=lambda done, total: steps.append(total))
    assert set(steps) == {400}  # the first run finished one more, the second another
    train_run(data, tmp_path / "expected", MORE)
    assert digests(model) == digests(tmp_path / "expected")


@pytest.mark.parametrize("other", [{"buckets": 32}, {"epochs": 3}, {"seed": 1}, {"hidden": 4}])
def test_repetitions_of_other_settings_are_refused(data: Path, model: Path, other: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"model with {next(iter(other))} = .*with its own settings only"):
        train_run(data, model, replace(MORE, **other))
    assert digests(model) == undisturbed()


def test_repetitions_of_other_samples_are_refused(tmp_path: Path, model: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", seed=5)
    with pytest.raises(DataError, match="was trained on other samples"):
        train_run(other, model, MORE)
    assert digests(model) == undisturbed()


def test_fewer_repetitions_and_the_same_are_still_an_output_that_exists(data: Path, model: Path) -> None:
    for settings in (SETTINGS, replace(SETTINGS, repetitions=3), replace(SETTINGS, repetitions=None)):
        with pytest.raises(OutputError, match="exists already"):
            train_run(data, model, settings)


def test_shards_add_repetitions(tmp_path: Path, data: Path, model: Path) -> None:
    from machxc.run import train_shard

    for i in range(2):
        train_shard(data, model, Execution(shard=(i, 2)), MORE)
    train_run(data, tmp_path / "expected", MORE)
    assert digests(model) == digests(tmp_path / "expected")
    assert not run_folder(model).exists()
