"""The process that compiles kernels on a first run: when there is one, what it does, and that it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_tools import Program, spawn, text_samples, write_jsonl, write_xmc
from machxc.cli import ahead, compiler
from machxc.config import Settings
from machxc.data import ReadOptions
from machxc.model import Model
from machxc.testing import word

PROGRAM = [sys.executable, "-m", "machxc.cli.compiler"]
PATIENCE = 120  # seconds; what takes milliseconds may take long where much else runs


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "available_cores", lambda: 2)


def none_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", start)


@pytest.mark.usefixtures("two_cores")
def test_a_warm_run_starts_no_process(
    machxc: Program, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none_may_start(monkeypatch)
    done = machxc("train", files / "train.jsonl", "--output", tmp_path / "m")
    assert (done.code, "compiling" in done.err) == (0, False)


@pytest.mark.parametrize(
    "prevent",
    [
        lambda patch: patch.setattr(ahead, "available_cores", lambda: 1),
        lambda patch: patch.setattr(os, "access", lambda folder, mode: False),
    ],
    ids=["one core", "a cache that cannot be written"],
)
@pytest.mark.usefixtures("two_cores")
def test_nor_does_a_first_run_to_which_it_is_of_no_use(
    prevent: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prevent(monkeypatch)
    none_may_start(monkeypatch)
    with ahead.compiling_ahead(cold=True) as compiling:
        compiling.compile("encode")
        compiling.wait()


@pytest.mark.usefixtures("two_cores")
def test_a_run_goes_on_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/there/is/no/such/program")
    with ahead.compiling_ahead(cold=True) as compiling:
        compiling.compile("encode")
        compiling.wait()


@pytest.mark.usefixtures("two_cores")
def test_jobs_are_done_and_the_process_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def watched(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", watched)
    with ahead.compiling_ahead(cold=True) as compiling:
        compiling.compile("no such job")
        compiling.compile("answer", config={"not": "a config"})
        compiling.compile("encode")
        compiling.wait()
        assert started[0].poll() is None
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.usefixtures("two_cores")
def test_a_process_that_has_died_is_not_missed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_PROGRAM", "machxc.cli.there_is_no_such_module")
    with ahead.compiling_ahead(cold=True) as compiling:
        compiling.compile("encode")
        compiling.wait()
        compiling.compile("encode")
        compiling.wait()
    assert capfd.readouterr() == ("", "")


def test_it_ends_when_nobody_is_there_to_ask() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(PROGRAM, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        out, err = process.communicate(timeout=PATIENCE)  # which closes its input
    assert (process.returncode, out, err) == (0, "", "")


def test_it_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    """The kernel closes the killed one's end of the pipe; the read end of another pipe tells when all have ended."""
    code = """
import subprocess, time
from machxc.cli import ahead
ahead.available_cores, ahead.subprocess.DEVNULL = lambda: 2, None
with ahead.compiling_ahead(cold=True) as compiling:
    compiling.compile("no such job")
    compiling.wait()
    print("ready", flush=True)
    time.sleep(3600)
"""
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing) as parent:
        os.close(writing)
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b""  # returns when the compiler, which inherited standard error, has ended, too


@pytest.mark.parametrize("settings", [{}, {"learner": "counts"}, {"hidden": 8}], ids=["linear", "counts", "hidden"])
def test_models_that_have_learnt_nothing_answer(settings: dict[str, Any], machxc: Program, tmp_path: Path) -> None:
    write_xmc(tmp_path / "train.xmc", 60, 3)
    options = [f"--{name}={value}" for name, value in settings.items()]
    assert machxc("train", tmp_path / "train.xmc", "--output", tmp_path / "m", *options).code == 0
    config = Model.load(tmp_path / "m").config if settings else compiler.usual_config()
    compiler.answer(json.loads(json.dumps(config.to_dict())))
    ids, scores = compiler.untrained(config).top_k(compiler._features(2, config.n_features), 8)
    assert ids.shape == (2, 8)
    assert np.isfinite(scores).all()


def asked_for(data: Path | str, **given: Any) -> list[str]:
    """The jobs that training on this file with these settings begins with."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:  # which answers with the jobs
        ahead.Ahead(cat).compile_for(str(data), ReadOptions(), Settings(**given))
        return [json.loads(line)["job"] for line in cat.communicate()[0].splitlines()]


def test_what_is_asked_for_depends_on_the_samples(files: Path, tmp_path: Path) -> None:
    assert asked_for(files / "train.jsonl") == ["name", "answer"]
    assert asked_for(files / "train.jsonl", learner="counts") == ["name", "encode"]
    assert asked_for(files / "train.jsonl", hidden=8) == ["name", "encode"]
    many = write_jsonl(tmp_path / "many.jsonl", text_samples(1, 1) * 10_000)
    assert asked_for(many) == ["name", "encode"]
    os.mkfifo(tmp_path / "pipe")  # looking into it would take from it, and wait for a writer
    for other in (files / "train.xmc", files / "absent", files, tmp_path / "pipe", "-"):
        assert asked_for(other) == []


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["gradient", "counts"])
def test_a_first_run_compiles_no_kernel_for_two_types(learner: str, tmp_path: Path) -> None:
    """But one, which a single query gives an array whose rows are no further apart than they are long."""
    samples = text_samples(60, 1)
    if learner == "counts":  # as many labels as are counted in earnest: their entries are wide
        samples = [{"text": f"{word(i)} {word(i % 50)}", "labels": f"label {i}"} for i in range(12_000)]
    data = write_jsonl(tmp_path / "data.jsonl", samples)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    for arguments in (
        ["train", data, "--output", tmp_path / "m", "--learner", learner],
        ["evaluate", tmp_path / "m", data],
        ["query", tmp_path / "m", "w1a w1b"],
    ):
        assert spawn(*arguments, env=environment).code == 0
    several = {path.name.split("-")[0] for path in (tmp_path / "kernels").rglob("*.2.nbc")}
    assert several <= {"linear._score_narrow"}
