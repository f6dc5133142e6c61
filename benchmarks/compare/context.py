"""What a peer's code is given: the data, where to put its model, its limits, and a place for what it measures.

Every file of `peers/` has two functions, called in two processes:

    train(ctx)            learn from ctx.features("train") and ctx.labels("train"), save the model into ctx.model
    predict(ctx) -> ids   load it, and rank the labels of ctx.features("test"): [n_test, ctx.top], best first, -1: none

It runs in the peer's own environment: NumPy and SciPy are there, in any version; machxc is not.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

SINGLE = 200  # queries that are asked one by one
WARMING = 100  # queries that are answered before the clock runs: by then models are paged in, threads are there
_STARTED = time.monotonic()


class Skipped(Exception):  # noqa: N818 - an outcome, no error
    """The peer is not run on this data, and why: the row says "skipped"."""


class OutOfTime(Exception):  # noqa: N818 - an outcome, no error
    """The peer stops by itself, as its limit is too short: the row says "out of time", why, and ``facts``."""

    def __init__(self, why: str, **facts: Any) -> None:
        super().__init__(why)
        self.facts = facts


class Context:
    """One phase of one method on one data set.

    data       folder of the exported data set
    model      folder of the model: exists and is empty before train
    scratch    folder for whatever else the phase writes; removed after it
    options    what the method sets, from its entry in methods.py
    facts      of the data: kind ("texts", "names", "features"), n_train, n_test, n_features, n_labels,
               n_train_labels (labels of all training samples together), one_label (every training sample has just one)
    threads    how many the peer may use
    top        labels that predict ranks for each test sample
    notes      numbers and words that end up in the row; see `note` and `timed`
    """

    def __init__(self, data: Path, work: Path, options: dict[str, Any], threads: int, time_limit: float) -> None:
        self.data, self.model, self.scratch = data, work / "model", work / "scratch"
        self.options, self.threads, self.time_limit = options, threads, time_limit
        self.top = 100
        self.facts: dict[str, Any] = json.loads((data / "facts.json").read_text())
        self.notes: dict[str, Any] = {}

    def features(self, part: str) -> Any:
        """Features of "train" or "test": float32 CSR [n, n_features], sorted; a test sample may have none."""
        return sp.load_npz(self.data / f"{part}_features.npz").tocsr()

    def labels(self, part: str) -> Any:
        """Labels of "train": float32 CSR [n_train, n_labels] of ones; every training sample has one at least."""
        return sp.load_npz(self.data / f"{part}_labels.npz").tocsr()

    def xmc(self, part: str) -> Path:
        """Features and labels of "train" or "test" as a text file in the format of the XMC repository."""
        return self.data / f"{part}.txt"

    def texts(self, part: str) -> list[str]:
        """The texts themselves, where facts["kind"] is "texts" or "names"."""
        with (self.data / f"{part}_texts.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def seconds_left(self) -> float:
        """What is left of the time limit; the process is killed when nothing is, so keep some to write things down."""
        return self.time_limit - (time.monotonic() - _STARTED)

    def note(self, **facts: Any) -> None:
        """Put facts (JSON) into the row of the result."""
        self.notes.update(facts)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a block: "load_s" (the model, from disk to the first answer) or "predict_s" (all of the test set)."""
        start = time.perf_counter()
        yield
        self.notes[name] = self.notes.get(name, 0.0) + time.perf_counter() - start

    def time_single(self, ask: Callable[[Any], object], queries: Sequence[Any]) -> None:
        """Note the median time of ``ask(query)``, asked one by one, as "single_ms"."""
        ask(queries[0])
        times = []
        for query in queries[:SINGLE]:
            start = time.perf_counter()
            ask(query)
            times.append(time.perf_counter() - start)
        self.note(single_ms=1e3 * sorted(times)[len(times) // 2])


def single_rows(features: Any) -> list[Any]:
    """The first rows of a sparse matrix, to be asked one by one."""
    return [features[i] for i in range(min(SINGLE, features.shape[0]))]


def padded(rows: Iterable[Sequence[int]], top: int) -> Any:
    """Lists of label ids, best first, as int32 [n, top], -1 where there are fewer."""
    kept = [list(row)[:top] for row in rows]
    ids = np.full((len(kept), top), -1, np.int32)
    for i, row in enumerate(kept):
        ids[i, : len(row)] = row
    return ids


def best_of_sparse(scores: Any, top: int) -> Any:
    """The columns of the greatest stored values of each CSR row, as int32 [n, top], -1 where there are fewer."""
    ids = np.full((scores.shape[0], top), -1, np.int32)
    for i in range(scores.shape[0]):
        row = slice(scores.indptr[i], scores.indptr[i + 1])
        columns, values = scores.indices[row], scores.data[row]
        if len(values) > top:
            kept = np.argpartition(-values, top)[:top]
            columns, values = columns[kept], values[kept]
        ids[i, : len(columns)] = columns[np.argsort(-values, kind="stable")]
    return ids


def unit_rows(matrix: Any) -> Any:
    """A sparse matrix with rows of length 1, as float32 CSR, sorted; empty rows stay empty."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scaled = (sp.diags(1 / np.where(lengths > 0, lengths, 1)) @ matrix).astype(np.float32).tocsr()
    scaled.sort_indices()
    return scaled
