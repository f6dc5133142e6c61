"""One repetition after the other, in this thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class SerialExecutor:
    """One repetition after the other, in this thread."""

    def run(self, task: Callable[[int], None], repetitions: Iterable[int], cancel: Callable[[], None]) -> None:
        """Call ``task(r)`` for each repetition, in order."""
        try:
            for r in repetitions:
                task(r)
        except BaseException:
            cancel()
            raise
