"""What a device reaches, against what it could: training and retrieval by machxc.torch, in one call of minutes.

    python benchmarks/gpu.py [--device cuda:0] [--seconds 480] [--output build/benchmarks/gpu.json]

Ceilings of the device first: matrix products, memory, the way from this machine to it. Then each stage of a step at the
shape of the published product search (80,000 hashed inputs, 2,000 hidden units, B = 20,000, R = 32), beside its floor:
the multiply-adds at the ceiling of matrix products, or the bytes at that of memory. Then whole steps for several
batches, B, H and R, an epoch from samples in memory, and the 100 best of 50 million labels. Each of these parts is a
process of its own with a share of the time, and writes down what it has as it goes. What does not fit, fails, or finds
no time, is left out and named, with the reason. On a processor (--device cpu) sizes are tiny: that tells whether it
runs, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
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
from machxc.torch.fused import kernels_for
from machxc.torch.layers import turned
from machxc.torch.learner import Group, NetworkGroup, group_of, matrix_dtype
from machxc.torch.loss import gradient_
from machxc.torch.top_k import top_k
from machxc.torch.trunk import SparseTrunk

GRACE = 30.0  # seconds that a part may take beyond its share, to start and to end its last measurement
NO_LIMITS = {"TFLOP/s": None, "memory GB/s": None}
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


Limits = dict[str, Any]
"""What a device reaches at most; None where that was not found out."""


class Meter:
    """Times what runs on a device, as long as there is time. What finds none, or fails, is ``missing``."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.end = device, time.monotonic() + seconds
        self.missing: list[str] = []

    def seconds(self, name: str, run: Callable[[], object]) -> float | None:
        """Seconds of one call; None, and why is noted, when there is no time or no memory for it, or it fails."""
        if time.monotonic() > self.end:
            self.missing.append(f"{name}: no time")
            return None
        found = []
        with self.noting(name):
            self._time(run, 1)
            once = self._time(run, 1)
            times = max(1, min(1000, int(LEAST[self.device.partition(":")[0]] / max(once, 1e-6))))
            found.append(self._time(run, times) / times)
        return found[0] if found else None

    @contextlib.contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note what goes wrong, and go on. (After some errors of a GPU everything fails, until the process ends.)"""
        failed = True
        try:
            yield
            failed = False
        except torch.OutOfMemoryError:
            self.missing.append(f"{name}: no memory")
        except Exception as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            self.missing.append(f"{name}: {type(error).__name__}: {reason}")
        if failed:
            with contextlib.suppress(Exception):
                self.clear()

    def clear(self) -> None:
        """Give back what is free."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def peak(self) -> float | None:
        """GB that were allocated at most since this was last asked."""
        if not self.device.startswith("cuda"):
            return None
        most = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return float(most)

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


Row = dict[str, Any]
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=480.0, help="after which no further measurement begins")
    parser.add_argument("--output", type=Path, default=common.BUILD / "gpu.json")
    parser.add_argument("--part", choices=list(PARTS), help="only that, in this process, with the ceilings in --output")
    arguments = parser.parse_args()
    if arguments.part:
        measure_part(arguments.part, arguments.device, arguments.seconds, arguments.output)
        return
    print(common.header(), flush=True)
    result = measure(arguments.device, arguments.seconds, arguments.output, in_a_process)
    print("\nleft out:", "; ".join(result["missing"]) or "nothing")
    print(f"\n{arguments.output}")


def measure(device: str, seconds: float, output: Path, run: Callable[..., str]) -> Result:
    """All of it, in the order of what matters most; ``output`` has all that is known at any time.

    Each part is a process of its own, which ``run`` starts: what one spoils, a GPU's state too, is none of the others'
    business. What a part does not need of its share of the time, those after it have.
    """
    begin, left = time.monotonic(), sum(share for _, share in PARTS.values())
    result: Result = {"device": name_of(device), "torch": torch.__version__, "missing": []}
    write(output, result)
    for name, (_, share) in PARTS.items():
        budget = max(0.0, seconds - (time.monotonic() - begin)) * share / left
        left -= share
        failed = run(name, device, budget, output)
        result = json.loads(output.read_text())  # what the part had found until it ended, however that was
        if failed:
            result["missing"].append(f"{name}: {failed}")
            write(output, result)
    return result


def in_a_process(name: str, device: str, seconds: float, output: Path) -> str:
    """Measure a part; what went wrong with the process, or nothing."""
    command = [sys.executable, __file__, "--device", device, "--seconds", str(seconds), "--output", str(output)]
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}
    try:
        done = subprocess.run([*command, "--part", name], env=environment, timeout=seconds + GRACE, check=False)
    except subprocess.TimeoutExpired:
        return f"ended after {seconds + GRACE:.0f} s"
    return f"ended with exit code {done.returncode}" if done.returncode else ""


def measure_part(name: str, device: str, seconds: float, output: Path) -> None:
    """One part, which is written down row by row, beside what ``output`` has already."""
    on_gpu, meter, result = device.startswith("cuda"), Meter(device, seconds), json.loads(output.read_text())
    shape, limits, before = PAPER if on_gpu else TINY, (result.get("ceilings") or [{}])[0], result["missing"]
    rows: list[Row] = []
    with on(device), torch.no_grad(), meter.noting(name):
        result["shape"], result["kernels"] = asdict(shape), kernels_of(device)
        for row in PARTS[name][0](device, meter, shape, {**NO_LIMITS, **limits}):
            rows.append(row)
            write(output, {**result, name: rows, "missing": [*before, *meter.missing]})
    write(output, {**result, name: rows, "missing": [*before, *meter.missing]})
    show(name, rows)


def write(output: Path, result: Result) -> None:
    """Write the result anew, wholly or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".unfinished")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(output)


def kernels_of(device: str) -> str:
    """What computes beside matrix products."""
    kernels = kernels_for(torch.zeros(1, device=device))
    return "plain PyTorch" if kernels is None else f"Triton {kernels.triton.__version__}, CUDA {torch.version.cuda}"


def name_of(device: str) -> str:
    """What the device is called."""
    if not device.startswith("cuda"):
        return common.processor()
    facts = torch.cuda.get_device_properties(device)
    return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"


def show(title: str, rows: list[Row]) -> None:
    """Print results as a table."""
    columns = list(rows[0]) if rows else ["nothing"]
    table = common.table(columns, [[_shown(row.get(column)) for column in columns] for row in rows])
    print(f"\n{title}\n{table}", flush=True)


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def ceilings(device: str, meter: Meter, _: Shape, __: Limits) -> Iterator[Row]:
    """TFLOP/s of matrix products in the type that training has, GB/s of memory (read and written) and of the bus."""
    on_gpu = device.startswith("cuda")
    dtype, size, n_bytes = matrix_dtype(device), 8192 if on_gpu else 256, 1 << (31 if on_gpu else 22)
    a = torch.randn((size, size), device=device).to(dtype)
    b, out = a.clone(), torch.empty_like(a)
    product = meter.seconds("product", lambda: torch.mm(a, b, out=out))
    x = torch.zeros(n_bytes // 4, device=device)
    y = torch.empty_like(x)
    copy = meter.seconds("copy", lambda: y.copy_(x))
    here = torch.zeros(n_bytes // 32, pin_memory=on_gpu)
    bus = meter.seconds("bus", lambda: x[: len(here)].copy_(here, non_blocking=True))
    yield {
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


def stages(device: str, meter: Meter, shape: Shape, limits: Limits) -> Iterator[Row]:
    """Each stage of a step at one shape, beside its floor."""
    whole, found = slice(0, shape.repetitions), group(device, shape)
    assert isinstance(found, NetworkGroup)
    trunk, output, batch = found.trunk, found.output, batch_of(made(shape, shape.n), device)
    assert isinstance(trunk, SparseTrunk)
    item = torch.empty(0, dtype=output.dtype).element_size()
    flat, n_hidden = shape.repetitions * shape.n, shape.repetitions * shape.n * shape.hidden
    n_logits, n_outputs = flat * shape.buckets, shape.repetitions * shape.buckets * shape.hidden

    def row(name: str, run: Callable[[], object], *, flops: float = 0.0, moved: float = 0.0) -> Row:
        seconds, peak, memory = meter.seconds(name, run), limits["TFLOP/s"], limits["memory GB/s"]
        floor = max(flops / (1e12 * peak) if peak else 0.0, moved / (1e9 * memory) if memory else 0.0)
        share = None if seconds is None else floor / seconds
        return {"stage": name, "ms": seconds and 1e3 * seconds, "floor ms": 1e3 * floor, "of floor": share}

    encoded, wanted = trunk.encoder(batch, whole, 0), found.targets(batch, whole)
    hidden = trunk.forward(batch, whole, 0)[0].to(output.dtype)
    logits = output.logits(whole, hidden, late=True)
    bias = output.bias.late(whole, logits)
    used = int(torch.unique(encoded.rows).numel())
    gathered = flat * shape.f * shape.hidden
    matmul = 2.0 * n_logits * shape.hidden
    yield row("encode", lambda: trunk.encoder(batch, whole, 0), moved=20.0 * flat * shape.f)
    yield row("targets", lambda: found.targets(batch, whole), moved=24.0 * flat)
    yield row("gather rows", lambda: trunk.table.sums(encoded), moved=4.0 * (gathered + n_hidden))
    yield row("logits", lambda: output.logits(whole, hidden, late=True), flops=matmul)
    yield row("loss", lambda: gradient_(logits, wanted, softmax=True, bias=bias), moved=3.0 * item * n_logits)
    logits.mul_(1e-3)
    yield row("gradients", lambda: output.all_gradients(whole, hidden, logits), flops=2 * matmul)
    gradients = output.all_gradients(whole, hidden, logits)
    yield row("step outputs", lambda: output.step(whole, gradients, 0.0), moved=(8.0 + 2 * item) * n_outputs)
    moved = item * gathered + 8.0 * used * shape.hidden
    yield row("turn rows", lambda: turned(encoded), moved=80.0 * flat * shape.f)
    by_row = turned(encoded)
    yield row("step rows", lambda: trunk.table.step(by_row, gradients.hidden.view(flat, -1), 0.0), moved=moved)


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


def steps(device: str, meter: Meter, paper: Shape, limits: Limits) -> Iterator[Row]:
    """Whole steps at some shapes."""
    for shape in variations(paper, on_gpu=device.startswith("cuda")):
        yield step(device, meter, shape, limits)


def step(device: str, meter: Meter, shape: Shape, limits: Limits) -> Row:
    """Whole steps at a shape: samples a second for all repetitions together, and the share of the matrix peak."""
    name = f"step n={shape.n} H={shape.hidden} B={shape.buckets} R={shape.repetitions}"
    seconds = most = None
    if time.monotonic() > meter.end:
        meter.missing.append(f"{name}: no time")
    else:
        meter.peak()
        with meter.noting(name):
            found, batch = group(device, shape), batch_of(made(shape, shape.n), device)
            seconds = meter.seconds(name, lambda: found.train(batch, 0.01, 0))
            most = meter.peak()
        found = batch = None  # type: ignore[assignment]
        meter.clear()
    flops = 6.0 * shape.repetitions * shape.n * shape.hidden * shape.buckets
    reached, peak = seconds and 1e-12 * flops / seconds, limits["TFLOP/s"]
    return {
        "n": shape.n, "H": shape.hidden, "B": shape.buckets, "R": shape.repetitions, "ms": seconds and 1e3 * seconds,
        "samples/s": seconds and shape.n / seconds, "TFLOP/s": reached,
        "of peak": reached / peak if reached and peak else None, "GB": most,
    }  # fmt: skip


def epoch(device: str, meter: Meter, shape: Shape, _: Limits) -> Iterator[Row]:
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
    yield {"samples": n, "samples/s read": reading and n / reading, "samples/s": training and n / training}


def retrieval(device: str, meter: Meter, shape: Shape, _: Limits) -> Iterator[Row]:
    """The 100 best of all labels for batches of queries, from sketches in which some buckets stand out."""
    partition = partition_of(shape)
    for n in (1, 32, 128) if device.startswith("cuda") else (1, 8):
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


Part = Callable[[str, Meter, Shape, Limits], Iterator[Row]]
PARTS: dict[str, tuple[Part, float]] = {  # and their shares of the time
    "ceilings": (ceilings, 1.0), "stages": (stages, 2.0), "steps": (steps, 4.0), "epoch": (epoch, 1.0),
    "retrieval": (retrieval, 2.0),
}  # fmt: skip


if __name__ == "__main__":
    main()
