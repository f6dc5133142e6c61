"""Unsigned 64-bit arithmetic on int64 tensors, which wrap around as C does: hashes and random numbers of the kernels.

Products and sums have the same bits, signed or not; only shifts to the right differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(number: Any) -> int:
    """The int64 with the bits of a uint64."""
    value = int(number)
    return value - (1 << 64) if value >= 1 << 63 else value


def shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right, by 1 to 63 bits: what comes in from the left is 0."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def draws(states: Tensor, positions: Tensor) -> Tensor:
    """`machxc.repetition.random.draw`, of tensors that broadcast: the bits of its uint64 as int64."""
    z = states + (positions + 1) * signed(_GOLDEN)
    z = (z ^ shifted(z, 30)) * signed(_FIRST)
    z = (z ^ shifted(z, 27)) * signed(_SECOND)
    return z ^ shifted(z, 31)
