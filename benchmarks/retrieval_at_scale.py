"""Top-k of fifty million labels on one core: exact, in bounded time, and by brute force, from the sketches of a model.

    python benchmarks/retrieval_at_scale.py [--queries 100]

K = 50,000,000, R = 32, B = 10,000. The sketches are those of a model of that shape (hidden layer of 128, softmax),
trained on 300,000 queries of the made-up catalogue for 75,000 products, spread out over all label ids: as many queries
a product as the catalogue has, so that the sketches are as peaked as those of a model that was trained in full would be
for the share of labels that it knows. Training takes some minutes; the sketches are kept in build/benchmarks. Beside
them, flat ones: noise on every bucket, where nothing stands out; and ties: noise rounded to whole numbers.

Each exact answer of the first ``--check`` queries is compared with that of brute force, a blocked scan of all labels
that adds up R values for each. Times are milliseconds of the processor, so that what else runs counts little.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import common
import shop
from machxc.compiled import kernel
from machxc.config import Settings
from machxc.labels import LabelNames
from machxc.partition import HashPartition
from machxc.retrieval import top_k, top_k_within
from machxc.retrieval.estimators import contributions, finish
from machxc.retrieval.heap import NO_LABEL, best_first, offer
from machxc.retrieval.retrieve import lookup_of
from machxc.retrieval.scoring import Lookup, find_buckets
from machxc.samples import Float32, Int64
from machxc.testing import Catalogue
from machxc.training import train

K, R, B = 50_000_000, 32, 10_000
SAMPLES, MOST_QUERIES = 300_000, 100
BUDGETS = (1.5, 2.25, 4.0)  # millions
_BLOCK = 2048


def sketches(kind: str, n: int) -> Float32:
    """n sketches [n, R, B]."""
    rng = np.random.default_rng(1)
    if kind == "model":
        return trained(common.BUILD / "sketches_50m.npy")[:n]
    noise = rng.standard_normal((n, R, B), np.float32)
    return noise if kind == "flat" else np.round(noise)


def trained(path: Path) -> Float32:
    """The sketches of a model, made once."""
    if not path.exists():
        catalogue = Catalogue(SAMPLES // 4)
        samples = shop.samples_of(catalogue, SAMPLES, 0, K)
        queries = shop.samples_of(catalogue, MOST_QUERIES, 1, K).features
        settings = Settings(
            repetitions=R, buckets=B, hidden=128, negatives=100, loss="softmax", epochs=3, feature_bits=17
        )
        model = train(samples, LabelNames.ids(K), settings, text=shop.TEXT)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, model.sketch(queries))
    return np.asarray(np.load(path), np.float32)


@kernel
def _brute_force(values: Float32, lookup: Lookup, best_scores: Float32, best_labels: Int64) -> None:
    """Every label's R values, added up block by block."""
    labels, scores = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.float32)
    buckets = np.empty((len(values), _BLOCK), np.uint32)
    for start in range(0, lookup.n_labels, _BLOCK):
        n = min(_BLOCK, lookup.n_labels - start)
        for j in range(n):
            labels[j] = start + j
        find_buckets(lookup, labels, n, buckets)
        for r in range(len(values)):
            for j in range(n):
                scores[j] = scores[j] + values[r, buckets[r, j]] if r else values[r, buckets[r, j]]
        for j in range(n):
            if scores[j] >= best_scores[0]:
                offer(best_scores, best_labels, scores[j], np.int64(labels[j]))
    best_first(best_scores, best_labels)


def brute_force(logits: Float32, partition: HashPartition, k: int, estimator: str) -> tuple[Int64, Float32]:
    """The k best of one query, without any shortcut."""
    values = contributions(logits, "softmax", estimator)[0]
    scores, labels = np.full(k, -np.inf, np.float32), np.full(k, NO_LABEL, np.int64)
    _brute_force(values, lookup_of(partition, inverted=False), scores, labels)
    return labels[None], finish(scores, estimator, R, B)[None]


def milliseconds(ask: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    ask()
    return (time.process_time() - start) * 1e3


def measure(kind: str, estimator: str, k: int, arguments: argparse.Namespace) -> list[str]:
    """A row: exact, brute force, and in bounded time."""
    partition = HashPartition(K, B, R, 0)
    n_queries = arguments.slow if estimator == "log-probability" else arguments.queries
    logits = sketches(kind, n_queries if kind == "model" else 3)
    times, answers, brute = [], [], []
    for i in range(len(logits)):
        one = logits[i : i + 1]

        def ask(one: Float32 = one) -> None:
            answers.append(top_k(one, partition, k, loss="softmax", estimator=estimator))

        times.append(milliseconds(ask))
        if i < arguments.check:

            def check(one: Float32 = one) -> None:
                ids, scores = brute_force(one, partition, k, estimator)
                assert np.array_equal(ids, answers[-1][0])
                assert np.array_equal(scores, answers[-1][1])

            brute.append(milliseconds(check))
    row = [f"{kind}, {estimator}", str(k), *(f"{np.quantile(times, q):.1f}" for q in (0.5, 0.99))]
    return [
        *row,
        f"{np.median(brute):.0f}",
        *(bounded(logits, partition, k, estimator, answers, int(b * 1e6)) for b in arguments.budgets),
    ]


def bounded(
    logits: Float32,
    partition: HashPartition,
    k: int,
    estimator: str,
    answers: list[tuple[Int64, Float32]],
    budget: int,
) -> str:
    """Median time, recall of the exact answer, and the share proven, with a budget."""
    times, found, proofs = [], 0, 0
    for i, (ids, _) in enumerate(answers):
        start = time.process_time()
        given, _, proven = top_k_within(logits[i : i + 1], partition, k, budget, loss="softmax", estimator=estimator)
        times.append((time.process_time() - start) * 1e3)
        found += int(np.isin(ids, given).sum())
        proofs += int(proven[0])
    return f"{np.median(times):.1f} / {found / k / len(answers):.3f} / {proofs / len(answers):.2f}"


def main() -> None:
    """Print the machine and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100, help=f"of the model, at most {MOST_QUERIES}")
    parser.add_argument("--slow", type=int, default=12, help="as many with log-probability, which take longer")
    parser.add_argument("--check", type=int, default=2, help="queries compared with brute force")
    parser.add_argument("--kinds", nargs="+", choices=("model", "flat", "ties"), default=["model", "flat", "ties"])
    parser.add_argument("--estimators", nargs="+", default=["mean", "log-probability"])
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="in bounded time, in millions")
    arguments = parser.parse_args()
    print(f"{common.header()}\nK = {K:,}, R = {R}, B = {B:,}; one thread; milliseconds of processor time\n")
    partition, empty = HashPartition(1_000_000, 100, 2, 0), np.zeros((1, 2, 100), np.float32)
    for method in ("scan", "sieve"):  # compiled before
        begin = time.process_time()
        top_k(empty, partition, 3, loss="softmax", estimator="mean", method=method)
        print(f"compiled, or loaded, {method}: {time.process_time() - begin:.1f} s")
    brute_force(sketches("flat", 1), HashPartition(10_000, B, R, 0), 3, "mean")
    rows = [
        measure(kind, estimator, k, arguments)
        for kind in arguments.kinds
        for estimator in arguments.estimators
        for k in (10, 100)
    ]
    columns = [
        "sketch",
        "k",
        "p50",
        "p99",
        "brute force",
        *(f"budget {b:g}M: ms / recall / proven" for b in arguments.budgets),
    ]
    print(common.table(columns, rows))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB, the sketches' included")


if __name__ == "__main__":
    main()
