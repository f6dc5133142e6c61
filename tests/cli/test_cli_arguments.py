"""Arguments become what the library wants; tables that stand in for its names are complete."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentTypeError, Namespace
from typing import Any

import pytest

from machxc import metrics
from machxc.cli import arguments, console, evaluate
from machxc.cli.parser import build_parser
from machxc.config import BOUNDS, Settings, TextConfig
from machxc.data import ReadOptions
from machxc.data.options import FORMATS


def parsed(*argv: str) -> Namespace:
    return build_parser().parse_args([*argv])


def test_tables_agree_with_the_library() -> None:
    assert set(arguments.SETTINGS) == {field.name for field in dataclasses.fields(Settings)} <= set(BOUNDS)
    assert arguments.FORMATS == FORMATS
    assert evaluate.KS == metrics.DEFAULT_KS
    assert (evaluate.PROPENSITY_A, evaluate.PROPENSITY_B) == (metrics.PROPENSITY_A, metrics.PROPENSITY_B)


def test_nothing_given_is_nothing_set() -> None:
    given = parsed("train", "data", "--output", "m")
    assert arguments.settings(given) == Settings()
    assert arguments.read_options(given) == ReadOptions()
    assert arguments.text_config(given) is None
    assert given.memory is None
    assert given.jobs == arguments.available_cores() >= 1


def test_every_setting_reaches_the_library() -> None:
    values: dict[str, Any] = {"idf": False, "l2": True, "sublinear_tf": False, "loss": "bce", "estimator": "min"}
    values |= {"learner": "counts", "normalisation": "layer", "hidden": (512, 256)}
    options = ["--no-idf", "--l2", "--no-sublinear-tf", "--loss", "bce", "--estimator", "min", "--learner", "counts"]
    options += ["--normalisation", "layer", "--hidden", "512,256"]
    for name in arguments.SETTINGS.keys() - values.keys():
        kind: Any = BOUNDS[name][0]
        values[name] = kind("1") if kind is int else 0.25
        options += [f"--{name.replace('_', '-')}", str(values[name])]
    settings = arguments.settings(parsed("train", "data", "--output", "m", *options))
    assert dataclasses.asdict(settings) == values


def test_every_reading_option_reaches_the_library() -> None:
    argv = (
        "plan data --format csv --text-column a --text-column b --label-column c --label-separator ; "
        "--weight-column w --label-names f --encoding latin-1"
    )
    assert arguments.read_options(parsed(*argv.split())) == ReadOptions(
        "csv", ("a", "b"), "c", ";", "w", "f", encoding="latin-1"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--words", "2"], TextConfig(2, 0, 0)),
        (["--chars", "2-4"], TextConfig(0, 2, 4)),
        (["--chars", "3"], TextConfig(0, 3, 3)),
        (["--words", "1", "--chars", "3-5"], TextConfig(1, 3, 5)),
        (["--words", "1", "--chars", "3-5", "--fold"], TextConfig(1, 3, 5, fold=True)),
        (["--words", "1", "--no-fold"], TextConfig(1)),
    ],
)
def test_text_options(options: list[str], text: TextConfig) -> None:
    assert arguments.text_config(parsed("train", "data", "--output", "m", *options)) == text


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("4GB", 4 * 10**9),
        ("500mb", 500 * 10**6),
        ("2GiB", 2 * 2**30),
        ("1.5 kB", 1500),
        ("3K", 3000),
        ("1TiB", 2**40),
        ("12345", 12345),
        ("7b", 7),
    ],
)
def test_sizes(text: str, bytes: int) -> None:
    assert arguments.byte_count(text) == bytes


@pytest.mark.parametrize("text", ["", "GB", "4XB", "-1GB", "4 G B", "0", "0.1", "1e9", "4,5GB", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"expected a size.*got"):
        arguments.byte_count(text)


def test_numbers() -> None:
    assert arguments.positives("1, 3,5") == (1, 3, 5)
    assert arguments.span("2-4") == (2, 4)
    for text in ("0", "-1", "1.0", "", "²", "9" * 30):
        with pytest.raises(ArgumentTypeError, match="whole number"):
            arguments.positive(text)
    for text in ("", "-", "2-", "-4", "a-b", "1-2-3"):
        with pytest.raises(ArgumentTypeError, match="two numbers"):
            arguments.span(text)


def test_what_people_read() -> None:
    assert console.text_features(TextConfig(2)) == "word n-grams of 1 to 2"
    both = console.text_features(TextConfig(1, 2, 4, fold=True))
    assert both == "word n-grams of 1 to 1 and character n-grams of 2 to 4, without diacritical marks"
    shown = [console.size(n) for n in (0, 999, 1000, 12_345_678, 999_600, 7 * 10**9, 4321 * 10**9)]
    assert shown == ["0 bytes", "999 bytes", "1 KB", "12.3 MB", "1 MB", "7 GB", "4,321 GB"]
    assert [console.duration(s) for s in (0.04, 59, 60, 250.4, 7500)] == [
        "0.0 s",
        "59.0 s",
        "1 min 0 s",
        "4 min 10 s",
        "2 h 5 min",
    ]
    assert (console.count(1, "label"), console.count(2000, "label")) == ("1 label", "2,000 labels")
    assert console.table([["k", "P@k"], ["100", "1.00"]]) == "  k   P@k\n100  1.00"
    assert console.facts({"a": 1, "long": "x\ny"}) == "a     1\nlong  x\\ny"
    assert console.printable("naïve می‌خواهم\x1b[2J\x07") == "naïve می‌خواهم\\x1b[2J\\x07"
