"""What grows with the number of labels K, and what does not: training time and memory, model bytes, query time.

    python benchmarks/memory_against_k.py [--labels 10000 100000 1000000 10000000 50000000] [--docs]

The same number of samples of the made-up catalogue (`machxc.testing.Catalogue`) of K products, the same settings
(R = 8, B = 2,000, a hidden layer), K from ten thousand to fifty million; each in a process of its own. Beside it,
one-vs-all: the same hidden layer with an output for each label, as far as it runs, and computed beyond; and omikuji
(Parabel: ``pip install omikuji``), whose trees have the labels of the samples only, as far as asked for.

Labels are named by their ids: model bytes are without names. ``--docs`` draws docs/figures/scale_memory.svg, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import common
import shop
from machxc.config import Settings
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.testing import Catalogue
from machxc.training import train

LABELS = (10_000, 100_000, 1_000_000, 10_000_000, 50_000_000)
MOST = {"machxc": 2**32, "one-vs-all": 1_000_000, "omikuji": 100_000}  # labels
HIDDEN, NEGATIVES, EPOCHS, FEATURE_BITS = 64, 50, 2, 16
R, B = 8, 2_000
QUERIES = 20
Report = dict[str, Any]


def learned(n_labels: int, n_samples: int, folder: Path, repetitions: int, buckets: int) -> Report:
    """Train, save, and ask."""
    samples = shop.samples_of(Catalogue(n_labels), n_samples)
    queries = shop.samples_of(Catalogue(n_labels), QUERIES, stream=1).features
    settings = Settings(
        repetitions=repetitions,
        buckets=buckets,
        hidden=HIDDEN,
        negatives=NEGATIVES,
        loss="softmax",
        epochs=EPOCHS,
        feature_bits=FEATURE_BITS,
    )
    start = time.process_time()
    model = train(samples, LabelNames.ids(n_labels), settings, text=shop.TEXT)
    seconds = time.process_time() - start
    model.save(folder / "model")
    size = sum(path.stat().st_size for path in (folder / "model").rglob("*"))
    return {
        "cpu_s": seconds,
        "model": size,
        "ms": query_ms(Model.load(folder / "model"), queries),
    }


def query_ms(model: Model, queries: Any) -> float:
    """Median time of a whole answer, milliseconds."""
    times = []
    for i in [0, *range(QUERIES)]:
        start = time.perf_counter()
        model.top_k(queries.rows(i, i + 1), 10, estimator="mean")
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) * 1e3


def machxc(n_labels: int, n_samples: int, folder: Path) -> Report:
    """Hashed into B buckets, R times."""
    return learned(n_labels, n_samples, folder, R, B)


def one_vs_all(n_labels: int, n_samples: int, folder: Path) -> Report:
    """An output for each label: one repetition, as many buckets."""
    return learned(n_labels, n_samples, folder, 1, 1 << (n_labels - 1).bit_length())


def omikuji(n_labels: int, n_samples: int, folder: Path) -> Report:
    """Parabel on the same hashed features."""
    import omikuji as peer

    samples = shop.samples_of(Catalogue(n_labels), n_samples)
    features, labels = samples.features, samples.labels
    columns = (features.indices & ((1 << FEATURE_BITS) - 1)).tolist()
    ends, label_ends, ids = features.indptr.tolist(), labels.indptr.tolist(), labels.indices.tolist()
    with open(folder / "train.txt", "w", encoding="utf-8") as file:
        file.write(f"{len(samples)} {1 << FEATURE_BITS} {n_labels}\n")
        for i in range(len(samples)):
            words = " ".join(f"{column}:1" for column in sorted(set(columns[ends[i] : ends[i + 1]])))
            file.write(f"{','.join(map(str, ids[label_ends[i] : label_ends[i + 1]]))} {words}\n")
    start = time.process_time()
    model = peer.Model.train_on_data(str(folder / "train.txt"), peer.Model.default_hyper_param(), n_threads=1)
    seconds = time.process_time() - start
    model.save(str(folder / "model"))
    size = sum(path.stat().st_size for path in (folder / "model").rglob("*"))
    rows = [[(column, 1.0) for column in set(columns[ends[i] : ends[i + 1]])] for i in range(QUERIES)]
    times = []
    for row in [rows[0], *rows]:
        start = time.perf_counter()
        model.predict(row, beam_size=10, top_k=10)
        times.append(time.perf_counter() - start)
    return {"cpu_s": seconds, "model": size, "ms": float(np.median(times[1:])) * 1e3}


WORKERS: dict[str, Callable[[int, int, Path], Report]] = {
    "machxc": machxc,
    "one-vs-all": one_vs_all,
    "omikuji": omikuji,
}


def measured(method: str, n_labels: int, arguments: argparse.Namespace) -> Report | None:
    """A method in a process of its own; computed, or None, where it does not run."""
    if n_labels > MOST[method]:
        if method != "one-vs-all":
            return None
        outputs = 4 * HIDDEN * (1 << (n_labels - 1).bit_length())
        inputs = 4 * HIDDEN << FEATURE_BITS
        return {"model": (outputs + inputs) // 2, "peak": outputs + inputs + (190 << 20)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", method, "--folder", folder]
        ran = common.run([*command, f"--samples={arguments.samples}", "--labels", str(n_labels)])
    report: Report = json.loads(ran.output.splitlines()[-1])  # omikuji prints its progress
    return report | {"peak": ran.peak_bytes}


def row_of(method: str, n_labels: int, report: Report) -> list[str]:
    """A row of the table."""
    ran = "cpu_s" in report
    return [
        method if ran else f"{method}, computed",
        f"{n_labels:,}",
        f"{report['cpu_s']:.0f}" if ran else "",
        f"{report['peak'] / 1e6:,.0f}",
        f"{report['model'] / 1e6:,.1f}",
        f"{report['ms']:.1f}" if ran else "",
    ]


def draw(results: dict[str, list[tuple[int, Report]]]) -> None:
    """Training memory, model bytes, training and query time against K."""
    import matplotlib.pyplot as plt

    panels = {
        "training CPU s": ("cpu_s", 1),
        "training GB": ("peak", 1e9),
        "model GB": ("model", 1e9),
        "query ms": ("ms", 1),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3), layout="constrained")
    for axis, (title, (key, unit)) in zip(axes, panels.items(), strict=True):
        for method, points in results.items():
            known = [(k, report[key] / unit) for k, report in points if key in report]
            axis.loglog(*zip(*known, strict=True), marker="o", label=method)
        axis.set(title=title, xlabel="labels K")
    axes[0].legend(frameon=False)
    figure.savefig(common.ROOT / "docs" / "figures" / "scale_memory.svg", metadata={"Date": None})


def main() -> None:
    """Print the machine and the table; or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), help="numbers of labels K")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--methods", nargs="+", choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--docs", action="store_true", help="draw the figure, too")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        report = WORKERS[arguments.worker](arguments.labels[0], arguments.samples, arguments.folder)
        print(json.dumps(report))
        return
    print(f"{common.header()}\n{arguments.samples:,} samples, R = {R}, B = {B:,}, H = {HIDDEN}\n")
    results: dict[str, list[tuple[int, Report]]] = {}
    for method in arguments.methods:
        found = [(k, measured(method, k, arguments)) for k in arguments.labels]
        results[method] = [(k, report) for k, report in found if report is not None]
    head = ["method", "K", "CPU s", "MB, training", "model MB", "query ms"]
    rows = [row_of(method, k, report) for method, points in results.items() for k, report in points]
    print(common.table(head, rows))
    if arguments.docs:
        draw(results)


if __name__ == "__main__":
    main()
