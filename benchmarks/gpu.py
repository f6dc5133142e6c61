"""What a device reaches, against what it could: training and retrieval by machxc.torch, in one call of minutes.

    python benchmarks/gpu.py [--device cuda:0] [--seconds 480] [--output build/benchmarks/gpu.json]

Ceilings of the device first: matrix products, memory, the way from this machine to it. Then each stage of a step at the
shape of the published product search (80,000 hashed inputs, 2,000 hidden units, B = 20,000, R = 32), beside its floor:
the multiply-adds at the ceiling of matrix products, or the bytes at that of memory. Then whole steps for several
batches, B, H and R, an epoch from samples in memory, and the 100 best of 50 million labels. What does not fit, or finds
no time, is left out and named. On a processor (--device cpu) sizes are tiny: that tells whether it runs, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from machxc.config import Config
from machxc.partition import HashPartition
from machxc.repetition.encode import Encoder
from machxc.samples import Features, Labels, Samples
from machxc.torch.batches import batch_of, batches
from machxc.torch.device import on
from machxc.torch.layers import turned
from machxc.torch.learner import Group, LinearGroup, NetworkGroup, SparseTrunk, group_of, matrix_dtype
from machxc.torch.loss import gradient_
from machxc.torch.top_k import top_k

LEAST = {"cuda": 0.3, "cpu": 0.03}  # seconds that a measurement takes at least, after a first go that does not count


@dataclass(frozen=True)
class Shape:
    """Samples of a batch n, features of each f, rows of a table, hidden units H, buckets B, repetitions R, labels K."""

    n: int
    f: int
    rows: int
    hidden: int
    buckets: int
    repetitions: int
    labels: int


PAPER = Shape(n=8192, f=8, rows=80_000, hidden=2000, buckets=20_000, repetitions=32, labels=49_460_000)
TINY = Shape(n=64, f=8, rows=500, hidden=16, buckets=50, repetitions=2, labels=20_000)


class Meter:
    """Times what runs on a device, as long as there is time."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.end = device, time.monotonic() + seconds
        self.missing: list[str] = []

    def seconds(self, name: str, run: Callable[[], object]) -> float | None:
        """Seconds of one call; None, and noted as missing, when there is no time or no memory for it."""
        if time.monotonic() > self.end:
            self.missing.append(f"{name}: no time")
            return None
        try:
            self._time(run, 1)
            once = self._time(run, 1)
            times = max(1, min(1000, int(LEAST[self.device.partition(":")[0]] / max(once, 1e-6))))
            return self._time(run, times) / times
        except torch.OutOfMemoryError:
            self.missing.append(f"{name}: no memory")
            self.clear()
            return None

    def rows(self, name: str, run: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The results of some measurements; none when what they need together does not fit."""
        try:
            return run()
        except torch.OutOfMemoryError:
            self.missing.append(f"{name}: no memory")
            return []
        finally:
            self.clear()

    def clear(self) -> None:
        """Give back what is free."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _time(self, run: Callable[[], object], times: int) -> float:
        self._wait()
        begin = time.perf_counter()
        for _ in range(times):
            run()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=480.0, help="after which no further measurement begins")
    parser.add_argument("--output", type=Path, default=common.BUILD / "gpu.json")
    arguments = parser.parse_args()
    print(common.header())
    with on(arguments.device), torch.no_grad():
        result = measure(arguments.device, Meter(arguments.device, arguments.seconds))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{arguments.output}")


def measure(device: str, meter: Meter) -> dict[str, Any]:
    """All of it, in the order of what matters most."""
    on_gpu = device.startswith("cuda")
    paper = PAPER if on_gpu else TINY
    result: dict[str, Any] = {"device": name_of(device), "torch": torch.__version__, "shape": asdict(paper)}
    result["ceilings"] = limits = ceilings(device, meter, on_gpu=on_gpu)
    show("ceilings", [limits])
    result["stages"] = show("stages of a step", meter.rows("stages", lambda: stages(device, meter, paper, limits)))
    shapes = list(variations(paper, on_gpu=on_gpu))
    result["steps"] = show("whole steps", [step(device, meter, shape, limits) for shape in shapes])
    result["epoch"] = show("an epoch from memory", meter.rows("epoch", lambda: [epoch(device, meter, paper)]))
    found = meter.rows("retrieval", lambda: list(retrieval(device, meter, paper, on_gpu=on_gpu)))
    result["retrieval"] = show("the 100 best of K labels", found)
    result["missing"] = meter.missing
    print("\nleft out:", "; ".join(meter.missing) or "nothing")
    return result


def name_of(device: str) -> str:
    """What the device is called."""
    if not device.startswith("cuda"):
        return common.processor()
    facts = torch.cuda.get_device_properties(device)
    return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"


def show(title: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print results as a table."""
    columns = list(rows[0]) if rows else ["nothing"]
    print(f"\n{title}\n{common.table(columns, [[_shown(row.get(column)) for column in columns] for row in rows])}")
    return rows


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def ceilings(device: str, meter: Meter, *, on_gpu: bool) -> dict[str, float | None]:
    """TFLOP/s of matrix products in the type that training has, GB/s of memory (read and written) and of the bus."""
    dtype, size, n_bytes = matrix_dtype(device), 8192 if on_gpu else 256, 1 << (31 if on_gpu else 22)
    a = torch.randn((size, size), device=device).to(dtype)
    b, out = a.clone(), torch.empty_like(a)
    product = meter.seconds("product", lambda: torch.mm(a, b, out=out))
    x = torch.zeros(n_bytes // 4, device=device)
    y = torch.empty_like(x)
    copy = meter.seconds("copy", lambda: y.copy_(x))
    here = torch.zeros(n_bytes // 32, pin_memory=on_gpu)
    bus = meter.seconds("bus", lambda: x[: len(here)].copy_(here, non_blocking=True))
    return {
        "TFLOP/s": product and 2e-12 * size**3 / product,
        "memory GB/s": copy and 2e-9 * n_bytes / copy,
        "bus GB/s": bus and 4e-9 * len(here) / bus,
    }


def config_of(shape: Shape) -> Config:
    """The published network, or without hidden units a linear model."""
    bits = max(8, (shape.rows - 1).bit_length())
    return Config(
        n_labels=shape.labels, n_features=2**32, learner="gradient", repetitions=shape.repetitions,
        buckets=shape.buckets, hidden=shape.hidden, negatives=0, loss="softmax", epochs=1, learning_rate=0.1,
        dropout=0.0, smoothing=1.0, left_out=0, associations=0, prune=0.5, feature_bits=bits, min_count=1,
        sublinear_tf=False, idf=False, l2=True, estimator="log-probability", validation_fraction=0.0, patience=1,
        seed=0,
    )  # fmt: skip


def partition_of(shape: Shape) -> HashPartition:
    return HashPartition(shape.labels, shape.buckets, shape.repetitions, 0)


def made(shape: Shape, n: int) -> Samples:
    """Samples of features whose frequencies fall as in texts, with a label each."""
    source = np.random.default_rng(0)
    ids = (source.zipf(1.2, n * shape.f) % 2**31).astype(np.uint32) * np.uint32(2654435761)
    offsets = np.arange(n + 1, dtype=np.int64)
    features = Features(offsets * shape.f, ids, np.ones(n * shape.f, np.float32), 2**32)
    labels = Labels(offsets, source.integers(0, shape.labels, n).astype(np.uint32), shape.labels)
    return Samples(features, labels)


def group(device: str, shape: Shape) -> Group:
    """A group with random weights."""
    config = config_of(shape)
    slots = (np.arange(1 << config.feature_bits) % shape.rows).astype(np.int32)
    weights = np.ones(shape.rows, np.float32)
    shift, odd = np.uint64(64 - config.feature_bits), 0x9E3779B97F4A7C15
    encoders = [
        Encoder(np.uint64(odd + 2 * r), np.uint64(r), shift, slots, weights, sublinear_tf=False, l2=True)
        for r in range(shape.repetitions)
    ]
    found = group_of(config, partition_of(shape), list(range(shape.repetitions)), device, encoders)
    for i in range(shape.repetitions):
        for name, view in found.views(i).items():
            if name in ("table", "output"):
                view.uniform_(-0.05, 0.05)
    return found


def stages(device: str, meter: Meter, shape: Shape, limits: dict[str, float | None]) -> list[dict[str, Any]]:
    """Each stage of a step at one shape, beside its floor."""
    rows: list[dict[str, Any]] = []
    whole, found = slice(0, shape.repetitions), group(device, shape)
    assert isinstance(found, NetworkGroup)
    trunk, output, batch = found.trunk, found.output, batch_of(made(shape, shape.n), device)
    assert isinstance(trunk, SparseTrunk)
    item = torch.empty(0, dtype=output.dtype).element_size()
    flat, n_hidden = shape.repetitions * shape.n, shape.repetitions * shape.n * shape.hidden
    n_logits, n_outputs = flat * shape.buckets, shape.repetitions * shape.buckets * shape.hidden

    def add(name: str, run: Callable[[], object], *, flops: float = 0.0, moved: float = 0.0) -> None:
        seconds, peak, memory = meter.seconds(name, run), limits["TFLOP/s"], limits["memory GB/s"]
        floor = max(flops / (1e12 * peak) if peak else 0.0, moved / (1e9 * memory) if memory else 0.0)
        share = None if seconds is None else floor / seconds
        rows.append({"stage": name, "ms": seconds and 1e3 * seconds, "floor ms": 1e3 * floor, "of floor": share})

    encoded, wanted = trunk.encoder(batch, whole, 0), found.targets(batch, whole)
    hidden = trunk.forward(batch, whole, 0)[0].to(output.dtype)
    logits = output.logits(whole, hidden)
    used = int(torch.unique(encoded.rows).numel())
    gathered = flat * shape.f * shape.hidden
    matmul = 2.0 * n_logits * shape.hidden
    add("encode", lambda: trunk.encoder(batch, whole, 0), moved=20.0 * flat * shape.f)
    add("targets", lambda: found.targets(batch, whole), moved=24.0 * flat)
    add("gather rows", lambda: trunk.table.sums(encoded), moved=4.0 * (gathered + n_hidden))
    add("logits", lambda: output.logits(whole, hidden), flops=matmul)
    add("loss", lambda: gradient_(logits, wanted, softmax=True), moved=3.0 * item * n_logits)
    logits.mul_(1e-3)
    add("gradients", lambda: output.gradients(whole, hidden, logits), flops=2 * matmul)
    gradients = output.gradients(whole, hidden, logits)
    add("step outputs", lambda: output.step(whole, gradients, 0.0), moved=(8.0 + 2 * item) * n_outputs)
    moved = item * gathered + 8.0 * used * shape.hidden
    add("turn rows", lambda: turned(encoded), moved=80.0 * flat * shape.f)
    by_row = turned(encoded)
    add("step rows", lambda: trunk.table.step(by_row, gradients.hidden.view(flat, -1), 0.0), moved=moved)
    return rows


def variations(paper: Shape, *, on_gpu: bool) -> Iterator[Shape]:
    """The shape itself, then one number of it changed at a time, then linear models."""
    yield paper
    for n in (1024, 4096, 16384) if on_gpu else (16, 256):
        yield replace(paper, n=n)
    for buckets in (2000, 10_000) if on_gpu else (10,):
        yield replace(paper, buckets=buckets)
    for hidden in (256, 1024) if on_gpu else (8,):
        yield replace(paper, hidden=hidden)
    for repetitions in (1, 4, 8, 16) if on_gpu else (1,):
        yield replace(paper, repetitions=repetitions)
    linear = replace(paper, rows=262_144, f=20) if on_gpu else paper
    yield replace(linear, hidden=0, buckets=500 if on_gpu else 20, repetitions=min(16, paper.repetitions))


def step(device: str, meter: Meter, shape: Shape, limits: dict[str, float | None]) -> dict[str, Any]:
    """Whole steps at a shape: samples a second for all repetitions together, and the share of the matrix peak."""
    name = f"step n={shape.n} H={shape.hidden} B={shape.buckets} R={shape.repetitions}"
    seconds = None
    if time.monotonic() < meter.end:
        try:
            found, batch = group(device, shape), batch_of(made(shape, shape.n), device)
            seconds = meter.seconds(name, lambda: found.train(batch, 0.01, 0))
            assert isinstance(found, LinearGroup if not shape.hidden else NetworkGroup)
        except torch.OutOfMemoryError:
            meter.missing.append(f"{name}: no memory")
        found = batch = None  # type: ignore[assignment]
        meter.clear()
    else:
        meter.missing.append(f"{name}: no time")
    flops = 6.0 * shape.repetitions * shape.n * shape.hidden * shape.buckets
    reached, peak = seconds and 1e-12 * flops / seconds, limits["TFLOP/s"]
    return {
        "n": shape.n, "H": shape.hidden, "B": shape.buckets, "R": shape.repetitions, "ms": seconds and 1e3 * seconds,
        "samples/s": seconds and shape.n / seconds, "TFLOP/s": reached,
        "of peak": reached / peak if reached and peak else None,
    }  # fmt: skip


def epoch(device: str, meter: Meter, shape: Shape) -> dict[str, Any]:
    """Batches read, shuffled, sent and trained on: what the way to the device costs."""
    samples = made(shape, 32 * shape.n)
    order = np.arange(len(samples), dtype=np.int64)

    def read() -> None:
        for _ in batches(samples, order, 0, 0, shape.n, device):
            pass

    def train() -> None:
        for batch in batches(samples, order, 0, 0, shape.n, device):
            found.train(batch, 0.01, 0)

    reading = meter.seconds("epoch, read only", read)
    found = group(device, shape)
    training = meter.seconds("epoch", train)
    n = len(samples)
    return {"samples": n, "samples/s read": reading and n / reading, "samples/s": training and n / training}


def retrieval(device: str, meter: Meter, shape: Shape, *, on_gpu: bool) -> Iterator[dict[str, Any]]:
    """The 100 best of all labels for batches of queries, from sketches in which some buckets stand out."""
    meter.clear()
    partition = partition_of(shape)
    for n in (1, 32, 128) if on_gpu else (1, 8):
        source = np.random.default_rng(n)
        sketch = source.normal(0, 1, (n, shape.repetitions, shape.buckets)).astype(np.float32)
        logits = torch.from_numpy(sketch + 8 * (source.random(sketch.shape) < 1e-3)).to(device, torch.float32)
        for estimator in ("log-probability", "min"):

            def ask(logits: Any = logits, estimator: str = estimator) -> None:
                top_k(logits, partition, 100, loss="softmax", estimator=estimator)

            seconds = meter.seconds(f"retrieval of {n} by {estimator}", ask)
            yield {
                "queries": n, "K": shape.labels, "R": shape.repetitions, "B": shape.buckets, "estimator": estimator,
                "ms": seconds and 1e3 * seconds, "ms a query": seconds and 1e3 * seconds / n,
            }  # fmt: skip


if __name__ == "__main__":
    main()
