"""Numbers of 8 bits, with a scale for each row, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from machxc.repetition.int8 import LARGEST, add_int8, from_int8, to_int8
from machxc.samples import Array

NUMBERS = st.floats(-(2.0**15), 2.0**15, width=32)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9), elements=NUMBERS))
def test_each_number_is_the_nearest_of_its_row(x: Array) -> None:
    numbers, scales = to_int8(x)
    assert (numbers.dtype, scales.dtype) == (np.dtype(np.int8), np.dtype(np.float32))
    assert (numbers.shape, scales.shape) == (x.shape, x.shape[:1])
    assert numbers.min(initial=0) >= -127
    most = np.abs(x).max(axis=1, initial=0.0).astype(np.float64)
    error = np.abs(from_int8(numbers, scales).astype(np.float64) - x).max(axis=1, initial=0.0)
    assert (error <= np.maximum(most / 253, 1e-37)).all()


def test_the_largest_number_of_a_row_is_kept() -> None:
    numbers, scales = to_int8(np.array([[0.5, -2.54, 0.0], [0.0, 0.0, 0.0], [1e-3, 1e-3, -1e-3]], np.float32))
    assert numbers.tolist() == [[25, -127, 0], [0, 0, 0], [127, 127, -127]]
    np.testing.assert_allclose(from_int8(numbers, scales)[[0, 2], 1], [-2.54, 1e-3], rtol=1e-6)


def test_numbers_stay_finite() -> None:
    numbers, scales = to_int8(np.array([[3e38, -3e38, 1.0]], np.float32))
    assert numbers.tolist() == [[127, -127, 0]]
    assert from_int8(numbers, scales)[0, 0] == pytest.approx(float(LARGEST))


def test_all_rows_of_a_table_that_takes_several_blocks() -> None:
    x = np.random.default_rng(0).normal(0, 3, (10_000, 3)).astype(np.float32)
    numbers, scales = to_int8(np.asfortranarray(x))
    np.testing.assert_allclose(from_int8(numbers, scales), x, atol=float(np.abs(x).max()) / 250)
    assert scales[-1] == np.abs(x[-1]).max() / np.float32(127)


def test_rows_are_added_up() -> None:
    z = np.array([1.0, 2.0, 3.0], np.float32)
    add_int8(z, np.float32(0.5), np.array([-127, 0, 5], np.int8))
    assert z.tolist() == [-62.5, 2.0, 5.5]
