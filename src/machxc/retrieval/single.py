"""One repetition: the order of the labels is that of their buckets' logits, and no other score need be computed.

Whatever the estimator, the score of a label is then a rising function of its bucket's logit. So logits are ranked as
they are, and only the k best become probabilities. Where no two labels share a bucket either, the k best buckets are
the k best labels: `rank` reads the logits once, and skips all blocks without a candidate.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import fast_kernel, kernel
from machxc.partition import HashPartition, Partition
from machxc.repetition.arithmetic import exponential
from machxc.retrieval.estimators import finish, sigmoid
from machxc.retrieval.heap import best_first, offer
from machxc.retrieval.scoring import Lookup, find_members, is_seen
from machxc.samples import Array, Float32, Int64

_BLOCK = 256  # logits between two looks at the k-th best
_NEGLIGIBLE = 25.0  # a million logits that far below the largest add a hundred-thousandth to the sum: left out


def is_single(partition: Partition) -> bool:
    """Whether there is one repetition, and every label has a bucket of its own."""
    if not isinstance(partition, HashPartition) or partition.n_repetitions > 1:
        return False
    return partition.n_buckets == 1 << partition.bits


def probabilities(logits: Float32, values: Float32, loss: str, estimator: str) -> Float32:
    """The scores of labels whose buckets have the logits ``values`` [n, m], of the sketches ``logits`` [n, 1, B].

    -inf stays -inf.
    """
    found: Float32 = _softmax_of(logits[:, 0], values) if loss == "softmax" else sigmoid(values)
    found[values == -np.inf] = -np.inf
    return finish(found, "unbiased" if estimator == "unbiased" else "mean", 1, logits.shape[-1])


def _softmax_of(logits: Float32, values: Float32) -> Float32:
    """exp(value - top) / sum of exp(logit - top): the largest logit is taken off first, or large ones lose digits."""
    tops, sums = logits.max(axis=1), np.empty(len(logits), np.float32)
    _log_sum_exp(logits, tops, sums)
    shares: Float32 = np.exp((values - tops[:, None]) - sums[:, None])
    return shares


@fast_kernel
def _reach(x: Float32, floor: np.float32) -> int:
    """How many are at least ``floor``: a count vectorises, where a maximum would not."""
    count = 0
    for i in range(len(x)):
        count += x[i] >= floor
    return count


@fast_kernel
def _log_sum_exp(logits: Float32, tops: Float32, out: Float32) -> None:
    """The logarithm of the sum of exp(logit - top), a row."""
    bits = np.empty(_BLOCK, np.int32)
    powers = bits.view(np.float32)
    room = np.empty(_BLOCK, np.float32)
    for i in range(len(logits)):
        row, top = logits[i], tops[i]
        total = np.float64(0.0)
        for start in range(0, len(row), _BLOCK):
            n = min(_BLOCK, len(row) - start)
            if _reach(row[start : start + n], top - np.float32(_NEGLIGIBLE)) == 0:
                continue
            for b in range(n):
                room[b] = row[start + b] - top
            exponential(room[:n], bits[:n], powers[:n])
            part = np.float32(0.0)
            for b in range(n):
                part += room[b]
            total += part
        out[i] = np.log(total)


@kernel
def rank(logits: Float32, lookup: Lookup, seen: Array, best_scores: Float32, best_labels: Int64) -> None:
    """The k best labels of n queries by their logits [n, B], where bucket b holds the label in place b, and no other.

    ``best_scores`` float32 [n, k], filled with -inf, and ``best_labels`` int64 [n, k], with NO_LABEL, receive the best.
    """
    labels = np.empty(1, np.uint32)
    for i in range(len(logits)):
        row, scores = logits[i], best_scores[i]
        for start in range(0, len(row), _BLOCK):
            stop = min(start + _BLOCK, len(row))
            if _reach(row[start:stop], scores[0]) == 0:
                continue
            for b in range(start, stop):
                if row[b] >= scores[0]:
                    find_members(lookup, 0, b, 1, labels)
                    label = np.int64(labels[0])
                    if label < lookup.n_labels and is_seen(seen, label):
                        offer(scores, best_labels[i], row[b], label)
        best_first(scores, best_labels[i])
