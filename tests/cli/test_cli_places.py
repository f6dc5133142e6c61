"""Where repetitions are trained, as the command line says it, and what it shows of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from cli_tools import Program
from machxc.cli import main
from machxc.cli.console import Console
from machxc.cli.places import Table, table_of
from machxc.runs.status import RepetitionStatus, RunStatus
from run_tools import digests

MADE = ("--repetitions", "4", "--buckets", "16", "--epochs", "2")
STATUS = RunStatus(
    (
        RepetitionStatus(0, "done", 400, 400, 1, 0.0, "one", 3.0),
        RepetitionStatus(1, "training", 100, 400, 2, 1234.5, "two", 0.5),
        RepetitionStatus(2, "silent", 40, 400, 1, 99.0, "three\x1b[2J", 33.0),
        RepetitionStatus(3, "waiting"),
    )
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_shards_by_the_command_line(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(files / "train.jsonl"), *MADE]
    assert main([*command, "--output", str(tmp_path / "whole"), "--quiet"]) == 0
    shard = [*command, "--output", str(tmp_path / "model"), "--jobs", "1"]
    capsys.readouterr()
    assert main([*shard, "--shard", "1/2", "--json"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["model"], told["shard"], told["status"]["done"]) == (None, [1, 2], 2)
    assert "shard 1/2 is done: 2 of 4 repetitions are finished" in said.err
    lines = [json.loads(line) for line in said.err.splitlines() if line.startswith("{")]
    assert lines[-1]["done"] == 2
    assert lines[-1]["repetitions"] == {"0": 0.0, "1": 1.0, "2": 0.0, "3": 1.0}
    assert main(["status", str(tmp_path / "model")]) == 0
    assert "50.0% of 4 repetitions: 2 done, 2 waiting" in capsys.readouterr().out
    assert main([*shard, "--shard", "0/2", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(tmp_path / "model")
    assert digests(tmp_path / "model") == digests(tmp_path / "whole")
    assert main(["status", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 4


def test_serial_and_a_run_folder_elsewhere(files: Path, tmp_path: Path) -> None:
    command = ["train", str(files / "train.jsonl"), *MADE, "--quiet"]
    for name, place in {"one": ("--executor", "serial"), "two": ("--run-folder", str(tmp_path / "run"))}.items():
        assert main([*command, "--output", str(tmp_path / name), *place]) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--shard", "2/2"), "argument --shard: expected I/N with 0 <= I < N"),
        (("--shard", "0/2", "--overwrite"), "--shard goes with neither --overwrite nor --test"),
        (("--executor", "ray", "--address", "nowhere"), "expected the address of a Ray cluster as host:port, or auto"),
        (("--address", "127.0.0.1:1"), "'address' goes with the executor ray"),
        (("--deadline", "0"), "a deadline above 0"),
    ],
)
def test_places_that_cannot_be(
    machxc: Program, files: Path, tmp_path: Path, wrong: tuple[str, ...], message: str
) -> None:
    if "ray" in wrong:
        pytest.importorskip("ray", reason="needs the extra ray")
    outcome = machxc("train", str(files / "train.jsonl"), "--output", str(tmp_path / "model"), *wrong)
    assert outcome.code == 2
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_pip_command_is_told(
    machxc: Program, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = machxc(
        "train", str(files / "train.jsonl"), "--output", str(tmp_path / "m"), "--executor", "ray", "--address", "a:1"
    )
    assert outcome.code == 2
    assert "pip install 'machxc[ray]'" in outcome.err


def test_no_run_has_no_status(machxc: Program, tmp_path: Path) -> None:
    outcome = machxc("status", str(tmp_path / "nothing"))
    assert outcome.code == 2
    assert "expected a model folder, found none" in outcome.err


def test_the_table() -> None:
    lines = table_of(STATUS).splitlines()
    assert lines[0].split() == ["repetition", "state", "progress", "samples/s", "attempts", "host"]
    assert lines[1].split() == ["0", "done", "#" * 20, "100%", "1", "one"]
    assert lines[2].split() == ["1", "training", "#####" + "." * 15, "25%", "1,234", "2", "two"]
    assert lines[3].split()[:5] == ["2", "silent", "##" + "." * 18, "10%", "1"]
    assert "\x1b" not in "".join(lines)
    assert lines[-1] == "33.8% of 4 repetitions: 1 done, 1 training, 1 silent, 1 waiting; 1,234 samples/s"


def test_a_table_that_is_too_long_shows_what_is_going_on() -> None:
    waiting = tuple(RepetitionStatus(r, "waiting") for r in range(4, 100))
    lines = table_of(RunStatus(STATUS.repetitions + waiting), 6).splitlines()
    assert [line.split()[0] for line in lines] == ["repetition", "1", "2", "3", "...", "1.4%"]


def test_the_table_is_drawn_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "20")
    draw = Table(Console())
    draw(STATUS)
    first = terminal.getvalue()
    assert first.count("\n") == 6
    assert max(map(len, first.splitlines())) < 60
    draw(STATUS)
    assert terminal.getvalue() == f"{first}\x1b[6A\x1b[J{first}"
