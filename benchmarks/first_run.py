"""What a first run on a machine takes more than a second one: the program compiles its kernels once.

Trains on made-up texts, evaluates, and asks a question, with an empty folder for what Numba compiles, and then once
more with what is in it: linear models that are learnt step by step, and counted ones. Wall and CPU seconds of whole
processes, from start to exit. ``--one-core``: bound to one core, where no second process compiles beside the first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from common import Ran, header, run, table

LEARNERS = {"gradient": (4_000, 400, 2), "counts": (24_000, 12_000, 1)}  # samples, labels, labels of a sample
STEPS = ("train", "evaluate", "query")
QUERY = "bade fi go"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-core", action="store_true", help="bind everything to one core")
    arguments = parser.parse_args()
    if arguments.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(header(), flush=True)
    rows = []
    for learner in LEARNERS:
        with tempfile.TemporaryDirectory(prefix="machxc-first-run-") as folder:
            rows += measured(learner, Path(folder))
    print(table(["learner", "run", *(f"{step}: wall / CPU s" for step in STEPS), "all"], rows))


def measured(learner: str, folder: Path) -> list[list[str]]:
    """The rows of one learner: the first run, the second, and what the first takes more."""
    run([sys.executable, __file__, "--write", learner, str(folder / "data.jsonl")])
    first, second = (road(folder, str(number)) for number in (1, 2))
    more = [(a[0] - b[0], a[1] - b[1]) for a, b in zip(first, second, strict=True)]
    return [[learner, name, *shown(times)] for name, times in (("first", first), ("second", second), ("more", more))]


def road(folder: Path, name: str) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each step."""
    data, model = str(folder / "data.jsonl"), str(folder / name)
    program = ["env", f"NUMBA_CACHE_DIR={folder / 'kernels'}", sys.executable, "-m", "machxc.cli"]
    steps: list[Ran] = [
        run([*program, "train", data, "--output", model, "--quiet"]),
        run([*program, "evaluate", model, data, "--quiet"]),
        run([*program, "query", model, QUERY, "--quiet"]),
    ]
    return [(step.wall_seconds, step.cpu_seconds) for step in steps]


def shown(times: list[tuple[float, float]]) -> list[str]:
    """The cells of one row, their sum at the end."""
    total = (sum(wall for wall, _ in times), sum(cpu for _, cpu in times))
    return [f"{wall:.1f} / {cpu:.1f}" for wall, cpu in [*times, total]]


def write(learner: str, path: str) -> None:
    """Make up the samples; in a process of its own, so that the benchmark stays smaller than what it measures."""
    from machxc.testing import make_texts

    n, n_labels, each = LEARNERS[learner]
    texts, labels = make_texts(n, n_labels, labels_per_text=each)
    with open(path, "w", encoding="utf-8") as file:
        for text, names in zip(texts, labels, strict=True):
            file.write(json.dumps({"text": text, "labels": names}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(*sys.argv[2:])
    else:
        main()
