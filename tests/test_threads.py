"""Work shared out to threads: what comes out, in which order, how far ahead, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machxc.threads import ahead, in_turn, share_out

WAIT = 30.0  # seconds, at most, for another thread


@given(parts=st.lists(st.integers(), max_size=20), threads=st.integers(1, 4))
def test_parts_are_shared_out_in_order(parts: list[int], threads: int) -> None:
    assert share_out(lambda part: 2 * part, parts, threads) == [2 * part for part in parts]


@given(parts=st.lists(st.integers(), max_size=20), threads=st.integers(1, 4))
def test_what_is_made_is_used_in_turn(parts: list[int], threads: int) -> None:
    used: list[tuple[int, str]] = []
    in_turn(str, lambda part, made: used.append((part, made)), parts, threads)
    assert used == [(part, str(part)) for part in parts]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_few_are_made_ahead(threads: int) -> None:
    made: list[int] = []
    ahead: list[int] = []

    def use(part: int, result: None) -> None:
        ahead.append(len(made) - part)

    in_turn(made.append, use, range(40), threads)
    assert made == sorted(made) if threads == 1 else sorted(made) == list(range(40))
    assert max(ahead) <= threads + 1


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_raised_while_making_or_using_ends_it(threads: int) -> None:
    used: list[int] = []

    def make(part: int) -> int:
        if part == 5:
            raise ValueError("made")
        return part

    with pytest.raises(ValueError, match="made"):
        in_turn(make, lambda part, made: used.append(made), range(1000), threads)
    assert used == [0, 1, 2, 3, 4]

    def use(part: int, made: int) -> None:
        if part == 3:
            raise KeyboardInterrupt
        used.append(made)

    used.clear()
    with pytest.raises(KeyboardInterrupt):
        in_turn(lambda part: part, use, range(1000), threads)
    assert used == [0, 1, 2]


def test_an_error_stops_the_parts_at_work_and_those_that_wait() -> None:
    stop, begun, done = threading.Event(), threading.Event(), list[int]()

    def run(part: int) -> None:
        if part == 0:
            assert begun.wait(WAIT)
            raise OSError("disk")
        begun.set()
        assert stop.wait(WAIT)
        done.append(part)

    with pytest.raises(OSError, match="disk"):
        share_out(run, range(100), 2, stop)
    assert sorted(done) in ([1], [1, 2])  # the thread of the first part has begun another one, or not


@given(parts=st.lists(st.integers(), max_size=20))
def test_an_iterator_runs_ahead(parts: list[int]) -> None:
    assert list(ahead(iter(parts))) == parts


def test_what_an_iterator_raises_comes_after_what_it_gave() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    taken: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        taken.extend(ahead(items()))
    assert taken == [1, 2]


def test_an_iterator_is_not_far_ahead_and_ends_when_no_more_is_taken() -> None:
    given: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            given.append(item)
            yield item

    before = threading.active_count()
    coming = ahead(items())
    assert [next(coming), next(coming)] == [0, 1]
    coming.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(given) <= 2 + 3
    assert threading.active_count() == before


def test_a_single_part_stays_on_this_thread() -> None:
    assert share_out(lambda part: threading.current_thread(), [0], 4) == [threading.current_thread()]
