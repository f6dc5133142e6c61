"""Planned bytes and seconds, to read: no more digits than a plan can promise."""

from __future__ import annotations

import math


def size(n: int, *, up: bool = False) -> str:
    """Bytes in a unit to read; ``up``: rounded up, so that it suffices as a budget."""
    value = float(n)
    for unit in ("bytes", "KB", "MB"):
        if value < 1000:
            return f"{math.ceil(value) if up else value:.0f} {unit}"
        value /= 1000
    return f"{math.ceil(10 * value) / 10 if up else value:.1f} GB"


def duration(seconds: float) -> str:
    """A time in a unit to read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
