"""A second process that compiles what will be needed later: on a first run, all but one core have nothing to do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from machxc.cli.arguments import available_cores
from machxc.cli.kernels import TRAINING, cache_folder
from machxc.errors import MachxcError

if TYPE_CHECKING:
    from machxc.data import ReadOptions

_PROGRAM = "machxc.cli.compiler"


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


def reads_names(data: str, options: ReadOptions) -> bool:
    """Whether labels have names in this file, as they do in all formats but those of numbers.

    Only an ordinary file is looked into: what is in a pipe can be read once.
    """
    from machxc.data.formats import find_format
    from machxc.data.source import Source

    if not os.path.isfile(data):
        return data == "-"
    try:
        with Source(data) as source:
            return find_format(source, options) not in ("xmc", "svmlight")
    except MachxcError:  # who reads it tells
        return False


def _existing(folder: str) -> str:
    """The folder, or the one above it that will be written in when it is made."""
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder
