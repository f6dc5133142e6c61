"""Work shared out to threads of this process: kernels release the GIL, so that these use as many cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar, cast

_P = TypeVar("_P")
_R = TypeVar("_R")
_END = object()


def share_out(run: Callable[[_P], _R], parts: Sequence[_P], threads: int, stop: Event | None = None) -> list[_R]:
    """What ``run`` makes of each part, on so many ``threads``.

    A single part, or all with one thread, on this one: a few answers take less time than threads take to start. When a
    part raises, or this thread is interrupted, ``stop`` is set, parts that have not begun are left out, and the error
    is raised when those at work are done: long ones look at ``stop`` now and then.
    """
    if threads <= 1 or len(parts) == 1:
        return [run(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(run, parts))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if stop is not None:
                stop.set()
            raise


def in_turn(make: Callable[[_P], _R], use: Callable[[_P, _R], None], parts: Iterable[_P], threads: int) -> None:
    """``use(part, make(part))`` for each part, one after the other; what is to be used is made by ``threads`` ahead.

    So ``use`` may change what only ``use`` looks at, in the order of the parts. At most ``threads`` + 1 parts are made
    and not yet used. All that runs, runs on ``threads`` threads, or with one on this. What is raised ends it.
    """
    if threads <= 1:
        for part in parts:
            use(part, make(part))
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            ahead: deque[tuple[_P, Future[_R]]] = deque()
            for part in parts:
                ahead.append((part, pool.submit(make, part)))
                if len(ahead) > threads:
                    _use_first(use, ahead, pool)
            while ahead:
                _use_first(use, ahead, pool)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def ahead(items: Iterator[_R]) -> Iterator[_R]:
    """The items of an iterator that runs on a thread of its own, up to two ahead of what is taken."""
    with ThreadPoolExecutor(1) as pool:
        try:
            coming = deque(pool.submit(next, items, _END) for _ in range(2))
            while (item := coming.popleft().result()) is not _END:
                coming.append(pool.submit(next, items, _END))
                yield cast(_R, item)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _use_first(use: Callable[[_P, _R], None], ahead: deque[tuple[_P, Future[_R]]], pool: ThreadPoolExecutor) -> None:
    part, made = ahead.popleft()
    pool.submit(use, part, made.result()).result()
