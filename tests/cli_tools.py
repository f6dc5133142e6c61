"""Running the program, inside this process or in one of its own, and tiny data for it."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from machxc.cli import main

TOPICS = {f"topic {i:02}": [f"w{i}{letter}" for letter in "abcdef"] for i in range(30)}


@dataclass(frozen=True)
class Outcome:
    """How the program ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Program = Callable[..., Outcome]


def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program, run inside this process."""

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = main(list(map(str, arguments)))
        return Outcome(code, *capsys.readouterr())

    return run


def spawn(*arguments: object, stdin: bytes | None = None, **options: Any) -> Outcome:
    """The program, run in a process of its own."""
    command = [sys.executable, "-m", "machxc.cli", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False, **options)
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def text_samples(n: int, seed: int) -> list[dict[str, Any]]:
    """Texts of words that tell their one or two labels."""
    draw = random.Random(seed)
    samples = []
    for _ in range(n):
        labels = sorted(draw.sample(sorted(TOPICS), draw.choice([1, 2])))
        words = [word for label in labels for word in draw.sample(TOPICS[label], 3)]
        samples.append({"text": " ".join(draw.sample(words, len(words))), "labels": labels})
    return samples


def write_jsonl(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return path


def write_xmc(path: Path, n: int, seed: int) -> Path:
    """Numeric samples: 40 features, 8 labels, feature 5 * l + j tells label l."""
    draw = random.Random(seed)
    lines = [f"{n} 40 8"]
    for _ in range(n):
        label = draw.randrange(8)
        lines.append(f"{label} " + " ".join(f"{5 * label + j}:1" for j in sorted(draw.sample(range(5), 3))))
    path.write_text("\n".join(lines) + "\n")
    return path


def assert_one_error(err: str, pattern: str) -> None:
    """Standard error is one line, an error that matches."""
    assert re.fullmatch(rf"machxc: error: [^\n]*{pattern}[^\n]*\n", err), err
