"""The process of `machxc.cli.ahead`: ``python -m machxc.cli.compiler``, which reads jobs, a JSON object a line.

It does what a first run is about to do, with tiny data, so that Numba compiles into its cache what that will need: only
types matter, not what is computed. A line is written after each job, whatever came of it. When its input ends, whoever
asked has ended, and so does this, whatever it is about.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np

from machxc.cli.kernels import collect_seldom
from machxc.config import LEVELS, Config, Settings, TextConfig
from machxc.data.columns import MemoryColumns
from machxc.data.new_labels import NewLabels
from machxc.data.raw import RawBatch, RawLabels
from machxc.facts import Facts, facts_of
from machxc.features.text import N_TOKENS
from machxc.folder import ModelData
from machxc.label_counts import LabelCounts
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.packed import Strings
from machxc.plan import make_plan
from machxc.repetition.checkpoint import learner_of
from machxc.repetition.encode import fit_encoder, n_slots
from machxc.samples import Array, Features, Labels, Samples

_MOST_LABELS = 1 << 20  # more of them need the same kernels, and memory
_SEVERAL = 100  # queries: more than `Model` answers as it does one


def main() -> None:
    """Do all jobs that come."""
    jobs: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    collect_seldom()
    while True:
        job = jobs.get()
        with contextlib.suppress(Exception):  # who asked compiles it, too, and will tell
            JOBS[job.pop("job")](**job)
        print(flush=True)


def _listen(jobs: SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def name() -> None:
    """Labels that have names: finding out which there are, and keeping them."""
    _, names = _labels(["one", "other"])
    names.names([0, 1])


def encode() -> None:
    """The facts of samples, and how their features are encoded."""
    labels, names = _labels(["one", "other"])
    samples = Samples(_features(len(names), N_TOKENS), labels)
    config = make_plan(facts_of(samples, text=True), Settings(), text=None).config
    fit_encoder(samples.features, config, 0)(samples.features)


def answer(config: dict[str, Any] | None = None) -> None:
    """Answering many queries and one, with a model of this config (default: a usual one) that has learnt nothing."""
    model = untrained(usual_config() if config is None else Config.from_dict(config))
    for n in (_SEVERAL, 1):
        model.top_k(_features(n, model.config.n_features), 2)
    LabelNames.strings(["one", "other"]).ids_of(["one"])  # those of samples to evaluate on


def usual_config() -> Config:
    """That of some thousand texts which have some hundred labels, more than one each."""
    facts = Facts(5_000, 500, 500, 10_000, 4, N_TOKENS, 50_000, 5_000, 3_000, 2_000, True, False, True)
    return make_plan(facts, Settings(), text=TextConfig()).config


def untrained(config: Config) -> Model:
    """A model whose repetitions are one and the same, of a single row of weights: all features are in that."""
    config = replace(config, n_labels=min(config.n_labels, _MOST_LABELS))
    tensors: dict[str, Array] = {"slots": np.zeros(n_slots(config), np.int32), **_weights(config)}
    tensors |= {"row_weights": np.ones(1, np.float32), "repeats": np.ones(1, np.uint8)}
    counts = LabelCounts.dense(np.ones(config.n_labels))
    repetitions = dict.fromkeys(range(config.repetitions), tensors)
    return Model(ModelData(config, LabelNames.ids(config.n_labels), counts, 1, repetitions))


def _weights(config: Config) -> dict[str, Array]:
    """Those of a learner at its start. Counting has none: rows of few entries among very many buckets, so wide ones.

    These are made as they are stored: to pack them would compile kernels that the one who counts compiles, too.
    """
    bias = np.zeros(config.buckets, np.float32)
    if config.learner != "counts":
        return learner_of(config, 0, 1, bias).tensors()
    entries, levels = np.empty(0, np.uint32), np.zeros(LEVELS, np.float32)
    return {"lengths": np.zeros(1, np.uint8), "entries": entries, "levels": levels, "bias": bias}


def _labels(names: list[str]) -> tuple[Labels, LabelNames]:
    """A label for each name, as a reader finds them; the first has another one, so that they are not in order."""
    gathered = NewLabels(MemoryColumns())
    indptr = np.arange(1, len(names) + 2)
    indptr[0] = 0
    values = Strings.of([names[-1], *names])
    gathered.add(RawBatch("", np.arange(len(names)), RawLabels(indptr, values), texts=Strings.of(names)))
    return gathered.finish()


def _features(n: int, n_features: int) -> Features:
    """A feature for each of ``n`` samples."""
    return Features(np.arange(n + 1), np.zeros(n, np.uint32), np.ones(n, np.float32), n_features)


JOBS: dict[str, Callable[..., None]] = {"name": name, "encode": encode, "answer": answer}

if __name__ == "__main__":
    main()
