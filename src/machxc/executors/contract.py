"""The executor contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class Executor(Protocol):
    """Runs one task for each repetition.

    Where tasks run in other processes or on other machines, ``task`` is plain data with a ``__call__``, as
    `machxc.runs.work.RunTask`, and what it does is to be found in the run folder. To call a task again for a repetition
    that is finished does nothing, so that an executor may do so whenever it is in doubt.
    """

    def run(self, task: Callable[[int], None], repetitions: Iterable[int], cancel: Callable[[], None]) -> None:
        """Call ``task(r)`` for each repetition; returns when all are done.

        When a task raises, or the wait is interrupted, ``cancel`` is called, which lets the tasks that run end early;
        no further one is started, and what was raised first is raised here.
        """
