"""Who may work in a run folder: one process that does all of it, or any number of shards, which take turns.

The locks are those of the kernel (flock): they end with the process that holds them, however that ends. On a shared
file system that does not pass them on, shards are still harmless to each other, as all that they write appears whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from machxc.errors import OutputError
from machxc.files import lock_file, output_errors, try_lock
from machxc.runs.folder import LOCK, TURN


@contextlib.contextmanager
def held(folder: Path, *, shared: bool) -> Iterator[int]:
    """Make the run folder, and hold it: alone, or with other shards. OutputError when others hold it otherwise."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / LOCK)
    try:
        if not try_lock(lock, folder / LOCK, shared=shared):
            raise OutputError(f"another process is training into {folder}; wait for it, or choose another output")
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other shard is at such a step."""
    with output_errors(folder):
        lock = lock_file(folder / TURN)
    try:
        with contextlib.suppress(OSError):  # where there are no locks, turns are a courtesy
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def is_last(lock: int) -> bool:
    """Whether no other shard holds the folder, as far as locks tell. Only for one that is about to leave it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
