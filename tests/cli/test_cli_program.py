"""The program itself: start-up, exit codes, what is said where, progress, interruptions; and its reference page."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import machxc as package
from cli_tools import Program, spawn, text_samples, write_jsonl
from machxc.cli import info
from machxc.cli.parser import verb_parsers

ROOT = Path(package.__file__).parents[2]
HEAVY = ("numpy", "numba", "scipy", "sklearn", "torch", "ray", "pyarrow", "pandas", "tqdm", "zstandard")
VERBS = ("train", "evaluate", "predict", "query", "info", "plan", "convert")


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spawn(*arguments).code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_start_up_is_quick_and_imports_nothing_heavy(arguments: list[str]) -> None:
    assert min(cpu_seconds(*arguments) for _ in range(3)) < 0.4
    code = f"import sys, machxc.cli as cli; cli.main({arguments!r}); print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_help_and_version(machxc: Program) -> None:
    assert machxc("--version").out == f"machxc {package.__version__}\n"
    shown = machxc("--help")
    assert shown.code == 0
    assert all(f"    {verb} " in shown.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(machxc: Program, verb: str) -> None:
    shown = machxc(verb, "--help")
    assert shown.code == 0
    assert f"usage: machxc {verb} " in shown.out
    assert all(option in shown.out for option in ("--quiet", "--verbose", "--debug"))
    assert all(action.help for action in verb_parsers()[f"machxc {verb}"]._actions)


def test_reference_is_up_to_date() -> None:
    script = ROOT / "scripts" / "write_cli_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_quiet_says_nothing(machxc: Program, files: Path, tmp_path: Path) -> None:
    for arguments in (
        ("train", files / "train.jsonl", "--output", tmp_path / "m"),
        ("predict", tmp_path / "m", files / "test.jsonl", "--output", tmp_path / "p.jsonl"),
        ("convert", files / "train.jsonl", tmp_path / "s"),
    ):
        done = machxc(*arguments, "--quiet")
        assert (done.code, done.out, done.err) == (0, "", "")
    assert machxc("evaluate", files / "texts", files / "test.jsonl", "--quiet").err == ""


def test_warnings_are_shown_and_the_log_if_asked(machxc: Program, files: Path, tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_text("1 0:1 39:1\n1 0:1 40:1\n")
    warned = machxc("evaluate", files / "numbers", tmp_path / "a.svm", "--quiet")
    assert warned.code == 0
    assert warned.err.startswith("machxc: warning: 1 feature values have ids of 40 or more")
    assert len(warned.err.splitlines()) == 1
    verbose = machxc("train", files / "train.jsonl", "--output", tmp_path / "m", "--verbose")
    assert "machxc: text features: " in verbose.err
    assert logging.getLogger("machxc").handlers == [
        handler for handler in logging.getLogger("machxc").handlers if isinstance(handler, logging.NullHandler)
    ]


def test_debug_shows_the_traceback_of_an_error(machxc: Program) -> None:
    done = machxc("info", "none", "--debug")
    assert done.code == 2
    assert done.err.startswith("Traceback (most recent call last)")
    assert done.err.splitlines()[-1].startswith("machxc: error: none: expected a model folder")


def test_an_unexpected_error_is_one_line(machxc: Program, monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    monkeypatch.setattr(info, "model_facts", lambda path, model: 1 // 0)
    done = machxc("info", files / "texts")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("machxc: error: ZeroDivisionError: ")
    assert done.err.endswith("run it again with --debug to see where, and report that\n")
    assert len(done.err.splitlines()) == 1
    assert "Traceback" in machxc("info", files / "texts", "--debug").err


def on_terminal(*arguments: object, **environment: str) -> tuple[int, str]:
    """Run with a terminal as standard error: exit code and what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "machxc.cli", *map(str, arguments)]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        os.close(ours)
        return process.wait(60), shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side is closed
        return b""


def test_progress_is_shown_on_a_terminal_only(files: Path, tmp_path: Path) -> None:
    arguments = ("train", files / "train.jsonl", "--output", tmp_path / "m", "--overwrite")
    code, shown = on_terminal(*arguments, NO_COLOR="1")
    assert code == 0
    assert "training: " in shown
    assert "\x1b[" not in shown  # no colour, and one line only
    assert "training:" not in on_terminal(*arguments, "--quiet")[1]
    assert "training:" not in on_terminal(*arguments, TERM="dumb")[1]
    assert "training:" not in spawn(*arguments).err


@pytest.mark.usefixtures("interruptible")
def test_interrupted_training_goes_on_with_the_same_command(files: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", text_samples(2000, 9))
    settings = ("--epochs", "60", "--repetitions", "12", "--hidden", "16", "--jobs", "1", "--quiet")
    arguments = ("train", tmp_path / "a.jsonl", "--output", tmp_path / "m", *settings)
    command = [sys.executable, "-m", "machxc.cli", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        for _ in range(2000):
            if len(list(tmp_path.glob("m.machxc-run/repetition-*"))) > 1:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        (line,) = process.stderr.read().decode().splitlines()
    assert line.startswith("machxc: interrupted: ")
    assert "the same command goes on" in line
    assert not (tmp_path / "m").exists()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "m.machxc-run").glob("repetition-*")}
    assert finished
    assert spawn(*arguments).code == 0
    assert spawn(*arguments, "--resume").code == 0  # complete: nothing to do
    for path, changed in finished.items():
        assert (tmp_path / "m" / path.name).stat().st_mtime_ns == changed  # not trained again
    assert not (tmp_path / "m.machxc-run").exists()


def test_compiling_is_announced_on_a_new_machine(files: Path, tmp_path: Path) -> None:
    assert spawn("query", files / "texts", "w1a").err == ""
    code = """
from machxc.cli.console import Console
from machxc.cli.kernels import ANSWERING, TRAINING, tell_of_compiling
tell_of_compiling(Console(), ANSWERING)
tell_of_compiling(Console(), TRAINING)
tell_of_compiling(Console(quiet=True), TRAINING)
"""
    for folder, lines in ((str(tmp_path), 2), (os.environ.get("NUMBA_CACHE_DIR", ""), 0)):
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, check=True)
        assert done.stderr.count(b"compiling kernels, once on this machine") == lines


def test_a_query_loads_kernels_only(files: Path) -> None:
    """What Numba needs to compile would take longer than a query, and 30 MB; whoever compiles afterwards gets it."""
    code = f"""
import sys
from machxc.cli import main
assert main(["query", {str(files / "texts")!r}, "w1a", "--quiet"]) == 0
assert "scipy.linalg" not in sys.modules
import numba, numpy
assert numba.njit(lambda a: a @ a)(numpy.eye(2)).tolist() == [[1, 0], [0, 1]]
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_query_answers_each_line_as_it_comes(files: Path) -> None:
    command = [sys.executable, "-m", "machxc.cli", "query", str(files / "texts"), "-", "--json", "--top-k", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for topic in (3, 12, 5):
            process.stdin.write(f"w{topic}a w{topic}b\n")
            process.stdin.flush()
            assert f'"topic {topic:02}"' in process.stdout.readline()
        process.stdin.close()
        assert process.wait(60) == 0


def test_names_that_the_terminal_cannot_show(files: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "eins", "labels": ["größe"]}, {"text": "zwei", "labels": ["b"]}])
    assert spawn("train", data, "--output", tmp_path / "m", "--quiet").code == 0
    ascii = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert r"gr\xf6\xdfe" in spawn("query", tmp_path / "m", "eins", env=ascii).out
    assert "größe" in spawn("query", tmp_path / "m", "eins", "--json", env=ascii).json["labels"]
