"""Scatter and gather: a model whose repetitions do not fit one machine answers from actors of a Ray cluster.

Each actor has some repetitions. A query goes to all of them; each proposes its own best labels, then all give what
their repetitions contribute to every label proposed, and that is put together in the order of the repetitions: the
scores are those of the whole model, to the last bit. That nothing better was left out is known by a bound (Cao and
Wang 2004): a label that no actor proposed gets from each at most what its last proposal got. Where the bound does not
tell, more labels are proposed. Actors that do not answer in time are left out, and the answer says so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from machxc.errors import ClusterError, SettingError
from machxc.executors.ray import connected
from machxc.model import Model
from machxc.retrieval import check_settings
from machxc.retrieval.estimators import MEDIAN, MIN, contributions, finish, merge_of
from machxc.samples import Features, Float32, Int64

_BLOCK = 8  # queries that share their candidates
_FIRST, _MORE = 2, 4  # proposals of an actor: so many times k at first, and so many times more in each further round


@dataclass(frozen=True)
class Gathered:
    """The k best labels of n queries: ids int64 [n, k] and scores float32 [n, k], as `Model.top_k` gives them.

    ``numbers``: the repetitions that all queries were answered from; ``exact``: whether no other label can be better by
    these (False when the time was up before that was known).
    """

    ids: Int64
    scores: Float32
    numbers: tuple[int, ...]
    exact: bool


class ScatteredModel:
    """The model in the folder ``path``, which all nodes see, as ``actors`` actors on the cluster at ``address``.

    ``deadline``: seconds after which the answers that are there are put together. A context manager: the actors end
    with it. ClusterError when no actor has come up after ``patience`` seconds.
    """

    def __init__(
        self, path: Path | str, address: str, actors: int, *, deadline: float = 0.5, patience: float = 60.0
    ) -> None:
        model = Model.load(path, verify=False)
        if not 1 <= actors <= model.n_repetitions:
            raise SettingError(f"expected 1 to {model.n_repetitions} actors, one repetition each, got {actors}")
        self.config, self._k_most, self.deadline = model.config, len(model.names), deadline
        self._merge = merge_of(model.config.estimator)
        self._stack = contextlib.ExitStack()
        self._ray = self._stack.enter_context(connected(address))
        remote = self._ray.remote(num_cpus=1, max_restarts=-1)(_Part)
        self._parts = [(remote.remote(str(Path(path).absolute()), n), n) for n in _dealt(model.numbers, actors)]
        ready = self._ray.wait([part.ready.remote() for part, _ in self._parts], num_returns=actors, timeout=patience)
        if not ready[0]:
            self.close()
            raise ClusterError(f"no scoring actor came up within {patience:g} s; the cluster has no room for {actors}")

    def __enter__(self) -> ScatteredModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors."""
        for part, _ in self._parts:
            self._ray.kill(part)
        self._parts = []
        self._stack.close()

    def top_k(self, features: Features, k: int = 10) -> Gathered:
        """The k best labels of each query, from the actors that answer in time; ClusterError when none does."""
        check_settings(k, "auto", 1)
        blocks = [self._block(features.rows(at, min(at + _BLOCK, len(features))), k) for at in _steps(len(features))]
        numbers = set.intersection(*(set(block.numbers) for block in blocks)) if blocks else set()
        return Gathered(
            np.concatenate([np.empty((0, k), np.int64), *(block.ids for block in blocks)]),
            np.concatenate([np.empty((0, k), np.float32), *(block.scores for block in blocks)]),
            tuple(sorted(numbers)),
            all(block.exact for block in blocks),
        )

    def _block(self, features: Features, k: int) -> Gathered:
        end, proposals = time.monotonic() + self.deadline, min(_FIRST * k, self._k_most)
        best: Gathered | None = None
        while True:
            proposed = self._ask("propose", end, features, proposals)
            given = self._ask("contribute", end, features, _union(proposed)) if proposed else []
            if not given:
                if best is None:
                    raise ClusterError(f"no scoring actor answered within {self.deadline:g} s")
                return best
            best = self._combined(given, proposed, k, whole=proposals >= self._k_most)
            if best.exact or proposals >= self._k_most:
                return best
            proposals = min(_MORE * proposals, self._k_most)

    def _ask(self, method: str, end: float, *arguments: Any) -> list[tuple[list[int], Any]]:
        """What the actors answer until the time is up, each with the numbers of its repetitions."""
        refs = {getattr(part, method).remote(*arguments): numbers for part, numbers in self._parts}
        left = max(0.0, end - time.monotonic())
        ready, late = self._ray.wait(list(refs), num_returns=len(refs), timeout=left)
        for ref in late:
            self._ray.cancel(ref)
        answers = []
        for ref in ready:
            with contextlib.suppress(self._ray.exceptions.RayActorError):  # its node is gone
                answers.append((refs[ref], self._ray.get(ref)))
        return sorted(answers, key=lambda answer: answer[0])

    def _combined(self, given: list[Any], proposed: list[Any], k: int, *, whole: bool) -> Gathered:
        """The answer from what was given to all labels proposed; ``whole``: these are all labels there are."""
        labels = _union(proposed)
        parts = {r: values for numbers, each in given for r, values in zip(numbers, each, strict=True)}
        numbers = sorted(parts)
        merged = _merged([parts[r] for r in numbers], self._merge)
        least = {tuple(n): last for n, (_, last) in proposed}
        bound = _bound([least[tuple(n)] for n, _ in given if tuple(n) in least], self._merge)
        known = len(least) == len(given) and all(tuple(n) in least for n, _ in given)
        scores = finish(merged, self.config.estimator, len(numbers), self.config.buckets)
        order = np.lexsort((np.broadcast_to(labels, merged.shape), -merged), axis=-1)[:, :k]
        ids, kept = _padded(labels[order], -1, k), _padded(np.take_along_axis(scores, order, 1), -np.inf, k)
        last = np.take_along_axis(merged, order, 1)[:, -1] if order.shape[1] == k else np.full(len(merged), -np.inf)
        known = known and self._merge != MEDIAN  # of a median, parts tell nothing
        exact = whole or (known and bool((last > bound + 1e-5 * np.abs(bound)).all()))
        return Gathered(ids, kept.astype(np.float32), tuple(numbers), exact)


class _Part:
    """An actor: some repetitions of a model."""

    def __init__(self, path: str, numbers: list[int]) -> None:
        self._model = Model.load(path, verify=False).subset(numbers)

    def ready(self) -> bool:
        """Whether it has come up: it answers."""
        return True

    def propose(self, features: Features, k: int) -> tuple[Int64, Float32]:
        """Its own best labels [n, k], and what it gives to the last of them at most: float32 [n], +inf if to none."""
        ids, _ = self._model.top_k(features, k)
        values = self.contribute(features, np.unique(ids[ids >= 0]))
        merged = _merged(values, merge_of(self._model.config.estimator))
        labels = np.unique(ids[ids >= 0])
        own = np.take_along_axis(merged, np.searchsorted(labels, np.maximum(ids, 0)).clip(0, len(labels) - 1), 1)
        return ids, np.where(ids >= 0, own, np.inf).min(axis=1)

    def contribute(self, features: Features, labels: Int64) -> list[Float32]:
        """What each of its repetitions gives to labels: float32 [n, m] each."""
        config = self._model.config
        values = contributions(self._model.sketch(features), config.loss, config.estimator)
        partition = self._model.partition
        return [values[:, place, partition.buckets(labels, place)] for place in range(values.shape[1])]


def _merged(parts: list[Float32], merge: int) -> Float32:
    """The contributions of repetitions, as `machxc.retrieval.label_scores` merges them."""
    if merge == MEDIAN:
        return np.median(np.stack(parts), axis=0).astype(np.float32)
    if merge == MIN:
        least: Float32 = np.minimum.reduce(parts)
        return least
    merged = np.zeros_like(parts[0])
    for part in parts:  # in order, in float32
        merged += part
    return merged


def _bound(least: list[Float32], merge: int) -> Float32:
    """What a label that nobody proposed can have at most."""
    most: Float32 = np.minimum.reduce(least) if merge == MIN else np.sum(least, axis=0, dtype=np.float32)
    return most


def _union(proposed: list[tuple[list[int], tuple[Int64, Float32]]]) -> Int64:
    found: Int64 = np.unique(np.concatenate([ids.ravel() for _, (ids, _) in proposed]))
    return found[found >= 0]


def _dealt(numbers: list[int], actors: int) -> list[list[int]]:
    return [[int(r) for r in part] for part in np.array_split(numbers, actors)]


def _steps(n: int) -> Iterator[int]:
    return iter(range(0, n, _BLOCK))


def _padded(array: Any, value: float, k: int) -> Any:
    return np.pad(array, ((0, 0), (0, k - array.shape[1])), constant_values=value)
