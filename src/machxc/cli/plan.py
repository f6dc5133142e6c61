"""``machxc plan``: the settings of training, why, and what it would cost. The twin of `machxc.run.plan_run`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _SubParsersAction
from typing import Any

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.console import Console


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "plan DATA",
        run,
        "what training would take, before doing it",
        "Read the samples and print the settings that `machxc train` would choose with the same options, the reason "
        "for each, and the memory, time and disk that training and serving will take. Nothing is written.",
    )
    parser.add_argument("data", metavar="DATA", help=common.DATA)
    common.add_json(parser)
    device = (
        "say what training on that takes, as cuda: memory on the device and beside it, and what fits (default: cpu)"
    )
    parser.add_argument("--device", metavar="DEVICE", default="cpu", help=device)
    common.add_settings(parser)
    common.add_text(parser)
    common.add_reading(parser)
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Make the plan and print it."""
    settings, text, options = common.settings(arguments), common.text_config(arguments), common.read_options(arguments)
    from machxc.run import plan_run

    with console.progress("reading", "B") as reading:
        plan = plan_run(
            arguments.data,
            settings,
            options=options,
            text=text,
            jobs=arguments.jobs,
            memory_budget=arguments.memory,
            device=arguments.device,
            reading=reading,
        )
    if arguments.json:
        console.json(plan.to_dict())
    else:
        console.out(show.plan(plan))
