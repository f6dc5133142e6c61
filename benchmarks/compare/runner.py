"""A program in a process of its own, with limits: its time, its CPU seconds, its memory, and how it ended."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MAXRSS = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss, in bytes
_PAUSE = 0.02  # seconds between two looks at the process
_THREADS = ("OMP", "OPENBLAS", "MKL", "RAYON", "NUMBA", "NUMEXPR", "VECLIB_MAXIMUM")


@dataclass(frozen=True)
class Limits:
    """What a process may take; it is killed at once when it takes more.

    ``cpu_seconds``: of the process, all threads; other work beside it does not make it run out of these.
    """

    seconds: float
    memory_bytes: float
    cpu_seconds: float = math.inf


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it took from its start to its end, killed or not.

    ``status``: "ok", "failed", "out of time", "out of CPU time" or "out of memory"; ``cpu_seconds``: user and system,
    all threads; ``peak_bytes``: the most memory that was resident at a time.
    """

    status: str
    why: str
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def thread_variables(threads: int) -> dict[str, str]:
    """The environment variables by which numeric libraries are told how many threads to use.

    And Python keeps compiled modules, as it does unless it is told not to: else each start compiles what pip has not.
    """
    threads_of = {f"{name}_NUM_THREADS": str(threads) for name in _THREADS}
    return threads_of | {"TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": ""}


def run(command: Sequence[str], log: Path, limits: Limits, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a program in a process group of its own, its output in ``log``; kill the group at a limit.

    Linux counts into a program's peak what its parent held when it started it, so the parent must be the smaller one;
    RuntimeError when it is not.
    """
    start = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
    exceeded = ""
    try:
        while not exceeded and not _has_ended(process.pid):
            time.sleep(_PAUSE)
            exceeded = _exceeded(process.pid, time.perf_counter() - start, limits)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its children, too, also when it ended by itself or we are stopped
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    code = process.returncode = os.waitstatus_to_exitcode(status)
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _MAXRSS
    if exceeded or code:
        return Ended(exceeded or "failed", _allowed(exceeded, limits) or _last_words(log, code), wall, cpu, peak)
    if _own_peak() >= peak:
        raise RuntimeError("the benchmark itself holds more memory than what it measures: its peak means nothing")
    return Ended("ok", "", wall, cpu, peak)


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it is not asked how, so that its number stays its own, and its group's."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _allowed(exceeded: str, limits: Limits) -> str:
    """The limit that was exceeded, in words."""
    shown = {
        "out of time": f"{limits.seconds:g} s",
        "out of CPU time": f"{limits.cpu_seconds:g} CPU s",
        "out of memory": f"{limits.memory_bytes / 1e9:g} GB",
    }
    return f"limit of {shown[exceeded]}" if exceeded else ""


def _exceeded(pid: int, seconds: float, limits: Limits) -> str:
    if seconds > limits.seconds:
        return "out of time"
    if _cpu_seconds(pid) > limits.cpu_seconds:
        return "out of CPU time"
    return "out of memory" if _resident(pid) > limits.memory_bytes else ""


def _cpu_seconds(pid: int) -> float:
    """The processor time that a process has taken, user and system; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may have spaces
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _resident(pid: int) -> int:
    """The memory of a process that is resident now, in bytes; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _own_peak() -> int:
    """The most memory that this program held, in bytes; 0 where the system does not tell: only Linux needs it."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def _last_words(log: Path, code: int) -> str:
    """Why a program failed, as far as its output tells."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{reason}: {lines[-1][:300]}" if lines else reason
