"""Samples of the made-up catalogue as arrays, for benchmarks of many labels."""

from __future__ import annotations

import numpy as np

from machxc.config import TextConfig
from machxc.features.text import token_features
from machxc.samples import Array, Features, Float32, Labels, Samples
from machxc.testing import Catalogue

TEXT = TextConfig(words=2)


def samples_of(catalogue: Catalogue, n: int, stream: int = 0, n_labels: int = 0) -> Samples:
    """n samples of a stream: words and pairs of words, and label ids, spread out over [0, ``n_labels``) if given."""
    features, labels = [], []
    for texts, some in catalogue.batches(n, stream):
        features.append(token_features(texts, TEXT))
        labels.append(some)
    indptr, indices = _joined([(f.indptr, f.indices) for f in features])
    values: Float32 = np.concatenate([f.values for f in features])
    ends, ids = _joined([(some.indptr, some.indices) for some in labels])
    if n_labels:
        ids = ids * np.uint32(n_labels // catalogue.n_labels)
    spread = Labels(ends, ids, n_labels or catalogue.n_labels)
    return Samples(Features(indptr, indices, values, features[0].n_features), spread)


def recall(ids: Array, labels: Labels) -> float:
    """Of all pairs of a query and a label, the share found: a label weighs as much as it is asked for."""
    found = 0
    for i, row in enumerate(ids):
        found += int(np.isin(labels.indices[labels.indptr[i] : labels.indptr[i + 1]], row).sum())
    return found / int(labels.indptr[-1])


def _joined(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    ends = np.cumsum([0, *(int(indptr[-1]) for indptr, _ in parts)])
    rows = [indptr[1:] + end for (indptr, _), end in zip(parts, ends, strict=False)]
    return np.concatenate([np.zeros(1, np.int64), *rows]), np.concatenate([indices for _, indices in parts])
