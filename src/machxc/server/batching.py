"""A bounded queue of jobs, and the threads that score them: what arrives while a batch is scored is the next batch.

A job is admitted only if it can be answered by its deadline, and is dropped if its deadline passes while it waits:
work is never begun for an answer that comes too late, and what was begun is finished. A job of many queries is scored
in pieces, in turn with the jobs behind it, so that one query never waits for a thousand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from machxc.server.engine import Engine, Options, Query, Stages
from machxc.server.failures import Failure, internal, late, overloaded, unavailable
from machxc.server.settings import ServerSettings

log = logging.getLogger("machxc.server")

_PACE = 0.1  # weight of the last batch in the mean time that a query takes
_NOTHING_SCORES = "nothing is left that scores"
_FORGET = 0.9  # by what that mean is multiplied when it turned a job away: it must not do so for ever

Observer = Callable[[int, Stages], None]
"""Told the size of each batch and the seconds of its stages."""


@dataclass(eq=False)
class Job:
    """The queries of one request, and where their answers go.

    ``deadline``, ``arrived``: of time.monotonic. ``first``: to be scored before all others, bounds or not.
    """

    engine: Engine
    queries: Sequence[Query]
    options: Options
    deadline: float
    future: asyncio.Future[list[bytes]]
    first: bool = False
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    answers: dict[int, list[bytes]] = field(default_factory=dict)
    over: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Jobs of the same key can be scored together: top_k is shared up to the next power of two."""
        options = self.options
        alone = None if options.candidates is None else id(self)
        return id(self.engine), options.estimator, options.budget, alone, (options.top_k - 1).bit_length()

    @property
    def is_complete(self) -> bool:
        """Whether every query has its answer."""
        return sum(map(len, self.answers.values())) == len(self.queries)

    def ordered(self) -> list[bytes]:
        """The answers, in the order of the queries."""
        return [answer for start in sorted(self.answers) for answer in self.answers[start]]


Piece = tuple[Job, slice]
_Outcome = tuple[Job, list[bytes] | Failure]


class Batcher:
    """Scores jobs on ``settings.threads`` threads. ``submit`` and ``stop`` belong to the event loop."""

    def __init__(self, settings: ServerSettings, observe: Observer = lambda size, stages: None) -> None:
        self._settings, self._observe = settings, observe
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._waiting, self._pace = 0, 0.0
        self._stopped = False
        names = (f"machxc-scoring-{i}" for i in range(settings.threads))
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        self._left = len(self._threads)

    def start(self) -> None:
        """Begin to score."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many queries wait."""
        return self._waiting

    @property
    def is_alive(self) -> bool:
        """Whether all threads are at work."""
        return self._left == len(self._threads)

    @property
    def expected_wait(self) -> float:
        """Seconds until a query that arrives now is scored, about."""
        return self._waiting * self._pace / len(self._threads)

    async def answers(self, job: Job) -> list[bytes]:
        """The answers to a job. Failure: the queue is full, the deadline passed, or nothing is left that scores."""
        loop = asyncio.get_running_loop()
        self._submit(job)
        alarm = loop.call_later(max(0.0, job.deadline - time.monotonic()), self._give_up, job)
        try:
            return await job.future
        finally:
            alarm.cancel()

    async def stop(self) -> None:
        """Score what waits, then end the threads."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _submit(self, job: Job) -> None:
        n = len(job.queries)
        with self._changed:
            if self._stopped or self._left == 0:
                raise unavailable("the server is ending" if self._stopped else _NOTHING_SCORES)
            full = self._waiting and self._waiting + n > self._settings.queue
            slow = time.monotonic() + self.expected_wait > job.deadline
            if (full or slow) and not job.first:
                self._pace *= _FORGET if slow and not full else 1.0
                raise overloaded(max(1, math.ceil(self.expected_wait)))
            self._waiting += n
            (self._jobs.appendleft if job.first else self._jobs.append)(job)
            self._changed.notify()

    def _give_up(self, job: Job) -> None:
        """The deadline of a job: if it still waits, it need not be scored any more."""
        with self._changed:
            if job.taken or job.over:
                return
            job.over = True
            self._waiting -= len(job.queries)
            self._jobs.remove(job)
        if not job.future.done():
            job.future.set_exception(late())

    def _work(self) -> None:
        try:
            while (pieces := self._next_batch()) is not None:
                if pieces:
                    self._score(pieces)
        except BaseException:
            log.exception("a scoring thread ended")
            raise
        finally:
            self._end_of_thread()

    def _end_of_thread(self) -> None:
        with self._changed:
            self._left -= 1
            lost = list(self._jobs) if self._left == 0 else []
            for job in lost:
                job.over = True
            if lost:
                self._jobs.clear()
                self._waiting = 0
        self._deliver([(job, unavailable(_NOTHING_SCORES)) for job in lost])

    def _next_batch(self) -> list[Piece] | None:
        """What to score next, once there is something; None when all is done and nothing more will come."""
        with self._changed:
            is_busy = bool(self._jobs)
            while not self._jobs:
                if self._stopped:
                    return None
                self._changed.wait()
            if is_busy:
                self._wait_for_more()
            pieces, dropped = self._take()
        self._deliver([(job, late()) for job in dropped])
        return pieces

    def _wait_for_more(self) -> None:
        """Let a small batch grow until its oldest job has waited for a window."""
        window, oldest = self._settings.window, self._jobs[0]
        while not oldest.first and self._jobs and self._waiting < self._settings.batch and not self._stopped:
            left = oldest.arrived + window - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _take(self) -> tuple[list[Piece], list[Job]]:
        """Pieces of the first jobs that can be scored together, and jobs that would be too late."""
        pieces: list[Piece] = []
        dropped: list[Job] = []
        aside: list[Job] = []
        open_ones: list[Job] = []
        room, now = self._settings.batch, time.monotonic()
        while self._jobs and room:
            job = self._jobs.popleft()
            if job.future.done():  # failed in an earlier piece, or nobody waits any more
                self._waiting -= len(job.queries) - job.taken
            elif not job.taken and self._would_be_late(job, now):
                dropped.append(job)
            elif pieces and pieces[0][0].key != job.key:
                aside.append(job)
            else:
                pieces.append(_piece(job, room))
                room -= pieces[-1][1].stop - pieces[-1][1].start
                open_ones += [job] if job.taken < len(job.queries) else []
        self._jobs.extendleft(reversed(aside))
        self._jobs.extend(open_ones)
        self._waiting -= sum(part.stop - part.start for _, part in pieces) + sum(len(job.queries) for job in dropped)
        return pieces, dropped

    def _would_be_late(self, job: Job, now: float) -> bool:
        """Whether a job that is begun now cannot be done by its deadline."""
        needed = self._pace * len(job.queries) / len(self._threads)
        if now + needed <= job.deadline:
            return False
        self._pace *= _FORGET
        job.over = True
        return True

    def _score(self, pieces: list[Piece]) -> None:
        begin = time.monotonic()
        try:
            answers, stages = _answer(pieces)
        except Exception as error:
            log.exception("a batch could not be scored")
            self._deliver([(job, internal(error)) for job, _ in pieces])
            return
        except BaseException:
            self._deliver([(job, unavailable(_NOTHING_SCORES)) for job, _ in pieces])
            raise
        outcomes: list[_Outcome] = []
        with self._changed:
            for job, part in pieces:
                job.answers[part.start] = answers[: part.stop - part.start]
                del answers[: part.stop - part.start]
                outcomes += [(job, job.ordered())] if job.is_complete else []
            size = sum(part.stop - part.start for _, part in pieces)
            self._pace += _PACE * ((time.monotonic() - begin) / size - self._pace)
        stages["waiting"] = max(0.0, begin - min(job.arrived for job, _ in pieces))
        self._observe(size, stages)
        self._deliver(outcomes)

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        """Hand results to the event loop, all in one call. (It may be closed: then nobody waits.)"""
        if outcomes:
            with contextlib.suppress(RuntimeError):
                outcomes[0][0].future.get_loop().call_soon_threadsafe(_hand_over, outcomes)


def _piece(job: Job, room: int) -> Piece:
    start = job.taken
    job.taken = min(len(job.queries), start + room)
    return job, slice(start, job.taken)


def _answer(pieces: Iterable[Piece]) -> tuple[list[bytes], Stages]:
    queries: list[Query] = []
    options: list[Options] = []
    for job, part in pieces:
        queries += job.queries[part]
        options += [job.options] * (part.stop - part.start)
    engine = next(iter(pieces))[0].engine
    return engine.answer(queries, options)


def _hand_over(outcomes: list[_Outcome]) -> None:
    for job, outcome in outcomes:
        if job.future.done():
            continue
        if isinstance(outcome, Failure):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
