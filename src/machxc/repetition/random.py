"""Random numbers that need no state: a hash of (seed, what for, position). The same on every machine and NumPy.

SplitMix64 (Steele, Lea and Flood 2014): its output function over a counter. Any number can be drawn by itself, so that
a draw depends on the sample it is for, not on how samples were cut into chunks.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import inline, kernel
from machxc.samples import Int64

_MASK = 2**64 - 1

SHUFFLE, DROPOUT, WEIGHTS, NEGATIVES, FEATURES, HOLDOUT, LEFT_OUT, ASSOCIATIONS, ROUNDING, UNITS = range(1, 11)


def stream(seed: int, *path: int) -> np.uint64:
    """A 64-bit number that names one stream of random numbers: the seed, then what it is for, repetition, epoch."""
    state = seed
    for step in path:
        state = _scramble((state + 0x9E3779B97F4A7C15 * (step + 1)) & _MASK)
    return np.uint64(_scramble(state))


def _scramble(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@inline
def draw(state: np.uint64, position: int) -> np.uint64:
    """The 64-bit random number at a position of a stream."""
    z = state + np.uint64(position + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def shuffle(order: Int64, state: np.uint64) -> None:
    """Shuffle in place (Fisher and Yates): every order of the samples is equally likely, not of blocks of them."""
    for i in range(len(order) - 1, 0, -1):
        j = np.int64(draw(state, i) % np.uint64(i + 1))
        order[i], order[j] = order[j], order[i]
