"""``machxc status``: how far a run is, wherever it is trained."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _SubParsersAction
from typing import Any

from machxc.cli import arguments as common
from machxc.cli.console import Console
from machxc.cli.places import table_of


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "status RUN",
        run,
        "how far a run is",
        "Print the state of all repetitions of a run: what is done, what is being trained, by whom, and how often it "
        "was begun. Reads the run folder only, from any machine that can see it.",
        "interrupted",
    )
    parser.add_argument(
        "run_or_model", metavar="RUN", help="the model that is being trained, or its run folder or address"
    )
    common.add_json(parser)
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Read the state, and print it."""
    from machxc.runs.status import status_of

    status = status_of(arguments.run_or_model)
    if arguments.json:
        console.json(status.to_dict())
    else:
        console.out(table_of(status))
