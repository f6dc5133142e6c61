"""A data set as the files that peers read: python export.py TRAIN TEST FOLDER [--names]

Samples that say nothing (no feature, or no label) are left out of the training files; every test sample is kept.
Texts become TF-IDF vectors (scikit-learn's TfidfVectorizer, fitted on the training texts): of words, or of the
character 2- to 4-grams within words, without accents, as machxc takes them (--names). A file of the XMC repository is
taken as it is. Labels get ids in the order of the training file; labels that only test samples have come after them,
and no method can know those.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp


@dataclass
class Part:
    """Samples: features and labels as CSR, and the texts if there are any."""

    features: Any
    labels: Any
    texts: list[str] | None = None

    def rows(self, kept: Any) -> Part:
        texts = None if self.texts is None else list(itertools.compress(self.texts, kept.tolist()))
        return Part(self.features[kept], self.labels[kept], texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", action="store_true", help="the texts are names: character n-grams, not words")
    given = parser.parse_args()
    export(given.train, given.test, given.folder, names=given.names)


def export(train: Path, test: Path, folder: Path, *, names: bool = False) -> None:
    """Write the files of a data set into ``folder``; facts.json is the last of them."""
    folder.mkdir(parents=True, exist_ok=True)
    if train.suffix == ".txt":
        kind, label_names = "features", None
        parts = {"train": read_xmc(train), "test": read_xmc(test)}
    else:
        kind = "names" if names else "texts"
        parts, label_names = from_texts(read_texts(train), read_texts(test), names=names)
    counts = np.bincount(parts["train"].labels.indices, minlength=parts["train"].labels.shape[1])
    all_train = parts["train"].labels.shape[0]
    per_sample = [np.diff(parts["train"].features.indptr), np.diff(parts["train"].labels.indptr)]
    parts["train"] = parts["train"].rows((per_sample[0] > 0) & (per_sample[1] > 0))
    for name, part in parts.items():
        write(folder, name, part)
    np.save(folder / "label_counts.npy", counts)
    if label_names is not None:
        (folder / "labels.json").write_text(json.dumps(label_names, ensure_ascii=False), encoding="utf-8")
    labels = parts["train"].labels
    facts = {
        "kind": kind,
        "n_samples": all_train,
        "n_train": labels.shape[0],
        "n_test": parts["test"].labels.shape[0],
        "n_features": parts["train"].features.shape[1],
        "n_labels": labels.shape[1],
        "n_train_labels": int(labels.nnz),
        "one_label": bool((np.diff(labels.indptr) == 1).all()),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def read_texts(path: Path) -> tuple[list[str], list[list[str]]]:
    """Texts and the names of their labels, from JSON lines, compressed or not."""
    import zstandard

    opened = zstandard.open(path, "rt", encoding="utf-8") if path.suffix == ".zst" else path.open(encoding="utf-8")
    texts, labels = [], []
    with opened as file:
        for line in file:
            sample = json.loads(line)
            texts.append(sample["text"])
            labels.append([str(label) for label in sample["labels"]])
    return texts, labels


def from_texts(
    train: tuple[list[str], list[list[str]]], test: tuple[list[str], list[list[str]]], *, names: bool
) -> tuple[dict[str, Part], list[str]]:
    """Both parts, with TF-IDF features, and the names of the labels that the training part has."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    cut = {"analyzer": "char_wb", "ngram_range": (2, 4), "strip_accents": "unicode"} if names else {}
    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **cut)
    features = vectorizer.fit_transform(train[0])
    ids: dict[str, int] = {}
    train_labels = label_matrix(train[1], ids)
    label_names = list(ids)
    test_labels = label_matrix(test[1], ids)
    parts = {
        "train": Part(features, train_labels, train[0]),
        "test": Part(vectorizer.transform(test[0]), test_labels, test[0]),
    }
    return parts, label_names


def label_matrix(labels: Iterable[list[str]], ids: dict[str, int]) -> Any:
    """Labels as CSR; names that are new get the next ids."""
    rows = [sorted({ids.setdefault(name, len(ids)) for name in names}) for names in labels]
    return csr(rows, None, len(ids))


def read_xmc(path: Path) -> Part:
    """A file of the XMC repository: "n d k", then "label,label feature:value feature:value" a line."""
    labels: list[list[int]] = []
    columns: list[list[int]] = []
    values: list[list[float]] = []
    with path.open() as file:
        _, n_features, n_labels = map(int, file.readline().split())
        for line in file:
            head, _, tail = line.rstrip("\n").partition(" ")
            labels.append(sorted({int(label) for label in head.split(",") if label}))
            pairs = [pair.split(":") for pair in tail.split()]
            columns.append([int(column) for column, _ in pairs])
            values.append([float(value) for _, value in pairs])
    return Part(csr(columns, values, n_features), csr(labels, None, n_labels))


def csr(columns: list[list[int]], values: list[list[float]] | None, width: int) -> Any:
    """Rows of columns and their values (none: all 1) as a float32 CSR matrix, sorted."""
    indptr = np.cumsum([0, *map(len, columns)])
    indices = np.fromiter(itertools.chain.from_iterable(columns), np.int32, indptr[-1])
    chained = itertools.repeat(1.0) if values is None else itertools.chain.from_iterable(values)
    data = np.fromiter(chained, np.float32, indptr[-1])
    matrix = sp.csr_matrix((data, indices, indptr), shape=(len(columns), width))
    matrix.sum_duplicates()
    return matrix


def write(folder: Path, name: str, part: Part) -> None:
    """The files of one part: two matrices, the same as text, and the texts if there are any."""
    sp.save_npz(folder / f"{name}_features.npz", part.features, compressed=False)
    sp.save_npz(folder / f"{name}_labels.npz", part.labels, compressed=False)
    write_xmc(folder / f"{name}.txt", part)
    if part.texts is not None:
        with (folder / f"{name}_texts.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in part.texts)


def write_xmc(path: Path, part: Part) -> None:
    """Features and labels as text in the format of the XMC repository."""
    features, labels = part.features, part.labels
    with path.open("w") as file:
        file.write(f"{features.shape[0]} {features.shape[1]} {labels.shape[1]}\n")
        for i in range(features.shape[0]):
            row = slice(features.indptr[i], features.indptr[i + 1])
            pairs = zip(features.indices[row].tolist(), features.data[row].tolist(), strict=True)
            names = labels.indices[labels.indptr[i] : labels.indptr[i + 1]].tolist()
            file.write(f"{','.join(map(str, names))} {' '.join(f'{column}:{value:.6g}' for column, value in pairs)}\n")


if __name__ == "__main__":
    main()
