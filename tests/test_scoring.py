"""Scatter and gather, on a stand-in for Ray whose actors may be late or lost: what is there is put together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from machxc.config import ESTIMATORS
from machxc.errors import ClusterError, SettingError
from machxc.executors import scoring
from machxc.executors.scoring import Gathered, ScatteredModel
from machxc.model import Model
from machxc.testing import make_samples, tiny_model

QUERIES = make_samples(37, 60, seed=3).features


class Ref:
    def __init__(self, actor: Actor, call: Callable[[], Any]) -> None:
        self.actor, self.call = actor, call


class Actor:
    """``state``: up, late (its answers are not ready), or lost (they are, and raise)."""

    def __init__(self, part: Any) -> None:
        self.part, self.state = part, "up"

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.part, name)
        return _Remote(lambda *arguments: Ref(self, lambda: method(*arguments)))


class _Remote:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class LostError(Exception):
    pass


class FakeRay:
    """As much of Ray as scoring takes."""

    class exceptions:  # noqa: N801 (as Ray calls it)
        RayActorError = LostError

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.calls = 0

    def remote(self, **_: Any) -> Callable[[Any], _Remote]:
        return lambda kind: _Remote(lambda *arguments: self._new(kind(*arguments)))

    def _new(self, part: Any) -> Actor:
        self.actors.append(Actor(part))
        return self.actors[-1]

    def wait(self, refs: list[Ref], **_: Any) -> tuple[list[Ref], list[Ref]]:
        self.calls += 1
        late = [ref for ref in refs if ref.actor.state == "late"]
        return [ref for ref in refs if ref not in late], late

    def get(self, ref: Ref) -> Any:
        if ref.actor.state == "lost":
            raise LostError
        return ref.call()

    def cancel(self, ref: Ref) -> None:
        pass

    def kill(self, actor: Actor) -> None:
        self.actors.remove(actor)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    fake = FakeRay()
    monkeypatch.setattr(scoring, "connected", lambda address: contextlib.nullcontext(fake))
    yield fake
    assert fake.actors == []


def saved(tmp_path: Path, **settings: Any) -> Model:
    samples = make_samples(600, 60)
    from machxc.config import Settings
    from machxc.labels import LabelNames
    from machxc.training import train

    chosen = {"repetitions": 6, "buckets": 8, "epochs": 2, **settings}
    model = train(samples, LabelNames.ids(60), Settings(**chosen))
    model.save(tmp_path / "model")
    return model


def same(found: Gathered, model: Model, k: int) -> None:
    ids, scores = model.top_k(QUERIES, k)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("actors", "k"), [(1, 5), (3, 1), (4, 10), (6, 70)])
def test_all_actors_answer_as_the_model_does(
    tmp_path: Path, cluster: FakeRay, estimator: str, actors: int, k: int
) -> None:
    model = saved(tmp_path, estimator=estimator, loss="bce" if k == 1 else "softmax")
    with ScatteredModel(tmp_path / "model", "auto", actors, deadline=60) as scattered:
        found = scattered.top_k(QUERIES, k)
    assert found.exact
    assert found.numbers == (0, 1, 2, 3, 4, 5)
    same(found, model, k)


@pytest.mark.parametrize("state", ["late", "lost"])
def test_actors_that_do_not_answer_are_left_out_and_the_answer_says_so(
    tmp_path: Path, cluster: FakeRay, state: str
) -> None:
    model = saved(tmp_path)
    with ScatteredModel(tmp_path / "model", "auto", 3, deadline=60) as scattered:
        cluster.actors[1].state = state
        found = scattered.top_k(QUERIES, 5)
        assert found.numbers == (0, 1, 4, 5)
        same(found, model.subset([0, 1, 4, 5]), 5)
        cluster.actors[0].state = cluster.actors[2].state = state
        with pytest.raises(ClusterError, match="no scoring actor answered within 60 s"):
            scattered.top_k(QUERIES, 5)


def test_easy_queries_take_two_rounds(tmp_path: Path, cluster: FakeRay) -> None:
    saved(tmp_path, buckets=64, epochs=10)
    with ScatteredModel(tmp_path / "model", "auto", 2, deadline=60) as scattered:
        before = cluster.calls
        assert scattered.top_k(QUERIES.rows(0, 8), 1).exact
        assert cluster.calls - before == 2


def test_no_queries(tmp_path: Path, cluster: FakeRay) -> None:
    saved(tmp_path)
    with ScatteredModel(tmp_path / "model", "auto", 2) as scattered:
        assert scattered.top_k(QUERIES.rows(0, 0), 3).ids.shape == (0, 3)


@pytest.mark.parametrize("actors", [0, 3])
def test_more_actors_than_repetitions_cannot_be(tmp_path: Path, actors: int) -> None:
    tiny_model().save(tmp_path / "model")
    with pytest.raises(SettingError, match=f"expected 1 to 2 actors, one repetition each, got {actors}"):
        ScatteredModel(tmp_path / "model", "auto", actors)
