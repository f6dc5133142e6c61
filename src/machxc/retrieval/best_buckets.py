"""The k best labels by B logits, where every label has a bucket of its own and no other label is in it.

Logits are taken in blocks of which only the largest is looked at first. The blocks whose largest is among the k
largest of all blocks hold k buckets that reach the least of these: so the k best buckets are in these blocks, and reach
it, too. Few others do. Only if labels that may not be returned are among them, twice as many blocks are looked through.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import kernel, larger, part
from machxc.retrieval.keys import key_of, nth_largest, take_best
from machxc.retrieval.scoring import Integer, Lookup, find_members, is_seen
from machxc.samples import Array, Float32, Int64

BLOCK = 128  # logits
_PIECE = 16  # logits of which is counted how many are wanted, before each is looked at


@kernel
def rank(logits: Float32, lookup: Lookup, seen: Array, best_scores: Float32, best_labels: Int64) -> None:
    """The k best labels of n queries by their logits [n, B], where bucket b holds the label in place b, and no other.

    ``best_scores`` float32 [n, k], filled with -inf, and ``best_labels`` int64 [n, k], with NO_LABEL, receive the best.
    """
    tops, keys = np.empty(-(-logits.shape[1] // BLOCK), np.float32), np.empty(logits.shape[1], np.int64)
    for i in range(len(logits)):
        find_tops(logits[i], tops)
        find_best(logits[i], tops, lookup, seen, keys, best_scores[i], best_labels[i])


@part
def find_tops(row: Float32, tops: Float32) -> None:
    """The largest of each block of numbers, none of them NaN."""
    n_whole = len(row) // BLOCK
    for block in range(n_whole):
        top = row[block * BLOCK]
        for b in range(BLOCK):  # as many each time: twice as fast
            top = larger(top, row[block * BLOCK + b])
        tops[block] = top
    if n_whole < len(tops):
        tops[n_whole] = largest_of(row[n_whole * BLOCK :])


@part
def largest_of(numbers: Float32) -> np.float32:
    """The largest of one number or more, none of them NaN."""
    top = numbers[0]
    for number in numbers:
        top = larger(top, number)
    return np.float32(top)


@part
def find_best(
    row: Float32, tops: Float32, lookup: Lookup, seen: Array, keys: Int64, scores: Float32, labels: Int64
) -> None:
    """The best labels by the logits [B] of one query, given the largest of each block. ``keys``: int64 [B], scratch.

    ``scores`` [k] and ``labels`` [k] receive them, the best first; what is left of both stays as it is.
    """
    wanted = len(scores)
    while True:
        least = nth_largest(tops, wanted) if wanted <= len(tops) else np.float32(-np.inf)
        n = _find_keys(row, tops, least, lookup, seen, keys)
        if n >= len(scores) or wanted > len(tops):
            break
        wanted *= 2
    take_best(keys, n, scores, labels)


@part
def _find_keys(row: Float32, tops: Float32, least: np.float32, lookup: Lookup, seen: Array, keys: Int64) -> Integer:
    """The keys of all labels that may be returned and whose logits reach ``least``; how many there are."""
    n: Integer = np.int64(0)
    label = np.empty(1, np.uint32)
    for block in range(len(tops)):
        if tops[block] >= least:
            for first in range(block * BLOCK, min((block + 1) * BLOCK, len(row)), _PIECE):
                piece = row[first : min(first + _PIECE, len(row))]
                reached = 0
                for b in range(len(piece)):
                    reached += piece[b] >= least
                if reached:
                    for b in range(len(piece)):
                        if piece[b] >= least:
                            find_members(lookup, 0, first + b, 1, label)
                            if label[0] < lookup.n_labels and is_seen(seen, label[0]):
                                keys[n] = key_of(piece[b], label[0])
                                n += 1
    return n
