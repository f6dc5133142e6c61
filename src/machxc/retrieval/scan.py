"""Exact top-k by scoring every label, block by block: no array as long as K but the data's own."""

from __future__ import annotations

import numpy as np

from machxc.compiled import kernel, part
from machxc.retrieval.estimators import MEDIAN
from machxc.retrieval.heap import NO_LABEL, best_first, offer_once
from machxc.retrieval.keys import key_of, nth_largest, take_best
from machxc.retrieval.scoring import Integer, Lookup, find_buckets, is_seen, rest_of, score_block, score_those
from machxc.samples import Array, Float32, Int64, UInt32

_BLOCK = 2048  # labels: their scores for 32 queries and their buckets stay in the cache


@kernel
def scan(
    values: Float32,
    lookup: Lookup,
    candidates: UInt32,
    seen: Array,
    merge: int,
    best_scores: Float32,
    best_labels: Int64,
) -> None:
    """The k best labels of Q queries, of all K or (not empty) of ``candidates`` uint32 [m], distinct.

    ``values`` float32 [R, B, Q]: what buckets contribute, the queries side by side; a query of NaN is passed over.
    ``seen``: see `is_seen`. ``best_scores`` float32 [Q, k], filled with -inf, and ``best_labels`` int64 [Q, k], with
    NO_LABEL, receive the best, first the best; they may hold labels already, with their scores, the worst first. One
    query's labels are given up as soon as they cannot be among its best any more.
    """
    n_repetitions, n_buckets, n_queries = values.shape
    one = n_queries == 1 and merge != MEDIAN
    rest = np.zeros(n_repetitions, np.float32)
    if one:
        rest_of(values.reshape((n_repetitions, n_buckets)), merge, rest)
    total = len(candidates) if len(candidates) else lookup.n_labels
    labels = np.empty(_BLOCK, np.uint32)
    buckets = np.empty((n_repetitions, _BLOCK), np.uint32)
    scores = np.empty((_BLOCK, n_queries), np.float32)
    scratch = np.empty((n_repetitions, _BLOCK), np.float32)  # for medians
    for start in range(0, total, _BLOCK):
        n: Integer = min(_BLOCK, total - start)
        for j in range(n):
            labels[j] = candidates[start + j] if len(candidates) else start + j
        if one:
            floor = best_scores[0, 0]
            alone, column = values.reshape((n_repetitions, n_buckets)), scores.reshape(_BLOCK)
            n = score_those(alone, lookup, labels, n, merge, rest, floor, buckets[0], column)
        else:
            find_buckets(lookup, labels, n, buckets)
            score_block(values, buckets, n, merge, scratch, scores)
        if total <= _BLOCK and best_labels[0, -1] == NO_LABEL:  # all labels at once, and none was found before
            _choose_best(scores, labels, n, seen, best_scores, best_labels)
            return
        _keep_best(scores, labels, n, seen, best_scores, best_labels)
    for q in range(n_queries):
        best_first(best_scores[q], best_labels[q])


@part
def _keep_best(
    scores: Float32, labels: UInt32, n: Integer, seen: Array, best_scores: Float32, best_labels: Int64
) -> None:
    floor = best_scores[:, 0].copy()
    for j in range(n):
        reached = 0
        for q in range(len(floor)):  # a plain reduction, so that it vectorises: few labels get any further
            reached += scores[j, q] >= floor[q]
        if reached and is_seen(seen, labels[j]):
            for q in range(len(floor)):
                if scores[j, q] >= floor[q]:
                    offer_once(best_scores[q], best_labels[q], scores[j, q], np.int64(labels[j]))
                    floor[q] = best_scores[q, 0]


@part
def _choose_best(
    scores: Float32, labels: UInt32, n: Integer, seen: Array, best_scores: Float32, best_labels: Int64
) -> None:
    """The best of n labels, best first; if labels that may not be returned are among them, it looks further."""
    column, keys = np.empty(n, np.float32), np.empty(n, np.int64)
    for q in range(len(best_scores)):
        for j in range(n):
            column[j] = scores[j, q]
        if np.isnan(column[0]):
            continue
        k = wanted = best_scores.shape[1]
        while True:
            least = nth_largest(column, wanted) if wanted < n else np.float32(-np.inf)
            found: Integer = np.int64(0)
            for j in range(n):
                if column[j] >= least and is_seen(seen, labels[j]):
                    keys[found] = key_of(column[j], labels[j])
                    found += 1
            if found >= k or wanted >= n:
                break
            wanted *= 2
        take_best(keys, found, best_scores[q], best_labels[q])
