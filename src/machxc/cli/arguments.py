"""Arguments that several verbs have, and what the library wants to have instead of them."""

from __future__ import annotations

import os
import re
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
    _ActionsContainer,
    _SubParsersAction,
)
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from machxc.cli.console import Console
from machxc.config import BOUNDS, LISTS, Settings, TextConfig
from machxc.errors import SettingError

if TYPE_CHECKING:
    from machxc.data import ReadOptions
    from machxc.samples import Int64

FORMATS = ("xmc", "svmlight", "jsonl", "csv", "tsv", "parquet", "store")  # as in data/options.py, without its imports
DATA = "samples: XMC-repository text, svmlight, JSON Lines, CSV, TSV or Parquet (.gz and .zst too), a converted store, "
DATA += "or - for standard input"

DEVICE = "what answers: cpu (default), auto (a GPU if there is one), cuda (the first) or cuda:1 (that one)"

# setting -> how its value is called, and what it is
SETTINGS = {
    "learner": (None, "gradient: weights are learnt step by step; counts: from how often features meet buckets"),
    "repetitions": ("R", "independent repetitions: more are more accurate, and cost in proportion"),
    "buckets": ("B", "buckets of a repetition, which all labels share"),
    "hidden": ("H", "units of the hidden layer; 0: a linear model; 512,256: of each of several layers (by PyTorch)"),
    "normalisation": (None, "of hidden layers (by PyTorch); layer: units of a sample to mean 0 and variance 1"),
    "hidden_dropout": ("P", "probability that a hidden unit is left out in training (by PyTorch)"),
    "loss": (None, "softmax: a sample has one label; bce: it may have several"),
    "epochs": ("E", "passes over the samples"),
    "learning_rate": ("RATE", "of the first step; it falls to 0 in a straight line"),
    "dropout": ("P", "probability that a feature of a sample is left out in training"),
    "negatives": ("N", "buckets sampled for a sample, beside its own; 0: all buckets (hidden layer only)"),
    "feature_bits": ("BITS", "features are hashed to 2**BITS slots"),
    "min_count": ("N", "drop features that fewer samples have"),
    "smoothing": ("N", "background samples that are added to those of a bucket (learner counts only)"),
    "left_out": (
        "N",
        "samples left out of their own bucket, to learn how much each feature says (learner counts only)",
    ),
    "associations": ("N", "samples that show which features go together (learner counts only)"),
    "prune": ("W", "weights closer to 0 than this are not stored (linear model only)"),
    "sublinear_tf": (None, "take 1 + the logarithm of counts"),
    "idf": (None, "weigh features by how few samples have them"),
    "l2": (None, "scale every sample to length 1"),
    "estimator": (None, "how the scores of R buckets become the score of a label"),
    "validation_fraction": ("P", "part of the samples that is held out, to stop early"),
    "patience": ("E", "epochs without improvement after which to stop early"),
    "seed": ("S", "the same seed gives the same model, to the byte (default: 0)"),
}

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{kind}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for kind, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def new_verb(
    verbs: _SubParsersAction[Any],
    usage: str,
    run: Callable[[Namespace, Console], None],
    help: str,
    description: str,
    when_interrupted: str = "interrupted: nothing was written",
) -> ArgumentParser:
    """The parser of a verb, whose name is the first word of ``usage``."""
    parser: ArgumentParser = verbs.add_parser(
        usage.split()[0], usage=f"machxc {usage} [OPTION ...]", help=help, description=description, allow_abbrev=False
    )
    parser.set_defaults(run=run, when_interrupted=when_interrupted)
    return parser


def add_talk(parser: ArgumentParser) -> None:
    """``--quiet``, ``--verbose`` and ``--debug``."""
    group = parser.add_argument_group("how much is said")
    group.add_argument("--quiet", action="store_true", help="results, warnings and errors only; no progress")
    group.add_argument("--verbose", action="store_true", help="what the library logs, too")
    group.add_argument("--debug", action="store_true", help="all that the library logs, and tracebacks of errors")


def add_json(parser: ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="the result as JSON, for machines")


def add_overwrite(parser: ArgumentParser, help: str = "replace the output if it exists") -> None:
    """``--overwrite``."""
    parser.add_argument("--overwrite", action="store_true", help=help)


def add_jobs(parser: _ActionsContainer) -> None:
    """``--jobs``."""
    parser.add_argument(
        "--jobs", type=positive, metavar="J", default=available_cores(), help="threads (default: all cores)"
    )


def add_device(parser: _ActionsContainer) -> None:
    """``--device`` that answers."""
    parser.add_argument("--device", metavar="DEVICE", default="cpu", help=DEVICE)


def add_top_k(parser: ArgumentParser) -> None:
    """``--top-k``, ``--candidates`` and ``--estimator``."""
    parser.add_argument("--top-k", type=positive, metavar="K", default=10, help="labels to give (default: 10)")
    parser.add_argument("--candidates", metavar="FILE", help="choose among these labels only: a name a line")
    add_estimator(parser)


def add_estimator(parser: ArgumentParser) -> None:
    """``--estimator``, other than that of the model."""
    choices = BOUNDS["estimator"]
    parser.add_argument("--estimator", choices=choices, help="how bucket scores are merged (default: as in training)")


def add_reading(parser: ArgumentParser, *, labels: bool = True) -> None:
    """Options of how to read DATA; without ``labels``, those of the features only."""
    group = parser.add_argument_group("how to read DATA")
    group.add_argument("--format", choices=FORMATS, help="of DATA (default: by its name, then by its first bytes)")
    group.add_argument(
        "--text-column", metavar="NAME", action="append", help="column or key of the text; may be given several times"
    )
    if labels:
        group.add_argument("--label-column", metavar="NAME", help="column or key of the labels (default: labels)")
        group.add_argument("--label-separator", metavar="TEXT", help="what separates labels in a cell (default: none)")
        group.add_argument("--weight-column", metavar="NAME", help="column or key of the sample's weight")
        group.add_argument("--label-names", metavar="FILE", help="names of integer labels: line i names label i")
    group.add_argument("--encoding", help="of text files (default: utf-8)")


def read_options(arguments: Namespace) -> ReadOptions:
    """How to read DATA."""
    from machxc.data import ReadOptions

    names = ("format", "text_column", "label_column", "label_separator", "weight_column", "label_names", "encoding")
    given = {name: getattr(arguments, name, None) for name in names}
    if given["text_column"]:
        given["text_column"] = tuple(given["text_column"])
    return ReadOptions(**{name: value for name, value in given.items() if value is not None})


def add_text(parser: ArgumentParser) -> None:
    """Options of how texts become features."""
    group = parser.add_argument_group(
        "how texts become features",
        "Without any, this is chosen from the texts; with one, what is not given is not taken.",
    )
    group.add_argument("--words", type=int, metavar="N", help="word n-grams of 1 to N words")
    group.add_argument("--chars", type=span, metavar="MIN-MAX", help="n-grams of MIN to MAX characters within a word")
    fold = "compare letters without their diacritical marks (default, with --words or --chars: no)"
    group.add_argument("--fold", action=BooleanOptionalAction, help=fold)


def text_config(arguments: Namespace) -> TextConfig | None:
    """How texts become features; None: to be chosen."""
    if arguments.words is None and arguments.chars is None:
        if arguments.fold is None:
            return None
        raise SettingError("--fold and --no-fold need --words or --chars beside them, to say what is taken of texts.")
    shortest, longest = arguments.chars or (0, 0)
    return TextConfig(arguments.words or 0, shortest, longest, fold=bool(arguments.fold))


def add_settings(parser: ArgumentParser) -> None:
    """All settings of training."""
    group = parser.add_argument_group(
        "settings", "What is not given is chosen from the data; `machxc plan DATA` tells what, why, and what it costs."
    )
    group.add_argument("--config", metavar="FILE", help="settings from a TOML file; options override them")
    memory = "memory that training may take: 4GB, 500MB, 2GiB (default: no limit)"
    group.add_argument("--memory", type=byte_count, metavar="SIZE", help=memory)
    add_jobs(group)
    for name, (metavar, help) in SETTINGS.items():
        _add_setting(group, name, metavar, help)


def _add_setting(group: _ActionsContainer, name: str, metavar: str | None, help: str) -> None:
    flag, kind = "--" + name.replace("_", "-"), BOUNDS[name][0]
    if kind is bool:
        group.add_argument(flag, action=BooleanOptionalAction, help=help)
    elif name in LISTS:
        group.add_argument(flag, type=numbers, metavar=metavar, help=help)
    elif isinstance(kind, type):
        group.add_argument(flag, type=kind, metavar=metavar, help=help)
    else:
        group.add_argument(flag, choices=("auto", *BOUNDS[name]), help=help)


def settings(arguments: Namespace) -> Settings:
    """The settings: those of the TOML file, if there is one, with those of the command line on top."""
    base = Settings() if arguments.config is None else Settings.from_toml(arguments.config)
    given = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    chosen: dict[str, Any] = {name: None if value == "auto" else value for name, value in given.items()}
    return replace(base, **chosen)


def candidates(arguments: Namespace, names: Any) -> Int64 | None:
    """The label ids of ``--candidates``."""
    from machxc.prediction import candidate_ids

    return None if arguments.candidates is None else candidate_ids(names, arguments.candidates)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def positive(text: str) -> int:
    """An int of 1 or more."""
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def milliseconds(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ArgumentTypeError(f"expected a number of milliseconds above 0, got {text!r}")
    return value


def numbers(text: str) -> int | tuple[int, ...]:
    """An int, or several that are separated by commas."""
    try:
        parts = tuple(map(int, text.split(",")))
    except ValueError:
        raise ArgumentTypeError(f"expected a whole number, or several as 512,256, got {text!r}") from None
    return parts if len(parts) > 1 else parts[0]


def positives(text: str) -> tuple[int, ...]:
    """Ints of 1 or more, separated by commas."""
    return tuple(positive(part.strip()) for part in text.split(","))


def span(text: str) -> tuple[int, int]:
    """Two numbers "2-4", or one for both."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if match is None:
        raise ArgumentTypeError(f"expected two numbers as 2-4, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def byte_count(text: str) -> int:
    """A number of bytes: 4GB (10**9 each), 2GiB (2**30 each), 500MB, or plain."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ArgumentTypeError(f"expected a size as 4GB, 500MB, 2GiB or a number of bytes, got {text!r}")
    bytes = int(float(match[1]) * _UNITS[match[2]])
    if bytes < 1:
        raise ArgumentTypeError(f"expected a size of at least one byte, got {text!r}")
    return bytes
