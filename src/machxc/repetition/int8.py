"""How the tables of hidden layers are stored: 8 bits a number, and a scale for each row.

The largest number of a row, whatever its sign, becomes 127 or -127, and the others are rounded to the nearest of the
255 that lie evenly between these two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from machxc.compiled import inline
from machxc.samples import Array, Float32

Int8 = npt.NDArray[np.int8]

LARGEST = np.float32(65504.0)  # what is beyond becomes this: sums of such numbers are far from infinity
_MOST = np.float32(127.0)
_ROWS = 4096  # at a time


def to_int8(x: Float32) -> tuple[Int8, Float32]:
    """Numbers of 8 bits and the scale of each row, of a table of finite numbers: int8 [n, H], float32 [n]."""
    numbers, scales = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
    for start in range(0, len(x), _ROWS):
        block = slice(start, start + _ROWS)
        clipped = np.clip(x[block], -LARGEST, LARGEST)
        scales[block] = np.maximum(np.abs(clipped).max(axis=1, initial=0.0), np.finfo(np.float32).tiny * _MOST) / _MOST
        numbers[block] = np.clip(np.rint(clipped / scales[block, None]), -_MOST, _MOST)
    return numbers, scales


def as_int8(name: str, x: Float32) -> dict[str, Array]:
    """The tensors that a table is stored as, by their names."""
    numbers, scales = to_int8(x)
    return {name: numbers, scales_of(name): scales}


def scales_of(name: str) -> str:
    """What the scales of the table ``name`` are called."""
    return f"{name}_scales"


def from_int8(numbers: Array, scales: Array) -> Float32:
    """The table that is stored so: float32 [n, H]."""
    table: Float32 = numbers * scales[:, None]
    return table


@inline
def add_int8(z: Float32, weight: np.float32, row: Int8) -> None:
    """z += weight * row."""
    for k in range(len(z)):
        z[k] += weight * np.float32(row[k])
