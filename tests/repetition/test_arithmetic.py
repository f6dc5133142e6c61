from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import gradient_of, loss_of

from machxc.compiled import fast_kernel
from machxc.repetition.arithmetic import (
    exp_below,
    exponential,
    sigmoid_gradient,
    softmax_gradient,
)
from machxc.samples import Array, Float32

GRADIENTS = {"softmax": softmax_gradient, "bce": sigmoid_gradient}


def exp(x: Array) -> Float32:
    out = np.array(x, np.float32)
    exponential(out)
    return out


@pytest.mark.parametrize(("low", "high", "bound"), [(-87, 87, 4e-6), (-10, 10, 1e-6), (-1, 1, 3e-7)])
def test_exponential_is_within_its_bound(low: float, high: float, bound: float) -> None:
    x = np.linspace(low, high, 2_000_003, dtype=np.float32)
    assert np.abs(exp(x) / np.exp(x.astype(np.float64)) - 1).max() <= bound


def test_exponential_is_within_its_bound_at_every_power_of_two_and_its_neighbours() -> None:
    powers = np.ldexp(np.float32(1), np.arange(-126, 7)).astype(np.float32)
    x = np.concatenate([f for p in (powers, np.nextafter(powers, 0), np.nextafter(powers, 9e9)) for f in (p, -p)])
    x = np.concatenate([x, np.zeros(1), -np.zeros(1)]).astype(np.float32)
    assert np.abs(exp(x) / np.exp(x.astype(np.float64)) - 1).max() <= 4e-6


@pytest.mark.parametrize("x", [87.4, 100.0, 1e30, np.finfo(np.float32).max])
def test_exponential_is_clamped_to_powers_that_a_float_can_hold(x: float) -> None:
    high, low = exp(np.array([x, -x]))
    assert high == pytest.approx(2.0**126, rel=4e-6)
    assert low == pytest.approx(2.0**-126, rel=4e-6)


@fast_kernel
def exponential_below(x: Float32) -> None:
    for i in range(len(x)):
        x[i] = exp_below(x[i])


@pytest.mark.parametrize(("low", "bound"), [(-86, 4e-6), (-10, 1e-6), (-1, 3e-7)])
def test_exponential_of_what_is_below_0_is_within_its_bound(low: float, bound: float) -> None:
    x = np.linspace(low, 0, 1_000_003, dtype=np.float32)
    out = x.copy()
    exponential_below(out)
    assert np.abs(out / np.exp(x.astype(np.float64)) - 1).max() <= bound


@pytest.mark.parametrize("x", [-87.0, -1e4, -3e38])
def test_exponential_of_what_is_far_below_0_is_small(x: float) -> None:
    out = np.full(3, x, np.float32)
    exponential_below(out)
    assert (out > 0).all()
    assert (out < 2.0**-124).all()


def gradient(kind: str, z: Array, targets: list[int], weight: float) -> tuple[float, Float32]:
    out = np.empty(len(z), np.float32)
    logits, wanted = np.asarray(z, np.float32), np.array(targets, np.int32)
    loss = GRADIENTS[kind](logits, wanted, np.float32(weight), out)
    return float(loss), out


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, npt.NDArray[np.float32], list[int], float]:
    kind = draw(st.sampled_from(["softmax", "bce"]))
    z = draw(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20))
    targets = draw(st.sets(st.integers(0, len(z) - 1), min_size=int(kind == "softmax")))
    return kind, np.array(z, np.float32), sorted(targets), draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))


@given(cases())
@settings(deadline=None, max_examples=300)
def test_gradients_are_those_of_numpy(case: tuple[str, npt.NDArray[np.float32], list[int], float]) -> None:
    kind, z, targets, weight = case
    loss, g = gradient(kind, z, targets, weight)
    exact = z.astype(np.float64)
    np.testing.assert_allclose(g, weight * gradient_of(exact, targets, kind), rtol=2e-5, atol=2e-6)
    part_of_targets = float(np.logaddexp(0, -exact[targets]).sum())  # all that a binary cross-entropy returns
    expected = loss_of(exact, targets, kind) if kind == "softmax" else part_of_targets
    assert loss == pytest.approx(weight * expected, rel=2e-5, abs=1e-4)


@given(cases())
@settings(deadline=None, max_examples=100)
def test_gradients_are_the_slope_of_the_loss(case: tuple[str, npt.NDArray[np.float32], list[int], float]) -> None:
    kind, z, targets, _ = case
    exact = z.astype(np.float64)
    steps = np.eye(len(z)) * 1e-5
    slope = [(loss_of(exact + s, targets, kind) - loss_of(exact - s, targets, kind)) / 2e-5 for s in steps]
    np.testing.assert_allclose(gradient(kind, z, targets, 1.0)[1], slope, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("z", [[1e4, -1e4, 0.0], [-1e30, 1e30, 1e30], [200.0, 200.0, 200.0]])
def test_gradients_of_huge_logits_are_finite(kind: str, z: list[float]) -> None:
    loss, g = gradient(kind, np.array(z), [0], 1.0)
    assert np.isfinite(loss)
    expected = gradient_of(np.clip(z, -500, 500) if kind == "bce" else np.array(z), [0], kind)
    np.testing.assert_allclose(g, expected, rtol=1e-6, atol=1e-37)
