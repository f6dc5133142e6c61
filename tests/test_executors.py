from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from machxc.executors import Executor, LocalExecutor, SerialExecutor, executor_for

EXECUTORS: dict[str, Callable[[], Executor]] = {
    "serial": SerialExecutor,
    "local-1": lambda: LocalExecutor(1),
    "local-3": lambda: LocalExecutor(3),
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Executor:
    return EXECUTORS[request.param]()


def never() -> None:
    raise AssertionError("cancel was called although nothing failed")


def none(_: object) -> None:
    pass


def test_every_task_is_called_once(executor: Executor) -> None:
    done: list[int] = []
    executor.run(done.append, range(20), never)
    assert sorted(done) == list(range(20))


def test_nothing_to_run_is_no_trouble(executor: Executor) -> None:
    executor.run(lambda r: never(), [], never)


@pytest.mark.parametrize("error", [ValueError("third"), KeyboardInterrupt(), SystemExit(3)])
def test_the_first_error_cancels_the_rest_and_is_raised(executor: Executor, error: BaseException) -> None:
    done: list[int] = []
    cancelled = threading.Event()

    def task(r: int) -> None:
        if r == 2:
            raise error
        deadline = time.monotonic() + 5
        while r > 2 and not cancelled.is_set() and time.monotonic() < deadline:
            time.sleep(0.001)
        done.append(r)

    with pytest.raises(type(error)) as raised:
        executor.run(task, range(50), cancelled.set)
    assert raised.value is error
    assert cancelled.is_set()
    assert len(done) <= 7  # those before it, those that ran beside it, and those that were taken up in that moment


def test_run_returns_when_no_task_runs_any_more(executor: Executor) -> None:
    running: set[int] = set()
    cancelled = threading.Event()

    def task(r: int) -> None:
        running.add(r)
        if r == 1:
            running.discard(r)
            raise ValueError
        cancelled.wait(0.2)
        time.sleep(0.05)
        running.discard(r)

    with pytest.raises(ValueError, match=r"^$"):
        executor.run(task, range(6), cancelled.set)
    assert not running


def test_local_runs_as_many_at_a_time_as_it_was_told() -> None:
    barrier = threading.Barrier(3, timeout=10)
    LocalExecutor(3).run(lambda r: none(barrier.wait()), range(6), never)
    most, running, lock = 0, 0, threading.Lock()

    def task(r: int) -> None:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    LocalExecutor(2).run(task, range(12), never)
    assert most == 2


def test_serial_runs_in_this_thread_in_order() -> None:
    seen: list[tuple[int, int]] = []
    SerialExecutor().run(lambda r: seen.append((r, threading.get_ident())), [3, 1, 2], never)
    assert seen == [(r, threading.get_ident()) for r in (3, 1, 2)]


@pytest.mark.parametrize("jobs", [0, 1])
def test_one_job_needs_no_threads(jobs: int) -> None:
    assert isinstance(executor_for(jobs), SerialExecutor)


def test_more_jobs_are_threads() -> None:
    executor = executor_for(5)
    assert isinstance(executor, LocalExecutor)
    assert executor.jobs == 5
