"""Tiny data, models trained on it by the program itself, and signals that arrive."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_tools import Program, program, text_samples, write_jsonl, write_xmc
from machxc.cli import main
from run_tools import undisturbed
from run_tools import write_jsonl as write_run


@pytest.fixture
def machxc(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program, after ``files`` has compiled its kernels: the line that says so stands before no error then."""
    return program(capsys, monkeypatch)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl, test.jsonl, train.xmc, test.xmc, and the models texts and numbers."""
    folder = tmp_path_factory.mktemp("files")
    write_jsonl(folder / "train.jsonl", text_samples(400, 1))
    write_jsonl(folder / "test.jsonl", text_samples(80, 2))
    write_xmc(folder / "train.xmc", 200, 3)
    write_xmc(folder / "test.xmc", 50, 4)
    for data, model in (("train.jsonl", "texts"), ("train.xmc", "numbers")):
        assert main(["train", str(folder / data), "--output", str(folder / model), "--quiet"]) == 0
    assert main(["query", str(folder / "texts"), "a text", "--quiet"]) == 0
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The samples of a small run, a file of its own for each test."""
    return write_run(tmp_path / "data.jsonl")


@pytest.fixture
def uninterrupted() -> dict[str, str]:
    """The digests of the files of the model of these samples, trained without a break."""
    return undisturbed()


@pytest.fixture
def quick_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that the kernel has taken: waiting for the disk would only be slow."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, here and in child processes, also where the tests run in the background.

    A shell without job control starts what runs in the background with SIGINT ignored, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
