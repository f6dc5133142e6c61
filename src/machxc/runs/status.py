"""How far a run is: read from its folder, by whoever can see that."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machxc.errors import ModelError
from machxc.folder import repetition_file
from machxc.runs.folder import RunFolder, is_address, open_folder, read_plan, run_folder

SILENT = 20.0  # seconds without a sign of life after which an attempt counts as lost
_ATTEMPT = re.compile(r"attempt-([0-9]{5})-[0-9a-f]{16}\.json")


@dataclass(frozen=True)
class RepetitionStatus:
    """One repetition: ``state`` is waiting, training, stopped (or silent), or done.

    ``done`` of ``total`` samples, over all epochs; ``attempts``: how often it was begun; ``rate``: samples a second;
    ``host``: where it was begun last; ``age``: seconds since its last sign of life, by that machine's clock.
    """

    number: int
    state: str
    done: int = 0
    total: int = 0
    attempts: int = 0
    rate: float = 0.0
    host: str = ""
    age: float = 0.0


@dataclass(frozen=True)
class RunStatus:
    """All repetitions of a run."""

    repetitions: tuple[RepetitionStatus, ...]

    def count(self, state: str) -> int:
        """How many repetitions are in a state."""
        return sum(repetition.state == state for repetition in self.repetitions)

    @property
    def fraction(self) -> float:
        """The share of all samples that are trained on, of all repetitions."""
        return sum(_fraction(r) for r in self.repetitions) / max(1, len(self.repetitions))

    @property
    def rate(self) -> float:
        """Samples a second, of all repetitions that are in training."""
        return sum(r.rate for r in self.repetitions if r.state == "training")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "done": self.count("done"),
            "training": self.count("training"),
            "of": len(self.repetitions),
            "fraction": round(self.fraction, 4),
            "samples_per_second": round(self.rate),
            "attempts": sum(r.attempts for r in self.repetitions),
            "repetitions": [dataclasses.asdict(r) for r in self.repetitions],
        }


def run_status(folder: RunFolder) -> RunStatus:
    """How far the run in a folder is; ModelError when there is none, or it is not planned yet."""
    try:
        plan, names = read_plan(folder), set(folder.names())
    except FileNotFoundError:
        plan, names = None, set()
    if plan is None:
        raise ModelError(f"{folder.name}: no run is planned there; expected a model that is being trained")
    attempts = _attempts(folder, names)
    numbers = range(plan[0].repetitions)
    return RunStatus(tuple(_status(r, repetition_file(r) in names, attempts.get(r, [])) for r in numbers))


def status_of(model: Path | str) -> RunStatus:
    """How far the run into the model folder ``model`` is (or the run in the run folder, or at the address, ``model``).

    A model that is complete has no run any more: all repetitions that it has are done.
    """
    if is_address(str(model)) or (Path(model) / "run.json").is_file():
        return run_status(open_folder(str(model)))
    if run_folder(model).is_dir():
        return run_status(open_folder(str(run_folder(model))))
    from machxc.model import Model

    loaded = Model.load(model, verify=False)
    states = ("done" if r in loaded.numbers else "missing" for r in range(loaded.config.repetitions))
    return RunStatus(tuple(RepetitionStatus(r, state) for r, state in enumerate(states)))


def _attempts(folder: RunFolder, names: Iterable[str]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for name in names:
        match = _ATTEMPT.fullmatch(name)
        facts = None if match is None else read_attempt(folder, name)
        if match is not None and facts is not None:
            found.setdefault(int(match[1]), []).append(facts)
    return found


def read_attempt(folder: RunFolder, name: str) -> dict[str, Any] | None:
    """What the file of an attempt says; None when it is gone, or is none."""
    try:
        content = folder.read(name)
        facts = None if content is None else json.loads(content)
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and "beat" in facts else None


def _status(r: int, done: bool, attempts: list[dict[str, Any]]) -> RepetitionStatus:
    if not attempts:
        return RepetitionStatus(r, "done" if done else "waiting")
    last = max(attempts, key=lambda facts: facts["time"])
    age = time.time() - last["time"]
    state = "done" if done else "stopped" if last["end"] is not None else "silent" if age > SILENT else "training"
    shown = last["total"] if done else last["done"]
    return RepetitionStatus(r, state, shown, last["total"], len(attempts), last["rate"], last["host"], round(age, 1))


def _fraction(repetition: RepetitionStatus) -> float:
    return 1.0 if repetition.state == "done" else repetition.done / max(1, repetition.total)
