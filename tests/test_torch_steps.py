"""Steps of a group on a device, against plain NumPy: those of the kernels, summed over a batch."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
from torch_tools import (
    BUCKETS,
    HIDDEN,
    ROWS,
    PlainLinear,
    PlainNetwork,
    gradient_of,
    loss_of,
    of_kernels,
    plain_config,
    plain_encoder,
    plain_partition,
    plain_samples,
    random_inputs,
    torch,
)

from machxc.repetition.bfloat import from_bfloat, to_bfloat
from machxc.repetition.linear import LinearLearner
from machxc.repetition.network import NetworkLearner
from machxc.torch import layers, learner, loss
from machxc.torch.batches import Batch, batch_of
from machxc.torch.encode import GroupEncoder, GroupTargets
from machxc.torch.learner import Group, LinearGroup, group_of

KINDS = pytest.mark.parametrize("kind", ["softmax", "bce"])
HIDDENS = pytest.mark.parametrize("hidden", [0, HIDDEN])
Learner = LinearLearner | NetworkLearner
Plain = PlainLinear | PlainNetwork


def start(kind: str, hidden: int, seed: int) -> Learner:
    """A learner of the kernels with random weights."""
    config, random = plain_config(loss=kind, hidden=hidden), np.random.default_rng(seed)
    bias = random.normal(0, 1, BUCKETS).astype(np.float32)
    if not hidden:
        linear = LinearLearner.start(config, 0, ROWS, bias, whole=True)
        linear.table[:] = from_bfloat(to_bfloat(random.normal(0, 1, linear.table.shape).astype(np.float32)))
        return linear
    network = NetworkLearner.start(config, seed, ROWS, bias)
    network.output[:] = random.normal(0, 1, (BUCKETS, HIDDEN))
    network.hidden_bias[:] = random.normal(0, 0.5, HIDDEN)
    return network


def plain_of(learner: Learner, kind: str) -> Plain:
    table, bias = learner.table.astype(np.float64), learner.bias.astype(np.float64)
    if isinstance(learner, LinearLearner):
        return PlainLinear(table, bias, kind)
    return PlainNetwork(table, learner.hidden_bias.astype(np.float64), learner.output.astype(np.float64), bias, kind)


def group(kind: str, hidden: int, seeds: list[int]) -> Group:
    config, encoders = plain_config(loss=kind, hidden=hidden), [plain_encoder() for _ in seeds]
    made = group_of(config, plain_partition(), seeds, "cpu", encoders)
    for i, seed in enumerate(seeds):
        made.set(i, start(kind, hidden, seed))
    return made


def batch_step(plain: Plain, inputs: Any, targets: Any, weights: list[float], rate: float) -> float:
    """One step by the summed gradients of a batch, written down without a thought of speed; returns the loss."""
    arrays = {name: np.zeros_like(getattr(plain, name)) for name in ("table", "bias")}
    if isinstance(plain, PlainNetwork):
        arrays |= {name: np.zeros_like(getattr(plain, name)) for name in ("hidden_bias", "output")}
    total = 0.0
    for row, wanted, weight in zip(inputs, targets, weights, strict=True):
        if plain.kind == "softmax" and not wanted:
            continue
        if isinstance(plain, PlainNetwork):
            z, h = plain.logits(row), plain.hidden(row)
        else:
            z = h = plain.bias + sum((w * plain.table[i] for i, w in row), np.zeros(BUCKETS))
        g = weight * gradient_of(z, wanted, plain.kind)
        at_input = np.where(h > 0, plain.output.T @ g, 0) if isinstance(plain, PlainNetwork) else g
        for i, w in row:
            arrays["table"][i] += w * at_input
        arrays["bias"] += g
        if isinstance(plain, PlainNetwork):
            arrays["hidden_bias"] += at_input
            arrays["output"] += np.outer(g, h)
        parts = loss_of(z, wanted, "softmax") if plain.kind == "softmax" else float(np.logaddexp(0, -z[wanted]).sum())
        total += weight * parts
    plain.squares += (arrays["table"] ** 2).sum(axis=1)
    plain.table -= rate * arrays["table"] * inverse_root(plain.squares)[:, None]
    plain.bias_square += (arrays["bias"] ** 2).sum()
    plain.bias -= 0.1 * rate * arrays["bias"] * inverse_root(plain.bias_square)
    if isinstance(plain, PlainNetwork):
        plain.output_squares += (arrays["output"] ** 2).sum(axis=1)
        plain.output -= rate * arrays["output"] * inverse_root(plain.output_squares)[:, None]
        plain.hidden_square += (arrays["hidden_bias"] ** 2).sum()
        plain.hidden_bias -= 0.1 * rate * arrays["hidden_bias"] * inverse_root(plain.hidden_square)
    return total


def inverse_root(squares: Any) -> Any:
    return np.where(squares > 0, 1 / np.sqrt(np.maximum(squares, 1e-300)), 0)


def assert_same(learner: Any, plain: Plain) -> None:
    names = ("table", "bias", "hidden_bias", "output", "output_squares")
    for name in (name for name in names if hasattr(plain, name)):
        np.testing.assert_allclose(getattr(learner, name), getattr(plain, name), rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(learner.squares[:ROWS], plain.squares, rtol=1e-3, atol=1e-5)
    if isinstance(plain, PlainNetwork):
        assert learner.squares[ROWS] == pytest.approx(plain.hidden_square, rel=1e-3, abs=1e-6)


@KINDS
@HIDDENS
def test_a_batch_of_one_sample_is_a_step_of_the_kernels(kind: str, hidden: int) -> None:
    made, plain = group(kind, hidden, [3]), plain_of(start(kind, hidden, 3), kind)
    inputs, targets, weights = random_inputs(40, 1)
    for n in range(40):
        one = plain_samples(inputs[n : n + 1], targets[n : n + 1], weights[n : n + 1])
        made.train(batch_of(one, "cpu"), 0.3, 0)
        plain.step(inputs[n], targets[n], weights[n], 0.3)
    assert_same(made.learner(0), plain)


@KINDS
@HIDDENS
@pytest.mark.parametrize("n", [1, 7, 64])
def test_a_batch_is_a_step_by_its_summed_gradients(kind: str, hidden: int, n: int) -> None:
    seeds = [2, 5, 1]
    made, plains = group(kind, hidden, seeds), [plain_of(start(kind, hidden, seed), kind) for seed in seeds]
    for seed in range(4):
        inputs, targets, weights = random_inputs(n, seed)
        found = made.train(batch_of(plain_samples(inputs, targets, weights), "cpu"), 0.3, 0)
        expected = [batch_step(plain, inputs, targets, weights, 0.3) for plain in plains]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)
    for i, plain in enumerate(plains):
        assert_same(made.learner(i), plain)


@KINDS
@HIDDENS
def test_logits_are_those_of_the_learners(kind: str, hidden: int) -> None:
    made, (inputs, targets, _) = group(kind, hidden, [0, 4]), random_inputs(30, 5)
    samples = plain_samples(inputs, targets)
    found = made.logits(batch_of(samples, "cpu"))
    for i, seed in enumerate([0, 4]):
        expected = of_kernels(start(kind, hidden, seed)).logits(plain_encoder()(samples.features))
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-4, atol=1e-5)


@KINDS
@HIDDENS
def test_a_repetition_does_not_depend_on_its_siblings(kind: str, hidden: int) -> None:
    alone, among = group(kind, hidden, [3]), group(kind, hidden, [5, 1, 3, 2])
    for seed in range(5):
        batch = batch_of(plain_samples(*random_inputs(50, seed)), "cpu")
        one, all_of_them = alone.train(batch, 0.3, 0), among.train(batch, 0.3, 0)
        assert one[0] == all_of_them[2]
    own, same = alone.learner(0), among.learner(2)
    assert own.table.tobytes() == same.table.tobytes()
    assert own.bias.tobytes() == same.bias.tobytes()


@KINDS
@HIDDENS
def test_how_much_is_held_at_a_time_does_not_matter(kind: str, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = group(kind, hidden, [3, 1])
    parts = group(kind, hidden, [3, 1])
    for seed in range(3):
        batch = batch_of(plain_samples(*random_inputs(50, seed)), "cpu")
        whole.train(batch, 0.3, 0)
        with monkeypatch.context() as patch:
            patch.setattr(layers, "_CHUNK", 4 * BUCKETS)
            patch.setattr(loss, "_CHUNK", 3 * BUCKETS)
            parts.train(batch, 0.3, 0)
    assert whole.learner(1).table.tobytes() == parts.learner(1).table.tobytes()


# ---- memory


class Short:
    """Raises that memory is short in a step of more than ``most`` repetitions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.tried: list[int] = []
        original, self.most = loss.gradient_, most

        def gradient(z: Any, wanted: Any, **how: Any) -> Any:
            self.tried.append(len(z))
            if len(z) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return original(z, wanted, **how)

        monkeypatch.setattr("machxc.torch.learner.gradient_", gradient)


@HIDDENS
def test_short_memory_is_told_and_changes_nothing(
    hidden: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plenty, short = group("bce", hidden, [0, 1, 2, 3, 4]), group("bce", hidden, [0, 1, 2, 3, 4])
    batch = batch_of(plain_samples(*random_inputs(50, 0)), "cpu")
    for _ in range(2):
        plenty.train(batch, 0.3, 0)
    memory = Short(monkeypatch, 2)
    with caplog.at_level(logging.WARNING, "machxc"):
        for _ in range(2):
            short.train(batch, 0.3, 0)
    assert memory.tried == [5, 2, 2, 1, 2, 2, 1]  # what fits is kept to
    assert [record.getMessage() for record in caplog.records] == [
        "cpu has no memory for a step of 5 repetitions by 50 samples: it takes 2 at a time from here on"
    ]
    for i in range(5):
        assert short.learner(i).table.tobytes() == plenty.learner(i).table.tobytes()
        assert short.learner(i).bias.tobytes() == plenty.learner(i).bias.tobytes()


def test_memory_short_for_a_single_repetition_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = group("bce", 0, [0, 1])
    Short(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        made.train(batch_of(plain_samples(*random_inputs(50, 0)), "cpu"), 0.3, 0)


# ---- memory that is short for a single repetition


class Limited:
    """Raises that memory is short wherever more than ``most`` samples would be in memory in one of some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.raised = 0
        encode, logits = GroupEncoder._encode, layers.Output.logits

        def limited(n: int) -> None:
            if n > most:
                self.raised += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        def encode_some(encoder: Any, batch: Batch, *others: Any) -> Any:
            limited(len(batch) * len(encoder._numbers[others[0]]))
            return encode(encoder, batch, *others)

        def logits_of_some(output: Any, part: slice, hidden: Any, **how: Any) -> Any:
            limited(hidden.shape[0] * hidden.shape[1])
            return logits(output, part, hidden, **how)

        monkeypatch.setattr(GroupEncoder, "_encode", encode_some)
        monkeypatch.setattr(layers.Output, "logits", logits_of_some)


def assert_close(one: Group, other: Group) -> None:
    for i in range(len(one.numbers)):
        for name, view in one.views(i).items():
            torch.testing.assert_close(other.views(i)[name], view, rtol=1e-4, atol=1e-5, msg=name)


@KINDS
@HIDDENS
@pytest.mark.parametrize("most", [1, 7, 16, 30])
def test_samples_are_cut_where_a_single_repetition_is_too_many(
    kind: str, hidden: int, most: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plenty, short = group(kind, hidden, [0, 1, 2]), group(kind, hidden, [0, 1, 2])
    given = [batch_of(plain_samples(*random_inputs(n, n)), "cpu") for n in (50, 33, 1, 50)]
    expected = [plenty.train(batch, 0.3, 0) for batch in given]
    Limited(monkeypatch, most)
    with caplog.at_level(logging.WARNING, "machxc"):
        found = [short.train(batch, 0.3, 0) for batch in given]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert_close(plenty, short)
    if not hidden:  # the sums of a linear model are not cut
        assert all(torch.equal(short.views(i)["table"], plenty.views(i)["table"]) for i in range(3))
    told = [record.getMessage() for record in caplog.records]
    assert told[:2] == [
        "cpu has no memory for a step of 3 repetitions by 50 samples: it takes 1 at a time from here on",
        "cpu has no memory for a step of a repetition by 50 samples: it cuts the samples, 25 at a time from here on",
    ]
    assert len(told) == 1 + {1: 5, 7: 3, 16: 2, 30: 1}[most]


@KINDS
@HIDDENS
def test_dropout_drops_the_same_of_a_batch_that_is_cut(kind: str, hidden: int) -> None:
    config, encoders = plain_config(loss=kind, hidden=hidden, dropout=0.4), [plain_encoder()]
    made = group_of(config, plain_partition(), [2], "cpu", encoders)
    encoder = made.encoder if isinstance(made, LinearGroup) else made.trunk.encoder  # type: ignore[attr-defined]
    batch = dataclasses.replace(batch_of(plain_samples(*random_inputs(40, 3)), "cpu"), first=1000)
    whole, cut = (encoder(dataclasses.replace(batch, at_a_time=n), slice(0, 1), 1) for n in (0, 7))
    for field in dataclasses.fields(whole):
        assert torch.equal(getattr(whole, field.name), getattr(cut, field.name)), field.name


@KINDS
@HIDDENS
@pytest.mark.parametrize("seed", range(6))
def test_memory_that_is_short_here_and_there_changes_nothing_but_roundings(
    kind: str, hidden: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty, short = group(kind, hidden, [0, 1, 2]), group(kind, hidden, [0, 1, 2])
    given = [batch_of(plain_samples(*random_inputs(40, n)), "cpu") for n in range(6)]
    for batch in given:
        plenty.train(batch, 0.3, 0)
    source, left = np.random.default_rng(seed), [6]  # so often it can make do with half

    def unreliable(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            found = function(*arguments, **named)  # memory may be short before or after something was done
            if left[0] and source.random() < 0.1:
                left[0] -= 1
                raise torch.OutOfMemoryError
            return found

        return call

    for owner, names in (
        (GroupEncoder, ["_encode", "_slots_of", "_scales", "_bags"]),
        (GroupTargets, ["__call__"]),
        (layers.Output, ["logits", "gradients", "add"]),
        (layers.Table, ["sums"]),
        (learner, ["gradient_", "for_step"]),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, unreliable(getattr(owner, name)))
    for batch in given:
        short.train(batch, 0.3, 0)
    assert left[0] < 6
    assert_close(plenty, short)
