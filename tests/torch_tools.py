"""For the tests of machxc.torch, which are skipped where PyTorch is missing: groups of plain repetitions, and batches.

Rows are feature ids, buckets are labels: what the oracles of tests/repetition/plain.py work on.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "repetition"))
from plain import KINDS, Float64, PlainLinear, PlainNetwork, config_of, gradient_of, labels_of, loss_of

from machxc.config import Config
from machxc.partition import TablePartition
from machxc.repetition.bfloat import to_bfloat
from machxc.repetition.checkpoint import Learner
from machxc.repetition.encode import Encoder
from machxc.repetition.linear import LinearLearner
from machxc.samples import Features, Samples

__all__ = [
    "BUCKETS", "DEEP", "HIDDEN", "KINDS", "ROWS", "Float64", "PlainLinear", "PlainNetwork", "config_of", "gradient_of",
    "loss_of", "of_kernels", "plain_config", "plain_encoder", "plain_partition", "plain_samples", "random_inputs",
    "torch",
]  # fmt: skip

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'machxc[torch]'")
torch.set_num_threads(1)  # tests run side by side

ROWS, HIDDEN, BUCKETS = 12, 6, 9
# what the kernels score, but do not train
DEEP: dict[str, dict[str, Any]] = {
    "deep-softmax": {"loss": "softmax", "hidden": [32, 16], "normalisation": "layer"},
    "deep-bce": {"loss": "bce", "hidden": [32, 24, 16], "hidden_dropout": 0.1},
    "normalised-bce": {"loss": "bce", "hidden": 32, "normalisation": "layer"},
}
Inputs = list[list[tuple[int, float]]]


def plain_config(**changed: Any) -> Config:
    """Features are their own slots, labels their own buckets."""
    facts = {"n_features": ROWS, "n_labels": BUCKETS, "buckets": BUCKETS, "repetitions": 8, "l2": False}
    return config_of(**{**facts, **changed})


def plain_encoder() -> Encoder:
    """A feature's row is the feature's id, its weight is its value."""
    none = np.uint64(0)
    return Encoder(
        none, none, none, np.arange(ROWS, dtype=np.int32), np.ones(ROWS, np.float32), sublinear_tf=False, l2=False
    )


def plain_partition(repetitions: int = 8) -> TablePartition:
    """A label's bucket is the label, in every repetition."""
    return TablePartition(np.tile(np.arange(BUCKETS, dtype=np.uint32), (repetitions, 1)), BUCKETS)


def plain_samples(inputs: Inputs, targets: list[list[int]], weights: Sequence[float] | None = None) -> Samples:
    """Samples of which the features are (row, weight) and the labels the target buckets."""
    indices = np.array([row for sample in inputs for row, _ in sample], np.uint32)
    values = np.array([value for sample in inputs for _, value in sample], np.float32)
    offsets = np.cumsum([0, *map(len, inputs)], dtype=np.int64)
    given = None if weights is None else np.array(weights, np.float32)
    return Samples(Features(offsets, indices, values, ROWS), labels_of(targets, BUCKETS), given)


def random_inputs(n: int, seed: int, *, empty: bool = True) -> tuple[Inputs, list[list[int]], list[float]]:
    """Samples of 0 (or 1) to 6 distinct rows, with 0 (or 1) to 3 target buckets, and a weight each."""
    source, inputs, targets = np.random.default_rng(seed), [], []
    for _ in range(n):
        ids = source.choice(ROWS, source.integers(not empty, 7), replace=False).tolist()
        inputs.append([(i, float(np.float32(source.normal() / 2))) for i in ids])
        targets.append(sorted(source.choice(BUCKETS, source.integers(not empty, 4), replace=False).tolist()))
    return inputs, targets, source.choice([0.5, 1.0, 2.0], n).tolist()


def of_kernels(learner: Learner) -> Learner:
    """A learner that the kernels can answer with: theirs has a linear repetition's weights in 16 bits."""
    if not isinstance(learner, LinearLearner):
        return learner
    return dataclasses.replace(learner, table=to_bfloat(learner.table))
