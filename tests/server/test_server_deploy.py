"""What deploy/ starts is what the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from machxc.cli.parser import build_parser

DEPLOY = Path(__file__).parents[2] / "deploy"


def commands() -> list[list[str]]:
    """Every call of `machxc serve` in deploy/."""
    lists = [
        re.findall(r'"([^"]*)"', line)
        for name in ("Dockerfile", "compose.yaml")
        for line in (DEPLOY / name).read_text().splitlines()
        if re.match(r"CMD \[|    command: \[", line)
    ]
    unit = re.findall(r"^ExecStart=\S+/(machxc serve .*)$", (DEPLOY / "machxc.service").read_text(), re.M)
    return [*lists, *map(shlex.split, unit)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_program_takes_what_is_started(command: list[str]) -> None:
    assert command[:2] == ["machxc", "serve"]
    assert build_parser().parse_args(command[1:]).host == "0.0.0.0"


def test_there_is_one_each() -> None:
    assert len(commands()) == 3


def test_files_that_are_copied_are_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M) for word in line.split()]
    named = [name for name in copied if not name.startswith("--")]
    assert {name for name in named if not (DEPLOY.parent / name).exists()} == set()
