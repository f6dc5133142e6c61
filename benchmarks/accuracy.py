"""How good, how fast, how small: the command line with its default settings on real data, all of it measured.

    python benchmarks/accuracy.py [--datasets NAME ...] [--jobs 2] [--json FILE] [--settings="--buckets 200"]
                                   [--docs PLACE]

For each data set `machxc train` and `machxc evaluate` run as processes of their own on the files that a user would
give them, and a third one loads the model and times answers. Training is measured whole: starting, reading, converting,
training, writing; CPU seconds are user and system, all threads. A small model is trained and asked first, so that no
kernel is compiled while the clock runs.

load: `Model.load`, checksums verified. bulk: the 100 best labels of the test samples, without reading, `--jobs`
threads. one: a single query from text (or features) to its 10 best labels, one thread, the median.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import datasets

DATASETS = ("cooking_se", "delicious", "bibtex", "yso_finna_en", "geonames")
METRICS = ("P@1", "P@3", "P@5", "R@100", "PSP@5")
TIMED = 4000  # test samples that are timed in bulk
SINGLE = 300  # queries that are timed one by one
_PROGRAM = (sys.executable, "-m", "machxc.cli")
_Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=datasets.NAMES, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured")
    parser.add_argument("--settings", default="", help="options for `machxc train`, as one argument (default: none)")
    parser.add_argument("--docs", metavar="PLACE", help="put the tables into a place of docs/algorithm.md")
    parser.add_argument("--answer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        print(json.dumps(answer(Path(arguments.answer[0]), Path(arguments.answer[1]), arguments.jobs)))
        return
    print(common.header(), end="\n\n", flush=True)
    results = measure_all(arguments.datasets, arguments.jobs, shlex.split(arguments.settings))
    print()
    common.report(arguments.docs or "accuracy", tables(results), write=bool(arguments.docs), machine=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"header": common.header().splitlines(), "results": results}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")


def measure_all(names: list[str], jobs: int, settings: list[str]) -> dict[str, _Result]:
    """Measure one data set after the other; what cannot be had is left out."""
    compile_kernels(jobs)
    results: dict[str, _Result] = {}
    for name in names:
        try:
            files = datasets.files(name)
        except datasets.AbsentError as absent:
            print(f"left out: {absent}", flush=True)
            continue
        results[name] = measure(files, jobs, settings)
        shown = {metric: round(100 * results[name]["metrics"][metric], 2) for metric in METRICS}
        print(f"{name}: {shown}, {common.load()}", flush=True)
    return results


def measure(files: datasets.Files, jobs: int, settings: list[str]) -> _Result:
    """Train, evaluate, and time answers, each in a process of its own."""
    common.BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=common.BUILD) as folder:
        model = f"{folder}/model"
        options = ["--jobs", str(jobs), "--json", "--quiet"]
        train = common.run([*_PROGRAM, "train", str(files.train), "--output", model, *settings, *options])
        evaluate = common.run([*_PROGRAM, "evaluate", model, str(files.test), *options])
        ask = common.run([sys.executable, __file__, "--answer", model, str(files.test), "--jobs", str(jobs)])
    trained = json.loads(train.output)
    return {
        "plan": trained["plan"],
        "text_reason": trained["text_reason"],
        "train_cpu_seconds": train.cpu_seconds,
        "train_wall_seconds": train.wall_seconds,
        "train_peak_bytes": train.peak_bytes,
        "model_bytes": trained["bytes"],
        "metrics": json.loads(evaluate.output),
        "evaluate_peak_bytes": evaluate.peak_bytes,
        **json.loads(ask.output),
    }


def compile_kernels(jobs: int) -> None:
    """Train and ask small models of all kinds on made-up samples, which leaves all kernels in Numba's cache."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        texts, numbers = Path(folder, "texts.jsonl"), Path(folder, "numbers.txt")
        rows = [f"word{i % 7} word{i % 11}" for i in range(100)]
        texts.write_text("".join(json.dumps({"text": row, "labels": [i % 9]}) + "\n" for i, row in enumerate(rows)))
        numbers.write_text("100 11 9\n" + "".join(f"{i % 9},{i % 8} {i % 11}:1\n" for i in range(100)))
        for data in (texts, numbers):
            for kind in (("--hidden", "0"), ("--hidden", "8"), ("--learner", "counts", "--loss", "softmax")):
                model = f"{folder}/{data.stem}-{kind[1]}"
                command = [*_PROGRAM, "train", str(data), "--output", model, *kind, "--quiet"]
                subprocess.run(command, check=True)
                subprocess.run([*_PROGRAM, "evaluate", model, str(data), "--json"], check=True, capture_output=True)
                answer_command = [sys.executable, __file__, "--answer", model, str(data), "--jobs", str(jobs)]
                subprocess.run(answer_command, check=True, capture_output=True)
    print(f"kernels compiled, or found compiled: {time.perf_counter() - start:.0f} s", flush=True)


def answer(path: Path, data: Path, jobs: int) -> _Result:
    """Load a model and answer queries with it; called in a process of its own."""
    from machxc.data import read
    from machxc.model import Model
    from machxc.prediction import answer as answer_texts
    from machxc.prediction import known_features

    start = time.perf_counter()
    model = Model.load(path)
    loaded = time.perf_counter() - start
    features = read(data, names=model.names, unknown_labels="count", **known_features(model)).samples.features
    features = features.rows(0, min(TIMED, len(features)))
    model.top_k(features.rows(0, min(8, len(features))), 100, jobs=jobs)
    start = time.perf_counter()
    model.top_k(features, 100, jobs=jobs)
    bulk = time.perf_counter() - start
    if model.config.text is None:
        asked = one_by_one(lambda i: model.top_k(features.rows(i, i + 1), 10), len(features))
    else:
        texts = datasets.texts(data, SINGLE)
        asked = one_by_one(lambda i: answer_texts(model, texts[i : i + 1], k=10), len(texts))
    return {"load_seconds": loaded, "bulk_seconds_per_1000": bulk / len(features) * 1000, **asked}


def one_by_one(ask: Callable[[int], object], n: int) -> _Result:
    """Ask query 0, 1, ...: the median and the 99th percentile of what each takes, in seconds."""
    times = []
    ask(0)
    for i in range(min(SINGLE, n)):
        start = time.perf_counter()
        ask(i)
        times.append(time.perf_counter() - start)
    times.sort()
    return {"query_seconds_p50": times[len(times) // 2], "query_seconds_p99": times[int(0.99 * len(times))]}


def tables(results: dict[str, _Result]) -> str:
    """What was measured as two Markdown tables: what came out, and what it took."""
    quality = common.table(
        ("data", "samples", "labels", "model", *METRICS), [quality_row(name, found) for name, found in results.items()]
    )
    cost = common.table(COST_COLUMNS, [cost_row(name, found) for name, found in results.items()])
    return f"{quality}\n\nMeasured (planned):\n\n{cost}"


def quality_row(name: str, found: _Result) -> list[str]:
    facts, config = found["plan"]["facts"], found["plan"]["config"]
    linear = "counts" if config["learner"] == "counts" else "linear"
    kind = f"hidden {config['hidden']}" if config["hidden"] else linear
    model = f"R={config['repetitions']} B={config['buckets']} {kind}, {config['loss']}"
    metrics = [f"{100 * found['metrics'][metric]:.2f}" for metric in METRICS]
    return [name, f"{facts['n_samples']:,}", f"{facts['n_labels']:,}", model, *metrics]


COST_COLUMNS = (
    "data", "training CPU s", "wall s", "peak MB", "model MB", "load ms", "bulk s/1,000", "one ms",
)  # fmt: skip


def cost_row(name: str, found: _Result) -> list[str]:
    plan = found["plan"]
    return [
        name,
        f"{found['train_cpu_seconds']:.1f} ({plan['cpu_seconds']:.1f})",
        f"{found['train_wall_seconds']:.1f}",
        f"{found['train_peak_bytes'] / 1e6:,.0f} ({plan['training_bytes'] / 1e6:,.0f})",
        f"{found['model_bytes'] / 1e6:,.1f} ({plan['model_bytes'] / 1e6:,.1f})",
        f"{found['load_seconds'] * 1e3:.0f}",
        f"{found['bulk_seconds_per_1000']:.3f}",
        f"{found['query_seconds_p50'] * 1e3:.2f}",
    ]


if __name__ == "__main__":
    main()
