"""What a sentence encoder adds to hashed words: tags of questions, by words alone, by sentences alone, and by both.

    python examples/sentence_embeddings.py TRAIN TEST [--samples N]

TRAIN and TEST are JSON lines ({"text": ..., "labels": [...]}), plain or .zst. Needs: pip install 'machxc[embed]'.

A sentence encoder knows what words mean before it has seen any of these; hashed words know the rare ones, which it does
not. The scores of both models, added up, say more than either.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from machxc import MACHClassifier
from machxc.errors import MachxcError
from machxc.torch.sentences import encode_texts


def main() -> None:
    """Train three models, and print P@1, P@3 and P@5 of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--samples", type=int, help="of TRAIN and of TEST, at most (default: all)")
    given = parser.parse_args()
    (texts, tags), (queries, wanted) = (read(path, given.samples) for path in (given.train, given.test))
    begin = time.process_time()
    try:
        vectors, asked = encode_texts(texts), encode_texts(queries)
    except MachxcError as error:
        raise SystemExit(str(error)) from None
    cpu_seconds = time.process_time() - begin
    print(f"{len(texts):,} texts to train on, {len(queries):,} to test; encoded in {cpu_seconds:.0f} CPU s")

    words = MACHClassifier().fit(texts, tags)
    sentences = MACHClassifier(hidden=256, epochs=20).fit(vectors, tags)
    scores = {"words": words.predict_proba(queries), "sentences": sentences.predict_proba(asked)}
    scores["both"] = scores["words"] + scores["sentences"]
    for name, each in scores.items():
        best = words.classes_[np.argsort(-each, axis=1, kind="stable")[:, :5]]
        shown = "  ".join(f"P@{k} {precision(best[:, :k], wanted):.3f}" for k in (1, 3, 5))
        print(f"{name:<10} {shown}")


def read(path: Path, most: int | None = None) -> tuple[list[str], list[list[Any]]]:
    """Texts and their labels."""
    opened = zstandard.open(path, "rt", encoding="utf-8") if path.suffix == ".zst" else path.open(encoding="utf-8")
    with opened as file:
        samples = [json.loads(line) for line, _ in zip(file, range(most or 2**62), strict=False)]
    return [sample["text"] for sample in samples], [sample["labels"] for sample in samples]


def precision(best: Any, wanted: list[list[Any]]) -> float:
    """The share of the labels found that are right."""
    right = [len({*found.tolist()} & {*labels}) for found, labels in zip(best, wanted, strict=True)]
    return float(sum(right) / best.size)


if __name__ == "__main__":
    main()
