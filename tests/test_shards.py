"""Shards of one run, one after the other, at once, twice, and killed: the same bytes as of one process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from machxc import files
from machxc.config import Settings
from machxc.data import convert
from machxc.errors import OutputError, SettingError
from machxc.model import Model
from machxc.run import Execution, run_folder, train_run, train_shard
from machxc.runs import folder as runs_folder
from machxc.runs.status import status_of
from run_tools import SETTINGS, StopNowError, digests, names, stop_after, undisturbed

pytestmark = pytest.mark.usefixtures("quick_fsync")


def shard(data: Path, output: Path, i: int, n: int, **others: Any) -> Model | None:
    return train_shard(data, output, Execution(shard=(i, n)), others.pop("settings", SETTINGS), **others)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 1, 0, 2], [0, 2, 0, 1]])
def test_the_last_shard_puts_the_model_together(tmp_path: Path, data: Path, order: list[int]) -> None:
    output = tmp_path / "model"
    for i in order[:-1]:
        assert shard(data, output, i, 3) is None
        assert not output.exists()
    model = shard(data, output, order[-1], 3)
    assert model is not None
    assert model.numbers == [0, 1, 2, 3]
    assert digests(output) == undisturbed()
    assert names(tmp_path) == {"data.jsonl", "model"}
    again = shard(data, output, 0, 3)  # a job that is started again when all is over
    assert again is not None
    assert digests(output) == undisturbed()


def test_more_shards_than_repetitions(tmp_path: Path, data: Path) -> None:
    made = [shard(data, tmp_path / "model", i, 7) for i in range(7)]
    assert [model is not None for model in made] == [False, False, False, True, True, True, True]
    assert digests(tmp_path / "model") == undisturbed()


@pytest.mark.parametrize("numbers", [[0, 1], [0, 0, 1, 1], [0, 0, 0]])
def test_shards_at_once_and_twice_are_harmless(tmp_path: Path, data: Path, numbers: list[int]) -> None:
    output, errors = tmp_path / "model", list[BaseException]()

    def run(i: int) -> None:
        try:
            shard(data, output, i, len(set(numbers)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert digests(output) == undisturbed()
    assert names(tmp_path) == {"data.jsonl", "model"}


def test_two_processes_of_one_shard(tmp_path: Path, data: Path) -> None:
    command = [sys.executable, "-m", "machxc.cli", "train", str(data), "--output", str(tmp_path / "model")]
    command += ["--repetitions", "4", "--buckets", "16", "--epochs", "2", "--shard", "0/1", "--quiet"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert digests(tmp_path / "model") == undisturbed()
    assert names(tmp_path) == {"data.jsonl", "model"}


def test_training_again_without_a_shard_puts_together_what_shards_left(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "model"
    shard(data, output, 0, 2)
    with pytest.raises(StopNowError):
        shard(data, output, 1, 2, progress=stop_after(3))
    assert [r.state for r in status_of(output).repetitions] == ["done", "done", "done", "stopped"]
    steps: list[int] = []
    train_run(data, output, SETTINGS, progress=lambda done, total: steps.append(total))
    assert set(steps) == {400}  # one repetition was left
    assert digests(output) == undisturbed()


def test_shards_of_a_store_map_it_where_it_is(tmp_path: Path, data: Path) -> None:
    convert(data, tmp_path / "store")
    for i in range(2):
        shard(tmp_path / "store", tmp_path / "model", i, 2)
        if i == 0:
            assert "data" not in names(run_folder(tmp_path / "model"))
    assert digests(tmp_path / "model") == undisturbed()


def test_a_shard_of_another_run_is_refused(tmp_path: Path, data: Path) -> None:
    shard(data, tmp_path / "model", 0, 2)
    with pytest.raises(SettingError, match=r"unfinished run .*settings: epochs was 2, is now 3"):
        shard(data, tmp_path / "model", 1, 2, settings=replace(SETTINGS, epochs=3))
    shard(data, tmp_path / "model", 1, 2)
    with pytest.raises(SettingError, match=r"complete model with epochs = 2, asked is 3"):
        shard(data, tmp_path / "model", 1, 2, settings=replace(SETTINGS, epochs=3))
    assert digests(tmp_path / "model") == undisturbed()


def test_a_whole_run_and_a_shard_do_not_share_a_folder(tmp_path: Path, data: Path) -> None:
    refused: list[str] = []

    def progress(done: int, total: int) -> None:
        with pytest.raises(OutputError, match="another process is training into") as error:
            shard(data, tmp_path / "model", 0, 2)
        refused.append(str(error.value))

    train_run(data, tmp_path / "model", SETTINGS, progress=progress)
    assert refused
    assert digests(tmp_path / "model") == undisturbed()


@pytest.mark.parametrize("wrong", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_cannot_be(wrong: tuple[int, int]) -> None:
    with pytest.raises(SettingError, match=r"'shard' must be i/n with 0 <= i < n"):
        Execution(shard=wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"executor": "dask"}, "'executor' must be one of"),
        ({"executor": "ray"}, "'address' goes with the executor ray"),
        ({"address": "auto"}, "'address' goes with the executor ray"),
        ({"gpus": -1.0}, "gpus and checkpoint_interval of 0 or more"),
        ({"attempts": 0}, "attempts of 1 or more"),
    ],
)
def test_executions_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Execution(**wrong)


# ---- kill -9 inside a repetition


CHILD = """
import os, signal, sys
from machxc import files
from machxc.config import Settings
from machxc.run import Execution, train_run

os.fsync = lambda descriptor: None
point, data, output, executor = sys.argv[1:5]
count = iter(range(int(point)))

def progress(done, total):
    if next(count, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)

execution = Execution(executor, checkpoint_interval=0)
settings = Settings(
    repetitions=2, buckets=16, hidden=8, epochs=6, learner="gradient", validation_fraction=0.2, patience=3
)
train_run(data, output, settings, jobs=2, execution=execution, progress=progress)
"""
LONG = Settings(repetitions=2, buckets=16, hidden=8, epochs=6, learner="gradient", validation_fraction=0.2, patience=3)


@pytest.mark.parametrize(("executor", "points"), [("local", (1, 2, 3, 2, 1)), ("serial", (3,))])
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    tmp_path: Path, data: Path, executor: str, points: tuple[int, ...]
) -> None:
    train_run(data, tmp_path / "expected", LONG)
    for point in points:
        arguments = [sys.executable, "-c", CHILD, str(point), str(data), str(tmp_path / "model"), executor]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, done.stderr
            break
    if run_folder(tmp_path / "model").exists():
        train_run(data, tmp_path / "model", LONG)
    assert digests(tmp_path / "model") == digests(tmp_path / "expected")
    assert names(tmp_path) == {"data.jsonl", "model", "expected"}


def test_what_a_checkpoint_has_is_not_trained_again(tmp_path: Path, data: Path) -> None:
    execution = Execution("serial", checkpoint_interval=0)
    with pytest.raises(StopNowError):
        train_run(data, tmp_path / "model", LONG, execution=execution, progress=stop_after(4))
    status = status_of(tmp_path / "model").repetitions
    assert [(r.state, r.done, r.attempts) for r in status] == [("stopped", 800, 1), ("waiting", 0, 0)]
    told: list[int] = []
    train_run(data, tmp_path / "model", LONG, execution=execution, progress=lambda done, total: told.append(done))
    assert told[0] == 800  # five epochs of 160 samples
    train_run(data, tmp_path / "expected", LONG)
    assert digests(tmp_path / "model") == digests(tmp_path / "expected")


def test_a_checkpoint_whose_file_is_cut_is_begun_anew(tmp_path: Path, data: Path) -> None:
    execution = Execution("serial", checkpoint_interval=0)
    with pytest.raises(StopNowError):
        train_run(data, tmp_path / "model", LONG, execution=execution, progress=stop_after(4))
    file = run_folder(tmp_path / "model") / "checkpoint-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    train_run(data, tmp_path / "model", LONG, execution=execution)
    train_run(data, tmp_path / "expected", LONG)
    assert digests(tmp_path / "model") == digests(tmp_path / "expected")


# ---- the n-th system call fails


class FailingDisk:
    """Stands in for the module ``os``: the n-th operation on the disk fails, and only that."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in ("open", "write", "fsync", "replace", "rename", "mkdir", "makedirs", "link"):
            return function

        def operation(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **named)

        return operation


def test_a_disk_that_fails_at_any_operation_of_a_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checkpoint after every chunk. Each time an error, and the same command goes on."""
    convert(data, tmp_path / "store")
    execution, failures = Execution("serial", checkpoint_interval=0), 0
    while not (tmp_path / "model").exists():
        disk = FailingDisk(failures + 1)
        with monkeypatch.context() as patch:
            for module in (files, runs_folder):
                patch.setattr(module, "os", disk)
            try:
                train_run(tmp_path / "store", tmp_path / "model", SETTINGS, execution=execution)
            except OutputError as error:
                assert "No space left" in str(error)  # noqa: PT017
                failures += 1
        if disk.left > 0:
            break
    assert failures > 20
    assert digests(tmp_path / "model") == undisturbed()
    assert names(tmp_path) == {"data.jsonl", "store", "model"}
