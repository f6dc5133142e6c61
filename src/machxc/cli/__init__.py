"""The command line: one file a verb, each a thin twin of a library function.

What a verb finds out goes to standard output, everything else to standard error. Exit codes: 0 done; 2 what was given
is wrong, and one line says what and what to do; 1 anything else; 130 interrupted; 141 nobody reads the output.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

from machxc.cli.console import Console
from machxc.cli.parser import build_parser
from machxc.errors import MachxcError

__all__ = ["main"]

DONE, UNEXPECTED, WRONG, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: the process's); returns the exit code."""
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as end:  # --help, --version, or wrong arguments
        return end.code if isinstance(end.code, int) else DONE
    console = Console(quiet=arguments.quiet, verbose=arguments.verbose, debug=arguments.debug)
    try:
        return _run(arguments, console)
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE


def _run(arguments: Namespace, console: Console) -> int:
    """Run the verb; every exception becomes one line and an exit code."""
    from machxc.maps import guarded  # not for --help: it loads NumPy

    try:
        with console.log_shown(), guarded():
            arguments.run(arguments, console)
            console.flush()
        return DONE
    except KeyboardInterrupt:
        console.close_bars()
        console.complain(arguments.when_interrupted)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        console.close_bars()
        if arguments.debug:
            traceback.print_exception(error)
        console.error(_message(error) + ("" if isinstance(error, MachxcError) or arguments.debug else _ADVICE))
        return WRONG if isinstance(error, MachxcError) else UNEXPECTED


_ADVICE = "; this should not happen: run it again with --debug to see where, and report that"


def _message(error: Exception) -> str:
    if isinstance(error, MachxcError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory ({error})"
    return f"{type(error).__name__}: {error}"


def _forget_output() -> None:
    """Nobody reads: let nothing be written, nor complained about, when Python ends and flushes."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
