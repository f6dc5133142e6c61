"""Numbers in the fewest bytes: what of a repetition's rows is stored, and the rest made from it when it is loaded."""

from __future__ import annotations

import numpy as np

from machxc.samples import Array

MOST_DENSE = 1 << 22  # entries of a repetition that are stored dense, and made narrow when it answers: 8 MB


def narrowed(numbers: Array) -> Array:
    """Integers from 0 to 2**32 - 1 in the fewest bytes that have room for the largest: uint8, uint16 or uint32."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def most_slots(n_rows: int) -> int:
    """Up to how many slots are not stored but made from rows: a small file must not ask for much memory."""
    return (1 << 12) + 64 * n_rows
