"""What the program says, and where: results to standard output, all else to standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machxc.errors import OutputError

if TYPE_CHECKING:
    from machxc.config import TextConfig
    from machxc.plan import Plan

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NEW_LINE = re.compile(r"\s*\n\s*")


class Console:
    """Says things. ``quiet``: results, warnings and errors only; ``verbose``, ``debug``: more of the library's log."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self._level = logging.DEBUG if debug else logging.INFO if verbose and not quiet else logging.WARNING
        self._bars: list[Bar] = []
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error

    def out(self, text: str) -> None:
        """Print a result."""
        with _writing_output():
            print(text)

    def json(self, value: Any) -> None:
        """Print a result as one line of JSON."""
        readable = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
        self.out(json.dumps(value, ensure_ascii=not readable))

    def note(self, text: str) -> None:
        """Tell what is going on, unless that is not wanted."""
        if not self.quiet:
            self._say(text)

    def error(self, message: str) -> None:
        """Say what went wrong, in one line."""
        self.complain(f"error: {message}")

    def complain(self, message: str) -> None:
        """Print one line that must be seen."""
        self._say("machxc: " + printable(_NEW_LINE.sub(" ", message.strip())))

    def flush(self) -> None:
        """Hand over all results; OutputError when they cannot be written."""
        if sys.stdout is not None:  # None: it was closed before we began
            with _writing_output():
                sys.stdout.flush()

    @contextlib.contextmanager
    def progress(self, what: str, unit: str) -> Iterator[Bar]:
        """A bar on a terminal, to be called with what is done and the whole (None: not known); elsewhere nothing."""
        bar = Bar(what, unit, self._bars, shown=not self.quiet and is_terminal())
        self._bars.append(bar)
        try:
            yield bar
        finally:
            bar.close()
            self._bars.remove(bar)

    def close_bars(self) -> None:
        """Take away all bars."""
        for bar in self._bars:
            bar.close()

    @contextlib.contextmanager
    def log_shown(self) -> Iterator[None]:
        """Show the library's log on standard error in the meantime."""
        logger, handler = logging.getLogger("machxc"), _Handler(self)
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(self._level)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)

    def _say(self, text: str) -> None:
        for bar in self._bars:
            bar.hide()
        with contextlib.suppress(OSError, ValueError):  # a closed standard error is no reason to stop
            print(text, file=sys.stderr, flush=True)


class Bar:
    """How far something is: a tqdm bar, made when it is called. It may be called from any thread.

    ``bars``: all of them. One that begins takes the others away, so that there is one line of them.
    """

    def __init__(self, what: str, unit: str, bars: list[Bar], *, shown: bool) -> None:
        self._what, self._unit, self._bars, self._shown = what, unit, bars, shown
        self._bar: Any = None
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` is done."""
        if not self._shown:
            return
        with self._lock:
            if self._bar is None:
                self._bar = self._new(total)
            self._bar.update(max(0, done - self._bar.n))

    def hide(self) -> None:
        """Make way for a line of text."""
        if self._bar is not None:
            self._bar.clear()

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            self._bar = None

    def _new(self, total: int | None) -> Any:
        from tqdm import tqdm

        for bar in self._bars:
            if bar is not self:
                bar.close()
        return tqdm(
            desc=self._what,
            total=total,
            unit=self._unit,
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
        )


class _Handler(logging.Handler):
    """Records of the library's log, as lines of the program."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        kind = "error: " if record.levelno >= logging.ERROR else "warning: "
        self._console.complain((kind if record.levelno >= logging.WARNING else "") + record.getMessage())


@contextlib.contextmanager
def _writing_output() -> Iterator[None]:
    """An OutputError when standard output cannot be written; a BrokenPipeError stays one."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write standard output: {error.strerror or error}; send the output elsewhere"
        ) from error


def is_terminal() -> bool:
    """Whether standard error is a terminal that can do more than print lines."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """A text without control characters, which could do anything to a terminal: they become backslash escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned columns, all to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def facts(pairs: dict[str, Any]) -> str:
    """Names and values as lines, the values aligned."""
    width = max(map(len, pairs))
    return "\n".join(f"{name:<{width}}  {printable(str(value))}" for name, value in pairs.items())


def plan(plan: Plan, text_reason: str = "") -> str:
    """A plan as lines, with how texts become features."""
    text = plan.config.text
    line = "" if text is None else f"\n{'text':<19} {text_reason or text_features(text)}"
    return plan.describe() + line


def text_features(text: TextConfig) -> str:
    """Which n-grams are taken of texts, and of which letters."""
    parts = [f"word n-grams of 1 to {text.words}"] if text.words else []
    parts += [f"character n-grams of {text.chars_min} to {text.chars_max}"] if text.chars_max else []
    return " and ".join(parts) + (", without diacritical marks" if text.fold else "")


def count(n: float, thing: str) -> str:
    """A number of things to read: "1 sample", "2,000 samples"."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def size(n: float) -> str:
    """A number of bytes to read: "12.3 MB"."""
    units = ("bytes", "KB", "MB", "GB")
    for unit in units:
        if n < 999.5 or unit == units[-1]:
            break
        n /= 1000
    return f"{n:.0f} bytes" if unit == "bytes" else f"{n:.3g} {unit}" if n < 1000 else f"{n:,.0f} {unit}"


def duration(seconds: float) -> str:
    """A time to read: "3.2 s", "4 min 10 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def folder_size(path: Path | str) -> int:
    """The bytes of the files of a folder."""
    return sum(file.stat().st_size for file in Path(path).iterdir() if file.is_file())
