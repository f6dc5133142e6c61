"""A loaded model, ready to answer batches of queries: texts or features in, JSON out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from machxc.errors import DataError
from machxc.features.text import token_features
from machxc.model import Model
from machxc.prediction import named
from machxc.samples import Array, Features, Float32, Int64, UInt32

Label = str | int


@dataclass(frozen=True)
class NumericQuery:
    """The features of a query: ``indices`` uint32 [n], rising, and ``values`` float32 [n], finite."""

    indices: UInt32
    values: Float32


Query = str | NumericQuery


@dataclass(frozen=True)
class Options:
    """What is asked of a query: the ``top_k`` best labels of at least ``minimum_score`` among ``candidates`` (ids;
    None: all), merged by ``estimator`` (None: the model's); ``explain``: and why; ``budget``: in bounded time, see
    `Model.top_k_within` (None: exact).
    """

    top_k: int = 10
    estimator: str | None = None
    minimum_score: float | None = None
    candidates: Int64 | None = None
    explain: bool = False
    budget: int | None = None


Stages = dict[str, float]
"""Seconds that each stage of a batch took: features, scoring, naming."""


class Engine:
    """Answers queries with one model. ``path``: where it was loaded from; ``number``: the how-manieth model it is."""

    def __init__(self, model: Model, path: Path, number: int = 1) -> None:
        self.model, self.path, self.number = model, path, number
        self.takes_texts = model.config.text is not None
        self.probe = self._probe()
        self.facts = self._facts()

    @classmethod
    def load(cls, path: Path, number: int = 1, device: str = "cpu") -> Engine:
        """Load a model, without its damaged repetitions, and answer a query with it. ModelError when there is none.

        ``device``: what answers; errors as `Model.to`.
        """
        engine = cls(Model.load(path, partial=True, device=device), path, number)
        for options in (Options(), Options(explain=True)):
            engine.answer([engine.probe], [options])
        return engine

    @property
    def numbers(self) -> list[int]:
        """The repetitions that answer."""
        return self.model.numbers

    def check(self, query: Query, place: int) -> None:
        """DataError when the model does not take such a query; ``place`` says which it is."""
        if isinstance(query, str) != self.takes_texts:
            wanted = "a text" if self.takes_texts else 'features, as {"indices": [...], "values": [...]}'
            raise DataError(f"queries[{place}]: the model takes {wanted}; see /v1/model")
        if isinstance(query, NumericQuery) and len(query.indices):
            last, bound = int(query.indices[-1]), self.model.config.n_features
            if last >= bound:
                raise DataError(f"queries[{place}]: expected indices in [0, {bound}), got {last}")

    def label_ids(self, names: Sequence[Label]) -> Int64:
        """The ids of candidate labels; DataError for a name that is no label."""
        ids = self.model.names.ids_of(names)
        if (ids < 0).any():
            raise DataError(f"candidates: the model has no label {names[int(np.argmax(ids < 0))]!r:.80}")
        return ids

    def answer(self, queries: Sequence[Query], options: Sequence[Options]) -> tuple[list[bytes], Stages]:
        """The JSON of each answer, and what it took. All ``options`` agree in estimator, candidates and budget."""
        marks = [time.perf_counter()]
        features = self._features(queries)
        marks.append(time.perf_counter())
        most, first = max(option.top_k for option in options), options[0]
        ids, scores, proven = self._ranked(features, most, first)
        marks.append(time.perf_counter())
        answers = self._named(queries, features, options, ids, scores, proven)
        marks.append(time.perf_counter())
        seconds = (after - before for before, after in pairwise(marks))
        return answers, dict(zip(("features", "scoring", "naming"), seconds, strict=True))

    def _ranked(self, features: Features, k: int, how: Options) -> tuple[Int64, Float32, Array | None]:
        if how.budget is not None:
            return self.model.top_k_within(features, k, budget=how.budget, estimator=how.estimator)
        return *self.model.top_k(features, k, candidates=how.candidates, estimator=how.estimator), None

    def _named(
        self,
        queries: Sequence[Query],
        features: Features,
        options: Sequence[Options],
        ids: Int64,
        scores: Float32,
        proven: Array | None,
    ) -> list[bytes]:
        answers = []
        for i, (labels, values) in enumerate(named(self.model.names, ids, scores)):
            n = _kept(values, options[i])
            answer: dict[str, Any] = {"labels": labels[:n], "scores": values[:n]}
            if proven is not None:
                answer["proven"] = bool(proven[i])
            if options[i].explain:
                from machxc.server.explain import explain

                answer["why"] = explain(self.model, queries[i], features.rows(i, i + 1), ids[i, :n], options[i])
            answers.append(json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())
        return answers

    def _features(self, queries: Sequence[Query]) -> Features:
        text = self.model.config.text
        if text is not None:
            return token_features([str(query) for query in queries], text)
        rows = [query for query in queries if isinstance(query, NumericQuery)]
        indptr = np.cumsum([0, *(len(row.indices) for row in rows)], dtype=np.int64)
        indices, values = (np.concatenate(parts) for parts in zip(*((r.indices, r.values) for r in rows), strict=True))
        return Features(indptr, indices, values, self.model.config.n_features)

    def _probe(self) -> Query:
        """A query that the model can answer: the name of a label, or one feature."""
        if self.takes_texts:
            return str(self.model.names.names([0])[0])[:100]
        return NumericQuery(np.zeros(1, np.uint32), np.ones(1, np.float32))

    def _facts(self) -> dict[str, Any]:
        model, config = self.model, self.model.config
        return {
            "name": self.path.name,
            "number": self.number,
            "takes": "texts" if self.takes_texts else "features",
            "n_labels": config.n_labels,
            "n_labels_seen": model.data.label_counts.n_seen,
            "n_samples": model.n_samples,
            "n_features": config.n_features,
            "n_buckets": config.buckets,
            "label_names": "strings" if model.names.kind == "strings" else "integers",
            "repetitions": repetitions(model),
            "bytes": sum(file.stat().st_size for file in self.path.iterdir() if file.is_file()),
            "config": config.to_dict(),
        }


def repetitions(model: Model) -> dict[str, Any]:
    """How many repetitions answer, of how many, and which are missing."""
    expected = model.config.repetitions
    missing = sorted(set(range(expected)) - set(model.numbers))
    return {"answered": model.n_repetitions, "expected": expected, "missing": missing}


def _kept(scores: list[float], options: Options) -> int:
    """How many of the scores, best first, are asked for."""
    if options.minimum_score is None:
        return min(len(scores), options.top_k)
    return sum(score >= options.minimum_score for score in scores[: options.top_k])
