"""What all benchmarks share: the machine and versions in the first lines, process accounting, tables."""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "benchmarks"
VERSIONS = ("machxc", "numpy", "numba", "llvmlite", "scikit-learn", "scipy")
_MAXRSS = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss, in bytes


@dataclass(frozen=True)
class Ran:
    """A program that ran to its end: what it printed, and what it took as a whole, from its start to its exit.

    ``cpu_seconds``: user and system, all threads; ``peak_bytes``: the most memory that was resident at a time.
    """

    output: str
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command: Sequence[str]) -> Ran:
    """Run a program, its errors shown; CalledProcessError when it fails.

    Linux counts into a program's peak what its parent held when it started it: the parent must be smaller than what it
    measures, and is told when it is not.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >= usage.ru_maxrss:
        raise RuntimeError("the benchmark itself holds more memory than what it measures: its peak means nothing")
    return Ran(output, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _MAXRSS)


def header() -> str:
    """The versions, the machine with its load, and the command, a line each."""
    python = platform.python_version()
    versions = ", ".join([*(f"{name} {version(name)}" for name in VERSIONS), f"Python {python}"])
    system = f"{platform.system()} {platform.machine()}"
    return f"{versions}\n{processor()}, {cores()} cores, {memory()}, {system}; {load()}\n{command_line()}"


def command_line() -> str:
    """The command that runs, as one would type it in the root of the repository."""
    program = Path(sys.argv[0]).resolve()
    shown = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def processor() -> str:
    """The processor's name and the caches that a core has, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return " ".join([name, *(f"{level} {size}" for level, size in caches().items())])


def caches() -> dict[str, str]:
    """Data caches by level, as Linux tells: {"L1": "32K", "L2": "1024K", "L3": "32768K"}."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (folder / "type").read_text().strip() != "Instruction":
            found["L" + (folder / "level").read_text().strip()] = (folder / "size").read_text().strip()
    return found


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> str:
    """The machine's memory."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def load() -> str:
    """How busy the machine is: above the number of processes that a benchmark runs, others run beside it."""
    return f"load {os.getloadavg()[0]:.1f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns padded so that it reads as text, too."""
    lines = [columns, *rows]
    widths = [max(len(row[i]) for row in lines) for i in range(len(columns))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [[columns[i].ljust(widths[i]) for i in range(len(columns))], ruler]
    cells += [[row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def report(name: str, text: str, *, write: bool, machine: bool = False) -> None:
    """Print a result; ``write``: put it between the marks of its name in docs/algorithm.md, with the command.

    ``machine``: with the machine, too, as times depend on it.
    """
    print(text)
    if not write:
        return
    command = re.sub(r" --docs( [a-z-]+$| [a-z-]+(?= -))?", "", command_line())
    shown = [f"    {command}", *([f"    # {line}" for line in header().splitlines()[:2]] if machine else [])]
    block = "\n".join([f"<!-- begin {name} -->", *shown, "", text, f"<!-- end {name} -->"])
    document = ROOT / "docs" / "algorithm.md"
    before = document.read_text(encoding="utf-8")
    marked = re.compile(f"<!-- begin {name} -->.*?<!-- end {name} -->", re.DOTALL)
    if not marked.search(before):
        raise RuntimeError(f"{document} has no place for {name}: write <!-- begin {name} --><!-- end {name} --> there")
    document.write_text(marked.sub(lambda _: block, before), encoding="utf-8")
