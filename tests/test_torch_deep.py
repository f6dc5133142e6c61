"""Several hidden layers, normalisation and dropout: trained by PyTorch, stored and scored as any other repetition."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_tools import (
    BUCKETS,
    DEEP,
    ROWS,
    config_of,
    plain_config,
    plain_encoder,
    plain_partition,
    plain_samples,
    random_inputs,
    torch,
)

from machxc import MACHClassifier
from machxc.config import Config, Settings
from machxc.data.arrays import features_of, labels_of
from machxc.errors import MissingExtraError, SettingError
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.partition import HashPartition
from machxc.repetition.checkpoint import learner_of
from machxc.repetition.deep import DeepLearner
from machxc.repetition.encode import Encoder
from machxc.repetition.int8 import from_int8, to_int8
from machxc.run import train_run
from machxc.samples import Samples
from machxc.testing import make_samples, make_texts
from machxc.torch import learner as learners
from machxc.torch import loss
from machxc.torch.batches import Batch, batch_of
from machxc.torch.encode import GroupEncoder, Matrix, Rows
from machxc.torch.groups import group_tasks
from machxc.torch.learner import Group, group_of
from machxc.torch.scorer import DeviceModel
from machxc.torch.train import train_group
from machxc.training import train

KINDS = pytest.mark.parametrize("kind", ["softmax", "bce"])
EXACT: dict[str, dict[str, Any]] = {
    "two": {"hidden": [6, 5]},
    "three-normalised": {"hidden": [6, 5, 4], "normalisation": "layer"},
    "one-normalised": {"hidden": 6, "normalisation": "layer"},
}
ALL = EXACT | {"one-dropout": {"hidden": 6, "hidden_dropout": 0.3}}
SHAPES = pytest.mark.parametrize("shape", ALL.values(), ids=ALL)


def start(config: Config, seed: int) -> DeepLearner:
    """A learner with random weights, the output layer's and the biases too."""
    random = np.random.default_rng(seed)
    made = learner_of(config, seed, ROWS, random.normal(0, 1, BUCKETS).astype(np.float32))
    assert isinstance(made, DeepLearner)
    for name, array in made.arrays.items():
        if name == "output" or name.endswith("_bias"):
            array[:] = random.normal(0, 0.5, array.shape)
    return made


def group(config: Config, seeds: list[int]) -> Group:
    made = group_of(config, plain_partition(), seeds, "cpu", [plain_encoder() for _ in seeds])
    for i, seed in enumerate(seeds):
        made.set(i, start(config, seed))
    return made


# ---- steps, against the gradients that PyTorch finds by itself


class Plain:
    """The same repetition, written down once, forward only: autograd does the rest. All in float64."""

    def __init__(self, config: Config, learner: DeepLearner) -> None:
        self.config = config
        self.arrays = {name: torch.from_numpy(array.astype(np.float64)) for name, array in learner.arrays.items()}
        self.names = [name for name in self.arrays if not name.endswith(("square", "squares"))]

    def loss(self, weights: dict[str, Any], samples: Any) -> Any:
        x = torch.from_numpy(dense(samples)) @ weights["table"]
        h = self.units(x, weights["hidden_bias"])
        for i in range(1, len(self.config.layers)):
            h = self.units(h @ weights[f"layer_{i}"].T, weights[f"layer_{i}_bias"])
        z = h @ weights["output"].T + weights["bias"]
        given = torch.from_numpy(samples.weights.astype(np.float64))
        wanted = torch.from_numpy(indicator(samples))
        if self.config.loss == "softmax":
            shares = wanted / wanted.sum(1, keepdim=True).clamp(min=1)
            return (given * (torch.logsumexp(z, 1) * wanted.any(1) - (z * shares).sum(1))).sum()
        return (given[:, None] * (torch.nn.functional.softplus(z) - z * wanted)).sum()

    def units(self, x: Any, bias: Any) -> Any:
        if self.config.normalisation == "layer":
            x = torch.nn.functional.layer_norm(x, x.shape[1:], eps=1e-6)
        return torch.relu(x + bias)

    def step(self, samples: Any, rate: float) -> None:
        weights = {name: self.arrays[name].clone().requires_grad_() for name in self.names}
        self.loss(weights, samples).backward()
        for name in self.names:
            gradient, matrix = weights[name].grad, weights[name].ndim == 2
            sums = {"table": "squares"}.get(name, f"{name}_squares" if matrix else f"{name}_square")
            self.arrays[sums] += gradient.square().sum(1) if matrix else gradient.square().sum()
            scale = torch.where(self.arrays[sums] > 0, self.arrays[sums].rsqrt(), 0.0)
            self.arrays[name] -= rate * gradient * scale[:, None] if matrix else 0.1 * rate * gradient * scale


def dense(samples: Any) -> Any:
    features = samples.features
    x = np.zeros((len(samples), ROWS))
    np.add.at(x, (np.repeat(np.arange(len(samples)), np.diff(features.indptr)), features.indices), features.values)
    return x


def indicator(samples: Any) -> Any:
    labels = samples.labels
    y = np.zeros((len(samples), BUCKETS))
    y[np.repeat(np.arange(len(samples)), np.diff(labels.indptr)), labels.indices] = 1
    return y


@KINDS
@pytest.mark.parametrize("shape", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("n", [1, 7, 64])
def test_steps_go_down_the_gradients(kind: str, shape: dict[str, Any], n: int) -> None:
    config, seeds = plain_config(loss=kind, **shape), [2, 5]
    made, plains = group(config, seeds), [Plain(config, start(config, seed)) for seed in seeds]
    for seed in range(3):
        samples = plain_samples(*random_inputs(n, seed))
        made.train(batch_of(samples, "cpu"), 0.3, 0)
        for plain in plains:
            plain.step(samples, 0.3)
    for i, plain in enumerate(plains):
        found = made.learner(i)
        assert isinstance(found, DeepLearner)
        for name, array in plain.arrays.items():
            np.testing.assert_allclose(found.arrays[name], array.numpy(), rtol=2e-3, atol=2e-4, err_msg=name)


@KINDS
@SHAPES
def test_logits_are_those_of_the_kernels(kind: str, shape: dict[str, Any]) -> None:
    config = plain_config(loss=kind, **shape)
    made, samples = group(config, [0, 4]), plain_samples(*random_inputs(30, 5)[:2])
    learners = [start(config, seed) for seed in (0, 4)]
    for i, learner in enumerate(learners):
        for matrix in (array for array in learner.arrays.values() if array.ndim == 2):
            matrix[:] = from_int8(*to_int8(matrix))  # as they are stored, of which a learner's logits are
        made.set(i, learner)
    found = made.logits(batch_of(samples, "cpu"))
    for scores, learner in zip(found, learners, strict=True):
        expected = learner.logits(plain_encoder()(samples.features))
        np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-4)


@SHAPES
def test_a_step_that_is_taken_in_parts_is_the_same(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config, batch = plain_config(loss="bce", **shape), batch_of(plain_samples(*random_inputs(50, 0)), "cpu")
    whole, parts = group(config, [0, 1, 2, 3, 4]), group(config, [0, 1, 2, 3, 4])
    whole.train(batch, 0.3, 0)
    original = loss.gradient_

    def short(z: Any, wanted: Any, **how: Any) -> Any:
        if len(z) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(z, wanted, **how)

    monkeypatch.setattr("machxc.torch.learner.gradient_", short)
    parts.train(batch, 0.3, 0)
    for i in range(5):
        one, other = whole.learner(i), parts.learner(i)
        assert isinstance(one, DeepLearner)
        assert isinstance(other, DeepLearner)
        assert all(array.tobytes() == other.arrays[name].tobytes() for name, array in one.arrays.items())


@SHAPES
def test_memory_that_runs_short_on_the_way_back_leaves_all_weights(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, batch = plain_config(loss="bce", **shape), batch_of(plain_samples(*random_inputs(50, 0)), "cpu")
    made = group(config, [1])

    def short(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    from machxc.torch.trunk import SparseTrunk

    monkeypatch.setattr(SparseTrunk, "backward", short)  # the last of all
    with pytest.raises(torch.OutOfMemoryError):
        made.train(batch, 0.3, 0)
    found = made.learner(0)
    assert isinstance(found, DeepLearner)
    assert all(array.tobytes() == found.arrays[name].tobytes() for name, array in start(config, 1).arrays.items())


# ---- dropout


def units(batch: Batch, epoch: int | None, seeds: list[int], part: slice, **shape: Any) -> Any:
    config = plain_config(**{"hidden": [40, 30], "hidden_dropout": 0.4, **shape})
    made = group(config, seeds)
    assert isinstance(made, learners.NetworkGroup)
    return made.trunk.forward(batch, part, epoch)[0]


def test_units_are_dropped_in_training_only_and_by_repetition() -> None:
    batch, both = batch_of(plain_samples(*random_inputs(200, 3, empty=False)[:2]), "cpu"), slice(0, 2)
    whole = units(batch, None, [3, 1], both, hidden=40)
    first, again, later = (units(batch, epoch, [3, 1], both, hidden=40) for epoch in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, later)
    kept = first > 0
    torch.testing.assert_close(first[kept], whole[kept] / 0.6)
    assert (kept.sum() / (whole > 0).sum()).item() == pytest.approx(0.6, abs=0.03)
    assert not torch.equal(kept[0], kept[1])
    alone = units(batch, 0, [1], slice(0, 1), hidden=40)
    torch.testing.assert_close(alone[0], first[1], rtol=0, atol=0)


def test_each_layer_drops_its_own() -> None:
    batch = batch_of(plain_samples(*random_inputs(200, 3, empty=False)[:2]), "cpu")
    dropped = units(batch, 0, [3], slice(0, 1))
    assert (dropped == 0).float().mean() > (units(batch, None, [3], slice(0, 1)) == 0).float().mean() + 0.1


# ---- models


SAMPLES = make_samples(300, 40, labels_per_sample=2)
QUERIES = make_samples(90, 40, seed=5)


@lru_cache
def model(kind: str, device: str = "torch-cpu") -> Model:
    settings = Settings(**{"repetitions": 4, "buckets": 24, "epochs": 12, **DEEP[kind]})
    return train(SAMPLES, LabelNames.ids(SAMPLES.labels.n_labels), settings, device=device)


@pytest.mark.parametrize("kind", DEEP)
def test_it_learns(kind: str) -> None:
    best = model(kind).top_k(QUERIES.features, 1)[0][:, 0]
    labels = QUERIES.labels
    assert np.mean([best[i] in labels.indices[labels.indptr[i] : labels.indptr[i + 1]] for i in range(90)]) > 0.85


@pytest.mark.parametrize("kind", DEEP)
def test_the_kernels_and_a_device_answer_alike(kind: str, tmp_path: Path) -> None:
    model(kind).save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    assert loaded.config == model(kind).config
    on_device = DeviceModel(loaded, "cpu")
    np.testing.assert_allclose(
        on_device.sketch(QUERIES.features), loaded.sketch(QUERIES.features), rtol=1e-3, atol=1e-3
    )
    ids, scores = on_device.top_k(QUERIES.features, 10)
    expected_ids, expected = loaded.top_k(QUERIES.features, 10)
    np.testing.assert_allclose(scores, expected, rtol=1e-3)
    differ = ids != expected_ids
    np.testing.assert_allclose(scores[differ], expected[differ], rtol=1e-4)  # ties
    assert differ.mean() < 0.05


def test_products_in_bfloat16_are_exact_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "matrix_dtype", lambda device: torch.bfloat16)
    settings = Settings(**{"repetitions": 4, "buckets": 24, "epochs": 12, **DEEP["deep-softmax"]})
    made = train(SAMPLES, LabelNames.ids(40), settings, device="torch-cpu")
    same = made.top_k(QUERIES.features, 1)[0] == model("deep-softmax").top_k(QUERIES.features, 1)[0]
    assert same.mean() > 0.9


WITHOUT_TORCH = """
import sys
from machxc import MACHClassifier
model = MACHClassifier.load(sys.argv[1])
print(model.top_k([sys.argv[2]], k=1)[0][0, 0], "torch" in sys.modules)
"""


def test_the_estimator_trains_it_and_a_machine_without_pytorch_answers(tmp_path: Path) -> None:
    texts, labels = make_texts(200, 20)
    made = MACHClassifier(hidden=[24, 12], epochs=12, repetitions=4, buckets=16, device="torch-cpu", learning_rate=1.0)
    made.fit(texts, labels)
    assert made.model_.config.layers == (24, 12)
    assert made.model_.config.normalisation == "layer"
    made.save(tmp_path / "model")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "model"), texts[3]]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert answer.strip() == f"{made.top_k([texts[3]], k=1)[0][0, 0]} False"


# ---- which device


def test_the_kernels_are_refused_before_anything_is_read_twice() -> None:
    with pytest.raises(SettingError, match=r"torch-cpu.*pip install 'machxc\[torch\]'.*Got device='cpu'"):
        model("deep-bce", "cpu")


def test_a_run_is_refused_before_it_begins(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a b", "labels": ["x"]}\n{"text": "c", "labels": ["y"]}\n')
    with pytest.raises(SettingError, match="torch-cpu"):
        train_run(data, tmp_path / "model", Settings(hidden=[8, 4]))
    assert not (tmp_path / "model").exists()


def test_auto_is_pytorch_on_the_processor_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = plain_config(hidden=[8, 4])
    assert group_tasks(config, [0, 1], "auto")[0].device == "cpu"
    assert group_tasks(plain_config(hidden=8), [0, 1], "auto") == {}


def test_auto_says_what_to_install_where_pytorch_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'machxc\[torch\]'"):
        group_tasks(plain_config(hidden=[8, 4]), [0], "auto")


# ---- dense inputs


@KINDS
@pytest.mark.parametrize("hidden", [0, 6, [6, 5]], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_samples_that_have_most_features_are_multiplied_and_learn_the_same(
    kind: str, hidden: Any, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = np.random.default_rng(0)
    inputs = [
        [(i, float(v)) for i, v in enumerate(source.normal(0, 0.5, ROWS).astype(np.float32)[: 12 - n % 3])]
        for n in range(30)
    ]
    targets, weights = random_inputs(30, 1)[1:]
    config = plain_config(loss=kind, hidden=hidden, dropout=dropout)
    made = {
        name: group_of(config, plain_partition(), [0, 3, 1], "cpu", [plain_encoder()] * 3)
        for name in ("dense", "sparse")
    }
    batch = batch_of(plain_samples(inputs, targets, weights), "cpu")
    for name, each in made.items():
        for i, r in enumerate([0, 3, 1]):
            each.set(i, learner_of(config, r, ROWS, np.zeros(BUCKETS, np.float32), whole=True))
        with monkeypatch.context() as patch:
            if name == "sparse":
                patch.setattr(GroupEncoder, "inputs", GroupEncoder.__call__)
            for _ in range(3):
                each.train(batch, 0.3, 0)
    for i in range(3):
        for name, view in made["dense"].views(i).items():
            torch.testing.assert_close(view, made["sparse"].views(i)[name], rtol=1e-3, atol=1e-4, msg=name)
    assert isinstance(encoder_of_group(made["dense"]).inputs(batch, slice(0, 3)), Matrix)


def encoder_of_group(made: Any) -> GroupEncoder:
    trunk = getattr(made, "trunk", made)
    encoder: GroupEncoder = getattr(trunk, "first", trunk).encoder
    return encoder


def test_samples_of_few_features_and_hashed_ones_are_not_multiplied() -> None:
    few = batch_of(plain_samples(*random_inputs(30, 1)[:2]), "cpu")
    many = batch_of(plain_samples([[(i, 1.0) for i in range(ROWS)]], [[0]]), "cpu")
    config = plain_config()
    hashed = Encoder(
        np.uint64(3), np.uint64(1), np.uint64(60), np.arange(16, dtype=np.int32) % ROWS, np.ones(ROWS, np.float32),
        sublinear_tf=False, l2=False,
    )  # fmt: skip
    assert isinstance(GroupEncoder(config, [plain_encoder()], [0], "cpu").inputs(few, slice(0, 1)), Rows)
    assert isinstance(GroupEncoder(config, [plain_encoder()], [0], "cpu").inputs(many, slice(0, 1)), Matrix)
    assert isinstance(GroupEncoder(config, [hashed], [0], "cpu").inputs(many, slice(0, 1)), Rows)


@pytest.mark.parametrize("hidden", [0, 8, [8, 6]], ids=str)
def test_dense_inputs_come_out_the_same_alone_and_with_siblings(hidden: Any) -> None:
    source = np.random.default_rng(0)
    y = np.arange(300) % 5
    X = (source.normal(0, 1, (5, 40))[y] + source.normal(0, 1, (300, 40))).astype(np.float32)
    samples = Samples(features_of(X)[0], labels_of(y)[0])
    config = config_of(
        n_features=40, n_labels=5, buckets=8, repetitions=4, hidden=hidden, l2=False, epochs=3, dropout=0.1
    )
    partition, found = HashPartition(5, 8, 4, 0), dict[int, dict[str, Any]]()
    train_group(samples, config, partition, [0, 1, 3], "cpu", found.__setitem__)
    for r in (1, 3):
        alone = dict[int, dict[str, Any]]()
        train_group(samples, config, partition, [r], "cpu", alone.__setitem__)
        assert all(alone[r][name].tobytes() == array.tobytes() for name, array in found[r].items())
