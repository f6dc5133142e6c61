from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import plain_noise, plain_rounded, plain_turn

from machxc.compiled import fast_kernel, kernel
from machxc.repetition.bfloat import (
    add_bfloats,
    fetch_row,
    fill_noise,
    from_bfloat,
    step_bfloats,
    to_bfloat,
    turn_of,
)
from machxc.samples import Array, Float32

Bits = npt.NDArray[np.uint16]
ALL = np.arange(65536, dtype=np.uint16)
FINITE = ALL[(ALL & 0x7F80) != 0x7F80]

states = st.integers(0, 2**64 - 1).map(np.uint64)
numbers = st.floats(-(2.0**100), 2.0**100, width=32)


@fast_kernel
def step(row: Array, weight: np.float32, g: Array, noise: Array, turn: np.int32) -> None:
    fetch_row(row)
    step_bfloats(row, weight, g, noise, turn)


@fast_kernel
def add(z: Array, weight: np.float32, row: Array) -> None:
    add_bfloats(z, weight, row)


@kernel
def drawn_noise(noise: Array, state: np.uint64) -> None:
    fill_noise(noise, state)


@kernel
def drawn_turn(state: np.uint64, j: int) -> np.int32:
    return turn_of(state, j)


def stepped(row: Bits, steps: Float32, noise: Any, turn: int = 0) -> Bits:
    """The row after row += steps."""
    out = row.copy()
    step(out, np.float32(1.0), steps, np.asarray(noise, np.int32), np.int32(turn))
    return out


def noise_of(state: int, n: int) -> npt.NDArray[np.int32]:
    noise = np.empty(n, np.int32)
    drawn_noise(noise, np.uint64(state))
    return noise


def test_every_finite_bfloat_is_read_exactly_and_written_back() -> None:
    numbers = from_bfloat(FINITE)
    exponent, fraction = (FINITE.astype(int) >> 7) & 0xFF, FINITE.astype(int) & 0x7F
    size = np.where(exponent, 1 + fraction / 128, fraction / 64) * np.exp2(exponent - 127.0)
    np.testing.assert_array_equal(numbers, np.where(FINITE >> 15, -size, size).astype(np.float32))
    np.testing.assert_array_equal(to_bfloat(numbers), FINITE)
    summed = np.zeros(len(FINITE), np.float32)
    add(summed, np.float32(1.0), FINITE)
    np.testing.assert_array_equal(summed, numbers)


@given(st.lists(numbers, min_size=1, max_size=30))
@settings(deadline=None)
def test_the_nearest_bfloat_is_within_half_of_its_last_bit(given: list[float]) -> None:
    x = np.array(given, np.float32)
    wrong = np.abs(from_bfloat(to_bfloat(x)).astype(np.float64) - x)
    assert (wrong <= np.maximum(np.abs(x) * 2.0**-8, 2.0**-134)).all()


@pytest.mark.parametrize("turn", [0, 1, 65535])
@pytest.mark.parametrize("state", [0, 1, 2**64 - 1])
def test_a_step_to_a_bfloat_is_exact(state: int, turn: int) -> None:
    noise = noise_of(state, len(FINITE))
    nothing = np.zeros(len(FINITE), np.float32)
    np.testing.assert_array_equal(from_bfloat(stepped(FINITE, nothing, noise, turn)), from_bfloat(FINITE))
    small = np.arange(-25, 25, 0.25).astype(np.float32)  # the sums have at most 8 significant bits
    start = np.full(len(small), 2.5, np.float32)
    np.testing.assert_array_equal(
        from_bfloat(stepped(to_bfloat(start), small, noise[: len(small)], turn)), start + small
    )


@given(numbers, st.floats(-100, 100, width=32), st.integers(0, 65535))
@settings(deadline=None, max_examples=200)
def test_a_rounded_step_is_right_on_average(start: float, size: float, turn: int) -> None:
    """Over all noises: a neighbour on each side, so often that their mean is the exact sum, which is a float32."""
    row = to_bfloat(np.full(65536, start, np.float32))
    exact = from_bfloat(row[:1]) + np.float32(size)
    found = from_bfloat(stepped(row, np.full(65536, size, np.float32), np.arange(65536), turn)).astype(np.float64)
    assert found.mean() == pytest.approx(float(exact[0]), rel=1e-12, abs=1e-60)
    assert len(np.unique(found)) <= 2
    assert np.abs(found - exact).max() <= max(abs(float(exact[0])) * 2.0**-7, 2.0**-133)


@given(states, st.integers(1, 70), st.integers(0, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_steps_round_as_plain_integers_do(state: np.uint64, n: int, j: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    row, steps = to_bfloat(random.normal(0, 1, n).astype(np.float32)), random.normal(0, 1e-2, n).astype(np.float32)
    noise, turn = noise_of(int(state), n), int(drawn_turn(state, j))
    assert [int(x) & 0xFFFF for x in noise] == [plain_noise(int(state), b) for b in range(n)]
    assert turn == plain_turn(int(state), j)
    exact = from_bfloat(row) + steps
    cuts = [(plain_noise(int(state), b) + turn) % 65536 for b in range(n)]
    assert stepped(row, steps, noise, turn).tolist() == [plain_rounded(*one) for one in zip(exact, cuts, strict=True)]


def test_noise_is_even_and_independent_from_place_to_place_and_sample_to_sample() -> None:
    noise = np.array([noise_of(state, 1000) & 0xFFFF for state in range(0, 7919 * 300, 7919)]) / 65536 - 0.5
    spread = 1 / np.sqrt(12 * noise.size)
    assert abs(noise.mean()) < 4 * spread
    assert noise.var() == pytest.approx(1 / 12, rel=0.01)
    for shifted in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1], noise[:, 16:] * noise[:, :-16]):
        assert abs(shifted.mean()) < 4 / 12 / np.sqrt(shifted.size)
    counts = np.bincount(((noise.ravel() + 0.5) * 64).astype(int), minlength=64)
    assert ((counts - noise.size / 64) ** 2 / (noise.size / 64)).sum() < 110  # chi-squared, 63 degrees: 1 in 10,000
