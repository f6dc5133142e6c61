"""Weights in training, 16 bits each: bfloat16, rounded at random.

A bfloat16 is the upper half of a float32: the same range, 8 significant bits instead of 24. Its bits are kept as
uint16, and read by a shift. A step is often smaller than half of the last bit, and rounding to nearest would lose it
each time; instead the number in between is rounded up with the probability of where it lies, so that it is right on
average (stochastic rounding; Gupta et al. 2015). What is random is a hash of where the step stands, so that the same
bytes come out wherever a repetition runs.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import inline, kernel, prefetch
from machxc.repetition.arithmetic import Int32, UInt16
from machxc.repetition.random import draw
from machxc.samples import Float32, UInt32

LINE = 32  # bfloat16 numbers in a line of the cache, 64 bytes


def to_bfloat(x: Float32) -> UInt16:
    """The bits of the nearest bfloat16 of finite numbers (uint16, the same shape)."""
    out = np.empty(x.shape, np.uint16)
    _to_nearest(np.ascontiguousarray(x, np.float32).reshape(-1).view(np.uint32), out.reshape(-1))
    return out


def from_bfloat(bits: UInt16) -> Float32:
    """The numbers of these bits, exactly (float32, the same shape)."""
    numbers: Float32 = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers


@kernel
def _to_nearest(bits: UInt32, out: UInt16) -> None:
    """What is half of the last bit goes to the even neighbour."""
    for i in range(len(bits)):
        out[i] = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


@inline
def bfloat(bits: np.uint16) -> np.float32:
    """The number of these bits."""
    return np.int32(np.int32(bits) << np.int32(16)).view(np.float32)


@inline
def add_bfloats(z: Float32, weight: np.float32, row: UInt16) -> None:
    """z += weight * row."""
    for b in range(len(z)):
        z[b] += weight * bfloat(row[b])


@inline
def fetch_row(row: UInt16) -> None:
    """Begin to read a row that will be needed soon: rows at random places come slower than the processor asks for."""
    for b in range(0, len(row), LINE):
        prefetch(row, b)


@inline
def step_bfloats(row: UInt16, weight: np.float32, g: Float32, noise: Int32, turn: np.int32) -> None:
    """row += weight * g, rounded up where the lower half that is cut off, and the noise turned by ``turn``, overflow.

    Rows of a sample share its noise, and turn it by numbers of their own: all that a row rounds is independent, and so
    is what any two rows round in a column.
    """
    for b in range(len(row)):
        exact = np.float32(bfloat(row[b]) + weight * g[b])
        cut = (noise[b] + turn) & np.int32(0xFFFF)
        row[b] = np.uint16(np.uint32(exact.view(np.int32) + cut) >> np.uint32(16))


@inline
def fill_noise(noise: Int32, state: np.uint64) -> None:
    """A random number in each place, its lowest 16 bits even: a hash of the state and the place.

    The finaliser of 32 bits by Wellons ("lowbias32"): as good as what makes the other random numbers, and two
    multiplications that a vector of the processor does at once.
    """
    start = np.uint32(state)
    for b in range(len(noise)):
        h = np.uint32(start + np.uint32(b))
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
        noise[b] = np.int32(h ^ (h >> np.uint32(16)))


@inline
def turn_of(state: np.uint64, j: int) -> np.int32:
    """By how much the j-th row of a sample turns its noise."""
    return np.int32(draw(state, j) & np.uint64(0xFFFF))
