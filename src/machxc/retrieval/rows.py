"""One repetition whose logits are sums of rows of weights, and in which every label has a bucket of its own.

Logits are made and ranked in one kernel, a query at a time: the B numbers of one query stay in the core's cache, those
of several do not. In the pass that adds up the softmax the biases are put back for the next query.
"""

from __future__ import annotations

import math

import numpy as np

from machxc.compiled import fast_part, kernel, part
from machxc.partition import Partition
from machxc.repetition.arithmetic import copy
from machxc.repetition.encode import Rows
from machxc.repetition.linear import LinearScorer
from machxc.repetition.stored import Entries, add_narrow, add_wide
from machxc.retrieval.best_buckets import BLOCK, find_best, find_tops, largest_of
from machxc.retrieval.estimators import check_names
from machxc.retrieval.heap import NO_LABEL
from machxc.retrieval.retrieve import LARGEST_LOGIT, check_sizes, lookup_of
from machxc.retrieval.scoring import Lookup
from machxc.retrieval.single import LANES, SPAN, is_single, probabilities_of, take_sum_of_exp
from machxc.samples import Array, Float32, Int64, frozen


class RowRanker:
    """Answers queries with the only repetition of a model; for partitions with `is_single`.

    ``seen``: labels that may be returned, packed into uint8 [ceil(K / 8)], the least significant bit first.
    """

    def __init__(self, scorer: LinearScorer, partition: Partition, seen: Array, loss: str) -> None:
        assert is_single(partition)
        self._scorer, self._seen, self._loss = scorer, frozen(seen), loss
        self._n_labels, self._n_buckets = partition.n_labels, partition.n_buckets
        self._lookup = lookup_of(partition, inverted=False)
        self._largest_bias, self._largest_level = np.abs(scorer.bias).max(), np.abs(scorer.levels).max()

    def top_k(self, rows: Rows, k: int, estimator: str) -> tuple[Int64, Float32]:
        """`machxc.retrieval.top_k` of the logits of encoded samples: the same to the last bit."""
        check_names(self._loss, estimator)
        n, most = len(rows), min(k, self._n_labels)
        best, labels = np.full((n, most), -np.inf, np.float32), np.full((n, most), NO_LABEL, np.int64)
        tops, sums, sizes = (np.zeros(n, np.float32) for _ in range(3))
        table = self._scorer
        rank_rows(
            rows.indptr, rows.rows, rows.weights, table.starts, table.entries, table.levels, table.bias,
            self._largest_bias, self._largest_level, self._lookup, self._seen, self._loss == "softmax",
            best, labels, tops, sums, sizes,
        )  # fmt: skip
        check_sizes(sizes)
        ids, scores = np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32)
        scores[:, :most] = probabilities_of(best, tops, sums, self._loss, estimator, self._n_buckets)
        ids[:, :most] = np.where(best == -np.inf, -1, labels)
        return ids, scores


@kernel
def rank_rows(
    indptr: Int64, rows: Array, weights: Float32, starts: Int64, entries: Entries, levels: Float32, bias: Float32,
    largest_bias: np.float32, largest_level: np.float32, lookup: Lookup, seen: Array, softmax: bool,
    best_scores: Float32, best_labels: Int64, largest: Float32, sums: Float32, sizes: Float32,
) -> None:  # fmt: skip
    """`machxc.retrieval.best_buckets.rank` of the logits that `LinearScorer.logits` makes.

    Of each query ``largest`` receives the largest logit, ``sums``, for the softmax, the logarithm of the sum of
    exp(logit - largest), and ``sizes`` a bound on the magnitude of its logits: where it is above LARGEST_LOGIT, of all
    of them.
    """
    z, lanes = np.empty(len(bias), np.float32), np.empty(LANES, np.float32)
    tops, keys = np.empty(-(-len(bias) // BLOCK), np.float32), np.empty(len(bias), np.int64)
    copy(z, bias)
    for i in range(len(indptr) - 1):
        mine = slice(indptr[i], indptr[i + 1])
        _add_rows(z, rows[mine], weights[mine], starts, entries, levels)
        sizes[i] = _size(z, weights[mine], largest_bias, largest_level)
        if not sizes[i] <= LARGEST_LOGIT:
            continue  # nothing is answered
        find_tops(z, tops)
        find_best(z, tops, lookup, seen, keys, best_scores[i], best_labels[i])
        if softmax:
            largest[i] = largest_of(tops)
            sums[i] = _log_sum(z, largest[i], bias, lanes)
        else:
            copy(z, bias)


@part
def _log_sum(z: Float32, top: np.float32, bias: Float32, lanes: Float32) -> float:
    """The logarithm of the sum of exp(z - top); ``z`` becomes the biases on the way."""
    total = 0.0
    for first in range(0, len(z), SPAN):
        total += take_sum_of_exp(z[first : first + SPAN], top, bias[first : first + SPAN], lanes)
    return math.log(total)


@fast_part
def _add_rows(z: Float32, rows: Array, weights: Float32, starts: Int64, entries: Entries, levels: Float32) -> None:
    for j in range(len(rows)):
        row = entries[starts[rows[j]] : starts[rows[j] + 1]]
        if entries.itemsize == 2:  # known when it is compiled
            add_narrow(z, weights[j], row, levels)
        else:
            add_wide(z, weights[j], row, levels)


@part
def _size(z: Float32, weights: Float32, largest_bias: np.float32, largest_level: np.float32) -> np.float32:
    """A bound on the magnitude of logits that is no more than `LARGEST_LOGIT`, or the largest magnitude itself."""
    bound = np.float64(largest_bias)
    for weight in weights:
        bound += abs(np.float64(weight)) * np.float64(largest_level)
    if bound <= LARGEST_LOGIT:
        return np.float32(bound)
    size = np.int32(0)
    for bits in z.view(np.int32):
        size = max(size, bits & np.int32(0x7FFFFFFF))  # rises with the magnitude, and NaN is above all others
    return np.int32(size).view(np.float32)
