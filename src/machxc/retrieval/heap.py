"""The k best of a query: a binary heap in two arrays, the worst at the root, so that one comparison turns a label away.

Of two equal scores the smaller label is the better: the result does not depend on the order in which labels come.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import part
from machxc.retrieval.scoring import Integer
from machxc.samples import Float32, Int64

NO_LABEL = 2**32 - 1  # above any label id: with the score -inf, what the heap is filled with
ROOT = np.int64(0)  # not a literal: Numba would compile sift_down once more for it


@part
def sift_down(scores: Float32, labels: Int64, size: Integer, hole: Integer, score: float, label: Integer) -> None:
    """Put (score, label) into the hole of a heap of ``size`` entries, or below it, so that the worst come first."""
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            scores[right] < scores[child] or (scores[right] == scores[child] and labels[right] > labels[child])
        ):
            child = right
        if scores[child] > score or (scores[child] == score and labels[child] < label):
            break
        scores[hole], labels[hole] = scores[child], labels[child]
        hole = child
    scores[hole], labels[hole] = score, label


@part
def offer(scores: Float32, labels: Int64, score: float, label: Integer) -> None:
    """Take a label into the heap, in the place of the worst, if it is better than that."""
    if score > scores[0] or (score == scores[0] and label < labels[0]):
        sift_down(scores, labels, len(scores), ROOT, score, label)


@part
def offer_once(scores: Float32, labels: Int64, score: float, label: Integer) -> None:
    """`offer` a label that the heap may have; one that better ones have displaced is not good enough to come back."""
    if score >= scores[0]:
        found = 0
        for i in range(len(labels)):
            found += labels[i] == label
        if found == 0:
            offer(scores, labels, score, label)


@part
def best_first(scores: Float32, labels: Int64) -> None:
    """Heapsort: from a heap to decreasing scores, equal ones by increasing label."""
    for last in range(len(scores) - 1, 0, -1):
        score, label = scores[last], labels[last]
        scores[last], labels[last] = scores[0], labels[0]
        sift_down(scores, labels, last, ROOT, score, label)
