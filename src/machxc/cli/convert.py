"""``machxc convert``: read a file once, keep its samples as a store. The twin of `machxc.data.convert`."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace, _SubParsersAction
from typing import TYPE_CHECKING, Any

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.console import Console

if TYPE_CHECKING:
    from machxc.data import Dataset


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "convert DATA STORE",
        run,
        "keep samples as a store that opens at once",
        "Read DATA once, in bounded memory, and write it as a store: a folder of arrays that train, plan, evaluate and "
        "predict map into memory instead of parsing a file. Texts are kept as features, not as texts. Stopped on the "
        "way, the same command goes on from the parts that are complete.",
        "interrupted: the parts that are complete are kept; the same command goes on from there",
    )
    parser.add_argument("data", metavar="DATA", help=common.DATA)
    parser.add_argument("store", metavar="STORE", help="the folder to write")
    common.add_overwrite(parser)
    common.add_jobs(parser)
    common.add_json(parser)
    common.add_text(parser)
    common.add_reading(parser)
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Convert, and say what was found."""
    text, options = common.text_config(arguments), common.read_options(arguments)
    from machxc.data import convert

    with console.progress("converting", "B") as progress:
        dataset = convert(
            arguments.data,
            arguments.store,
            options,
            text=text,
            overwrite=arguments.overwrite,
            jobs=arguments.jobs,
            progress=progress,
        )
    found = _facts(arguments.store, dataset)
    if arguments.json:
        console.json(found)
    else:
        console.note(_shown(found))


def _facts(path: str, dataset: Dataset) -> dict[str, Any]:
    return {
        "store": path,
        "bytes": show.folder_size(path),
        "n_samples": len(dataset),
        "n_labels": len(dataset.names),
        "n_features": dataset.samples.features.n_features,
        "text_reason": dataset.text_reason,
    }


def _shown(found: dict[str, Any]) -> str:
    lines = {
        "store": f"{found['store']}, {show.size(found['bytes'])}",
        "samples": f"{found['n_samples']:,}",
        "labels": f"{found['n_labels']:,}",
        "text": found["text_reason"],
        "next": f"machxc train {shlex.quote(found['store'])} --output MODEL",
    }
    return show.facts({name: value for name, value in lines.items() if value})
