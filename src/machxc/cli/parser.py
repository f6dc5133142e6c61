"""All verbs in one parser. Nothing heavy is imported: that is left to the verb that runs."""

from __future__ import annotations

from argparse import Action, ArgumentParser, _SubParsersAction
from typing import NoReturn

from machxc import __version__
from machxc.cli import convert, evaluate, info, plan, predict, query, serve, status, train
from machxc.cli.arguments import add_talk

VERBS = (train, evaluate, predict, query, serve, info, status, plan, convert)


class Parser(ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint, and end the program."""
        self.exit(2, f"machxc: error: {message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    """The parser of the program and of all of its verbs."""
    parser = Parser(
        prog="machxc",
        description="Learn to pick the right few labels out of very many, with MACH, in a small, known amount of "
        "memory.",
        epilog="`machxc VERB --help` tells all about a verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"machxc {__version__}")
    verbs: _SubParsersAction[Parser] = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        add_talk(verb.add(verbs))
    return parser


def verb_parsers() -> dict[str, ArgumentParser]:
    """The parser of the program, "machxc", and those of its verbs, by what is typed to reach them."""
    parser = build_parser()
    verbs: Action = next(action for action in parser._actions if isinstance(action, _SubParsersAction))
    assert isinstance(verbs.choices, dict)
    return {"machxc": parser, **{f"machxc {name}": verb for name, verb in verbs.choices.items()}}
