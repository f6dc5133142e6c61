"""``machxc info``: what a model folder holds."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _SubParsersAction
from typing import TYPE_CHECKING, Any

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.console import Console

if TYPE_CHECKING:
    from machxc.config import Config
    from machxc.model import Model


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "info MODEL",
        run,
        "the facts of a model",
        "Check a model folder, checksums included, and print what it holds: what it was trained on, and its settings.",
        "interrupted",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder")
    common.add_json(parser)
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Load the model and print its facts."""
    from machxc.model import Model

    model = Model.load(arguments.model)
    found = model_facts(arguments.model, model)
    if arguments.json:
        console.json(found)
    else:
        console.out(_shown(found, model.config))


def model_facts(path: str, model: Model) -> dict[str, Any]:
    """The facts of a model, as plain data."""
    return {
        "model": path,
        "bytes": show.folder_size(path),
        "n_samples": model.n_samples,
        "n_labels": model.config.n_labels,
        "n_labels_seen": model.data.label_counts.n_seen,
        "label_names": model.names.kind,
        "n_repetitions": model.n_repetitions,
        "config": model.config.to_dict(),
    }


def _layers(config: Config) -> str:
    if len(config.layers) < 2:
        return f"hidden layer of {config.hidden}" if config.hidden else "linear"
    return f"hidden layers of {', '.join(map(str, config.layers))}"


def _shown(found: dict[str, Any], config: Config) -> str:
    kind = {"ids": "integers from 0", "integers": "integers", "strings": "strings"}[found["label_names"]]
    text, layer = config.text, _layers(config)
    lines = {
        "model": f"{found['model']}, {show.size(found['bytes'])}",
        "samples": f"{found['n_samples']:,}",
        "labels": f"{found['n_labels']:,} ({kind}), {found['n_labels_seen']:,} of them seen in training",
        "features": f"of texts: {show.text_features(text)}" if text else f"{config.n_features:,}, numeric",
        "repetitions": f"{found['n_repetitions']} of {config.repetitions}, {config.buckets:,} buckets each, {layer}",
    }
    shown = {"repetitions", "buckets", "hidden", "n_labels", "n_features", "text"}
    others = {name: value for name, value in config.to_dict().items() if name not in shown}
    return show.facts(lines | {name: f"{value:g}" if type(value) is float else value for name, value in others.items()})
