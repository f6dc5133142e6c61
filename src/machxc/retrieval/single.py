"""One repetition: the order of the labels is that of their buckets' logits, and no other score need be computed.

Whatever the estimator, the score of a label is then a rising function of its bucket's logit. So logits are ranked as
they are, and only the k best become probabilities. Where no two labels share a bucket either, the k best buckets are
the k best labels: `rank` reads the logits once, and skips all blocks without a candidate.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import fast_kernel, inline, kernel, part
from machxc.partition import HashPartition, Partition
from machxc.repetition.arithmetic import Int32, exp
from machxc.retrieval.estimators import finish, sigmoid
from machxc.retrieval.heap import best_first, offer
from machxc.retrieval.scoring import Lookup, find_members, is_seen
from machxc.samples import Array, Float32, Int64, UInt32

_BLOCK = 128  # logits of which only the largest is looked at first


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
def _log_sum_exp(logits: Float32, tops: Float32, out: Float32) -> None:
    """The logarithm of the sum of exp(logit - top), a row."""
    for i in range(len(logits)):
        row, top = logits[i], tops[i]
        total = np.float64(0.0)
        for start in range(0, len(row), _BLOCK):
            block = row[start : start + _BLOCK]
            part = np.float32(0.0)
            for b in range(len(block)):
                part += exp(block[b] - top)
            total += part
        out[i] = np.log(total)


@kernel
def rank(logits: Float32, lookup: Lookup, seen: Array, best_scores: Float32, best_labels: Int64) -> None:
    """The k best labels of n queries by their logits [n, B], where bucket b holds the label in place b, and no other.

    ``best_scores`` float32 [n, k], filled with -inf, and ``best_labels`` int64 [n, k], with NO_LABEL, receive the best.

    The k blocks with the largest logits hold k buckets that reach the least of these. So the k best are in blocks which
    reach that; only if labels that may not be returned are among them do other blocks matter.
    """
    n_blocks, k = -(-logits.shape[1] // _BLOCK), best_scores.shape[1]
    tops, found = np.empty(n_blocks, np.float32), np.empty(1, np.uint32)
    best_tops, blocks = np.empty(k, np.float32), np.empty(k, np.int64)
    for i in range(len(logits)):
        row, scores, labels = logits[i], best_scores[i], best_labels[i]
        _block_tops(row.view(np.int32), tops.view(np.int32))
        best_tops[:], blocks[:] = -np.inf, n_blocks
        for block in range(n_blocks):
            offer(best_tops, blocks, tops[block], np.int64(block))
        for first in (True, False):
            for block in range(n_blocks):
                if (tops[block] >= best_tops[0]) == first and tops[block] >= scores[0]:
                    _offer_block(row, block, lookup, seen, found, scores, labels)
        best_first(scores, labels)


@inline
def _order(bits: np.int32) -> np.int32:
    """The bits of a float32 as an integer that is the larger the larger the number is: integers' maxima vectorise."""
    ordered: np.int32 = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return ordered


@part
def _block_tops(bits: Int32, tops: Int32) -> None:
    """The largest of each block of numbers; both given as bits."""
    for block in range(len(tops)):
        some = bits[block * _BLOCK : (block + 1) * _BLOCK]
        top = np.int32(-0x80000000)
        for b in range(len(some)):
            top = max(top, _order(some[b]))
        tops[block] = _order(top)  # its own inverse


@part
def _offer_block(
    row: Float32, block: int, lookup: Lookup, seen: Array, found: UInt32, scores: Float32, labels: Int64
) -> None:
    """Offer the labels of a block's buckets; ``found``: room for one."""
    for b in range(block * _BLOCK, min((block + 1) * _BLOCK, len(row))):
        if row[b] >= scores[0]:
            find_members(lookup, 0, b, 1, found)
            label = np.int64(found[0])
            if label < lookup.n_labels and is_seen(seen, label):
                offer(scores, labels, row[b], label)
