"""How fast the kernels are, beside what the machine can do at all: one thread, under a minute.

    python benchmarks/kernels.py [--seconds 0.3] [--docs]

First the machine's limits, measured here by small loops: `triad` (a = b + s * c: two numbers read, one written),
`update` (y += s * x with a short x: one read, one written back) at sizes that fit the caches and at one that does not,
and multiply-adds of numbers that stay in registers.

Then each kernel, a sample and repetition. A linear repetition reads the rows of a sample's f features (B numbers of 16
bits each), then reads and writes them once more to change them: 6 f B bytes pass through the core, of which 4 f B come
from memory and go back there if the row is in no cache. A hidden layer of H units moves 12 f H bytes of rows, and 16 H
bytes for each output that it computes, if these are sampled; where all are, it leaves out the units that are 0, about
half, and moves 6 H. Rows are drawn evenly, or as words occur in texts (zipf: the n-th most frequent in proportion to
1 / n): then the busy ones stay in the caches. "of limit" is the time that the machine would take for that
traffic, over the time taken: triad for what is in a cache, update for what is in memory. Rows at random places come
slower than a stream: "forward" only reads a linear table's rows and adds them up.
Threads' CPU time, the best of some rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import common
from machxc.compiled import fast_kernel
from machxc.config import Config
from machxc.partition import HashPartition
from machxc.repetition.arithmetic import add_row
from machxc.repetition.bfloat import to_bfloat
from machxc.repetition.encode import Rows, fit_encoder
from machxc.repetition.linear import LinearLearner, LinearScorer
from machxc.repetition.network import NetworkLearner, NetworkScorer
from machxc.repetition.stored import pack
from machxc.repetition.targets import Targets, bucket_targets
from machxc.samples import Features, Float32, Labels, Samples

Traffic = list[tuple[float, float]]
"""Bytes of a table, and of what is moved in and out of it for a sample."""

N = 2048  # samples that a kernel is given at a time
KEPT = 0.05  # weights of a linear repetition that are stored: five in a hundred, as pruning leaves with many labels
LEVELS = {"L1": 16 << 10, "L2": 512 << 10, "L3": 12 << 20, "memory": 512 << 20}  # bytes that the limits are measured at
IN_L2, IN_L3 = 768 << 10, 24 << 20  # tables up to here are held against these limits
FMAS = 32


@dataclass(frozen=True)
class Shape:
    """What a repetition looks like: features a sample, hidden units (0: linear), buckets, rows of the input table."""

    features: int
    hidden: int
    buckets: int
    rows: int
    negatives: int = 0
    draw: str = "even"

    @property
    def width(self) -> int:
        """Numbers in a row of the input table."""
        return self.hidden or self.buckets

    @property
    def table(self) -> int:
        """Bytes of the weights in training."""
        return self.weight * self.rows * self.width + 4 * self.hidden * self.buckets

    @property
    def weight(self) -> int:
        """Bytes of a weight of the input table in training."""
        return 4 if self.hidden else 2

    @property
    def outputs(self) -> int:
        """Buckets that are computed of a sample."""
        return self.negatives + 2 if self.negatives else self.buckets

    def in_cache(self, row_bytes: float) -> float:
        """The share of row visits that find the row in a cache that holds the most frequent ones."""
        fitting = min(1.0, IN_L3 / (row_bytes * self.rows))
        return max(0.0, 1 + np.log(fitting) / np.log(self.rows)) if self.draw == "zipf" else fitting

    def traffic(self, row_bytes: float, moved: float) -> Traffic:
        """Bytes moved in visits of rows, divided into those of cached rows and others."""
        size, share = row_bytes * self.rows, self.in_cache(row_bytes)
        return [(min(size, IN_L3), moved * share), (size, moved * (1 - share))]

    def __str__(self) -> str:
        hidden = f"H={self.hidden} " if self.hidden else ""
        negatives = f" ({self.negatives} sampled)" if self.negatives else ""
        return f"f={self.features} {hidden}B={self.buckets}{negatives}, {self.rows:,} rows {self.draw}"


SHAPES = (
    Shape(9, 0, 80, 2_048),
    Shape(17, 0, 500, 8_192),
    Shape(17, 0, 500, 262_144),
    Shape(17, 0, 500, 262_144, draw="zipf"),
    Shape(28, 0, 1450, 131_072, draw="zipf"),
    Shape(19, 128, 100, 500),
    Shape(17, 256, 2000, 8_192),
    Shape(17, 256, 2000, 262_144, negatives=50),
)


@dataclass(frozen=True)
class Limits:
    """What the machine can do: bytes a second by level, and floating-point operations a second."""

    triad: dict[str, float]
    update: dict[str, float]
    flops: float

    def least_seconds(self, traffic: Traffic) -> float:
        """What the machine takes to move (bytes of the table, bytes through the core), triad or update."""
        seconds = 0.0
        for table, moved in traffic:
            if table > IN_L3:
                seconds += moved * 8 / 12 / self.update["memory"]
            else:
                seconds += moved / self.triad["L2" if table <= IN_L2 else "L3"]
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each number (default: %(default)s)")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/algorithm.md")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    print(common.header(), end="\n\n", flush=True)
    limits = measure_limits(seconds)
    of_machine = common.table(("limit, GB/s", *LEVELS), [
        ["triad", *(f"{limits.triad[level] / 1e9:.0f}" for level in LEVELS)],
        ["update", *(f"{limits.update[level] / 1e9:.0f}" for level in LEVELS)],
    ])  # fmt: skip
    columns = ("kernel", "shape", "table MB", "us", "KB moved", "GB/s", "of limit", "GFLOP/s", "of limit")
    rows = [row for shape in SHAPES for row in measure_shape(shape, limits, seconds)]
    of_kernels = common.table(columns, [*rows, *measure_encoding(seconds)])
    text = f"{of_machine}\n\nMultiply-adds: {limits.flops / 1e9:.0f} GFLOP/s.\n\n{of_kernels}"
    common.report("kernels", text, write=arguments.docs, machine=True)


def best(work: Callable[[], object], seconds: float) -> float:
    """Thread CPU seconds of a call: the best of those that fit into ``seconds``, the first aside."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


# the machine


@fast_kernel
def triad(a: Float32, b: Float32, c: Float32, s: np.float32, rounds: int) -> None:
    for _ in range(rounds):
        for i in range(len(a)):
            a[i] = b[i] + s * c[i]
        s += np.float32(1e-6)


@fast_kernel
def update(y: Float32, x: Float32, s: np.float32, rounds: int) -> None:
    for _ in range(rounds):
        for j in range(len(y)):
            add_row(y[j], s, x)


@fast_kernel
def multiply_adds(x: Float32, rounds: int) -> np.float32:
    """`FMAS` dependent multiply-adds of a number (Horner's rule), many numbers side by side."""
    total = np.float32(0.0)
    for r in range(rounds):
        add = np.float32(r) * np.float32(1e-9)
        for i in range(len(x)):
            y = x[i]
            for _ in range(FMAS):
                y = y * x[i] + add
            total += y
    return total


def measure_limits(seconds: float) -> Limits:
    """Run the small loops."""
    triads, updates = {}, {}
    for level, size in LEVELS.items():
        rounds = max(1, (16 << 20) // size)
        a, b, c = (np.full(size // 12, value, np.float32) for value in (0.0, 1.0, 2.0))
        took = best(lambda a=a, b=b, c=c, n=rounds: triad(a, b, c, np.float32(0.5), n), seconds)  # type: ignore[misc]
        triads[level] = rounds * 12 * len(a) / took
        y, x = np.zeros((size // 4 // 512, 512), np.float32), np.ones(512, np.float32)
        took = best(lambda y=y, x=x, n=rounds: update(y, x, np.float32(1e-9), n), seconds)  # type: ignore[misc]
        updates[level] = rounds * 8 * y.size / took
    numbers = np.linspace(0.1, 0.9, 2048).astype(np.float32)
    took = best(lambda: multiply_adds(numbers, 200), seconds)
    return Limits(triads, updates, 200 * 2 * FMAS * len(numbers) / took)


# the kernels


def measure_shape(shape: Shape, limits: Limits, seconds: float) -> Iterator[list[str]]:
    """Training, and scoring as in training and as stored."""
    rng = np.random.default_rng(0)
    rows, targets = made_rows(shape, rng), made_targets(shape, rng)
    config = made_config(shape)
    kind = NetworkLearner if shape.hidden else LinearLearner
    learner = kind.start(config, 0, shape.rows, np.zeros(shape.buckets, np.float32))
    row = rng.standard_normal(shape.width).astype(np.float32) * np.float32(0.1)
    learner.table[:] = row if shape.hidden else to_bfloat(row)  # no page is shared zeros
    took = best(lambda: learner.train(rows, targets, (1e-3, 1e-3), 0), seconds)
    traffic = shape.traffic(shape.weight * shape.width, 3 * shape.weight * shape.features * shape.width)
    of_output, multiplied = (16, 6) if shape.negatives else (6, 3)
    traffic.append((4 * shape.hidden * shape.buckets, of_output * shape.outputs * shape.hidden))
    flops = 4 * shape.features * shape.width + multiplied * shape.outputs * shape.hidden
    yield shown("train", shape, shape.table, took, traffic, flops, limits)
    if not shape.hidden:
        took = best(lambda: learner.logits(rows), seconds) / N
        moved = shape.weight * shape.features * shape.width
        yield [
            "forward",
            str(shape),
            "",
            f"{took * 1e6:.2f}",
            f"{moved / 1e3:.1f}",
            f"{moved / took / 1e9:.1f}",
            *[""] * 3,
        ]
    out = np.empty((N, shape.buckets), np.float32)
    scorer: NetworkScorer | LinearScorer
    if shape.hidden:
        scorer = NetworkScorer(learner.tensors())
        traffic = shape.traffic(2 * shape.hidden, 2 * shape.features * shape.hidden)
        traffic.append((4 * shape.hidden * shape.buckets, 4 * shape.buckets * shape.hidden))
        flops = 2 * shape.features * shape.hidden + 2 * shape.hidden * shape.buckets
    else:
        scorer = LinearScorer(made_stored(shape, rng))
        entries = int(KEPT * shape.buckets)
        traffic, flops = shape.traffic(2 * entries, 10 * shape.features * entries), 2 * shape.features * entries
    took = best(lambda: scorer.logits(rows, out), seconds)
    size = sum(tensor.nbytes for tensor in (vars(scorer).values()))
    yield shown("score", shape, size, took, traffic, flops, limits)


def shown(what: str, shape: Shape, table: int, took: float, traffic: Traffic, flops: int, limits: Limits) -> list[str]:
    """One line of the table."""
    per_sample = took / N
    moved = sum(part for _, part in traffic)
    return [
        what,
        str(shape),
        f"{table / 1e6:,.1f}",
        f"{per_sample * 1e6:.2f}",
        f"{moved / 1e3:.1f}",
        f"{moved / per_sample / 1e9:.1f}",
        f"{limits.least_seconds(traffic) / per_sample:.0%}",
        f"{flops / per_sample / 1e9:.1f}",
        f"{flops / per_sample / limits.flops:.0%}",
    ]


def measure_encoding(seconds: float) -> Iterator[list[str]]:
    """What an epoch does before the kernel: hash and weigh the features, look up the labels' buckets."""
    rng, partition = np.random.default_rng(0), HashPartition(25_000, 500, 1, 0)
    for f in (9, 28):
        indptr = np.arange(0, (N + 1) * f, f)
        ids = np.sort(rng.zipf(1.2, (N, f)).astype(np.uint32), axis=1).reshape(-1)
        features = Features(indptr, ids, np.ones(N * f, np.float32), 2**32)
        labels = np.sort(rng.integers(0, 12_500, (N, 2)) * 2 + [0, 1], axis=1).astype(np.uint32).reshape(-1)
        samples = Samples(features, Labels(np.arange(0, 2 * N + 1, 2), labels, 25_000))
        config = made_config(Shape(f, 0, 500, 1))
        encoder, order = fit_encoder(features, config, 0), rng.permutation(N)
        took = best(lambda encoder=encoder, x=features, o=order: encoder(x, o), seconds)  # type: ignore[misc]
        yield ["encode", f"f={f}", "", f"{took / N * 1e6:.2f}", *[""] * 5]
        took = best(lambda s=samples, o=order: bucket_targets(s, o, partition, 0), seconds)  # type: ignore[misc]
        yield ["targets", "2 labels", "", f"{took / N * 1e6:.2f}", *[""] * 5]


def made_rows(shape: Shape, rng: np.random.Generator) -> Rows:
    """Encoded samples, the features of each drawn from all rows."""
    uniform = rng.random((N, shape.features))
    rows = (shape.rows**uniform - 1) if shape.draw == "zipf" else uniform * shape.rows
    weights = np.full(N * shape.features, 1 / np.sqrt(shape.features), np.float32)
    indptr = np.arange(0, (N + 1) * shape.features, shape.features)
    return Rows(indptr, rows.astype(np.int32).reshape(-1), weights)


def made_targets(shape: Shape, rng: np.random.Generator) -> Targets:
    """Two target buckets a sample."""
    half = shape.buckets // 2
    buckets = rng.integers(0, half, (N, 2)).astype(np.int32) + np.array([0, half], np.int32)
    return Targets(np.arange(0, 2 * N + 1, 2), buckets.reshape(-1), np.ones(N, np.float32))


def made_stored(shape: Shape, rng: np.random.Generator) -> dict[str, npt.NDArray[np.generic]]:
    """A pruned linear repetition."""
    entries = int(KEPT * shape.buckets)
    some = np.stack([np.sort(rng.permutation(shape.buckets)[:entries]) for _ in range(64)]).astype(np.uint16)
    starts = np.arange(0, (shape.rows + 1) * entries, entries)
    weights = to_bfloat(rng.uniform(0.2, 1.0, shape.rows * entries).astype(np.float32))
    packed = pack(starts, np.resize(some, shape.rows * entries), weights)
    return {**packed, "bias": np.zeros(shape.buckets, np.float32)}


def made_config(shape: Shape) -> Config:
    """A configuration of this shape; what the kernels do not look at is as good as any."""
    return Config(
        n_labels=25_000, n_features=2**32, learner="gradient", smoothing=1.0, left_out=0, associations=0, repetitions=1,
        buckets=shape.buckets, hidden=shape.hidden, negatives=shape.negatives, loss="bce", epochs=1,
        learning_rate=1.0, dropout=0.0,
        prune=0.2, feature_bits=18, min_count=1, sublinear_tf=True, idf=True, l2=True, estimator="mean",
        validation_fraction=0.0, patience=1, seed=0,
    )  # fmt: skip


if __name__ == "__main__":
    main()
