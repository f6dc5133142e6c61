"""machxc and its peers, side by side: the same data, the same labels, two threads, every phase a process of its own.

    python benchmarks/compare [--data NAME ...] [--methods NAME ...] [--time-limit S] [--cpu-limit S]
                              [--memory-limit GB] [--docs] [--fresh]

Results are kept as build/benchmarks/compare/results/DATA/METHOD.json: a run makes those that are asked for and absent
(--fresh: all that are asked for), then shows all that there are. --docs also writes them to docs/benchmarks.md, with
figures. Data sets: `python benchmarks/datasets.py`; methods: methods.py; peers are installed on first use
(environments.py).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import accuracy  # noqa: E402
import common  # noqa: E402
import datasets  # noqa: E402
import environments  # noqa: E402
import methods  # noqa: E402
import runner  # noqa: E402

FOLDER = common.BUILD / "compare"
PEERS = common.ROOT / "build" / "peers"
CHARACTERS = {"geonames"}  # texts that are names: peers get their character n-grams
THREADS = 2
_Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=datasets.NAMES, default=list(datasets.NAMES), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=methods.NAMES, default=list(methods.NAMES), metavar="NAME")
    parser.add_argument("--time-limit", type=float, default=900, metavar="S", help="seconds a phase (%(default)s)")
    parser.add_argument("--cpu-limit", type=float, default=math.inf, metavar="S", help="processor seconds a phase")
    parser.add_argument("--memory-limit", type=float, default=16, metavar="GB", help="of a phase (%(default)s)")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and its figures")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    given = parser.parse_args()
    print(common.header(), end="\n\n", flush=True)
    limits = runner.Limits(given.time_limit, given.memory_limit * 1e9, given.cpu_limit)
    for data in given.data:
        compare(data, [method for method in methods.METHODS if method.name in given.methods], limits, fresh=given.fresh)
    # a process of its own: plots take memory, and this one has to stay smaller than what it measures
    command = [sys.executable, str(HERE / "report.py"), str(FOLDER / "results"), *(["--docs"] if given.docs else [])]
    subprocess.run([*command, "--command", common.command_line()], check=True)


def compare(data: str, chosen: list[methods.Method], limits: runner.Limits, *, fresh: bool) -> None:
    """Make the rows of one data set that are absent, one after the other."""
    results = FOLDER / "results" / data
    absent = [method for method in chosen if fresh or not (results / f"{method.name}.json").exists()]
    if not absent:
        return
    try:
        files = datasets.files(data)
    except datasets.AbsentError as why:
        print(f"{data}: left out: {why}", flush=True)
        return
    facts = exported(files)
    if any(method.peer == "ours" for method in absent):
        compile_kernels()
    results.mkdir(parents=True, exist_ok=True)
    for method in absent:
        row = measure(files, facts, method, limits)
        target = results / f"{method.name}.json"
        target.with_suffix(".part").write_text(json.dumps(row, indent=1) + "\n")
        target.with_suffix(".part").rename(target)
        shown = {name: row.get(name) for name in ("P@1", "P@5", "R@100", "train_cpu_s", "why") if row.get(name)}
        print(f"{data} {method.name}: {row['status']} {shown}", flush=True)


@functools.cache
def compile_kernels() -> None:
    """Leave machxc's kernels in Numba's cache, so that none is compiled while a clock runs."""
    accuracy.compile_kernels(THREADS)


def exported(files: datasets.Files) -> _Row:
    """The facts of a data set as peers read it; its files are written if they are not there."""
    folder = FOLDER / "data" / files.name
    if not (folder / "prepared.json").exists():
        print(f"{files.name}: writing the files that peers read", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, str(HERE / "export.py"), str(files.train), str(files.test), str(folder)]
        done = common.run([*command, *(["--names"] if files.name in CHARACTERS else [])])
        (folder / "prepared.json").write_text(json.dumps({"prepare_cpu_s": done.cpu_seconds}))
    facts: _Row = json.loads((folder / "facts.json").read_text())
    return {**facts, **json.loads((folder / "prepared.json").read_text())}


def measure(files: datasets.Files, facts: _Row, method: methods.Method, limits: runner.Limits) -> _Row:
    """One row: train, predict, and score what was predicted; what was trained is removed."""
    given_features = method.reads == "features" and facts["kind"] != "features"
    set_limits = {name: value for name, value in vars(limits).items() if value < math.inf}
    row: _Row = {
        "data": files.name, "method": method.name, "family": method.family, "setting": method.setting,
        "facts": facts, "threads": THREADS, "when": time.strftime("%Y-%m-%d %H:%M"), "machine": machine(),
        "load_before": os.getloadavg()[0], "limits": set_limits,
        "prepare_cpu_s": facts["prepare_cpu_s"] if given_features else 0.0,
    }  # fmt: skip
    work = FOLDER / "work" / files.name / method.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        python = environments.interpreter(method.environment, PEERS) if method.environment else Path(sys.executable)
        return row | phases(files, facts, method, limits, python, work)
    except environments.NotInstalledError as why:
        return {**row, "status": "skipped", "why": str(why)}
    finally:
        shutil.rmtree(work / "model", ignore_errors=True)
        shutil.rmtree(work / "scratch", ignore_errors=True)


def phases(
    files: datasets.Files, facts: _Row, method: methods.Method, limits: runner.Limits, python: Path, work: Path
) -> _Row:
    """What training, predicting and scoring add to a row."""
    row, training = phase("train", files, method, limits, python, work)
    found = {"train_wall_s": training.wall_seconds, "train_cpu_s": training.cpu_seconds, **row}
    found["train_peak_bytes"] = training.peak_bytes
    if found["status"] != "ok":
        return found
    found["model_bytes"] = sum(file.stat().st_size for file in (work / "model").rglob("*") if file.is_file())
    row, predicting = phase("predict", files, method, limits, python, work)
    seconds = row.pop("predict_s", None)
    found |= row | {"predict_peak_bytes": predicting.peak_bytes}
    if found["status"] != "ok":
        return {**found, "why": f"predicting: {found['why']}"}
    found["predict_s_per_1000"] = seconds / facts["n_test"] * 1000
    return found | score(files, method, work)


def phase(
    name: str, files: datasets.Files, method: methods.Method, limits: runner.Limits, python: Path, work: Path
) -> tuple[_Row, runner.Ended]:
    """Train or predict in a process of its own: what it noted and how it ended, and what it took."""
    options: _Row = {"test": str(files.test)} if method.peer == "ours" else method.options
    command = [
        str(python), str(HERE / "worker.py"), name, "ours" if method.peer == "ours" else f"peers.{method.peer}",
        "--data", str(FOLDER / "data" / files.name), "--work", str(work), "--options", json.dumps(options),
        "--threads", str(THREADS), "--time-limit", str(limits.seconds), "--packages", *method.packages,
    ]  # fmt: skip
    if name == "train" and method.peer == "ours":
        command = [str(python), "-m", "machxc.cli", "train", str(files.train), "--output", str(work / "model")]
        command += ["--jobs", str(THREADS), "--quiet", *method.options["train"]]
    ended = runner.run(command, work / f"{name}.log", limits, runner.thread_variables(THREADS))
    notes = work / f"{name}.json"
    noted = json.loads(notes.read_text()) if ended.status == "ok" and notes.exists() else {}
    return {"status": ended.status, "why": ended.why, **noted}, ended


def score(files: datasets.Files, method: methods.Method, work: Path) -> _Row:
    """The metrics of the ids that were predicted."""
    command = [sys.executable, str(HERE / "metrics.py"), str(FOLDER / "data" / files.name), str(work / "ids.npy")]
    found: _Row = json.loads(common.run([*command, "--depth", str(method.depth)]).output)
    return found


def machine() -> str:
    """Where a row was measured."""
    return f"{common.processor()}, {common.cores()} cores, {common.memory()}"


if __name__ == "__main__":
    main()
