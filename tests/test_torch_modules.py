"""Modules in front of a model: dense problems that need depth, any module, weights that are kept without code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_tools import torch

from machxc import MACHClassifier
from machxc.errors import DataError, ModelError, SettingError
from machxc.samples import Array
from machxc.torch import modules


def rings(n: int, width: int = 64, seed: int = 0) -> tuple[Array, Array]:
    """Points of six rings in a plane, turned into ``width`` dimensions; labels are the rings, which no plane parts."""
    source = np.random.default_rng(seed)
    ring, angle = source.integers(0, 6, n), source.random(n) * 2 * np.pi
    radius = ring + 0.5 + 0.2 * source.standard_normal(n)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    directions = np.linalg.qr(np.random.default_rng(99).standard_normal((width, 2)))[0]
    noise = 0.02 * source.standard_normal((n, width))
    return (points @ directions.T + noise).astype(np.float32), ring


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_dense_inputs_that_need_a_hidden_layer(device: str) -> None:
    (X, y), (queries, wanted) = rings(2000, 16), rings(500, 16, seed=1)
    y, wanted = y // 2, wanted // 2
    score = {}
    for hidden in (0, 64):
        model = MACHClassifier(hidden=hidden, repetitions=2, epochs=20, device=device).fit(X, y)
        score[hidden] = model.score(queries, wanted)
    assert score[0] < 0.5
    assert score[64] > 0.9


def test_a_deep_network_learns_what_a_linear_model_cannot() -> None:
    (X, y), (queries, wanted) = rings(4000), rings(500, seed=1)
    torch.manual_seed(0)
    module = modules.layers(64, [64, 32], dropout=0.05)
    losses = modules.train_encoder(module, X, y, epochs=20, learning_rate=3e-3)
    assert losses[-1] < 0.5 * losses[0]
    model = MACHClassifier(hidden=0).fit(modules.encode(module, X), y)
    assert model.score(modules.encode(module, queries), wanted) > 0.85


def test_a_model_and_its_module_come_back_from_the_disk(tmp_path: Path) -> None:
    X, y = rings(600)
    torch.manual_seed(0)
    module = modules.layers(64, [32])
    modules.train_encoder(module, X, y, epochs=3)
    model = MACHClassifier().fit(modules.encode(module, X), y)
    model.save(tmp_path / "model")
    modules.save_weights(module, tmp_path / "encoder.safetensors")
    other, loaded = modules.layers(64, [32]), MACHClassifier.load(tmp_path / "model")
    modules.load_weights(other, tmp_path / "encoder.safetensors")
    for mine, theirs in zip(
        model.top_k(modules.encode(module, X[:50])), loaded.top_k(modules.encode(other, X[:50])), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_the_seed_decides_all_and_the_random_numbers_of_others_stay() -> None:
    def trained(seed: int) -> dict[str, Any]:
        torch.manual_seed(5)
        module = modules.layers(64, [16], dropout=0.3)
        state = torch.random.get_rng_state()
        modules.train_encoder(module, X, y, epochs=2, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return dict(module.state_dict())

    X, y = rings(300)
    first, second, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


class Words(torch.nn.Module):  # type: ignore[misc]
    """A module that is no array's: the mean of a letter's vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(128, 16)

    def forward(self, given: dict[str, Any]) -> Any:
        return self.bag(given["ids"], given["offsets"])


def letters(texts: list[str]) -> dict[str, Any]:
    ends = np.cumsum([0, *map(len, texts)])[:-1]
    return {"ids": torch.tensor([ord(c) for c in "".join(texts)]), "offsets": torch.from_numpy(ends)}


def test_any_module_and_label_sets() -> None:
    texts = ["abba", "cdc", "abc", "ddd", "", "bab"] * 40
    sets = [[c for c in "abcd" if c in text] for text in texts]
    module = Words().eval()
    modules.train_encoder(module, texts, sets, prepare=letters, batch=32, epochs=20, learning_rate=0.05)
    assert not module.training
    features = modules.encode(module, texts, prepare=letters, batch=7)
    assert features.shape == (240, 16)
    np.testing.assert_allclose(features[:6], modules.encode(module, texts[:6], prepare=letters), rtol=1e-6)
    best = MACHClassifier(hidden=16, epochs=20).fit(features, sets).top_k(features[:4], 1)[0][:, 0]
    assert all(label in text for label, text in zip(best, texts, strict=False))


def test_inputs_are_read_from_the_disk_in_parts(tmp_path: Path) -> None:
    X, y = rings(300)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    encoded = []
    for inputs in (X, mapped):
        torch.manual_seed(0)
        module = modules.layers(64, [8])
        modules.train_encoder(module, inputs, y, epochs=1)
        encoded.append(modules.encode(module, inputs))
    np.testing.assert_array_equal(encoded[0], encoded[1])


def test_nothing_is_dropped_when_encoding() -> None:
    X, _ = rings(20)
    module = modules.layers(64, [32], dropout=0.9)
    np.testing.assert_array_equal(modules.encode(module, X), modules.encode(module, X))
    assert module.training


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    X, y = rings(20)
    module = modules.layers(64, [8], norm=False)
    with pytest.raises(SettingError, match=r"hidden sizes of at least 1.* Got 64, \[\] and 0.0"):
        modules.layers(64, [])
    with pytest.raises(DataError, match=r"as many label sets as inputs \(20\), got 19"):
        modules.train_encoder(module, X, y[:19])
    with pytest.raises(DataError, match=r"expected an output of shape \(20, width\) of 20 inputs, got \(1280,\)"):
        modules.encode(torch.nn.Flatten(0), X)
    with pytest.raises(DataError, match="diverged in epoch 1"):
        modules.train_encoder(module, X * np.float32("inf"), y)
    with pytest.raises(DataError, match="NaN or infinity"):
        modules.encode(module, X)
    modules.save_weights(modules.layers(64, [9], norm=False), tmp_path / "other")
    with pytest.raises(ModelError, match=r"other: '0.weight' is float32 \(9, 64\); expected float32 \(8, 64\)"):
        modules.load_weights(module, tmp_path / "other")
    with pytest.raises(ModelError, match=r"expected the weights \['0.bias', '0.weight', '1.bias', '1.weight'\]"):
        modules.load_weights(modules.layers(64, [9]), tmp_path / "other")
    with pytest.raises(ModelError, match="cannot read it"):
        modules.load_weights(module, tmp_path / "absent")


@pytest.mark.slow
def test_the_example_of_an_encoder_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "examples"))
    monkeypatch.setattr(sys, "argv", ["deep_encoder.py"])
    importlib.import_module("deep_encoder").main()
    scores = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 4
    assert min(scores[1:3]) > scores[0]
    assert scores[3] > max(scores[1:3])


def test_gradients_reach_all_of_a_module_and_other_samples_make_another() -> None:
    X, y = rings(300)
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(64, 24), torch.nn.GELU(), torch.nn.LayerNorm(24), torch.nn.Linear(24, 8)
    )
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    modules.train_encoder(module, X, y, epochs=2)
    assert all((weight != before[name]).any() for name, weight in module.named_parameters())
