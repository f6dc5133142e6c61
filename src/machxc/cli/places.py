"""Options of where repetitions are trained, and the view of all of them while they are."""

from __future__ import annotations

import json
import re
import shutil
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from machxc.cli import console as show
from machxc.cli.console import Console

if TYPE_CHECKING:
    from machxc.runs.asked import Execution
    from machxc.runs.status import RepetitionStatus, RunStatus

EXECUTORS = ("local", "serial", "ray")  # as in runs/asked.py, without its imports
PROGRESS = ("auto", "bar", "table", "json")
DEVICE = "what computes: cpu (default), auto (GPUs if there are any), cuda (all of them) or cuda:1 (that one)"
_BAR = 20  # characters


def add_places(parser: ArgumentParser) -> None:
    """``--executor``, ``--shard`` and what goes with them."""
    group = parser.add_argument_group(
        "where repetitions are trained",
        "But for the device, none of this changes a byte of the model. docs/scaling.md has recipes.",
    )
    group.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        help="local: --jobs at a time on this machine (default); serial: one after the other; ray: on a cluster",
    )
    group.add_argument("--device", metavar="DEVICE", default="cpu", help=DEVICE)
    group.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster (default: that of this machine)")
    gpus = "share of a GPU to ask the Ray cluster for, beside a core (default: 0)"
    group.add_argument("--gpus-per-repetition", type=float, metavar="G", default=0.0, help=gpus)
    shard = "train only repetitions r with r mod N = I: for one job of an array, given the same but for I"
    group.add_argument("--shard", type=shard_of, metavar="I/N", help=shard)
    run = "where the run keeps what it has done: a folder, or s3://bucket/run and the like (default: MODEL.machxc-run)"
    group.add_argument("--run-folder", metavar="RUN", help=run)
    interval = "between two checkpoints of a repetition: what a kill loses at most (default: 60)"
    group.add_argument("--checkpoint-interval", type=float, metavar="SECONDS", help=interval)
    deadline = "without a sign of life after which a repetition is begun elsewhere, too (Ray only; default: 60)"
    group.add_argument("--deadline", type=float, metavar="SECONDS", help=deadline)
    progress = "how progress is shown: a bar, a table of all repetitions, or JSON Lines on standard error "
    progress += "(default: a bar; with --executor ray or --shard a table, where there is no terminal JSON Lines)"
    group.add_argument("--progress", choices=PROGRESS, default="auto", help=progress)


def execution(arguments: Namespace) -> Execution:
    """Where repetitions are to be trained."""
    from machxc.runs.asked import Execution

    address = arguments.address or ("auto" if arguments.executor == "ray" else None)
    others = {"checkpoint_interval": arguments.checkpoint_interval, "deadline": arguments.deadline}
    return Execution(
        executor=arguments.executor,
        address=address,
        gpus=arguments.gpus_per_repetition,
        shard=arguments.shard,
        run_folder=arguments.run_folder,
        device=arguments.device,
        **{name: value for name, value in others.items() if value is not None},
    )


def shard_of(text: str) -> tuple[int, int]:
    """Which shard of how many: "0/4" to "3/4"."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ArgumentTypeError(f"expected I/N with 0 <= I < N, as 0/4 to 3/4, got {text!r}")
    return int(match[1]), int(match[2])


def view(arguments: Namespace, console: Console) -> Callable[[RunStatus], None] | None:
    """What shows the state of all repetitions; None when a bar is to be shown, or nothing."""
    kind = arguments.progress
    if kind == "auto":
        far = arguments.executor == "ray" or arguments.shard is not None
        kind = "bar" if not far else "table" if show.is_terminal() else "json"
    if console.quiet or kind == "bar":
        return None
    return Table(console) if kind == "table" and show.is_terminal() else lambda status: tell_as_json(console, status)


def tell_as_json(console: Console, status: RunStatus) -> None:
    """One line of JSON on standard error."""
    facts = {name: value for name, value in status.to_dict().items() if name != "repetitions"}
    states = {str(r.number): round(r.done / r.total, 4) if r.total else 0.0 for r in status.repetitions}
    console.note(json.dumps({**facts, "repetitions": states}))


class Table:
    """A table on the terminal that is drawn anew in its place."""

    def __init__(self, console: Console) -> None:
        self._console, self._lines = console, 0

    def __call__(self, status: RunStatus) -> None:
        """Draw it."""
        columns, rows = shutil.get_terminal_size()
        lines = [line[: columns - 1] for line in table_of(status, max(2, rows - 2)).splitlines()]
        up = f"\x1b[{self._lines}A\x1b[J" if self._lines else ""
        self._lines = len(lines)
        sys.stderr.write(up + "\n".join(lines) + "\n")
        sys.stderr.flush()


def table_of(status: RunStatus, rows: int = 10**6) -> str:
    """The state of a run as a table: those in training first, when there is no room for all; then one line for all."""
    order = {"training": 0, "silent": 1, "stopped": 2, "waiting": 3, "done": 4}
    found = list(status.repetitions)
    if len(found) + 2 > rows:
        found = sorted(found, key=lambda r: (order.get(r.state, 5), r.number))[: max(1, rows - 3)]
    header = ("repetition", "state", "progress", "samples/s", "attempts", "host")
    lines = show.table([header, *(_row(r) for r in found)])
    left = len(status.repetitions) - len(found)
    more = [f"... and {left} more"] if left else []
    return "\n".join([lines, *more, summary(status)])


def _row(repetition: RepetitionStatus) -> tuple[str, ...]:
    share = 1.0 if repetition.state == "done" else repetition.done / max(1, repetition.total)
    bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
    rate = f"{repetition.rate:,.0f}" if repetition.state == "training" else ""
    attempts = str(repetition.attempts) if repetition.attempts else ""
    number = str(repetition.number)
    return number, repetition.state, f"{bar} {share:4.0%}", rate, attempts, show.printable(repetition.host[:24])


def summary(status: RunStatus) -> str:
    """All repetitions in one line."""
    states = ("done", "training", "silent", "stopped", "waiting", "missing")
    counts = ", ".join(f"{n} {state}" for state in states if (n := status.count(state)))
    rate = f"; {status.rate:,.0f} samples/s" if status.rate else ""
    return f"{status.fraction:.1%} of {show.count(len(status.repetitions), 'repetition')}: {counts}{rate}"
