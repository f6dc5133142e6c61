"""The queue: what is scored together, in which order, and what is turned away before any work is done."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import numpy as np
import pytest

from machxc.server.batching import Batcher, Job
from machxc.server.engine import Engine, Options, Query, Stages
from machxc.server.failures import Failure
from machxc.server.settings import ServerSettings

FAR = 120.0  # seconds: a deadline that no test reaches


class FakeEngine:
    """Answers a query with itself. ``gate``: what it waits for first; ``batches``: what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []
        self.error: BaseException | None = None

    def answer(self, queries: Sequence[Query], options: Sequence[Options]) -> tuple[list[bytes], Stages]:
        self.batches.append([str(query) for query in queries])
        self.entered.set()
        assert self.gate.wait(FAR)
        if self.error is not None:
            raise self.error
        return [str(query).encode() for query in queries], {"scoring": 0.0}


Body = Callable[[FakeEngine, Batcher], Coroutine[Any, Any, None]]


def with_batcher(body: Body, **settings: Any) -> FakeEngine:
    """Run a test against a batcher, in an event loop."""
    engine = FakeEngine()

    async def run() -> None:
        batcher = Batcher(ServerSettings(**settings))
        batcher.start()
        try:
            await asyncio.wait_for(body(engine, batcher), FAR)
        finally:
            engine.gate.set()
            await batcher.stop()

    asyncio.run(run())
    return engine


def job(engine: FakeEngine, *queries: str, seconds: float = FAR, first: bool = False, **options: Any) -> Job:
    future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
    return Job(cast(Engine, engine), list(queries), Options(**options), time.monotonic() + seconds, future, first)


async def blocked(engine: FakeEngine, batcher: Batcher) -> asyncio.Task[list[bytes]]:
    """A job that is being scored until the gate opens."""
    engine.gate.clear()
    engine.entered.clear()
    task = asyncio.create_task(batcher.answers(job(engine, "blocker")))
    await asyncio.to_thread(engine.entered.wait, FAR)
    return task


def started(batcher: Batcher, *jobs: Job) -> list[asyncio.Task[list[bytes]]]:
    return [asyncio.create_task(batcher.answers(each)) for each in jobs]


async def all_wait(batcher: Batcher, n: int) -> None:
    while batcher.waiting != n:
        await asyncio.sleep(0.001)


def test_an_idle_server_scores_at_once_and_a_busy_one_together() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        first = await blocked(engine, batcher)
        others = started(batcher, *(job(engine, f"q{i}") for i in range(5)))
        await all_wait(batcher, 5)
        engine.gate.set()
        assert await first == [b"blocker"]
        assert await asyncio.gather(*others) == [[b"q%d" % i] for i in range(5)]

    assert with_batcher(body).batches == [["blocker"], ["q0", "q1", "q2", "q3", "q4"]]


def test_a_large_job_takes_turns_with_small_ones() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        first = await blocked(engine, batcher)
        large = [f"l{i}" for i in range(10)]
        others = started(batcher, job(engine, *large), job(engine, "small"))
        await all_wait(batcher, 11)
        engine.gate.set()
        assert (await asyncio.gather(first, *others))[1:] == [[name.encode() for name in large], [b"small"]]

    batches = with_batcher(body, batch=4).batches
    assert [len(batch) for batch in batches] == [1, 4, 4, 3]
    assert "small" in batches[2]


def test_only_what_agrees_is_scored_together() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        first = await blocked(engine, batcher)
        chosen: dict[str, Any] = {"candidates": np.array([1])}
        jobs = [
            job(engine, "a"), job(engine, "mean", estimator="mean"), job(engine, "b", top_k=12),
            job(engine, "c", **chosen), job(engine, "many", top_k=500), job(engine, "d", **chosen),
        ]  # fmt: skip
        others = started(batcher, *jobs)
        await all_wait(batcher, 6)
        engine.gate.set()
        await asyncio.gather(first, *others)

    assert with_batcher(body).batches == [["blocker"], ["a", "b"], ["mean"], ["c"], ["many"], ["d"]]


def test_a_full_queue_turns_away_and_says_for_how_long() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        first = await blocked(engine, batcher)
        others = started(batcher, job(engine, "a", "b"), job(engine, "c"))
        await all_wait(batcher, 3)
        with pytest.raises(Failure) as turned_away:
            await batcher.answers(job(engine, "d"))
        assert turned_away.value.status == 429
        assert int(turned_away.value.headers["Retry-After"]) >= 1
        probe = started(batcher, job(engine, "probe", first=True))
        await all_wait(batcher, 4)
        engine.gate.set()
        await asyncio.gather(first, *others, *probe)

    batches = with_batcher(body, queue=3).batches
    assert batches[1][0] == "probe"
    assert all("d" not in batch for batch in batches)


def test_a_job_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        assert len(await batcher.answers(job(engine, *"abcdefgh"))) == 8

    with_batcher(body, queue=3)


def test_a_deadline_that_passes_costs_no_work() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        first = await blocked(engine, batcher)
        with pytest.raises(Failure) as late:
            await batcher.answers(job(engine, "late", seconds=0.02))
        assert late.value.status == 504
        assert batcher.waiting == 0
        engine.gate.set()
        await first

    assert with_batcher(body).batches == [["blocker"]]


def test_what_was_begun_is_finished_even_if_late() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        engine.gate.clear()
        (task,) = started(batcher, job(engine, "begun", seconds=1.0))
        await asyncio.to_thread(engine.entered.wait, FAR)
        await asyncio.sleep(1.1)
        engine.gate.set()
        assert await task == [b"begun"]

    with_batcher(body)


def test_work_that_cannot_be_done_in_time_is_not_begun_and_not_for_ever() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        batcher._pace = 1000.0
        with pytest.raises(Failure) as late:
            await batcher.answers(job(engine, "a", seconds=30))
        assert (late.value.status, engine.batches) == (504, [])
        for _ in range(100):
            try:
                await batcher.answers(job(engine, "b", seconds=30))
                break
            except Failure:
                continue
        assert engine.batches == [["b"]]

    with_batcher(body)


def test_an_error_concerns_its_batch_only() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        engine.error = ValueError("broken")
        with pytest.raises(Failure) as failed:
            await batcher.answers(job(engine, "a"))
        assert (failed.value.status, batcher.is_alive) == (500, True)
        engine.error = None
        assert await batcher.answers(job(engine, "b")) == [b"b"]

    with_batcher(body)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_dies_nobody_waits_for_ever() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        first = await blocked(engine, batcher)
        others = started(batcher, job(engine, "a"))
        await all_wait(batcher, 1)
        engine.error = SystemExit()
        engine.gate.set()
        with pytest.raises(Failure) as lost:
            await others[0]
        assert lost.value.status == 503
        with pytest.raises(Failure) as also_lost:
            await first
        assert also_lost.value.status == 503
        with pytest.raises(Failure, match="503"):
            await batcher.answers(job(engine, "b"))
        assert not batcher.is_alive

    with_batcher(body)


def test_stopping_answers_what_waits() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        first = await blocked(engine, batcher)
        others = started(batcher, job(engine, "a"), job(engine, "b"))
        await all_wait(batcher, 2)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        engine.gate.set()
        assert await asyncio.gather(first, *others) == [[b"blocker"], [b"a"], [b"b"]]
        await stopping
        with pytest.raises(Failure, match="503"):
            await batcher.answers(job(engine, "c"))

    with_batcher(body)


def test_several_threads_answer_everything_once() -> None:
    async def body(engine: FakeEngine, batcher: Batcher) -> None:
        names = [[f"{i}-{j}" for j in range(i % 7 + 1)] for i in range(100)]
        found = await asyncio.gather(*started(batcher, *(job(engine, *each) for each in names)))
        assert found == [[name.encode() for name in each] for each in names]

    engine = with_batcher(body, threads=3, batch=5)
    scored = [name for batch in engine.batches for name in batch]
    assert len(scored) == len(set(scored))
