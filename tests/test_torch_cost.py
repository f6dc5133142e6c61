"""What a plan says of training on a device, against the bytes that PyTorch then allocates on the processor."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_tools import torch

from machxc.cli import main
from machxc.config import Config, Settings
from machxc.errors import SettingError
from machxc.facts import facts_of
from machxc.plan import make_plan
from machxc.repetition.checkpoint import learner_of
from machxc.repetition.encode import fit_encoder
from machxc.samples import Features, Labels, Samples
from machxc.torch import layers, loss
from machxc.torch.batches import batch_of
from machxc.torch.cost import DeviceCost, batch_size, device_cost
from machxc.torch.learner import Group, group_of
from run_tools import write_jsonl

KINDS: dict[str, dict[str, Any]] = {
    "linear": {"buckets": 300},
    "linear-few": {"buckets": 40},
    "network": {"buckets": 400, "hidden": 128},
    "network-wide": {"buckets": 50, "hidden": 300},
    "deep": {"buckets": 200, "hidden": [200, 100, 50], "hidden_dropout": 0.5},
    "deep-normalised": {"buckets": 100, "hidden": [100, 300], "normalisation": "layer"},
}


def made(n: int, f: int, n_features: int, n_labels: int) -> Samples:
    source = np.random.default_rng(0)
    offsets = np.arange(n + 1, dtype=np.int64)
    ids = np.sort(source.integers(0, n_features, (n, f)).astype(np.uint32), axis=1).ravel()
    labels = source.integers(0, n_labels, n).astype(np.uint32)
    features = Features(offsets * f, ids, np.ones(n * f, np.float32), n_features)
    return Samples(features, Labels(offsets, labels, n_labels))


def planned(samples: Samples, **settings: Any) -> tuple[Config, DeviceCost]:
    facts = facts_of(samples, text=False)
    plan = make_plan(facts, Settings(repetitions=2, **settings), text=None, device="torch-cpu")
    assert plan.on_device is not None
    return plan.config, plan.on_device


def peak_of(run: Any) -> int:
    """The most bytes that PyTorch had allocated at once during a call, beside those before."""
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([n for _, n in memory]).max())


def group(config: Config, samples: Samples) -> Group:
    from machxc.partition import HashPartition

    partition = HashPartition(config.n_labels, config.buckets, config.repetitions, config.seed)
    encoders = [fit_encoder(samples.features, config, r) for r in range(config.repetitions)]
    found = group_of(config, partition, list(range(config.repetitions)), "cpu", encoders)
    for i, encoder in enumerate(encoders):
        bias = np.zeros(config.buckets, np.float32)
        found.set(i, learner_of(config, i, len(encoder.row_weights), bias, whole=True))
    return found


@pytest.mark.parametrize(("kind", "f"), [("linear", 4), ("linear-few", 40), ("network", 40), ("network-wide", 4)])
def test_the_bytes_of_a_device_are_those_that_are_allocated(kind: str, f: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (layers, loss):  # what Triton's kernels hold in registers
        monkeypatch.setattr(module, "_CHUNK", 1 << 12)
    samples = made(33_000, f, 5000, 2000)
    config, cost = planned(samples, feature_bits=13, min_count=1, **KINDS[kind])
    assert cost.batch == batch_size(len(samples)) == 1024
    before = sum(_bytes(tensor) for tensor in _tensors())
    found = group(config, samples)
    weights = sum(_bytes(tensor) for tensor in _tensors()) - before
    assert cost.weights * config.repetitions == pytest.approx(weights, rel=0.05)
    batch = batch_of(samples_of(samples, cost.batch), "cpu")
    step = peak_of(lambda: found.train(batch, 0.1, 0))
    assert 0.65 * step <= cost.step * config.repetitions <= 1.5 * step


def _tensors() -> list[Any]:
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]


def _bytes(tensor: Any) -> int:
    return int(tensor.untyped_storage().nbytes()) if tensor._base is None else 0


def samples_of(samples: Samples, n: int) -> Samples:
    labels = Labels(samples.labels.indptr[: n + 1], samples.labels.indices[:n], samples.labels.n_labels)
    return Samples(samples.features.rows(0, n), labels)


def test_the_published_shape_takes_what_the_documentation_says() -> None:
    config, facts = (
        planned(made(2000, 8, 5000, 2000), buckets=400, hidden=128)[0],
        facts_of(made(2000, 8, 5000, 2000), text=False),
    )
    config = dataclasses.replace(
        config, buckets=20_000, hidden=2000, repetitions=32, n_features=80_000, feature_bits=17
    )
    facts = dataclasses.replace(facts, n_samples=70_000_000, n_values=560_000_000, n_distinct=80_000, n_features=80_000)
    cost = device_cost(config, facts, "cuda")
    assert cost is not None
    assert cost.batch == 8192
    assert 32 * cost.weights == pytest.approx(28e9, rel=0.05)  # 21 of tables, 8 of outputs
    assert 32 * cost.step == pytest.approx(17.5e9, rel=0.1)  # 15 of a batch, 3 of gradients
    assert cost.together(80 * 10**9) == 32
    assert 0 < cost.together(24 * 10**9) <= cost.at_all(24 * 10**9) < 32
    assert cost.together(10**9) == cost.at_all(10**9) == 0


@pytest.mark.parametrize("memory", [1 << 28, 3 << 30, 10**11])
def test_what_computes_together_trains_at_all(memory: int) -> None:
    cost = planned(made(2000, 8, 5000, 2000), buckets=400, hidden=128)[1]
    assert cost.least < cost.step
    assert cost.together(memory) <= cost.at_all(memory) <= cost.n_repetitions


def test_the_plan_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_jsonl(tmp_path / "data.jsonl"))
    capsys.readouterr()
    assert main(["plan", data, "--device", "cuda"]) == 0
    said = capsys.readouterr().out
    assert "of cuda for a repetition, and" in said
    assert "for a step by 16 samples" in said
    assert "not measured      how long" in said
    assert "of 4 together     16 GB: 4, 24 GB: 4" in said
    assert main(["plan", data, "--device", "cuda:1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["device"]
    assert found["seconds"] is None
    assert found["repetitions_in"]["80 GB"] == {"together": 4, "at_all": 4}
    assert main(["plan", data, "--json"]) == 0
    assert "device" not in json.loads(capsys.readouterr().out)
    assert main(["plan", data, "--device", "gpu"]) == 2
    assert main(["plan", data, "--device", "cuda", "--learner", "counts"]) == 0
    assert "processor time" in capsys.readouterr().out  # the kernels count


def test_what_is_no_device_is_refused_before_anything_is_read() -> None:
    from machxc.run import plan_run

    with pytest.raises(SettingError, match="'device' must be"):
        plan_run("not-there.jsonl", device="gpu")
