"""The scores of given labels: what `top_k` would give them, without a search."""

from __future__ import annotations

import numpy as np

from machxc.partition import Partition
from machxc.retrieval.estimators import MEDIAN, MIN, check_names, contributions, finish, merge_of
from machxc.retrieval.single import probabilities
from machxc.samples import Array, Float32


def label_scores(logits: Float32, partition: Partition, labels: Array, *, loss: str, estimator: str) -> Float32:
    """The scores of labels (ids int64 [m]) for n queries: float32 [n, m], the same to the last bit as `top_k`'s.

    ``logits`` float32 [n, R, B]; ``loss`` and ``estimator`` as in `top_k`. DataError for a label out of [0, K).
    """
    check_names(loss, estimator)
    if logits.shape[1] == 1:
        return probabilities(logits, logits[:, 0, partition.buckets(labels, 0)], loss, estimator)
    values = contributions(logits, loss, estimator)
    n, n_repetitions, n_buckets = values.shape
    parts = (values[:, r, partition.buckets(labels, r)] for r in range(n_repetitions))
    if merge_of(estimator) == MEDIAN:
        merged = np.median(np.stack(list(parts)), axis=0).astype(np.float32)
    elif merge_of(estimator) == MIN:
        merged = np.minimum.reduce(list(parts))
    else:
        merged = np.zeros((n, len(labels)), np.float32)
        for part in parts:  # in order, in float32: as the kernels add
            merged += part
    return finish(merged, estimator, n_repetitions, n_buckets)
