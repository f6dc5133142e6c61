"""What only a GPU can tell. (tests/test_torch_kernels.py runs compiled where there is one.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch_tools import torch

from machxc.config import ESTIMATORS, Settings
from machxc.facts import facts_of
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.plan import make_plan
from machxc.testing import make_samples
from machxc.torch import loss
from machxc.torch.batches import batch_of
from machxc.torch.fused import kernels_for
from machxc.torch.scorer import DeviceModel
from machxc.torch.top_k import top_k
from machxc.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees"),
]
KINDS: dict[str, dict[str, Any]] = {
    "linear-softmax": {"loss": "softmax"},
    "linear-bce": {"loss": "bce"},
    "network-softmax": {"loss": "softmax", "hidden": 64},
    "network-bce": {"loss": "bce", "hidden": 64, "dropout": 0.1, "validation_fraction": 0.1},
}
DEEP: dict[str, Any] = {"loss": "softmax", "hidden": [64, 32], "normalisation": "layer", "hidden_dropout": 0.1}
SAMPLES, OTHERS = make_samples(4000, 200), make_samples(1000, 200, seed=9)


def model(kind: str, device: str) -> Model:
    settings = Settings(repetitions=4, buckets=50, epochs=10, **KINDS[kind])
    return train(SAMPLES, LabelNames.ids(200), settings, device=device)


def accuracy(model: Model) -> float:
    return float((model.top_k(OTHERS.features, 1)[0][:, 0] == OTHERS.labels.indices).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_the_kernels_learn(kind: str) -> None:
    assert accuracy(model(kind, "cuda:0")) > accuracy(model(kind, "cpu")) - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trained_on_either_answers_on_both_alike(kind: str) -> None:
    for device in ("cpu", "cuda:0"):
        trained = model(kind, device)
        ids, scores = DeviceModel(trained, "cuda:0").top_k(OTHERS.features, 10)
        expected_ids, expected = trained.top_k(OTHERS.features, 10)
        np.testing.assert_allclose(scores, expected, rtol=1e-3)
        assert (ids == expected_ids).mean() > 0.97


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_answers_alike(estimator: str) -> None:
    here = model("network-bce", "cpu")
    there = here.to("cuda")
    assert isinstance(there, DeviceModel)
    found, expected = (each.top_k(OTHERS.features, 10, estimator=estimator)[1] for each in (there, here))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    one_by_one = [there.top_k(OTHERS.features.rows(i, i + 1), 10, estimator=estimator)[1] for i in range(5)]
    np.testing.assert_allclose(np.concatenate(one_by_one), expected[:5], rtol=1e-3, atol=1e-6)


def test_triton_works_here() -> None:
    assert kernels_for(torch.zeros(1, device="cuda")) is not None


@pytest.mark.parametrize("kind", ["linear-bce", "network-softmax"])
def test_memory_that_is_short_is_made_do_with(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some calls for the gradient of a batch fail, with a true error of the allocator."""
    calls = [0]
    whole = loss.gradient_

    def unreliable(*arguments: Any, **how: Any) -> Any:
        calls[0] += 1
        if calls[0] in (2, 3, 4, 7):
            torch.empty(1 << 46, dtype=torch.uint8, device="cuda")  # 64 TiB
        return whole(*arguments, **how)

    monkeypatch.setattr("machxc.torch.learner.gradient_", unreliable)
    found = accuracy(model(kind, "cuda:0"))
    assert calls[0] > 7
    assert found > accuracy(model(kind, "cpu")) - 0.03


def test_a_plan_knows_the_memory_of_a_step() -> None:
    samples = make_samples(40_000, 2000)
    settings = Settings(repetitions=8, buckets=2000, hidden=512, epochs=1)
    plan = make_plan(facts_of(samples, text=False), settings, text=None, device="cuda")
    assert plan.on_device is not None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(samples, LabelNames.ids(2000), settings, device="cuda:0")
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.6 * taken <= 8 * (plan.on_device.weights + plan.on_device.step) <= 1.7 * taken


def test_several_layers_learn_and_are_scored_alike() -> None:
    settings = Settings(repetitions=4, buckets=50, epochs=10, **DEEP)
    one, again = (train(SAMPLES, LabelNames.ids(200), settings, device="cuda:0") for _ in range(2))
    assert accuracy(one) > accuracy(model("network-softmax", "cpu")) - 0.05
    np.testing.assert_allclose(
        DeviceModel(one, "cuda:0").top_k(OTHERS.features, 10)[1], one.top_k(OTHERS.features, 10)[1], rtol=1e-3
    )
    first, second = (each.data.repetitions[0] for each in (one, again))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("kind", ["linear-bce", "network-softmax"])
def test_the_same_comes_out_every_time(kind: str) -> None:
    one, again = (model(kind, "cuda:0").data.repetitions[0] for _ in range(2))
    assert all(one[name].tobytes() == again[name].tobytes() for name in one)


def test_the_best_of_many_labels_are_those_of_the_processor() -> None:
    from machxc.partition import HashPartition

    partition = HashPartition(3_000_000, 2000, 8, 0)
    z = np.random.default_rng(0).normal(0, 2, (5, 8, 2000)).astype(np.float32)
    on_gpu, here = (
        top_k(torch.from_numpy(z).to(device), partition, 100, loss="softmax", estimator="log-probability")
        for device in ("cuda:0", "cpu")
    )
    np.testing.assert_allclose(on_gpu[1], here[1], rtol=1e-4)
    assert (on_gpu[0] == here[0]).mean() > 0.97


def test_batches_arrive_whole() -> None:
    batch = batch_of(SAMPLES, "cuda:0")
    np.testing.assert_array_equal(batch.ids.cpu().numpy(), SAMPLES.features.indices)
    np.testing.assert_array_equal(batch.labels.cpu().numpy(), SAMPLES.labels.indices)
