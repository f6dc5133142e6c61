from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.compiled import kernel
from machxc.repetition import random
from machxc.repetition.random import draw
from machxc.samples import Array


@kernel
def draws(state: np.uint64, positions: Array, out: Array) -> None:
    for i in range(len(positions)):
        out[i] = draw(state, positions[i])


def drawn(state: np.uint64, positions: list[int]) -> list[int]:
    out = np.empty(len(positions), np.uint64)
    draws(state, np.array(positions, np.int64), out)
    return [int(x) for x in out]


def splitmix64(seed: int, n: int) -> list[int]:
    """The reference generator (Steele, Lea and Flood 2014): a state that rises by the golden gamma."""
    state, out = seed, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def test_known_outputs() -> None:
    # of the reference implementation, seed 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64")
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert splitmix64(1234567, 5) == known
    assert drawn(np.uint64(1234567), list(range(5))) == known


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 200), max_size=10))
@settings(deadline=None, max_examples=50)
def test_any_position_can_be_drawn_by_itself(state: int, positions: list[int]) -> None:
    expected = splitmix64(state, 201)
    assert drawn(np.uint64(state), positions) == [expected[p] for p in positions]


def test_streams_are_distinct() -> None:
    purposes = tuple(getattr(random, name) for name in dir(random) if name.isupper() and not name.startswith("_"))
    assert len(set(purposes)) == len(purposes)
    paths = [(p, r, e) for p in purposes for r in range(40) for e in range(10)] + [
        (p, r) for p in purposes for r in range(40)
    ]
    states = [int(random.stream(seed, *path)) for seed in (0, 1, 2**63 - 1) for path in paths]
    assert len(set(states)) == len(states)
    firsts = [drawn(np.uint64(state), [0])[0] for state in states]
    assert len(set(firsts)) == len(firsts)


def test_streams_do_not_depend_on_the_order_of_their_path_alone() -> None:
    assert random.stream(0, 1, 2) != random.stream(0, 2, 1)
    assert random.stream(0, 1) != random.stream(0, 1, 0)


@given(st.integers(0, 300), st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=100)
def test_shuffle_is_a_permutation(n: int, seed: int) -> None:
    order = np.arange(n, dtype=np.int64)
    random.shuffle(order, random.stream(seed, random.SHUFFLE, 0, 0))
    assert sorted(order.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_order_is_equally_likely(n: int) -> None:
    orders = list(itertools.permutations(range(n)))
    throws = 1000 * len(orders)
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(throws):
        order = np.arange(n, dtype=np.int64)
        random.shuffle(order, random.stream(seed, random.SHUFFLE, 3, 5))
        seen[tuple(order.tolist())] += 1
    chi_square = sum((seen[order] - 1000) ** 2 / 1000 for order in orders)
    freedom = len(orders) - 1
    assert (
        chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 4
    )  # mean and standard deviation of chi-square, and its skew


def test_epochs_and_repetitions_have_orders_of_their_own() -> None:
    orders = []
    for r, epoch in itertools.product(range(4), range(4)):
        order = np.arange(100, dtype=np.int64)
        random.shuffle(order, random.stream(0, random.SHUFFLE, r, epoch))
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 16
