"""Several hidden layers, and normalised ones: scored by the kernels, against plain NumPy in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import Float64, config_of, random_samples, rows_of, targets_of

from machxc.errors import SettingError
from machxc.repetition.checkpoint import learner_of
from machxc.repetition.deep import DeepLearner
from machxc.repetition.int8 import as_int8
from machxc.repetition.loop import train_repetition
from machxc.repetition.scorer import scorer_of
from machxc.samples import Array
from machxc.testing import make_samples

ROWS, BUCKETS = 12, 9
Row = list[tuple[int, float]]


def tensors_of(sizes: tuple[int, ...], seed: int, scale: float = 1.0) -> dict[str, Array]:
    """Random weights of a repetition, as they are stored."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {"table": scale * random.normal(0, 1, (ROWS, sizes[0])) / np.sqrt(sizes[0])}
    tensors["hidden_bias"] = random.normal(0, 0.3, sizes[0])
    for i, (before, after) in enumerate(pairwise(sizes), 1):
        tensors[f"layer_{i}"] = random.normal(0, np.sqrt(2 / before), (after, before))
        tensors[f"layer_{i}_bias"] = random.normal(0, 0.3, after)
    tensors |= {"output": random.normal(0, 1, (BUCKETS, sizes[-1])), "bias": random.normal(0, 1, BUCKETS)}
    stored: dict[str, Array] = {}
    for name, array in tensors.items():
        stored |= as_int8(name, array.astype(np.float32)) if array.ndim == 2 else {name: array.astype(np.float32)}
    return stored


def plain_logits(tensors: dict[str, Array], row: Row, *, normalised: bool) -> Float64:
    """The bucket scores of one sample, as the formula says."""
    exact = {name: array.astype(np.float64) for name, array in tensors.items()}
    for name in [name for name in exact if exact[name].ndim == 2]:
        exact[name] *= exact[f"{name}_scales"][:, None]
    x = sum((w * exact["table"][i] for i, w in row), np.zeros(exact["table"].shape[1]))
    h = plain_units(x, exact["hidden_bias"], normalised)
    for i in range(1, 1 + sum(name.startswith("layer_") for name in tensors) // 3):
        h = plain_units(exact[f"layer_{i}"] @ h, exact[f"layer_{i}_bias"], normalised)
    return np.asarray(exact["output"] @ h + exact["bias"])


def plain_units(x: Float64, bias: Float64, normalised: bool) -> Float64:
    if normalised:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return np.asarray(np.maximum(0, x + bias))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(deadline=None, max_examples=60)
def test_scores_are_those_of_plain_numpy(sizes: list[int], normalised: bool, seed: int, scale: float) -> None:
    tensors = tensors_of(tuple(sizes), seed, scale)
    samples, _ = random_samples(np.random.default_rng(seed), 20, ROWS, BUCKETS)
    config = config_of(hidden=sizes, buckets=BUCKETS, normalisation="layer" if normalised else "none")
    out = np.empty((len(samples), 3, BUCKETS), np.float32)
    scorer_of(config, tensors).logits(rows_of(samples), out[:, 1])
    expected = np.stack([plain_logits(tensors, row, normalised=normalised) for row in samples])
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(out[:, 1] - expected) <= 1e-3 * largest).all()


def test_a_sample_without_features_has_scores() -> None:
    tensors = tensors_of((7, 5), 0)
    out = np.empty((1, BUCKETS), np.float32)
    scorer_of(config_of(hidden=[7, 5], normalisation="layer"), tensors).logits(rows_of([[]]), out)
    np.testing.assert_allclose(out[0], plain_logits(tensors, [], normalised=True), rtol=1e-4, atol=1e-5)


# ---- the start


def started(r: int = 0, **changed: Any) -> DeepLearner:
    config = config_of(**{"hidden": [400, 300], "buckets": BUCKETS, **changed})
    learner = learner_of(config, r, 500, np.full(BUCKETS, -2, np.float32))
    assert isinstance(learner, DeepLearner)
    return learner


def test_it_starts_at_the_frequencies_of_the_buckets_with_units_as_large_in_every_layer() -> None:
    learner = started()
    samples = [[(i, 0.6), (i + 1, 0.8)] for i in range(100)]
    np.testing.assert_array_equal(learner.logits(rows_of(samples)), np.full((100, BUCKETS), -2, np.float32))
    first = np.maximum(0, 0.6 * learner.table[:100] + 0.8 * learner.table[1:101])
    second = np.maximum(0, first @ learner.arrays["layer_1"].T)
    assert np.square(first).mean() == pytest.approx(0.5 / 400, rel=0.1)
    assert np.square(second).mean() == pytest.approx(np.square(first).mean(), rel=0.1)


def test_every_repetition_and_layer_starts_elsewhere() -> None:
    one, other = started(0, hidden=[8, 8, 8]), started(1, hidden=[8, 8, 8])
    names = ("table", "layer_1", "layer_2")
    assert len({learner.arrays[name][:8].tobytes() for learner in (one, other) for name in names}) == 6
    assert started(0, hidden=[8, 8, 8]).table.tobytes() == one.table.tobytes()


def test_what_is_stored() -> None:
    stored = started(hidden=[6, 5, 4]).tensors()
    assert {name: (str(array.dtype), array.shape) for name, array in stored.items()} == {
        "table": ("int8", (500, 6)), "table_scales": ("float32", (500,)), "hidden_bias": ("float32", (6,)),
        "layer_1": ("int8", (5, 6)), "layer_1_scales": ("float32", (5,)), "layer_1_bias": ("float32", (5,)),
        "layer_2": ("int8", (4, 5)), "layer_2_scales": ("float32", (4,)), "layer_2_bias": ("float32", (4,)),
        "output": ("int8", (BUCKETS, 4)), "output_scales": ("float32", (BUCKETS,)), "bias": ("float32", (BUCKETS,)),
    }  # fmt: skip


# ---- who trains it


@pytest.mark.parametrize("changed", [{"hidden": [8, 4]}, {"normalisation": "layer"}, {"hidden_dropout": 0.1}])
def test_the_kernels_say_who_trains_it(changed: dict[str, Any]) -> None:
    from machxc.partition import HashPartition

    samples = make_samples(20, 5)
    config = config_of(**{"hidden": 8, "n_labels": 5, "n_features": samples.features.n_features, **changed})
    with pytest.raises(SettingError, match=r"trained by PyTorch.*torch-cpu.*pip install 'machxc\[torch\]'"):
        train_repetition(samples, config, HashPartition(5, 8, 2, 0), 0)
    learner = learner_of(config, 0, 3, np.zeros(8, np.float32))
    with pytest.raises(SettingError, match="trained by PyTorch"):
        learner.train(rows_of([[]]), targets_of([[]]), (1.0, 1.0), 0)
