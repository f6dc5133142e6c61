"""A second process that compiles what will be needed later: on a first run, all but one core have nothing to do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from machxc.cli.arguments import available_cores
from machxc.cli.kernels import TRAINING, cache_folder
from machxc.errors import MachxcError

if TYPE_CHECKING:
    from machxc.config import Settings
    from machxc.data import ReadOptions

_PROGRAM = "machxc.cli.compiler"
_MANY_LABELS = 10_000  # from so many on they may be counted: see plan.py, which is not imported for that
_OF_NUMBERS, _OF_LINES = ("xmc", "svmlight"), ("jsonl", "csv", "tsv")


class Ahead:
    """Has kernels compiled into Numba's cache by another process, where there is one (None: nothing is done).

    It is of no consequence else: what goes wrong there is not told, and what it has not compiled is compiled here.
    """

    def __init__(self, process: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process
        self._asked = 0

    def compile(self, job: str, **given: Any) -> None:
        """Ask for a job of `machxc.cli.compiler`, after those that were asked for before."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):  # it has ended
            self._process.stdin.write(json.dumps({"job": job, **given}).encode() + b"\n")
            self._process.stdin.flush()
            self._asked += 1

    def compile_for(self, data: str, options: ReadOptions, settings: Settings) -> None:
        """Ask for what training on these samples needs while it reads them: not the reader, which is compiled here.

        Where lines are fewer than labels must be to be counted, it is clear what will answer. Then that is asked for at
        once, and else facts and encoding, so that the plan, which tells, comes sooner.
        """
        format = None if self._process is None else _format(data, options)
        if format is None or format in _OF_NUMBERS:
            return
        self.compile("name")
        usual = settings.learner != "counts" and not settings.hidden
        self.compile("answer" if format in _OF_LINES and usual and _has_few_lines(data) else "encode")

    def wait(self) -> None:
        """Return when all that was asked for is compiled, or the process has ended."""
        if self._process is None or self._process.stdout is None:
            return
        while self._asked and self._process.stdout.readline():
            self._asked -= 1
        self._asked = 0


@contextlib.contextmanager
def compiling_ahead(cold: bool) -> Iterator[Ahead]:
    """`Ahead`, with a process where that helps: ``cold``, nothing is compiled yet, on two cores or more.

    The process ends with the block, and with this process, however that ends.
    """
    if not cold or available_cores() < 2 or not os.access(_existing(cache_folder(TRAINING)), os.W_OK):
        yield Ahead()
        return
    try:
        pipe = subprocess.PIPE
        command = [sys.executable, "-P", "-m", _PROGRAM]  # -P: nothing is imported from the current folder
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    except OSError:
        yield Ahead()
        return
    try:
        yield Ahead(process)
    finally:
        process.kill()
        with contextlib.suppress(OSError):  # what it was not given yet is lost
            process.communicate()


def _format(data: str, options: ReadOptions) -> str | None:
    """The format of an ordinary file: what is in a pipe can be read once, and is not looked into."""
    from machxc.data.formats import find_format
    from machxc.data.source import Source

    with contextlib.suppress(MachxcError):  # who reads it tells
        if os.path.isfile(data):
            with Source(data) as source:
                return find_format(source, options)
    return None


def _has_few_lines(path: str) -> bool:
    if path.endswith((".gz", ".zst")):
        return False
    with open(path, "rb") as file:
        return sum(1 for _ in islice(file, _MANY_LABELS)) < _MANY_LABELS


def _existing(folder: str) -> str:
    """The folder, or the one above it that will be written in when it is made."""
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder
