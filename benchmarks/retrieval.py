"""How long top-k takes: one query at a time and in bulk, by scan, by search and by plain NumPy, on synthetic sketches.

    python benchmarks/retrieval.py [--labels 25000 235000] [--seconds 0.5]

A peaked sketch has 5 to 50 labels with a probability that falls as a power of their rank, and noise on every logit; a
flat one is noise alone, where no bucket stands out and the search has to give up. Times per query in milliseconds, and
in nanoseconds per label and repetition. The first lines tell what compiling the kernels took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import common
from machxc.partition import HashPartition
from machxc.retrieval import top_k
from machxc.retrieval.estimators import contributions
from machxc.samples import Float32, Int64

# labels K -> buckets B, repetitions R
SIZES = {25_000: (500, 16), 235_000: (1_000, 8), 5_000_000: (10_000, 16)}
BULK = 256
K_BEST = 10


def sketches(partition: HashPartition, n: int, kind: str, rng: np.random.Generator) -> Float32:
    """Logits of n queries [n, R, B], for the sigmoid."""
    shape = (n, partition.n_repetitions, partition.n_buckets)
    none = np.full(shape, np.log1p(-2e-4), np.float32)  # log of the probability that no label is there
    for query in none if kind == "peaked" else ():
        labels = rng.integers(0, partition.n_labels, int(rng.integers(5, 50)))
        absent = np.log1p(-0.7 / np.arange(1, len(labels) + 1) ** 1.2).astype(np.float32)
        for r in range(shape[1]):
            np.add.at(query[r], partition.buckets(labels, r), absent)
    p = -np.expm1(none)
    logits: Float32 = np.log(p / (1 - p)) + rng.standard_normal(shape, np.float32) * np.float32(0.7)
    return logits


def plain_numpy(logits: Float32, assignment: Int64, k: int) -> Int64:
    """What one would write: a vector of K scores for each query, from a table of R x K buckets."""
    ids = np.empty((len(logits), k), np.int64)
    for i, p in enumerate(contributions(logits, "bce", "mean")):
        scores = p[0][assignment[0]]
        for r in range(1, len(p)):
            scores += p[r][assignment[r]]
        best = np.argpartition(scores, -k)[-k:]
        ids[i] = best[np.argsort(-scores[best])]
    return ids


def single(ask: Callable[[Float32], object], logits: Float32, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds, one query at a time, for so many seconds (at least 3 queries)."""
    times: list[float] = []
    ask(logits[:1])
    while sum(times) < seconds or len(times) < 3:
        query = logits[len(times) % len(logits)][None]
        start = time.perf_counter()
        ask(query)
        times.append(time.perf_counter() - start)
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
    return float(p50), float(p99)


def bulk(ask: Callable[[Float32], object], logits: Float32, seconds: float) -> float:
    """Milliseconds a query, all of them at once: the best of the runs that fit into so many seconds."""
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        ask(logits)
        times.append(time.perf_counter() - start)
    return min(times) / len(logits) * 1e3


def compare(n_labels: int, seconds: float) -> None:
    """One table: every way on peaked and flat sketches."""
    n_buckets, n_repetitions = SIZES.get(n_labels, (1_000, 8))
    partition = HashPartition(n_labels, n_buckets, n_repetitions, seed=1)
    rng = np.random.default_rng(1)
    few = min(BULK, max(8, BULK * 150_000 // n_labels // 8 * 8))
    print(f"\nK = {n_labels:,} labels, B = {n_buckets:,}, R = {n_repetitions}, k = {K_BEST}; bulk of {few} queries")
    print(f"{'sketch':8}{'estimator':17}{'method':8}{'p50 ms':>9}{'p99 ms':>9}{'bulk ms':>9}{'bulk ns/(K R)':>15}")
    assignment = np.stack([partition.buckets(np.arange(n_labels), r) for r in range(n_repetitions)]).astype(np.int64)
    for kind in ("peaked", "flat"):
        logits = sketches(partition, few, kind, rng)
        ways: list[tuple[str, str, Callable[[Float32], object]]] = [
            (estimator, method, asker(partition, estimator, method))
            for estimator in ("mean", "log-probability")
            for method in ("auto", "scan", "search")
        ]
        ways.append(("mean", "numpy", lambda x: plain_numpy(x, assignment, K_BEST)))
        for estimator, method, ask in ways:
            p50, p99 = single(ask, logits, seconds)
            each = bulk(ask, logits if method != "numpy" else logits[: len(logits) // 4], seconds)
            share = each * 1e6 / n_labels / n_repetitions
            print(f"{kind:8}{estimator:17}{method:8}{p50:9.3f}{p99:9.3f}{each:9.3f}{share:15.3f}")


def asker(partition: HashPartition, estimator: str, method: str) -> Callable[[Float32], object]:
    """top_k with everything but the sketches given."""
    return lambda logits: top_k(logits, partition, K_BEST, loss="bce", estimator=estimator, method=method)


def compile_kernels() -> None:
    """Print what the first call takes, and how much of it was compiling (nothing when the disk cache has them)."""
    partition = HashPartition(100, 10, 2, 0)
    for method in ("scan", "search"):
        start = time.perf_counter()
        top_k(np.zeros((1, 2, 10), np.float32), partition, 3, loss="bce", estimator="mean", method=method)
        print(f"first {method}: {time.perf_counter() - start:.2f} s (compiled, or loaded from the cache)")


def main() -> None:
    """Print the machine and one table for each number of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=list(SIZES), help="numbers of labels K")
    parser.add_argument("--seconds", type=float, default=0.15, help="about so long for each number measured")
    arguments = parser.parse_args()
    print(f"{common.header()}\none thread")
    compile_kernels()
    for n_labels in arguments.labels:
        compare(n_labels, arguments.seconds)


if __name__ == "__main__":
    main()
