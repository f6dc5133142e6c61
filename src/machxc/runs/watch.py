"""Watching the repetitions of a run, wherever they are trained: by the files of their attempts."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

from machxc.runs.folder import RunFolder
from machxc.runs.status import RunStatus, read_attempt, run_status

log = logging.getLogger("machxc.run")

OnStatus = Callable[[RunStatus], None]
PERIOD = 1.0  # seconds


@contextlib.contextmanager
def watched(folder: RunFolder, on_status: OnStatus | None, period: float = PERIOD) -> Iterator[None]:
    """Call ``on_status`` now and then, from a thread of its own, while the body runs, and once when it has ended."""
    if on_status is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, on_status, period, ended), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            on_status(run_status(folder))


def _watch(folder: RunFolder, on_status: OnStatus, period: float, ended: threading.Event) -> None:
    while not ended.wait(period):
        try:
            on_status(run_status(folder))
        except Exception as error:  # training is what matters
            log.debug("cannot tell how far the run is: %s", error)


def signs_of_life(folder: RunFolder) -> Callable[[int], object]:
    """A function that tells, of a repetition, something that changes as long as someone trains it; None: nobody yet."""
    listed, at = list[str](), -math.inf  # in an object store, a list takes a while: one a second will do

    def beats(r: int) -> object:
        nonlocal listed, at
        if time.monotonic() - at >= PERIOD:
            listed, at = sorted(folder.names()), time.monotonic()
        names = [name for name in listed if name.startswith(f"attempt-{r:05d}-")]
        found = [(name, facts["beat"]) for name in names if (facts := read_attempt(folder, name)) is not None]
        return tuple(found) or None

    return beats
