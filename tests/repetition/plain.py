"""A repetition as plainly as it can be written: Python integers for hashes, NumPy in float64 for the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from machxc.config import Config
from machxc.repetition.encode import Encoder, Rows
from machxc.repetition.targets import Targets
from machxc.samples import Features, Labels

Float64 = npt.NDArray[np.float64]

FACTS: dict[str, Any] = {
    "n_labels": 30, "n_features": 50, "learner": "gradient", "repetitions": 2, "buckets": 8, "hidden": 0,
    "negatives": 0, "loss": "softmax", "epochs": 2, "learning_rate": 1.0, "dropout": 0.0, "smoothing": 1.0,
    "left_out": 0, "associations": 0,
    "prune": 0.0, "feature_bits": 6, "min_count": 1, "sublinear_tf": False, "idf": False, "l2": True,
    "estimator": "mean", "validation_fraction": 0.0, "patience": 1, "seed": 0, "text": None,
}  # fmt: skip


# what a repetition can be, by name: settings
KINDS: dict[str, dict[str, Any]] = {
    "linear-softmax": {"loss": "softmax", "learning_rate": 5.0},
    "linear-bce": {"loss": "bce", "learning_rate": 3.0},
    "network-softmax": {"loss": "softmax", "hidden": 32},
    "network-bce": {"loss": "bce", "hidden": 32},
    "network-softmax-negatives": {"loss": "softmax", "hidden": 32, "negatives": 5},
    "network-bce-negatives": {"loss": "bce", "hidden": 32, "negatives": 5},
}


def config_of(**changed: Any) -> Config:
    return Config(**{**FACTS, **changed})


def features_of(rows: list[dict[int, float]], n_features: int) -> Features:
    """Features from one {id: value} a sample."""
    indices = [index for row in rows for index in row]
    values = [value for row in rows for value in row.values()]
    return Features(
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array(indices, np.uint32),
        np.array(values, np.float32),
        n_features,
    )


def labels_of(rows: list[list[int]], n_labels: int) -> Labels:
    """Labels from one list of ids a sample."""
    indices = np.array([label for row in rows for label in row], np.uint32)
    return Labels(np.cumsum([0, *map(len, rows)], dtype=np.int64), indices, n_labels)


def sparse_rows(n_features: int, *, max_rows: int = 12) -> st.SearchStrategy[list[dict[int, float]]]:
    """Samples: counts, measurements of either sign, zeros that are stored, rows without anything."""
    ids = st.integers(0, n_features - 1)
    value = st.one_of(st.integers(1, 5).map(float), st.floats(-1e3, 1e3, width=32).filter(lambda x: abs(x) > 1e-3))
    return st.lists(st.dictionaries(ids, st.one_of(value, st.just(0.0)), max_size=9), min_size=1, max_size=max_rows)


# ---- features to rows


def slot_of(feature: int, config: Config, hashed: tuple[int, int, int]) -> int:
    """The slot of a feature: itself where there is room, else multiply-add-shift."""
    multiplier, addend, shift = hashed
    if config.n_features <= 2**config.feature_bits:
        return feature
    return ((multiplier * feature + addend) % 2**64) >> shift


def encoded(features: Features, config: Config, hashed: tuple[int, int, int]) -> list[list[tuple[int, float]]]:
    """Of each sample, slot and weight of its features in order, slots of too few samples left out."""
    slots = [slot_of(int(i), config, hashed) for i in features.indices]
    values = [float(v) for v in features.values]
    count = {s: slots.count(s) for s in set(slots)}
    kept = {s for s in count if count[s] >= config.min_count}
    n = len(features)
    factor = {s: math.log((1 + n) / (1 + min(count[s], n))) + 1 if config.idf else 1.0 for s in kept}
    if not config.l2:
        norm = math.sqrt(max(1.0, sum(count[s] for s in kept) / n))
        for s in kept:
            mean_square = sum(v * v for v, t in zip(values, slots, strict=True) if t == s) / count[s]
            factor[s] /= (math.sqrt(mean_square) or 1.0) * norm
    out = []
    for i in range(n):
        row = []
        for j in range(features.indptr[i], features.indptr[i + 1]):
            if slots[j] in kept:
                value = 1 + math.log(values[j]) if config.sublinear_tf and values[j] > 0 else values[j]
                row.append((slots[j], value * factor[slots[j]]))
        norm = math.sqrt(sum(w * w for _, w in row)) if config.l2 else 1.0
        out.append([(s, w / (norm or 1.0)) for s, w in row])
    return out


def by_slot(encoder: Encoder, rows: Rows) -> list[list[tuple[int, float]]]:
    """Of each encoded sample, slot and weight of its features."""
    slot = {int(row): s for s, row in enumerate(encoder.slots) if row >= 0}
    return [
        [(slot[int(rows.rows[j])], float(rows.weights[j])) for j in range(rows.indptr[i], rows.indptr[i + 1])]
        for i in range(len(rows))
    ]


# ---- losses


def loss_of(z: Float64, targets: list[int], kind: str) -> float:
    """Cross-entropy in nats: against a uniform distribution over the targets, or of every bucket by itself."""
    if kind == "softmax":
        top = z.max()
        return float(np.mean([top + np.log(np.exp(z - top).sum()) - z[t] for t in targets]))
    return float(np.logaddexp(0, z).sum() - z[targets].sum())


def gradient_of(z: Float64, targets: list[int], kind: str) -> Float64:
    """The derivative of `loss_of` by z."""
    y = np.zeros_like(z)
    y[targets] = 1 / len(targets) if kind == "softmax" and targets else 1
    if kind == "softmax":
        p = np.exp(z - z.max())
        return np.asarray(p / p.sum() - y)
    return np.asarray(1 / (1 + np.exp(-z)) - y)


# ---- models: one sample at a time, row-wise Adagrad


@dataclass
class PlainLinear:
    """z = bias + the rows of the features, weighted. Weights are exact, or rounded at random to bfloat16."""

    table: Float64
    bias: Float64
    kind: str
    state: int | None = None

    def __post_init__(self) -> None:
        self.squares = np.zeros(len(self.table))
        self.bias_square = 0.0
        self.position = 0

    def step(self, row: list[tuple[int, float]], targets: list[int], weight: float, rate: float) -> float:
        self.position += 1
        if self.kind == "softmax" and not targets:
            return 0.0
        z = self.bias + sum((w * self.table[i] for i, w in row), np.zeros_like(self.bias))
        g = weight * gradient_of(z, targets, self.kind)
        for j, (i, w) in enumerate(row):
            self.squares[i] += w * w * (g @ g)
            if self.squares[i] > 0:
                self.table[i] -= rate * w * g / np.sqrt(self.squares[i])
                self._round(i, j)
        self.bias_square += float(g @ g)
        if self.bias_square > 0:
            self.bias -= 0.1 * rate * g / np.sqrt(self.bias_square)
        return weight * loss_of(z, targets, self.kind)

    def _round(self, i: int, j: int) -> None:
        if self.state is not None:
            drawn = splitmix64(self.state, self.position - 1)
            cuts = [(plain_noise(drawn, b) + plain_turn(drawn, j)) % 2**16 for b in range(len(self.bias))]
            bits = [plain_rounded(*one) for one in zip(self.table[i].astype(np.float32), cuts, strict=True)]
            self.table[i] = (np.array(bits, np.uint32) << 16).view(np.float32)


def plain_rounded(exact: np.float32, cut: int) -> int:
    """The bits of a bfloat16 next to ``exact``: its own and a cut below 2**16, added up, without the lower 16."""
    return ((int(exact.view(np.uint32)) + cut) % 2**32) >> 16


def plain_noise(state: int, place: int) -> int:
    """The 16 bits of noise in a place: lowbias32 of the lower half of the state, and the place."""
    h = (state + place) % 2**32
    h = ((h ^ h >> 16) * 0x7FEB352D) % 2**32
    h = ((h ^ h >> 15) * 0x846CA68B) % 2**32
    return (h ^ h >> 16) % 2**16


def plain_turn(state: int, j: int) -> int:
    """By how much the j-th feature of a sample turns its noise."""
    return splitmix64(state, j) % 2**16


def splitmix64(state: int, position: int) -> int:
    """The output of SplitMix64 (Steele, Lea and Flood 2014) at a position."""
    z = (state + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@dataclass
class PlainNetwork:
    """h = max(0, hidden bias + the rows of the features, weighted); z = bias + output h."""

    table: Float64
    hidden_bias: Float64
    output: Float64
    bias: Float64
    kind: str

    def __post_init__(self) -> None:
        self.squares, self.output_squares = np.zeros(len(self.table)), np.zeros(len(self.output))
        self.hidden_square = self.bias_square = 0.0

    def logits(self, row: list[tuple[int, float]]) -> Float64:
        return np.asarray(self.bias + self.output @ self.hidden(row))

    def hidden(self, row: list[tuple[int, float]]) -> Float64:
        return np.maximum(
            0, self.hidden_bias + sum((w * self.table[i] for i, w in row), np.zeros(len(self.hidden_bias)))
        )

    def step(self, row: list[tuple[int, float]], targets: list[int], weight: float, rate: float) -> None:
        if self.kind == "softmax" and not targets:
            return
        h = self.hidden(row)
        g = weight * gradient_of(self.logits(row), targets, self.kind)
        dh = np.where(h > 0, self.output.T @ g, 0)
        self.bias_square += float(g @ g)
        self.bias -= 0.1 * rate * g / np.sqrt(self.bias_square + 1e-30)
        self.output_squares += g * g * (h @ h)
        self.output -= rate * np.outer(g / np.sqrt(self.output_squares + 1e-30), h)
        for i, w in row:
            self.squares[i] += w * w * (dh @ dh)
            self.table[i] -= rate * w * dh / np.sqrt(self.squares[i] + 1e-30)
        self.hidden_square += float(dh @ dh)
        self.hidden_bias -= 0.1 * rate * dh / np.sqrt(self.hidden_square + 1e-30)


def rows_of(samples: list[list[tuple[int, float]]]) -> Rows:
    """Encoded samples from one list of (row, weight) each."""
    return Rows(
        np.cumsum([0, *map(len, samples)], dtype=np.int64),
        np.array([row for sample in samples for row, _ in sample], np.int32),
        np.array([weight for sample in samples for _, weight in sample], np.float32),
    )


def targets_of(buckets: list[list[int]], weights: list[float] | None = None) -> Targets:
    """Target buckets, rising in a row."""
    indptr = np.cumsum([0, *map(len, buckets)], dtype=np.int64)
    flat = np.array([b for row in buckets for b in row], np.int32)
    return Targets(indptr, flat, np.array(weights or [1.0] * len(buckets), np.float32))


def random_samples(
    random: np.random.Generator, n: int, n_rows: int, n_buckets: int
) -> tuple[list[list[tuple[int, float]]], list[list[int]]]:
    """Samples of 0 to 6 features of unit norm or so, with 0 to 3 target buckets."""
    samples, targets = [], []
    for _ in range(n):
        ids = random.integers(0, n_rows, random.integers(0, 7)).tolist()  # a row may come twice: features that collide
        samples.append([(i, float(np.float32(random.normal() / 2))) for i in ids])
        targets.append(sorted(random.choice(n_buckets, random.integers(0, 4), replace=False).tolist()))
    return samples, targets
