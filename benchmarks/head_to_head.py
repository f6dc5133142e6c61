"""MACH, one-vs-all and a mixture of experts in PyTorch, head to head: time to equal accuracy, and memory, as K grows.

    python benchmarks/head_to_head.py [--labels K ...] [--device cuda] [--seconds S] [--fresh] [--docs]

All have the same encoder (words and pairs of words, hashed to 65,536 columns, into 128 hidden units), the same data
(the made-up shop of machxc.testing: 30 training samples a label, 1,000,000 at most), the same optimiser (Adam), the
same loss (softmax cross-entropy) and the same device; only the output layer differs (compare/peers/torch_heads.py):

    ova              an output for each label
    moe              a sparsely gated mixture of experts, as many outputs and a gate
    mach             8 repetitions of 8 sqrt(K) buckets, each with an encoder of its own: as published
    mach-shared      the same, with one encoder for all
    mach-shared-RxF  R repetitions of F sqrt(K) buckets: what a sample costs, and what it tells, are R x B

Each is trained in a process of its own for at most S seconds, or 10 epochs, and asked now and then for the best label
of 1,000 test samples; that time is not counted. Times and memory are those of training, from before there is a network
on. What a method did not reach in its time is computed, and marked with ~, where two smaller K are measured: the
samples that it takes grow on as they did from the one to the other, and cost what they cost here. Else: > the time it
had; -: not reached in all epochs. Of weights that do not fit into memory only their number is computed.

Results are kept in build/benchmarks/head_to_head/DEVICE/K/METHOD.json; a run makes those that are absent (--fresh: all
that are asked for) and then shows all that there are. --docs: also in docs/deep.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "compare"))

import common  # noqa: E402
import runner  # noqa: E402

FOLDER = common.BUILD / "head_to_head"
WORKER = HERE / "compare" / "race.py"
# of MACH: repetitions R, and buckets B as a multiple of sqrt(K)
SHAPES = {"mach": (8, 8), "mach-shared": (8, 8)} | {
    f"mach-shared-{r}x{f}": (r, f) for r, f in ((16, 4), (8, 2), (4, 4))
}
METHODS = ("ova", "moe", *SHAPES)
LABELS = (1_000, 10_000, 100_000)
LEVELS = (0.2, 0.3, 0.4)
HIDDEN, COLUMNS, EPOCHS = 128, 1 << 16, 10
EACH, MOST = 30, 1_000_000  # training samples a label, and in all
TIMES = 4  # what an optimiser like Adam holds of a weight: itself, its gradient, and two means
_Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), metavar="K")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--device", default="cpu", help="of PyTorch: cpu, cuda (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=25, metavar="S", help="of training (default %(default)g)")
    parser.add_argument("--threads", type=int, default=2, help="on the processor (default %(default)s)")
    parser.add_argument("--memory", type=float, default=6, metavar="GB", help="of a process (default %(default)g)")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/deep.md")
    given = parser.parse_args()
    print(common.header(), end="\n\n", flush=True)
    for n_labels in given.labels:
        for method in given.methods:
            target = FOLDER / given.device / str(n_labels) / f"{method}.json"
            if given.fresh or not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                row = race(n_labels, method, given)
                target.write_text(json.dumps(row, indent=1) + "\n")
                print(f"K = {n_labels:,}, {method}: {row['status']} {row['why']}".rstrip(), flush=True)
    text = shown(given.device)
    print(text)
    if given.docs:
        write(text, given.device)


def race(n_labels: int, method: str, given: argparse.Namespace) -> _Row:
    """Train one method in a process of its own: what it measured, and how it ended."""
    folder = data(n_labels)
    out, settings = folder / f"{method}.json", options(n_labels, method, given.device)
    needed = TIMES * 4 * parameters(n_labels, method)
    if given.device == "cpu" and needed > given.memory * 1e9:
        why = f"its weights and their means take {needed / 1e9:.1f} GB"
        return {"status": "too large", "why": why, "parameters": parameters(n_labels, method)}
    command = [sys.executable, str(WORKER), "run", str(folder), str(out), "--settings", json.dumps(settings)]
    command += ["--seconds", str(given.seconds), "--threads", str(given.threads)]
    limits = runner.Limits(3 * given.seconds + 120, given.memory * 1e9)
    ended = runner.run(command, folder / f"{method}.log", limits, runner.thread_variables(given.threads))
    noted = json.loads(out.read_text()) if ended.status == "ok" else {}
    machine = f"{common.processor()}, {common.cores()} cores, {common.memory()}; load {os.getloadavg()[0]:.1f}"
    status = "out of device memory" if "OutOfMemoryError" in ended.why else ended.status
    return {"status": status, "why": ended.why, "settings": settings, "machine": machine, **noted}


def data(n_labels: int) -> Path:
    """The folder of the samples, which are made if they are not there."""
    folder, n = FOLDER / "data" / str(n_labels), min(EACH * n_labels, MOST)
    if not (folder / "made").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(WORKER), "make", str(folder), "--labels", str(n_labels)]
        common.run([*command, "--samples", str(n), "--columns", str(COLUMNS)])
        (folder / "made").write_text(f"{n} samples\n")
    return folder


def options(n_labels: int, method: str, device: str) -> _Row:
    """The settings of a method: see torch_heads.py."""
    same = {"hidden": HIDDEN, "epochs": EPOCHS, "softmax": True, "device": device}
    if method not in SHAPES:
        return {**same, "head": method}
    mine = {"repetitions": SHAPES[method][0], "buckets": buckets(n_labels, method), "shared": method != "mach"}
    return {**same, "head": "mach", **mine}


def buckets(n_labels: int, method: str) -> int:
    """B of a kind of MACH."""
    return round(SHAPES[method][1] * math.sqrt(n_labels))


def parameters(n_labels: int, method: str) -> int:
    """How many weights a method learns, but for the gate of a mixture."""
    outputs = SHAPES[method][0] * buckets(n_labels, method) if method in SHAPES else n_labels
    encoders = SHAPES[method][0] if method == "mach" else 1
    return (COLUMNS + 1) * HIDDEN * encoders + outputs * (HIDDEN + 1)


def shown(device: str) -> str:
    """The tables of all results that there are, and what was run."""
    found = sorted(int(path.name) for path in (FOLDER / device).iterdir())
    rows = {k: {m: row for m in METHODS if (row := kept(device, k, m)) is not None} for k in found}
    first = next((row for k in found for row in rows[k].values() if "torch" in row), None)
    texts = ["nothing was trained to its end"]
    if first is not None:
        texts = [f"PyTorch {first['torch']} on {first['device']}; {first['machine'].partition(';')[0]}"]
    texts += [size(k, rows, on_gpu=device != "cpu") for k in found]
    return "\n\n".join(texts)


def kept(device: str, n_labels: int, method: str) -> _Row | None:
    """What was measured, if it was."""
    path = FOLDER / device / str(n_labels) / f"{method}.json"
    return json.loads(path.read_text()) if path.exists() else None


def size(n_labels: int, rows: dict[int, dict[str, _Row]], *, on_gpu: bool) -> str:
    """The table of one K."""
    unit = "s" if on_gpu else "CPU s"
    columns = ["output layer", "weights", f"samples a {unit}", "memory", "best P@1", "epochs"]
    columns += [f"{unit} to {level:g}" for level in LEVELS] + ["ms an answer"]
    lines = [line(n_labels, method, rows, 0 if on_gpu else 1) for method in rows[n_labels]]
    n = min(EACH * n_labels, MOST)
    return f"**K = {n_labels:,}**, {n:,} training samples\n\n{common.table(columns, lines)}"


def line(n_labels: int, method: str, rows: dict[int, dict[str, _Row]], clock: int) -> list[str]:
    """The cells of one method; ``clock``: 0 for seconds, 1 for CPU seconds."""
    row = rows[n_labels][method]
    if "points" not in row:
        why = [f"{row['status']}: {row['why']}"] + [""] * (len(LEVELS) + 3)
        return [method, f"{parameters(n_labels, method) / 1e6:,.1f} M", *why, ""]
    last, best = row["points"][-1], max(point[3] for point in row["points"])
    memory = row["device_bytes"] or row["peak_bytes"]
    cells = [method, f"{row['parameters'] / 1e6:,.1f} M", f"{last[2] / last[clock]:,.0f}", f"{memory / 1e9:.2f} GB"]
    cells += [f"{best:.3f}", f"{last[2] / row['n_samples']:.2f}"]
    cells += [to_level(level, n_labels, method, rows, clock) for level in LEVELS]
    return [*cells, f"{row['answer_seconds']:.2f}"]


def to_level(level: float, n_labels: int, method: str, rows: dict[int, dict[str, _Row]], clock: int) -> str:
    """The time until P@1 had reached a level; ~: computed; -: not in all epochs; >: nothing to compute it from."""
    row = rows[n_labels][method]
    reached = next((point for point in row["points"] if point[3] >= level), None)
    if reached is not None:
        return f"{reached[clock]:.1f}"
    last = row["points"][-1]
    if last[2] >= EPOCHS * row["n_samples"]:
        return "-"
    needed = extrapolated(level, n_labels, method, rows)
    if needed is None:
        return f">{last[clock]:.0f}"
    return f"~{max(needed, last[2]) * last[clock] / last[2]:,.0f}"


def extrapolated(level: float, n_labels: int, method: str, rows: dict[int, dict[str, _Row]]) -> float | None:
    """The training samples that a level takes, from those at two smaller K: a power of K, at least constant."""
    taken = []
    for k in sorted((k for k in rows if k < n_labels), reverse=True):
        points = rows[k].get(method, {}).get("points", [])
        reached = next((point for point in points if point[3] >= level), None)
        if reached is not None:
            taken.append((k, reached[2]))
    if len(taken) < 2:
        return None
    (k, samples), (smaller, fewer) = taken[:2]
    power = max(0.0, math.log(samples / fewer) / math.log(k / smaller))
    return float(samples * (n_labels / k) ** power)


def write(text: str, device: str) -> None:
    """Put the tables between the marks of the device in docs/deep.md."""
    name, document = f"head-to-head-{device.partition(':')[0]}", common.ROOT / "docs" / "deep.md"
    marked = re.compile(f"<!-- begin {name} -->.*?<!-- end {name} -->", re.DOTALL)
    before = document.read_text(encoding="utf-8")
    if not marked.search(before):
        raise RuntimeError(f"{document} has no place for it: write <!-- begin {name} --><!-- end {name} --> there")
    block = f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->"
    document.write_text(marked.sub(lambda _: block, before), encoding="utf-8")


if __name__ == "__main__":
    main()
