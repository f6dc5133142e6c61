"""Why a query got its labels: the n-grams that spoke for the best one, the buckets that voted, and how few were left.

The evidence for a label is how far the logits of its buckets lie above those of the average bucket, in the mean over
repetitions: unlike a probability it does not saturate. What an n-gram adds is what is missing without it.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from machxc.features.ngrams import ngrams_of
from machxc.model import Model
from machxc.retrieval.estimators import contributions
from machxc.samples import Array, Features, Float32, Int64
from machxc.server.engine import NumericQuery, Options, Query

_TOKENS = 12  # n-grams that are given, strongest first
_TRIED = 96  # n-grams that are left out in turn, evenly taken of more
_SHOWN_TEXT = 2000  # characters of which n-grams are named
_CELLS = 4096  # of the heat map, at most
_COLUMNS = 256  # of it, where there are several repetitions
_LABELS = 10  # labels whose buckets are given
_LOOKED_AT = 1 << 17  # labels by which narrowing is counted: all of them up to so many, else a sample
_BRIGHTEN = 0.75  # the power to which shades are taken, so that weak votes can be seen
_TOUCHED = 1e-6  # how far a logit moves when the query says anything about a bucket


def explain(model: Model, query: Query, features: Features, ids: Int64, options: Options) -> dict[str, Any]:
    """Why one query (``features``: its row) got the labels ``ids``, best first, as plain data."""
    logits = model.sketch(features)[0]
    log_p = _log_probabilities(logits, model.config.loss)
    return {
        "tokens": _tokens(model, query, features, ids[:1]),
        "sketch": _heat_map(log_p),
        "votes": _votes(model, log_p, ids[:_LABELS]),
        "narrowing": _narrowing(model, logits, log_p, ids[:1]),
    }


def _log_probabilities(logits: Float32, loss: str) -> Float32:
    values: Float32 = contributions(logits[None], loss, "log-probability")[0]
    return values


def _tokens(model: Model, query: Query, features: Features, best: Int64) -> list[dict[str, Any]]:
    """The n-grams (or features) of the query with the most evidence for the best label: what it loses without them."""
    n = len(features.indices)
    if not n or not len(best):
        return []
    tried = np.unique(np.linspace(0, n - 1, min(n, _TRIED)).astype(np.int64))
    evidence = _evidence(model, _each_without(features, tried), best)
    lost = evidence[0] - evidence[1:]
    names = _names(model, query, features)
    order = np.argsort(-np.abs(lost), kind="stable")[:_TOKENS]
    named = ((names(int(features.indices[tried[i]])), float(lost[i])) for i in order)
    return [{"token": name, "evidence": round(value, 4)} for name, value in named if name is not None]


def _names(model: Model, query: Query, features: Features) -> Any:
    if model.config.text is None or isinstance(query, NumericQuery):
        return str
    return ngrams_of(query[:_SHOWN_TEXT], model.config.text).get


def _each_without(features: Features, tried: Int64) -> Features:
    """The query, and the query without each feature in the places ``tried``: 1 + len(tried) rows."""
    n = len(features.indices)
    kept = np.arange(n)[None, :] != tried[:, None]
    places = np.concatenate([np.arange(n), np.broadcast_to(np.arange(n), kept.shape)[kept]])
    indptr = np.cumsum([0, n, *np.full(len(tried), n - 1)], dtype=np.int64)
    return Features(indptr, features.indices[places], features.values[places], features.n_features)


def _evidence(model: Model, features: Features, label: Int64) -> Array:
    """The evidence of each query for a label: float [n]. A query at a time: sketches may be wide."""
    buckets = _buckets(model, label)[:, 0]
    rows = np.arange(len(buckets))

    def of_one(i: int) -> float:
        logits = model.sketch(features.rows(i, i + 1))[0]
        return float((logits[rows, buckets] - logits.mean(axis=1)).mean())

    return np.array([of_one(i) for i in range(len(features))])


def _buckets(model: Model, labels: Int64) -> Int64:
    """The buckets of labels in each repetition: int64 [R, n]."""
    found = [model.partition.buckets(labels, r) for r in range(model.n_repetitions)]
    return np.array(found, np.int64).reshape(model.n_repetitions, len(labels))


def _heat_map(log_p: Float32) -> dict[str, Any]:
    """The log-probabilities of each repetition as bytes: 255 its largest, 0 what its middle cell has or less.

    Several repetitions: a row each, neighbouring buckets pooled. One: its buckets line by line, a square of them.
    """
    n_repetitions, n_buckets = log_p.shape
    shown = log_p[: _CELLS // min(_COLUMNS, n_buckets)]
    cells, pooled = _pooled(shown, min(_COLUMNS, _CELLS // len(shown)) if n_repetitions > 1 else _CELLS)
    base, top = np.median(cells, axis=1, keepdims=True), cells.max(axis=1, keepdims=True)
    shade = np.clip((cells - base) / np.maximum(top - base, _TOUCHED), 0, 1) ** _BRIGHTEN
    if n_repetitions == 1:
        shade = _folded(shade[0])
    return {
        "rows": shade.shape[0],
        "columns": shade.shape[1],
        "buckets_per_cell": pooled,
        "folded": n_repetitions == 1,
        "cells": base64.b64encode(np.rint(shade * 255).astype(np.uint8).tobytes()).decode(),
    }


def _pooled(values: Float32, most: int) -> tuple[Float32, int]:
    """Rows [R, B] as at most ``most`` columns: the largest of each so many neighbours."""
    pooled = -(-values.shape[1] // most)
    starts = np.arange(0, values.shape[1], pooled)
    return np.maximum.reduceat(values, starts, axis=1), pooled


def _folded(row: Float32) -> Float32:
    """One long row as lines, twice as many columns as lines; the rest of the last is dark."""
    columns = max(1, int(np.ceil(np.sqrt(2 * len(row)))))
    lines = -(-len(row) // columns)
    filled = np.zeros(lines * columns, np.float32)
    filled[: len(row)] = row
    return filled.reshape(lines, columns)


def _votes(model: Model, log_p: Float32, ids: Int64) -> list[dict[str, Any]]:
    """For each label its bucket in every repetition, and the probability that it got."""
    buckets = _buckets(model, ids)
    found = np.exp(np.take_along_axis(log_p, buckets, axis=1))
    return [
        {"buckets": buckets[:, i].tolist(), "probabilities": [float(f"{p:.4g}") for p in found[:, i].tolist()]}
        for i in range(len(ids))
    ]


def _narrowing(model: Model, logits: Float32, log_p: Float32, best: Int64) -> list[dict[str, Any]]:
    """How many labels are left after each step, all of them first."""
    n_labels = model.config.n_labels
    steps = [{"step": "all labels", "labels": n_labels}]
    if not len(best):
        return steps
    if model.n_repetitions > 1:
        return steps + _after_repetitions(model, log_p, best)
    return steps + _after_evidence(model, logits, log_p, best)


def _after_repetitions(model: Model, log_p: Float32, best: Int64) -> list[dict[str, Any]]:
    """How many labels score no worse than the best one by the first r repetitions alone, for each r."""
    n_labels = model.config.n_labels
    looked_at = np.arange(n_labels, dtype=np.int64)
    if n_labels > _LOOKED_AT:
        looked_at = np.union1d(np.linspace(0, n_labels - 1, _LOOKED_AT).astype(np.int64), best)
    sums, own, steps = np.zeros(len(looked_at), np.float32), np.float32(0), []
    for r in range(model.n_repetitions):
        sums += log_p[r, model.partition.buckets(looked_at, r)]
        own += log_p[r, model.partition.buckets(best, r)[0]]
        left = int(np.count_nonzero(sums >= own))
        estimated = 1 + round((left - 1) * (n_labels / len(looked_at)))
        steps.append({"step": f"repetition {model.numbers[r] + 1}", "labels": max(1, estimated)})
    return steps


def _after_evidence(model: Model, logits: Float32, log_p: Float32, best: Int64) -> list[dict[str, Any]]:
    """One repetition: whose buckets the query says anything about, and how many score nearly as well as the best."""
    nothing = Features(np.zeros(2, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32), model.config.n_features)
    buckets = _buckets(model, np.arange(min(model.config.n_labels, _LOOKED_AT)))[0]
    scale = model.config.n_labels / len(buckets)
    raised = (logits[0] - model.sketch(nothing)[0, 0])[buckets] > _TOUCHED
    own = log_p[0, model.partition.buckets(best, 0)[0]]
    stages = {f"share {'an n-gram' if model.config.text else 'a feature'} with it": raised}
    for share in (0.001, 0.1):
        stages[f"score at least {share:.3g} of the best"] = log_p[0, buckets] >= own + np.log(share)
    return [
        {"step": step, "labels": max(1, round(int(np.count_nonzero(left)) * scale))} for step, left in stages.items()
    ]
