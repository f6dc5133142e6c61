from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain import Float64, PlainNetwork, config_of, gradient_of, loss_of, random_samples, rows_of, targets_of

from machxc.repetition import random as streams
from machxc.repetition.int8 import from_int8
from machxc.repetition.network import NetworkLearner, NetworkScorer

ROWS, HIDDEN, BUCKETS = 12, 6, 9
RATES = (0.3, 0.1)


def twins(kind: str, seed: int = 0, negatives: int = 0) -> tuple[NetworkLearner, PlainNetwork]:
    """A learner and its plain twin, with the same weights."""
    random = np.random.default_rng(seed)
    config = config_of(buckets=BUCKETS, loss=kind, hidden=HIDDEN, negatives=negatives)
    learner = NetworkLearner.start(config, 0, ROWS, random.normal(0, 1, BUCKETS).astype(np.float32))
    learner.output[:] = random.normal(0, 1, (BUCKETS, HIDDEN))
    learner.hidden_bias[:] = random.normal(0, 0.5, HIDDEN)
    table, hidden_bias, output, bias = (
        w.astype(np.float64) for w in (learner.table, learner.hidden_bias, learner.output, learner.bias)
    )
    return learner, PlainNetwork(table, hidden_bias, output, bias, kind)


def samples(n: int, seed: int = 1) -> tuple[Any, Any, list[float]]:
    random = np.random.default_rng(seed)
    weights = random.choice([0.5, 1.0, 2.0], n).tolist()
    return *random_samples(random, n, ROWS, BUCKETS), weights


@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_steps_are_those_of_plain_numpy(kind: str, n: int, seed: int) -> None:
    learner, plain = twins(kind, seed)
    inputs, targets, weights = samples(n, seed + 10)
    loss = learner.train(rows_of(inputs), targets_of(targets, weights), RATES, 0)
    expected = 0.0
    for i, (row, wanted, weight) in enumerate(zip(inputs, targets, weights, strict=True)):
        if kind == "softmax" and wanted:
            expected += weight * loss_of(plain.logits(row), wanted, kind)
        plain.step(row, wanted, weight, RATES[0] + (RATES[1] - RATES[0]) * i / n)
    for name in ("table", "hidden_bias", "output", "bias"):
        np.testing.assert_allclose(getattr(learner, name), getattr(plain, name), rtol=3e-4, atol=3e-4, err_msg=name)
    np.testing.assert_allclose(learner.squares[:-1], plain.squares, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(learner.output_squares, plain.output_squares, rtol=1e-3, atol=1e-5)
    if kind == "softmax":
        assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)


def slopes(plain: PlainNetwork, row: list[tuple[int, float]], targets: list[int], weights: Float64) -> Float64:
    """Central differences of the loss by each of ``weights``, an array of ``plain``."""
    out = np.empty_like(weights)
    for place in np.ndindex(*weights.shape):
        before, sides = weights[place], []
        for step in (1e-5, -1e-5):
            weights[place] = before + step
            sides.append(loss_of(plain.logits(row), targets, plain.kind))
        weights[place] = before
        out[place] = (sides[0] - sides[1]) / 2e-5
    return out


@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_first_step_goes_down_the_slope_of_the_loss(kind: str, seed: int) -> None:
    learner, plain = twins(kind, seed)
    row, targets = [(3, 0.5), (5, -1.0), (8, 2.0)], [1, 4]
    slope = {
        name: slopes(plain, row, targets, getattr(plain, name)) for name in ("table", "hidden_bias", "output", "bias")
    }
    learner.train(rows_of([row]), targets_of([targets]), (1.0, 1.0), 0)
    # Adagrad's first step: each row by its gradient, divided by the gradient's norm, times the rate
    for name, rate in (("table", 1.0), ("output", 1.0), ("hidden_bias", 0.1), ("bias", 0.1)):
        step = np.atleast_2d(getattr(learner, name) - getattr(plain, name))
        down = -np.atleast_2d(slope[name])
        norm = np.linalg.norm(down, axis=1, keepdims=True)
        np.testing.assert_allclose(step, rate * down / np.where(norm > 1e-9, norm, 1), atol=2e-4, err_msg=name)


def test_a_softmax_learns_nothing_of_a_sample_without_labels() -> None:
    learner, plain = twins("softmax")
    assert learner.train(rows_of([[(1, 1.0)]]), targets_of([[]]), (1.0, 1.0), 0) == 0.0
    np.testing.assert_array_equal(learner.output, plain.output.astype(np.float32))
    np.testing.assert_array_equal(learner.table, plain.table.astype(np.float32))


@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("negatives", [0, 4])
def test_passes_add_up(kind: str, negatives: int) -> None:
    """Training on the parts of a list one after the other is training on the whole, draws included."""
    inputs, targets, weights = samples(40)
    whole, _ = twins(kind, negatives=negatives)
    parts, _ = twins(kind, negatives=negatives)
    whole.train(rows_of(inputs), targets_of(targets, weights), (0.3, 0.3), 100)
    for start in range(0, 40, 7):
        part = slice(start, start + 7)
        parts.train(rows_of(inputs[part]), targets_of(targets[part], weights[part]), (0.3, 0.3), 100 + start)
    assert whole.table.tobytes() == parts.table.tobytes()
    assert whole.output.tobytes() == parts.output.tobytes()


# ---- sampled negatives


ONE = [(2, 0.1)]


def all_active(kind: str, negatives: int = 0) -> tuple[NetworkLearner, PlainNetwork]:
    """Twins of which all hidden units are active for the sample `ONE`, and no bucket is sure."""
    learner, plain = twins(kind, negatives=negatives)
    learner.hidden_bias[:] = plain.hidden_bias[:] = 5.0
    learner.output *= np.float32(0.125)
    plain.output *= 0.125
    return learner, plain


def sampled_gradients(learner: NetworkLearner, targets: list[int], draws: int) -> tuple[Float64, Float64]:
    """Of many draws for the sample `ONE`, the gradients by the bias [draws, B] and by the hidden bias [draws, H].

    The adaptive step is held: sums of squares so large that a gradient adds nothing, and a rate to match.
    """
    start = learner.bias.copy(), learner.hidden_bias.copy(), learner.table.copy()
    by_bias, by_hidden = np.empty((draws, BUCKETS)), np.empty((draws, HIDDEN))
    for n in range(draws):
        learner.bias[:], learner.hidden_bias[:], learner.table[:] = start
        learner.squares[:], learner.output_squares[:], learner.bias_square[:] = 1e8, 1e30, 1e8
        learner.train(rows_of([ONE]), targets_of([targets]), (1e5, 1e5), n)  # biases learn at a tenth of the rate
        by_bias[n], by_hidden[n] = start[0] - learner.bias, start[1] - learner.hidden_bias
    return by_bias, by_hidden


@pytest.mark.parametrize("targets", [[], [3], [0, 2, 5, 8]])
def test_sampled_gradients_of_the_cross_entropy_are_unbiased(targets: list[int]) -> None:
    draws = 4000
    learner, plain = all_active("bce", negatives=3)
    full = gradient_of(plain.logits(ONE), targets, "bce")
    found = sampled_gradients(learner, targets, draws)
    for gradients, expected in zip(found, (full, plain.output.T @ full), strict=True):
        error = gradients.std(axis=0) / draws**0.5 + 1e-5
        assert (np.abs(gradients.mean(axis=0) - expected) < 4 * error).all()


@pytest.mark.parametrize("targets", [[3], [0, 2, 5, 8]])
def test_sampled_gradients_of_the_softmax_become_those_of_all_buckets(targets: list[int]) -> None:
    """With ever more draws: of a few, the sum that the softmax divides by is right on average, its inverse is not."""
    learner, plain = all_active("softmax")
    full = gradient_of(plain.logits(ONE), targets, "softmax")
    learner.negatives = 1000
    by_bias, by_hidden = sampled_gradients(learner, targets, 200)
    np.testing.assert_allclose(by_bias.mean(axis=0), full, atol=3e-3)
    np.testing.assert_allclose(by_hidden.mean(axis=0), plain.output.T @ full, atol=3e-3)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_a_few_negatives_learn_nearly_what_all_buckets_do(kind: str) -> None:
    random = np.random.default_rng(0)
    inputs = [[(int(i), 1.0)] for i in random.integers(0, BUCKETS, 2000)]
    targets = [[row[0][0]] for row in inputs]
    config = config_of(buckets=BUCKETS, loss=kind, hidden=32, negatives=3)
    learner = NetworkLearner.start(config, 0, ROWS, np.full(BUCKETS, -2, np.float32))
    learner.train(rows_of(inputs), targets_of(targets), (1.0, 0.0), 0)
    logits = learner.logits(rows_of([[(i, 1.0)] for i in range(BUCKETS)]))
    assert (logits.argmax(axis=1) == np.arange(BUCKETS)).all()


def test_all_buckets_are_computed_when_no_fewer_negatives_are_asked_for() -> None:
    assert twins("bce", negatives=BUCKETS - 1)[0].negatives == BUCKETS - 1
    for negatives in (BUCKETS, BUCKETS + 1):
        assert twins("bce", negatives=negatives)[0].negatives == 0


# ---- start, storage, scores


def test_inputs_start_even_and_outputs_at_0() -> None:
    config = config_of(hidden=64, buckets=5, seed=3)
    learner = NetworkLearner.start(config, 1, 500, np.zeros(5, np.float32))
    width = np.sqrt(3 / 64)
    assert np.abs(learner.table).max() <= width
    assert abs(learner.table.mean()) < 4 * width / (3 * learner.table.size) ** 0.5
    assert learner.table.var() * 64 == pytest.approx(1, rel=0.03)
    assert not learner.output.any()
    other = NetworkLearner.start(config, 2, 500, np.zeros(5, np.float32))
    assert abs(np.corrcoef(learner.table.ravel(), other.table.ravel())[0, 1]) < 4 / learner.table.size**0.5
    assert learner.state != other.state
    assert learner.state == streams.stream(3, streams.NEGATIVES, 1)


def trained(kind: str) -> NetworkLearner:
    learner, _ = twins(kind)
    for seed in range(5):
        inputs, targets, weights = samples(40, seed)
        learner.train(rows_of(inputs), targets_of(targets, weights), RATES, 0)
    return learner


def plainly(weights: dict[str, Any], row: list[tuple[int, float]]) -> Float64:
    table, hidden_bias, output, bias = (
        weights[n].astype(np.float64) for n in ("table", "hidden_bias", "output", "bias")
    )
    return PlainNetwork(table, hidden_bias, output, bias, "bce").logits(row)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_logits_are_those_of_plain_numpy(kind: str) -> None:
    learner, (inputs, _, _) = trained(kind), samples(20)
    expected = [plainly(vars(learner), row) for row in inputs]
    np.testing.assert_allclose(learner.logits(rows_of(inputs)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_the_stored_model_scores_as_its_tensors_say(kind: str) -> None:
    learner, (inputs, _, _) = trained(kind), samples(20)
    stored = learner.tensors()
    tables = {name: from_int8(stored[name], stored[f"{name}_scales"]) for name in ("table", "output")}
    for name, table in tables.items():
        np.testing.assert_allclose(table, vars(learner)[name], atol=np.abs(vars(learner)[name]).max() / 250)
    sketch = np.full((20, 3, BUCKETS), np.nan, np.float32)
    NetworkScorer(stored).logits(rows_of(inputs), sketch[:, 1])
    np.testing.assert_allclose(sketch[:, 1], [plainly(stored | tables, row) for row in inputs], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sketch[:, 1], learner.logits(rows_of(inputs)), rtol=2e-2, atol=2e-2)
    assert np.isnan(sketch[:, [0, 2]]).all()


def test_stored_tensors_are_copies() -> None:
    learner = trained("softmax")
    stored = learner.tensors()
    before = {name: tensor.copy() for name, tensor in stored.items()}
    inputs, targets, weights = samples(40)
    learner.train(rows_of(inputs), targets_of(targets, weights), RATES, 0)
    assert all(stored[name].tobytes() == before[name].tobytes() for name in before)
