"""A model: R trained repetitions, the names of the labels, and how a query is answered with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from machxc import retrieval
from machxc.config import Config
from machxc.errors import DataError, ModelError, SettingError
from machxc.folder import ModelData, load_model, save_model
from machxc.labels import LabelNames
from machxc.maps import any_cut, check
from machxc.partition import HashPartition, Partition, TablePartition
from machxc.repetition.chunks import chunk_size
from machxc.repetition.encode import Encoder, encoder_of
from machxc.repetition.linear import LinearScorer
from machxc.repetition.scorer import Scorer, scorer_of
from machxc.repetition.together import Together, fits
from machxc.retrieval.rows import RowRanker
from machxc.retrieval.single import is_single
from machxc.samples import Array, Features, Float32, Int64, UInt32, frozen
from machxc.threads import share_out
from machxc.torch.device import answering_device

log = logging.getLogger("machxc.model")

_CACHED_LOGITS = 1 << 19  # of one repetition: 2 MB
_FEW = 64  # queries that small models encode and score in one call
_TABULATED = 1 << 18  # buckets of labels, of all repetitions: 1 MB
_SHARE = 128  # queries that a thread ranks at a time
_SEEN_OF = 16  # labels to each that was seen, from which on a scan of these is sooner than a search of all
_SKETCH_BYTES = 16 << 20  # sketches of a block of queries that are held at a time


class Model:
    """R repetitions that together rank K labels. Made by `machxc.training.train` or `Model.load`; never changed.

    ``data``: all that a model folder holds (config, names, label counts, the repetitions' tensors). A model from which
    some repetitions are missing answers with those that are there, and says so in the log.
    """

    _there: tuple[str, Model] | None = None  # the device that it was sent to, and what answers there

    def __init__(self, data: ModelData) -> None:
        if not data.repetitions:
            raise ModelError("the model has no repetition; expected at least one")
        self._data = data
        self._numbers = sorted(data.repetitions)
        if len(self._numbers) < data.config.repetitions:
            log.warning("answering from %d of %d repetitions", len(self._numbers), data.config.repetitions)

    @classmethod
    def load(cls, path: Path | str, verify: bool = True, *, partial: bool = False, device: str = "cpu") -> Model:
        """Map a model folder into memory; ``verify`` False leaves out its checksums. ModelError when it is damaged.

        ``device``: what answers, see `to`.

        ``partial``: repetitions that are missing or damaged are left out (`n_repetitions` and `numbers` say which are
        there; the log, what is wrong with the others), as long as one is whole.
        """
        answering_device(device)  # is there, or nothing is loaded
        return cls(load_model(path, verify, partial=partial)).to(device)

    def to(self, device: str) -> Model:
        """The same model answering on a device: "cpu" (the kernels), "cuda:1", "cuda" or "auto" (the first GPU).

        Its weights are copied there, once; docs/gpu.md says what is computed where. SettingError for a GPU that is not
        there, MissingExtraError when PyTorch is asked for and missing, MemoryBudgetError when the model does not fit.
        """
        there = answering_device(device)
        if there is None:
            return self
        if self._there is None or self._there[0] != there:
            from machxc.torch.scorer import DeviceModel

            self._there = there, DeviceModel(self, there)
        return self._there[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is on a device, and can be copied there again."""
        return {name: value for name, value in vars(self).items() if name != "_there"}

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write the model folder, whole or not at all; OutputError when it exists or cannot be written."""
        save_model(path, self._data, overwrite)

    @property
    def data(self) -> ModelData:
        """All that the model folder holds."""
        return self._data

    @property
    def config(self) -> Config:
        """The settings, all of them chosen."""
        return self._data.config

    @property
    def names(self) -> LabelNames:
        """The names of the K labels."""
        return self._data.names

    @property
    def label_counts(self) -> UInt32:
        """How many training samples carry each label: uint32 [K], made anew (``data.label_counts`` has them)."""
        return np.asarray(self._data.label_counts, np.uint32)

    @property
    def n_samples(self) -> int:
        """How many samples the model was trained on."""
        return self._data.n_samples

    @property
    def n_repetitions(self) -> int:
        """How many repetitions are there to answer (the config says how many there should be)."""
        return len(self._numbers)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the repetitions that are there, rising."""
        return list(self._numbers)

    @cached_property
    def partition(self) -> Partition:
        """Labels to buckets in each of the repetitions that are there: row i is repetition ``numbers[i]``."""
        return partition_of(self.config, self._data.assignment, self._numbers)

    @cached_property
    def seen(self) -> npt.NDArray[np.uint8]:
        """Which labels occurred in training, a bit each (little-endian bit order): uint8 [ceil(K / 8)]."""
        return self._data.label_counts.bitmap()

    def sketch(self, features: Features, jobs: int = 1) -> Float32:
        """The bucket scores of each query, before softmax or sigmoid: float32 [n, R, B]. ``jobs``: threads."""
        self._check(features)
        out = np.empty((len(features), self.n_repetitions, self.config.buckets), np.float32)
        if len(features) <= _FEW and self._together is not None:
            self._together.sketch(features, out)
            return out
        indptr, indices, values = (frozen(array) for array in (features.indptr, features.indices, features.values))
        features = Features(indptr, indices, values, features.n_features)  # once, and not in every repetition

        def score(place: int) -> None:
            encoder, scorer = self._scorers[place]
            scorer.logits(encoder(features), out[:, place])

        few = len(features) * self.n_repetitions < 256
        share_out(score, range(self.n_repetitions), 1 if few else jobs)
        return out

    def top_k(
        self,
        features: Features,
        k: int = 10,
        *,
        candidates: Array | None = None,
        estimator: str | None = None,
        method: str = "auto",
        jobs: int = 1,
    ) -> tuple[Int64, Float32]:
        """The k best labels of each query: ids int64 [n, k], best first, and scores float32 [n, k].

        Where fewer labels were seen in training, ids are -1 and scores -inf. ``candidates``: label ids to choose among;
        ``estimator``: how bucket scores are merged (default: the model's); ``method``: see `machxc.retrieval.top_k`.
        DataError when the features do not fit the model, SettingError when a parameter is out of its bounds.
        """
        retrieval.check_settings(k, method, jobs)
        if self._ranker is not None and candidates is None and method != "scan":
            return self._rank(features, k, estimator or self.config.estimator, jobs)
        allowed = self._allowed(candidates, method)
        ids = np.full((len(features), k), -1, np.int64)
        scores = np.full((len(features), k), -np.inf, np.float32)

        def answer(start: int, stop: int, jobs: int) -> None:
            ids[start:stop], scores[start:stop] = retrieval.top_k(
                self.sketch(features.rows(start, stop), jobs),
                self._looked_up,
                k,
                loss=self.config.loss,
                estimator=estimator or self.config.estimator,
                method=method,
                jobs=jobs,
                in_place=True,
                **allowed,
            )

        if self.n_repetitions > 1 or len(features) <= 1:
            for start, stop in self._blocks(features):
                answer(start, stop, jobs)
        else:  # one repetition can only be shared out by its queries, a few at a time: their logits stay in the cache
            share = -(-len(features) // jobs)
            step = max(1, min(chunk_size(features), _CACHED_LOGITS // self.config.buckets, share))
            starts = range(0, len(features), step)
            share_out(lambda at: answer(at, min(at + step, len(features)), 1), starts, jobs)
        self._check_files()
        return ids, scores

    def top_k_within(
        self,
        features: Features,
        k: int = 10,
        *,
        budget: int | None = None,
        deadline: float | None = None,
        estimator: str | None = None,
        jobs: int = 1,
    ) -> tuple[Int64, Float32, npt.NDArray[np.bool_]]:
        """`top_k` in bounded time: the best labels found, their scores, and whether they are proven to be the best.

        ``proven`` is bool [n]. One of two bounds, for each query: ``budget``, members of buckets that may be looked at
        (see `machxc.retrieval.top_k_within`), or ``deadline``, the milliseconds that finding labels may take; what is
        found within a deadline depends on the machine. SettingError unless just one is given, and as for `top_k`.
        """
        if (budget is None) == (deadline is None):
            raise SettingError("expected either a budget or a deadline")
        if deadline is not None:
            budget = retrieval.budget_within(deadline, self.partition)
        assert budget is not None
        retrieval.check_settings(k, "auto", jobs, budget)
        ids = np.full((len(features), k), -1, np.int64)
        scores = np.full((len(features), k), -np.inf, np.float32)
        proven = np.ones(len(features), np.bool_)
        for start, stop in self._blocks(features):
            ids[start:stop], scores[start:stop], proven[start:stop] = retrieval.top_k_within(
                self.sketch(features.rows(start, stop), jobs),
                self.partition,
                k,
                budget,
                loss=self.config.loss,
                estimator=estimator or self.config.estimator,
                seen=self.seen,
                jobs=jobs,
            )
        self._check_files()
        return ids, scores, proven

    def label_scores(
        self, features: Features, labels: Array, *, estimator: str | None = None, jobs: int = 1
    ) -> Float32:
        """The scores of given labels (ids int64 [m]) for each query, as `top_k` would give them: float32 [n, m]."""
        out = np.empty((len(features), len(labels)), np.float32)
        for start, stop in self._blocks(features):
            out[start:stop] = retrieval.label_scores(
                self.sketch(features.rows(start, stop), jobs),
                self.partition,
                labels,
                loss=self.config.loss,
                estimator=estimator or self.config.estimator,
            )
        self._check_files()
        return out

    def subset(self, numbers: list[int]) -> Model:
        """The same model with only some of its repetitions; SettingError for one that it does not have."""
        missing = sorted(set(numbers) - set(self._numbers))
        if missing:
            raise SettingError(f"the model has no repetition {missing[0]}; expected numbers among {self._numbers}")
        kept = {r: self._data.repetitions[r] for r in numbers}
        return Model(replace(self._data, repetitions=kept))

    @cached_property
    def _scorers(self) -> list[tuple[Encoder, Scorer]]:
        tensors: Mapping[int, dict[str, Array]] = self._data.repetitions
        try:
            return [(encoder_of(self.config, r, tensors[r]), scorer_of(self.config, tensors[r])) for r in self._numbers]
        finally:  # what was made of a file that was cut is worth nothing, or could not be made
            self._check_files()

    @cached_property
    def _together(self) -> Together | None:
        """The repetitions of a small model side by side, for a few queries."""
        pairs = [(encoder, scorer) for encoder, scorer in self._scorers if isinstance(scorer, LinearScorer)]
        return Together.of(pairs) if fits([scorer for _, scorer in self._scorers]) else None

    @cached_property
    def _looked_up(self) -> Partition:
        """The partition as retrieval reads it: few labels are looked up in less time than they are hashed."""
        given, n_labels = self.partition, self.config.n_labels
        if isinstance(given, TablePartition) or given.n_repetitions == 1 or given.n_repetitions * n_labels > _TABULATED:
            return given
        labels = np.arange(n_labels)
        return TablePartition(np.stack([given.buckets(labels, r) for r in range(given.n_repetitions)]), given.n_buckets)

    @cached_property
    def _ranker(self) -> RowRanker | None:
        """Where a label has a bucket of its own in the only repetition, and that is linear: what answers soonest."""
        if not is_single(self.partition):
            return None
        scorer = self._scorers[0][1]
        if not isinstance(scorer, LinearScorer):
            return None
        return RowRanker(scorer, self.partition, self.seen, self.config.loss)

    def _rank(self, features: Features, k: int, estimator: str, jobs: int) -> tuple[Int64, Float32]:
        """`top_k` by `_ranker`: queries are shared out among threads."""
        assert self._ranker is not None
        ranker, encoder = self._ranker, self._scorers[0][0]
        self._check(features)
        size = max(1, min(chunk_size(features), _SHARE, -(-len(features) // jobs)))
        starts = range(0, max(1, len(features)), size)

        def answer(start: int) -> tuple[Int64, Float32]:
            some = features.rows(start, min(start + size, len(features)))
            return ranker.top_k(encoder(some), k, estimator)

        ids, scores = zip(*share_out(answer, starts, jobs), strict=True)
        return np.concatenate(ids), np.concatenate(scores)

    def _allowed(self, candidates: Array | None, method: str) -> dict[str, Array]:
        """The labels that may be returned, as `machxc.retrieval.top_k` takes them.

        Where few were seen they are the candidates, and nothing is searched for the others: the same answers, sooner.
        """
        if candidates is None and method == "auto" and self._few_seen is not None:
            return {"candidates": self._few_seen}
        return {"seen": self.seen} | ({} if candidates is None else {"candidates": candidates})

    @cached_property
    def _few_seen(self) -> UInt32 | None:
        counts = self._data.label_counts
        few = _SEEN_OF * counts.n_seen <= len(counts) and self.n_repetitions > 1
        return counts.seen if few else None

    def _blocks(self, features: Features) -> Iterator[tuple[int, int]]:
        """Blocks of queries that take little memory; an empty one for no query, so that arguments are checked."""
        n, sketches = len(features), _SKETCH_BYTES // (4 * self.n_repetitions * self.config.buckets)
        size = max(1, min(chunk_size(features), sketches))
        for start in range(0, max(1, n), size):
            yield start, min(start + size, n)

    def _check_files(self) -> None:
        """Raise ModelError when a file of the model was found cut: what was computed from it is worth nothing."""
        if any_cut():
            data = self._data
            check(*(array for tensors in data.repetitions.values() for array in tensors.values()))
            check(*data.names.arrays().values(), *data.label_counts.arrays().values())

    def _check(self, features: Features) -> None:
        features.check()
        if features.n_features > self.config.n_features:
            raise DataError(
                f"the model was trained on {self.config.n_features} features; expected no more, "
                f"got {features.n_features}"
            )


def partition_of(config: Config, assignment: UInt32 | None = None, numbers: list[int] | None = None) -> Partition:
    """The partition of a config; ``numbers`` chooses and orders repetitions (default: all of them)."""
    if assignment is not None:
        return TablePartition(assignment if numbers is None else assignment[numbers], config.buckets)
    whole = HashPartition(config.n_labels, config.buckets, config.repetitions, config.seed)
    return whole if numbers is None or numbers == list(range(config.repetitions)) else whole.subset(numbers)
