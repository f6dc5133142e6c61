"""The published experiment in small: queries to products, tens of millions of labels, a hidden layer, R = 32.

    python benchmarks/amazon_shape.py [--samples 400000] [--full]

Medini et al. 2019 learn 49.46 million products from 70 million queries, with 80,000 hashed inputs, 2,000 hidden units,
B = 10,000 or 20,000 and R = 32, on eight V100, and report weighted recall@100. Here there are as many labels, and
buckets, inputs and repetitions are the published ones, but what fits twenty minutes of two cores is a few hundred
thousand queries. They would leave most of the products without one. So only some of the labels are products (made up
by `machxc.testing.Catalogue`; ``--products``), with four queries each as they would have it, spread out over all label
ids. Queries ask by popularity, so that a pair of a query and a product weighs as much as it is asked for. All methods
rank the products that have a training query.

Beside it, what one would take today instead: text embeddings (256 numbers, by latent semantic analysis) of queries,
averaged for each product, in an HNSW graph (usearch); and BM25 (bm25s) on the queries of a product. Each runs in a
process of its own: processor seconds and peak memory are the system's. ``pip install usearch bm25s`` for these. And
``counted`` is machxc as it would choose for itself here: with few queries a product, weights are counted.

What is finished stays in build/benchmarks: the same command goes on where it was stopped, after the last repetition,
and prints at once what it has measured already (``--fresh``: measures anew). ``--full``: the published size, where the
hardware is there; the last lines say what it takes, from the rates measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import common
import shop
from machxc.config import Settings
from machxc.model import Model
from machxc.samples import Array, Features, Samples
from machxc.testing import Catalogue

PUBLISHED = {"labels": 49_460_000, "products": 49_460_000, "samples": 70_200_000, "hidden": 2_000, "epochs": 10}
HERE = {"labels": 49_460_000, "products": 100_000, "samples": 400_000, "hidden": 128, "epochs": 6}
REPETITIONS = (2, 4, 8, 16, 32)
ESTIMATORS = ("mean", "log-probability")
PAPER = {2: 0.24, 4: 0.58, 8: 0.637, 16: 0.652, 32: 0.654}
TOP, DIMENSIONS = 100, 256
SCANNED = 5  # queries that rank all labels exactly: a second or two each
METHODS = ["machxc", "counted", "embedding", "bm25"]
SIZES = (*HERE, "buckets", "negatives", "queries", "timed", "budget")  # all that a measurement depends on
Report = dict[str, Any]


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The published settings, the hidden layer and epochs scaled; 2**17 inputs are the power of 2 above 80,000."""
    return Settings(
        repetitions=max(REPETITIONS),
        buckets=arguments.buckets,
        hidden=arguments.hidden,
        negatives=arguments.negatives,
        loss="softmax",
        epochs=arguments.epochs,
        learning_rate=2.0,
        feature_bits=17,
    )


def machxc_train(arguments: argparse.Namespace, folder: Path) -> Report:
    """Train and save, with the published settings."""
    return learned(arguments, folder / "model", settings_of(arguments))


def counted_train(arguments: argparse.Namespace, folder: Path) -> Report:
    """Train and save, counting, with the settings that choose themselves then."""
    return learned(arguments, folder / "counted", Settings(learner="counts"))


def learned(arguments: argparse.Namespace, folder: Path, settings: Settings) -> Report:
    """Train the repetitions that are not there yet; ``learning.json`` adds up what those before have taken."""
    from machxc.facts import facts_of
    from machxc.folder import finish_model, repetition_file, write_repetition
    from machxc.label_counts import LabelCounts
    from machxc.labels import LabelNames
    from machxc.plan import make_plan
    from machxc.training import run_repetitions

    samples = shop.samples_of(Catalogue(arguments.products), arguments.samples, 0, arguments.labels)
    config = make_plan(facts_of(samples, text=True), settings, text=shop.TEXT).config
    folder.mkdir(parents=True, exist_ok=True)
    taken = folder / "learning.json"
    before = json.loads(taken.read_text()) if taken.exists() else 0.0
    start = time.process_time()

    def store(r: int, tensors: dict[str, Array]) -> None:
        write_repetition(folder, r, tensors)
        taken.write_text(json.dumps(before + time.process_time() - start))

    missing = [r for r in range(config.repetitions) if not (folder / repetition_file(r)).exists()]
    if missing:
        run_repetitions(samples, config, missing, store, common.cores())
    names = LabelNames.ids(arguments.labels)
    finish_model(folder, config, names, LabelCounts.of(samples.labels), len(samples))
    return {"learning_cpu_s": json.loads(taken.read_text())}


def machxc_query(arguments: argparse.Namespace, folder: Path) -> Report:
    """Recall for every R; latency of whole answers, and of retrieval among all labels, exact and with a budget."""
    from machxc.retrieval import top_k, top_k_within

    model = Model.load(folder / "model", verify=False)
    queries = shop.samples_of(Catalogue(arguments.products), arguments.queries, 1, arguments.labels)
    curve = {}
    for r in REPETITIONS:
        part = model.subset(list(range(r)))
        for estimator in ESTIMATORS:
            ids, _ = part.top_k(queries.features, TOP, estimator=estimator)
            curve[f"{estimator} {r}"] = shop.recall(ids, queries.labels)
    one, best = queries.features.rows(0, arguments.timed), max(curve, key=curve.__getitem__).split()[0]
    report: Report = {"curve": curve, "recall": max(curve.values()), "seen": len(seen_labels(model))}
    report["ms"] = timed(lambda i: model.top_k(one.rows(i, i + 1), TOP, estimator=best), arguments.timed)
    sketches = model.sketch(one)
    report["sketch_ms"] = timed(lambda i: model.sketch(one.rows(i, i + 1)), arguments.timed)
    for estimator in ESTIMATORS:
        given: Report = {"loss": "softmax", "estimator": estimator, "seen": model.seen}

        def exact(i: int, given: Report = given) -> object:
            return top_k(sketches[i : i + 1], model.partition, TOP, **given)

        def bounded(i: int, given: Report = given) -> object:
            return top_k_within(sketches[i : i + 1], model.partition, TOP, arguments.budget, **given)

        report[f"{estimator}_ms"] = timed(exact, min(SCANNED, arguments.timed))
        report[f"{estimator}_bounded_ms"] = timed(bounded, arguments.timed)
    return report


def counted_query(arguments: argparse.Namespace, folder: Path) -> Report:
    """Recall and latency."""
    model = Model.load(folder / "counted", verify=False)
    queries = shop.samples_of(Catalogue(arguments.products), arguments.queries, 1, arguments.labels)
    ids, _ = model.top_k(queries.features, TOP)
    latency = timed(lambda i: model.top_k(queries.features.rows(i, i + 1), TOP), arguments.timed)
    return {"recall": shop.recall(ids, queries.labels), "ms": latency}


def seen_labels(model: Model) -> Array:
    """The labels that training saw."""
    return np.flatnonzero(np.unpackbits(model.seen, bitorder="little"))


def embedding_train(arguments: argparse.Namespace, folder: Path) -> Report:
    """Latent semantic analysis of the training queries; a product is the mean of its queries."""
    import scipy.sparse as sp
    from sklearn.decomposition import TruncatedSVD
    from usearch.index import Index

    samples = shop.samples_of(Catalogue(arguments.products), arguments.samples, 0, arguments.labels)
    start = time.process_time()
    matrix, weights = term_weights(samples)
    svd = TruncatedSVD(DIMENSIONS, random_state=0).fit(matrix)
    products, which = products_of(samples)
    ones = sp.csr_matrix((np.ones(len(which), np.float32), which, samples.labels.indptr), (len(samples), len(products)))
    vectors = unit(ones.T.tocsr() @ svd.transform(matrix).astype(np.float32))
    index = Index(ndim=DIMENSIONS, metric="ip", dtype="f16")
    index.add(products, vectors, threads=common.cores())
    seconds = time.process_time() - start
    index.save(str(folder / "usearch"))
    np.savez(folder / "svd.npz", components=svd.components_.astype(np.float32), weights=weights)
    return {"learning_cpu_s": seconds}


def embedding_query(arguments: argparse.Namespace, folder: Path) -> Report:
    """Recall of the approximate nearest products, and latency."""
    from usearch.index import Index

    index = Index(ndim=DIMENSIONS, metric="ip", dtype="f16", expansion_search=2 * TOP)
    index.load(str(folder / "usearch"))
    svd = np.load(folder / "svd.npz")
    components, weights = svd["components"], svd["weights"]
    queries = shop.samples_of(Catalogue(arguments.products), arguments.queries, 1, arguments.labels)

    def answer(features: Features) -> Array:
        vectors = unit(hashed(features, weights) @ components.T)
        return np.asarray(index.search(vectors, TOP, threads=1).keys).reshape(len(features), -1).astype(np.int64)

    ids = answer(queries.features)
    latency = timed(lambda i: answer(queries.features.rows(i, i + 1)), arguments.timed)
    return {"recall": shop.recall(ids, queries.labels), "ms": latency}


def bm25_train(arguments: argparse.Namespace, folder: Path) -> Report:
    """A product's document is what its training queries say."""
    import bm25s

    samples = shop.samples_of(Catalogue(arguments.products), arguments.samples, 0, arguments.labels)
    start = time.process_time()
    products, which = products_of(samples)
    features, ends = samples.features, samples.features.indptr.tolist()
    slots = (features.indices & 0x1FFFFF).tolist()  # 2**21 words: more than there are
    documents: list[list[int]] = [[] for _ in products]
    of_sample = np.repeat(np.arange(len(samples)), np.diff(samples.labels.indptr)).tolist()
    for sample, product in zip(of_sample, which.tolist(), strict=True):
        documents[product] += slots[ends[sample] : ends[sample + 1]]
    model = bm25s.BM25()
    model.index((documents, {str(i): i for i in range(1 << 21)}), show_progress=False)
    seconds = time.process_time() - start
    model.save(str(folder / "bm25"))
    np.save(folder / "products.npy", products)
    return {"learning_cpu_s": seconds}


def bm25_query(arguments: argparse.Namespace, folder: Path) -> Report:
    """Recall and latency."""
    import bm25s

    model, products = bm25s.BM25.load(str(folder / "bm25")), np.load(folder / "products.npy")
    queries = shop.samples_of(Catalogue(arguments.products), arguments.queries, 1, arguments.labels)

    def answer(features: Features) -> Array:
        slots, ends = [str(i & 0x1FFFFF) for i in features.indices.tolist()], features.indptr.tolist()
        rows = [slots[a:b] for a, b in itertools.pairwise(ends)]
        ids, scores = model.retrieve(rows, k=min(TOP, len(products)), n_threads=1, show_progress=False)
        return np.where(scores > 0, products[ids], -1)

    ids = answer(queries.features)
    latency = timed(lambda i: answer(queries.features.rows(i, i + 1)), arguments.timed)
    return {"recall": shop.recall(ids, queries.labels), "ms": latency}


def products_of(samples: Samples) -> tuple[Array, Array]:
    """The products that have a training query, and of each pair which of them it is."""
    products, which = np.unique(samples.labels.indices, return_inverse=True)
    return products.astype(np.int64), which


def term_weights(samples: Samples) -> tuple[Any, Array]:
    """The hashed tf-idf matrix of samples, and the weights of its columns."""
    count = np.bincount(samples.features.indices & 0x1FFFF, minlength=1 << 17)
    weights = np.log((1 + len(samples)) / (1 + count)).astype(np.float32)
    return hashed(samples.features, weights), weights


def hashed(features: Features, weights: Array) -> Any:
    """Features as a sparse matrix of as many columns as machxc's inputs, rows of length 1."""
    import scipy.sparse as sp
    from sklearn.preprocessing import normalize

    columns = features.indices & 0x1FFFF
    shape = (len(features), len(weights))
    return normalize(sp.csr_matrix((features.values * weights[columns], columns, features.indptr), shape))


def unit(vectors: Array) -> Array:
    """Rows of length 1."""
    found: Array = vectors / np.maximum(1e-9, np.linalg.norm(vectors, axis=1, keepdims=True))
    return found.astype(np.float32)


def timed(ask: Callable[[int], object], n: int) -> list[float]:
    """Median and 99th percentile in milliseconds of processor time, n queries one by one, on one thread."""
    ask(0)
    times = []
    for i in range(n):
        start = time.process_time()
        ask(i)
        times.append(time.process_time() - start)
    return [round(float(q) * 1e3, 2) for q in np.quantile(times, [0.5, 0.99])]


WORKERS: dict[str, Callable[[argparse.Namespace, Path], Report]] = {
    "machxc-train": machxc_train,
    "machxc-query": machxc_query,
    "counted-train": counted_train,
    "counted-query": counted_query,
    "embedding-train": embedding_train,
    "embedding-query": embedding_query,
    "bm25-train": bm25_train,
    "bm25-query": bm25_query,
}


def run(worker: str, arguments: argparse.Namespace, folder: Path) -> Report:
    """A step in a process of its own, or what it found when it ran before: its report, and its peak of memory."""
    found = folder / f"{worker}.json"
    if not found.exists():
        sizes = [f"--{name}={getattr(arguments, name)}" for name in SIZES]
        ran = common.run([sys.executable, __file__, *sizes, "--worker", worker, "--folder", str(folder)])
        found.write_text(json.dumps(json.loads(ran.output) | {"peak_bytes": ran.peak_bytes}))
    report: Report = json.loads(found.read_text())
    return report


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run all, print the tables."""
    rows, reports = [], {}
    for method in arguments.methods:
        trained, asked = (run(f"{method}-{step}", arguments, folder) for step in ("train", "query"))
        reports[method] = trained | asked
        peaks = (f"{report['peak_bytes'] / 1e9:.2f}" for report in (trained, asked))
        latency = (f"{ms:.1f}" for ms in asked["ms"])
        rows.append([method, f"{asked['recall']:.3f}", f"{trained['learning_cpu_s']:,.0f}", *peaks, *latency])
    head = ["method", "recall@100", "training CPU s", "GB, training", "GB, querying", "p50 ms", "p99 ms"]
    print(common.table(head, rows))
    if "machxc" in reports:
        details(arguments, reports["machxc"])


def details(arguments: argparse.Namespace, report: Report) -> None:
    """Recall against R, the parts of an answer's time, and what the full size takes."""
    curve = report["curve"]
    lines = [[str(r), *(f"{curve[f'{e} {r}']:.3f}" for e in ESTIMATORS), f"{PAPER[r]:.3f}"] for r in REPETITIONS]
    print(f"\n{common.table(['R', *ESTIMATORS, 'published'], lines)}\n")
    print(f"{report['seen']:,} products have a training query; a sketch takes {report['sketch_ms'][0]} ms (p50)")
    for estimator in ESTIMATORS:
        print(f"were all labels products, top {TOP} by {estimator}, ms p50 and p99: exact {report[f'{estimator}_ms']}, "
              f"with a budget of {arguments.budget:,} {report[f'{estimator}_bounded_ms']}")  # fmt: skip
    steps = max(REPETITIONS) * arguments.epochs * arguments.samples
    each = report["learning_cpu_s"] / steps
    full = max(REPETITIONS) * PUBLISHED["epochs"] * PUBLISHED["samples"] * each * PUBLISHED["hidden"] / arguments.hidden
    weights = max(REPETITIONS) * 2 * PUBLISHED["hidden"] * ((1 << 17) + arguments.buckets)
    print(f"{each * 1e6:.1f} us of a core a sample, repetition and epoch; at the published size, in proportion to the "
          f"hidden units: {full / 3600:,.0f} core hours, and a model of {weights / 1e9:.0f} GB")  # fmt: skip


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in HERE.items():
        parser.add_argument(f"--{name}", type=int, help=f"(default: {value:,}; --full: {PUBLISHED[name]:,})")
    parser.add_argument("--full", action="store_true", help="the published size")
    parser.add_argument("--buckets", type=int, default=10_000)
    parser.add_argument("--negatives", type=int, default=50)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--timed", type=int, default=30, help="queries asked one by one")
    parser.add_argument("--budget", type=int, default=3_000_000, help="of top_k_within")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run of these sizes has measured")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, value in (PUBLISHED if arguments.full else HERE).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> None:
    """Print the machine, and the comparison; or be one of its processes."""
    arguments = parsed()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments, arguments.folder)))
        return
    sizes = f"{arguments.labels:,} labels, {arguments.products:,} of them products, {arguments.samples:,} samples"
    print(f"{common.header()}\n{sizes}, R = {max(REPETITIONS)}, B = {arguments.buckets:,}, H = {arguments.hidden}\n")
    folder = common.BUILD / "amazon_shape" / "-".join(str(getattr(arguments, name)) for name in SIZES)
    if arguments.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    compare(arguments, folder)


if __name__ == "__main__":
    main()
