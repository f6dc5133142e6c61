"""Runs that are killed, stopped, or asked for something else: what is finished is kept, byte by byte."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from machxc import run
from machxc.config import Settings
from machxc.data import ReadOptions
from machxc.errors import DataError, OutputError, SettingError
from machxc.folder import repetition_file
from machxc.model import Model
from machxc.run import run_folder, train_run
from machxc.runs import asked, locks
from run_tools import SETTINGS, StopNowError, digests, names, stop_after, write_jsonl

pytestmark = pytest.mark.usefixtures("quick_fsync")


# ---- kill -9


CHILD = """
import os, signal, sys, types
from pathlib import Path
from machxc import files, run
from machxc.data import conversion
from machxc.config import Settings

os.fsync = lambda descriptor: None
point, data, output = sys.argv[1:4]

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

def at(name, function, n):
    count = iter(range(n))
    return lambda *arguments, **named: function(*arguments, **named) if next(count, None) is not None else die()

if point == "converting":
    conversion.replace_folder = die
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
    run.shutil = types.SimpleNamespace(rmtree=die)  # of the run alone: a conversion tidies up, too
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


def stopped(data: Path, output: Path, n: int = 5, **others: Any) -> Path:
    """Train until n chunks are counted (two make a repetition); returns the run folder."""
    settings = others.pop("settings", SETTINGS)
    with pytest.raises(StopNowError):
        train_run(data, output, settings, progress=stop_after(n), **others)
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
    others, message = OTHERS[other]
    with pytest.raises(SettingError, match=f"unfinished run .*{message}.*--overwrite"):
        train_run(data, output, **{"settings": SETTINGS, "resume": resume, **others})
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
    monkeypatch.setattr(asked, "__version__", "99.0")
    with pytest.raises(SettingError, match=r"machxc was '.*', is now '99.0'"):
        train_run(data, tmp_path / "model", SETTINGS)


def test_overwrite_discards_a_run_asked_for_something_else(tmp_path: Path, data: Path) -> None:
    output, other = tmp_path / "model", Settings(repetitions=2, buckets=32, epochs=1)
    stopped(data, output)
    train_run(data, output, other, overwrite=True)
    train_run(data, tmp_path / "expected", other)
    assert digests(output) == digests(tmp_path / "expected")
    assert names(tmp_path) == {"data.jsonl", "model", "expected"}


def test_a_stopped_run_of_standard_input_is_kept_unless_overwritten(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, piped = tmp_path / "model", Path("-")

    def pipe() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.read_bytes())))

    pipe()
    folder = stopped(piped, output)
    pipe()
    for resume, overwrite in ((False, False), (True, False), (True, True)):
        with pytest.raises(DataError, match=r"standard input cannot be read again .* or --overwrite"):
            train_run(piped, output, SETTINGS, resume=resume, overwrite=overwrite)
        assert (folder / repetition_file(0)).exists()
    train_run(piped, output, SETTINGS, overwrite=True)  # what was refused read nothing
    assert digests(output) == uninterrupted


def test_a_run_of_standard_input_that_finished_nothing_starts_again(
    tmp_path: Path, data: Path, uninterrupted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop in (True, False):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.read_bytes())))
        if stop:
            stopped(Path("-"), tmp_path / "model", n=0)
        else:
            train_run("-", tmp_path / "model", SETTINGS)
    assert digests(tmp_path / "model") == uninterrupted


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


@pytest.mark.usefixtures("interruptible")
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
        if len(counted) >= 5:
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
    real = locks.held

    def slowly(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        train_run(data, output, SETTINGS)
        return real(*arguments, **named)

    monkeypatch.setattr(run, "held", slowly)
    with pytest.raises(OutputError, match="exists already"):
        train_run(data, output, SETTINGS, progress=stop_after(0))
    assert names(tmp_path) == {"data.jsonl", "model"}
