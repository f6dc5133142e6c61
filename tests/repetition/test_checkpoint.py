"""Repetitions that are stopped anywhere and go on from their checkpoint, to the same bytes as if never stopped."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from machxc.config import Config, Settings
from machxc.facts import facts_of
from machxc.model import partition_of
from machxc.plan import make_plan
from machxc.repetition import chunks
from machxc.repetition.checkpoint import Checkpoints
from machxc.repetition.loop import train_repetition
from machxc.samples import Array, Samples
from machxc.testing import make_samples

SAMPLES = make_samples(230, 20)
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"dropout": 0.2},
    "linear, bce": {"loss": "bce"},
    "network": {"hidden": 8, "dropout": 0.1},
    "network, sampled": {"hidden": 8, "negatives": 4, "loss": "bce"},
    "linear, held out": {"validation_fraction": 0.3, "patience": 1, "epochs": 12, "learning_rate": 1.0},
    "network, held out": {"hidden": 8, "validation_fraction": 0.2, "patience": 2},
}


class StoppedError(Exception):
    pass


class Kept:
    """Keeps the tensors of the last checkpoint."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] | None = None
        self.saved = 0

    def save(self, tensors: Any) -> None:
        self.tensors = {name: np.array(array) for name, array in tensors.items()}
        self.saved += 1

    def checkpoints(self, interval: float = 0.0) -> Checkpoints:
        return Checkpoints(lambda: self.tensors, self.save, interval)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 50)


def config_of(kind: str = "linear", samples: Samples = SAMPLES) -> Config:
    settings = Settings(**{"buckets": 16, "epochs": 3, "repetitions": 2, "learner": "gradient", **KINDS[kind]})
    return make_plan(facts_of(samples, text=False), settings, text=None).config


def train(config: Config, on_samples: Any = None, checkpoints: Checkpoints | None = None, r: int = 1) -> Any:
    tensors = train_repetition(SAMPLES, config, partition_of(config), r, on_samples, checkpoints)
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}


def stop_after(n: int) -> Any:
    calls = iter(range(n))

    def on_samples(_: int) -> None:
        if next(calls, None) is None:
            raise StoppedError

    return on_samples


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_any_chunk_it_ends_in_the_same_bytes(kind: str) -> None:
    config = config_of(kind)
    expected, stops = train(config), 0
    while True:
        kept = Kept()
        try:
            train(config, stop_after(stops), kept.checkpoints())
            break
        except StoppedError:
            stops += 1
        assert train(config, None, kept.checkpoints()) == expected
    assert stops >= 10


@pytest.mark.parametrize("kind", ["linear, held out", "network"])
def test_stopped_again_and_again_it_ends_in_the_same_bytes(kind: str) -> None:
    config, kept = config_of(kind), Kept()
    expected = train(config)
    for _ in range(100):
        try:
            assert train(config, stop_after(2), kept.checkpoints()) == expected  # the first call tells what was done
            break
        except StoppedError:
            pass
    else:
        pytest.fail("it never came to an end")


@pytest.mark.parametrize("kind", ["linear", "linear, held out"])
def test_what_was_done_before_is_counted(kind: str) -> None:
    config, kept = config_of(kind), Kept()
    with pytest.raises(StoppedError):
        train(config, stop_after(4), kept.checkpoints())
    told: list[int] = []
    train(config, told.append, kept.checkpoints())
    whole: list[int] = []
    train(config, whole.append)
    assert sum(told) == sum(whole)
    assert len(told) == len(whole) - 4  # five chunks were done, and are told as one


def test_nothing_is_kept_before_the_interval_is_over() -> None:
    kept = Kept()
    train(config_of(), None, kept.checkpoints(interval=1e6))
    assert kept.saved == 0


def test_a_slow_disk_has_fewer_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kept = Kept()

    def slowly(tensors: Any) -> None:
        nonlocal now
        kept.save(tensors)
        now += 10

    def on_samples(_: int) -> None:
        nonlocal now
        now += 10

    config = replace(config_of(), epochs=20)  # 100 chunks, ten seconds each
    train(config, on_samples, Checkpoints(lambda: None, slowly, 5.0))
    assert kept.saved == 5  # after 200 seconds each, not 5


def test_a_counted_repetition_keeps_nothing() -> None:
    facts = facts_of(SAMPLES, text=False)
    config = make_plan(facts, Settings(buckets=16, repetitions=2, learner="counts"), text=None).config
    kept = Kept()
    assert train(config, None, kept.checkpoints()) == train(config)
    assert kept.saved == 0


def other_array(tensors: dict[str, Array]) -> None:
    tensors["learner.bias"][3] += 1


def other_position(tensors: dict[str, Array]) -> None:
    tensors["position"][1] += 50


def missing(tensors: dict[str, Array]) -> None:
    del tensors["learner.bias"]


def empty(tensors: dict[str, Array]) -> None:
    tensors.clear()


@pytest.mark.parametrize("damage", [other_array, other_position, missing, empty])
def test_a_damaged_checkpoint_is_none(damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    config, kept = config_of(), Kept()
    with pytest.raises(StoppedError):
        train(config, stop_after(6), kept.checkpoints())
    assert kept.tensors is not None
    damage(kept.tensors)
    with caplog.at_level(logging.WARNING, "machxc"):
        assert train(config, None, kept.checkpoints()) == train(config)
    assert "repetition 1 begins anew: its checkpoint cannot be used" in caplog.text


@pytest.mark.parametrize("other", [{"seed": 1}, {"epochs": 4}, {"r": 0}])
def test_the_checkpoint_of_another_repetition_is_none(other: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    config, kept = config_of(), Kept()
    with pytest.raises(StoppedError):
        train(config, stop_after(6), kept.checkpoints())
    r = other.get("r", 1)
    changed = replace(config, **{name: value for name, value in other.items() if name != "r"})
    assert train(changed, None, kept.checkpoints(), r) == train(changed, r=r)
    assert "it belongs to another repetition" in caplog.text
