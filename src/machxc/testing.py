"""Made-up data and a tiny model, for tests of what is built on machxc: always the same.

All are tiny, and learnt in no time, but `Catalogue`: as large as one likes, and as hard as a shop's queries. In the
tiny data every label has a few features, or words, of its own; a sample takes most of those of its labels, and some of
anyone's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from machxc.catalogue import Catalogue
from machxc.config import Settings
from machxc.errors import SettingError
from machxc.labels import LabelNames
from machxc.samples import Features, Int64, Labels, Samples

if TYPE_CHECKING:
    from machxc.model import Model

__all__ = ["Catalogue", "make_samples", "make_texts", "tiny_model", "word"]

_OWN = 4  # features of a label
_KEPT = 0.8  # share of them that a sample of that label has
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "za")


def make_samples(
    n_samples: int = 200, n_labels: int = 20, *, labels_per_sample: int = 1, noise: int = 2, seed: int = 0
) -> Samples:
    """Sparse samples whose features tell their labels.

    Sample n has the label n mod K and ``labels_per_sample`` - 1 random others; label i has the features 4 * i to
    4 * i + 3, of which its samples have four in five, and ``noise`` features are anyone's. All values are 1, and there
    are D = 4 * K features. SettingError unless 1 <= labels_per_sample <= n_labels, n_samples >= 0 and noise >= 0.
    """
    drawn = _drawn(n_samples, n_labels, labels_per_sample, noise, seed)
    feature_ids, label_ids = [sorted(features) for _, features in drawn], [labels for labels, _ in drawn]
    indices = np.array(list(chain.from_iterable(feature_ids)), np.uint32)
    features = Features(_offsets(feature_ids), indices, np.ones(len(indices), np.float32), _OWN * n_labels)
    labels = Labels(_offsets(label_ids), np.array(list(chain.from_iterable(label_ids)), np.uint32), n_labels)
    return Samples(features, labels)


def make_texts(
    n_texts: int = 200, n_labels: int = 20, *, labels_per_text: int = 1, noise: int = 2, seed: int = 0
) -> tuple[list[str], list[list[str]]]:
    """Texts and their label names, "label 0" and so on: `make_samples`, with a made-up word for every feature."""
    drawn = _drawn(n_texts, n_labels, labels_per_text, noise, seed)
    texts = [" ".join(word(feature) for feature in features) for _, features in drawn]
    return texts, [[f"label {label}" for label in labels] for labels, _ in drawn]


def word(n: int) -> str:
    """The n-th made-up word: another for every n >= 0."""
    return ("" if n < 16 else word(n // 16 - 1)) + _SYLLABLES[n % 16]


def tiny_model(**settings: object) -> Model:
    """A model of `make_samples` () with 20 labels, trained on the spot in about a hundredth of a second.

    ``settings``: fields of `Settings` to set otherwise (default: 2 repetitions of 16 buckets, 3 epochs).
    """
    from machxc.training import train

    samples = make_samples()
    chosen = {"repetitions": 2, "buckets": 16, "epochs": 3, **settings}
    return train(samples, LabelNames.ids(samples.labels.n_labels), Settings(**chosen))  # type: ignore[arg-type]


def _drawn(n: int, n_labels: int, n_each: int, noise: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Of each sample, its labels (rising) and its features (in no order, each once)."""
    if n < 0 or noise < 0 or not 1 <= n_each <= n_labels:
        raise SettingError(
            "expected n >= 0 samples, noise >= 0 and 1 <= labels of a sample <= n_labels. "
            f"Got {n}, {noise}, {n_each} and {n_labels} instead."
        )
    source = random.Random(seed)
    return [_one(source, i % n_labels, n_labels, n_each, noise) for i in range(n)]


def _one(source: random.Random, first: int, n_labels: int, n_each: int, noise: int) -> tuple[list[int], list[int]]:
    def below(limit: int) -> int:
        return int(source.random() * limit)  # the one method that Python promises never to change

    labels = [first]
    while len(labels) < n_each:
        other = below(n_labels)
        labels += [] if other in labels else [other]
    features = [_OWN * label + place for label in labels for place in range(_OWN) if source.random() < _KEPT]
    features += [below(_OWN * n_labels) for _ in range(noise)]
    return sorted(labels), list(dict.fromkeys(features))


def _offsets(rows: Sequence[Sequence[int]]) -> Int64:
    return np.cumsum([0, *map(len, rows)], dtype=np.int64)
