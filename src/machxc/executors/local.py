"""Repetitions side by side on the cores of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed


class LocalExecutor:
    """``jobs`` repetitions at a time, a thread each.

    Threads, not processes: the kernels release the GIL, so that two repetitions on two cores take no longer than one on
    one, while the samples and the compiled kernels are in memory once.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, task: Callable[[int], None], repetitions: Iterable[int], cancel: Callable[[], None]) -> None:
        """Call ``task(r)`` for each repetition, the lowest numbers first."""
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="repetition") as pool:
            futures: list[Future[None]] = []
            try:
                futures += (pool.submit(task, r) for r in repetitions)
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                cancel()
                raise
