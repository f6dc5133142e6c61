"""When a device has no memory for all at once: fewer at a time, from there on, and a line in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger("machxc.torch")


def in_parts(n: int, most: int, run: Callable[[int, int], None], device: str, what: str) -> int:
    """Call ``run(start, stop)`` for one part of n after the other, of ``most`` each; returns how many it came to.

    A part that finds no memory on the device is run again in two, and so are those after it: ``run`` must change
    nothing before it has all memory that it needs. ``what`` they are is for the log. torch.OutOfMemoryError when the
    device has no memory for one alone.
    """
    start = 0
    while start < n:
        stop = min(start + most, n)
        if _runs(run, start, stop):
            start = stop
            continue
        most = (stop - start) // 2
        tell_of(device, f"{stop - start} {what} at once: it takes {most} at a time from here on")
        give_back(device)
    return most


def tell_of(device: str, what: str) -> None:
    """A line in the log: the device has no memory for something."""
    log.warning("%s has no memory for %s", device, what)


def give_back(device: str) -> None:
    """Let others have the memory that PyTorch keeps for later: pieces that are too small are joined so."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def free_bytes(device: str) -> int | None:
    """The bytes that a GPU has free, with those that PyTorch keeps for later; None for a processor."""
    if not device.startswith("cuda"):
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


def _runs(run: Callable[[int, int], None], start: int, stop: int) -> bool:
    """Whether there was memory. The error is gone on return, and with it what its frames held on the device."""
    try:
        run(start, stop)
    except torch.OutOfMemoryError:
        if stop - start == 1:
            raise
        return False
    return True
