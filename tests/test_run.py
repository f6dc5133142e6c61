"""Runs that are killed, resumed, asked for something else, or out of disk: what is there is kept, byte by byte."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from machxc import files, run
from machxc.config import Settings
from machxc.data import ReadOptions, convert, read
from machxc.errors import DataError, MemoryBudgetError, OutputError, SettingError
from machxc.folder import repetition_file
from machxc.model import Model
from machxc.run import plan_run, run_folder, train_run
from machxc.testing import make_texts
from machxc.training import train

SETTINGS = Settings(repetitions=4, buckets=16, epochs=2)


@pytest.fixture(autouse=True)
def quick_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that the kernel has taken: waiting for the disk would only be slow."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def write_jsonl(path: Path, *, seed: int = 0) -> Path:
    texts, labels = make_texts(200, 20, labels_per_text=2, seed=seed)
    samples = ({"text": text, "labels": names} for text, names in zip(texts, labels, strict=True))
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), "utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the model that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_run(write_jsonl(folder / "data.jsonl"), folder / "model", SETTINGS)
    return digests(folder / "model")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


# ---- kill -9


CHILD = """
import os, signal, sys
from pathlib import Path
from machxc import files, run
from machxc.config import Settings

os.fsync = lambda descriptor: None
point, data, output = sys.argv[1:4]

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

def at(name, function, n):
    count = iter(range(n))
    return lambda *arguments, **named: function(*arguments, **named) if next(count, None) is not None else die()

if point == "converting":
    files.replace_folder, run.convert.__globals__["replace_folder"] = die, die
elif point == "writing":  # in the middle of the third repetition's file
    write = files._write_all
    def _write_all(descriptor, view):
        if "repetition-00002" in os.readlink(f"/proc/self/fd/{descriptor}"):
            write(descriptor, view[: len(view) // 2])
            die()
        write(descriptor, view)
    files._write_all = _write_all
elif point == "publishing":
    run.replace_folder = die
elif point == "tidying":
    run.shutil.rmtree = die
steps = int(point) if point.isdigit() else 10**9
progress = at("progress", lambda done, total: None, steps)
settings = Settings(repetitions=4, buckets=16, epochs=2)
run.train_run(data, output, settings, progress=progress)
"""


def killed(point: str, data: Path, output: Path) -> None:
    arguments = [sys.executable, "-c", CHILD, point, str(data), str(output)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks up open files in /proc")
@pytest.mark.parametrize(
    ("point", "finished"), [("converting", 0), ("1", 0), ("writing", 2), ("7", 3), ("publishing", 4)]
)
def test_a_run_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], point: str, finished: int
) -> None:
    output = tmp_path / "model"
    killed(point, data, output)
    assert not output.exists()
    folder = run_folder(output)
    there = [folder / repetition_file(r) for r in range(4)]
    assert [path.exists() for path in there] == [r < finished for r in range(4)]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in there[:finished]]
    steps: list[int] = []
    train_run(data, output, SETTINGS, jobs=2, resume=True, progress=lambda done, total: steps.append(total))
    assert digests(output) == uninterrupted
    after = [(output / repetition_file(r)).stat() for r in range(finished)]
    assert [(status.st_ino, status.st_mtime_ns) for status in after] == before  # not trained again, nor even copied
    assert steps == [(4 - finished) * 400] * (4 - finished) * 2
    assert names(tmp_path) == {"data.jsonl", "model"}


def test_a_run_that_is_killed_when_its_model_is_in_place_is_complete(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str]
) -> None:
    output = tmp_path / "model"
    killed("tidying", data, output)
    assert digests(output) == uninterrupted
    assert run_folder(output).exists()
    train_run(data, output, SETTINGS, resume=True)
    assert digests(output) == uninterrupted
    assert names(tmp_path) == {"data.jsonl", "model"}


# ---- runs stopped in this process


class StopNowError(Exception):
    pass


def stop_after(n: int, error: type[BaseException] = StopNowError) -> Callable[[int, int], None]:
    count = iter(range(n))

    def progress(done: int, total: int) -> None:
        if next(count, None) is None:
            raise error

    return progress


def stopped(data: Path, output: Path, n: int = 5, **asked: Any) -> Path:
    """Train until n chunks are counted (two make a repetition); returns the run folder."""
    settings = asked.pop("settings", SETTINGS)
    with pytest.raises(StopNowError):
        train_run(data, output, settings, progress=stop_after(n), **asked)
    return run_folder(output)


def test_resuming_a_complete_model_does_nothing(tmp_path: Path, data: Path, uninterrupted: dict[str, str]) -> None:
    output = tmp_path / "model"
    train_run(data, output, SETTINGS)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    data.unlink()  # it is not even read
    model = train_run(data, output, SETTINGS, resume=True, progress=stop_after(0))
    assert isinstance(model, Model)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert digests(output) == uninterrupted
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize("settings", [Settings(buckets=32), Settings(seed=1, buckets=16), Settings(repetitions=3)])
def test_resuming_a_complete_model_of_other_settings_is_refused(tmp_path: Path, data: Path, settings: Settings) -> None:
    train_run(data, tmp_path / "model", SETTINGS)
    with pytest.raises(SettingError, match=r"is a complete model with (buckets|seed|repetitions) = \d+, asked is \d+"):
        train_run(data, tmp_path / "model", settings, resume=True)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "settings": ({"settings": Settings(repetitions=4, buckets=32, epochs=2)}, r"settings: buckets was 16, is now 32"),
    "seed": ({"settings": Settings(repetitions=4, buckets=16, epochs=2, seed=7)}, r"settings: seed was 0, is now 7"),
    "options": ({"options": ReadOptions(format="jsonl")}, r"options: format was 'None', is now 'jsonl'"),
    "budget": ({"memory_budget": 10**9}, r"memory_budget was None, is now 1000000000"),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_a_run_asked_for_something_else_is_refused_and_kept(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], other: str, resume: bool
) -> None:
    output = tmp_path / "model"
    stopped(data, output)
    asked, message = OTHERS[other]
    with pytest.raises(SettingError, match=f"unfinished run .*{message}.*--overwrite"):
        train_run(data, output, **{"settings": SETTINGS, "resume": resume, **asked})
    train_run(data, output, SETTINGS)
    assert digests(output) == uninterrupted


def test_a_run_of_other_data_is_refused_and_kept(tmp_path: Path, data: Path, uninterrupted: dict[str, str]) -> None:
    output, original = tmp_path / "model", data.read_bytes()
    stopped(data, output)
    write_jsonl(data, seed=1)
    with pytest.raises(SettingError, match=r"unfinished run .*data: sha256 was '[0-9a-f]{64}', is now"):
        train_run(data, output, SETTINGS)
    data.unlink()
    with pytest.raises(DataError, match=r"data.jsonl: cannot be read: No such file"):
        train_run(data, output, SETTINGS)
    (tmp_path / "moved.jsonl").write_bytes(original)  # the name does not matter, the bytes do
    train_run(tmp_path / "moved.jsonl", output, SETTINGS)
    assert digests(output) == uninterrupted


def test_a_run_of_another_version_is_refused(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(data, tmp_path / "model")
    monkeypatch.setattr(run, "__version__", "99.0")
    with pytest.raises(SettingError, match=r"machxc was '.*', is now '99.0'"):
        train_run(data, tmp_path / "model", SETTINGS)


def test_overwrite_discards_a_run_asked_for_something_else(tmp_path: Path, data: Path) -> None:
    output, other = tmp_path / "model", Settings(repetitions=2, buckets=32, epochs=1)
    stopped(data, output)
    train_run(data, output, other, overwrite=True)
    train_run(data, tmp_path / "expected", other)
    assert digests(output) == digests(tmp_path / "expected")
    assert names(tmp_path) == {"data.jsonl", "model", "expected"}


def test_resume_never_discards(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "model"
    stopped(data, output)
    with pytest.raises(SettingError, match="unfinished run"):
        train_run(data, output, Settings(repetitions=2), overwrite=True, resume=True)


def test_a_stopped_run_that_was_to_overwrite_a_model_goes_on(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str]
) -> None:
    output = tmp_path / "model"
    train_run(write_jsonl(tmp_path / "other.jsonl", seed=1), output, SETTINGS)
    before = digests(output)
    stopped(data, output, overwrite=True)
    assert digests(output) == before  # the older model is there until the new one is complete
    steps: list[int] = []
    train_run(data, output, SETTINGS, overwrite=True, resume=True, progress=lambda done, total: steps.append(done))
    assert digests(output) == uninterrupted
    assert len(steps) == 4  # two repetitions were finished
    assert names(tmp_path) == {"data.jsonl", "other.jsonl", "model"}


def test_resume_without_a_run_starts_from_the_beginning(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "machxc"):
        train_run(data, tmp_path / "model", SETTINGS, resume=True)
    assert "nothing to resume" in caplog.text
    assert digests(tmp_path / "model") == uninterrupted


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_repetition_of_a_run_is_trained_again(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], damage: str
) -> None:
    folder = stopped(data, tmp_path / "model")
    file = folder / repetition_file(1)
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-1], "empty": b"", "other": b"{}" * 50}[damage])
    train_run(data, tmp_path / "model", SETTINGS)
    assert digests(tmp_path / "model") == uninterrupted


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}"])
def test_a_run_that_does_not_say_what_it_is_begins_anew(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], content: bytes
) -> None:
    folder = stopped(data, tmp_path / "model")
    (folder / "run.json").write_bytes(content)
    if content == b"{}":  # says what it is, and that is something else
        with pytest.raises(SettingError, match="unfinished run"):
            train_run(data, tmp_path / "model", SETTINGS)
    train_run(data, tmp_path / "model", SETTINGS, overwrite=True)
    assert digests(tmp_path / "model") == uninterrupted


def test_ctrl_c_in_a_repetition_ends_the_others_and_keeps_what_is_finished(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str]
) -> None:
    output = tmp_path / "model"
    counted: list[int] = []
    interrupt = stop_after(6, KeyboardInterrupt)

    def progress(done: int, total: int) -> None:
        counted.append(done)
        interrupt(done, total)

    with pytest.raises(KeyboardInterrupt):
        train_run(data, output, SETTINGS, jobs=2, progress=progress)
    assert len(counted) == 7
    assert not output.exists()
    train_run(data, output, SETTINGS, jobs=2)
    assert digests(output) == uninterrupted


@pytest.mark.parametrize("jobs", [1, 2])
def test_sigint_ends_all_repetitions_and_keeps_what_is_finished(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], jobs: int
) -> None:
    output = tmp_path / "model"
    counted: list[int] = []

    def progress(done: int, total: int) -> None:
        counted.append(done)
        if len(counted) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the main thread, which waits for the repetitions, is told

    settings = replace(SETTINGS, repetitions=50)
    with pytest.raises(KeyboardInterrupt):
        train_run(data, output, settings, jobs=jobs, progress=progress)
    assert len(counted) < 15
    assert run_folder(output).is_dir()
    train_run(data, output, SETTINGS, overwrite=True)
    assert digests(output) == uninterrupted


# ---- two at once


def test_a_second_process_is_refused(tmp_path: Path, data: Path, uninterrupted: dict[str, str]) -> None:
    output = tmp_path / "model"
    refused: list[str] = []

    def progress(done: int, total: int) -> None:
        if done == 600:
            with pytest.raises(OutputError, match=r"another process is training into .*model") as error:
                train_run(data, output, SETTINGS, overwrite=True)
            refused.append(str(error.value))

    train_run(data, output, SETTINGS, progress=progress)
    assert len(refused) == 1
    assert digests(output) == uninterrupted


def test_a_model_that_another_process_finished_meanwhile_is_not_trained_again(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    real = run._locked

    def slowly(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        train_run(data, output, SETTINGS)
        return real(*arguments, **named)

    monkeypatch.setattr(run, "_locked", slowly)
    with pytest.raises(OutputError, match="exists already"):
        train_run(data, output, SETTINGS, progress=stop_after(0))
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
    assert names(run_folder(output)) == {"run.json", "data", "lock", repetition_file(0), repetition_file(1)}
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
    assert model.data.repetitions[0]["weights"].tobytes() == expected.data.repetitions[0]["weights"].tobytes()
