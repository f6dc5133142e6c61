"""Dense inputs of 6,144 columns, the width of the ImageNet-21K setting: what they take, and what depth tells of them.

    python benchmarks/dense.py [--samples N] [--labels K] [--columns D]

Samples are made up: a label has four places in 16 dimensions, which are bent into D columns; no plane parts them. Each
way of learning has 2 repetitions and 4 epochs, and runs in a process of its own: linear and one hidden layer by the
kernels, two hidden layers by PyTorch on the processor, and a module of PyTorch in front of a linear model. CPU seconds
and memory are those of fitting, over what there was before: the array is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import common

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by torch: its waiting threads burn CPU seconds otherwise
WAYS: dict[str, dict[str, Any]] = {
    "linear": {"hidden": 0},
    "hidden 128": {"hidden": 128},
    "hidden 256, 128": {"hidden": [256, 128], "device": "torch-cpu"},
    "module 256, 128": {"hidden": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--columns", type=int, default=6144)
    parser.add_argument("--way", choices=WAYS, help="this one, in this process, as JSON")
    given = parser.parse_args()
    sizes = given.samples, given.labels, given.columns
    if given.way:
        print(json.dumps(measured(given.way, *sizes)))
        return
    print(common.header(), end="\n\n", flush=True)
    print(f"{given.samples:,} samples of {given.columns:,} columns, {given.labels:,} labels\n")
    print(common.table(["learnt by", "P@1", "CPU s", "memory"], [line(way, *sizes) for way in WAYS]))


def line(way: str, n: int, n_labels: int, n_columns: int) -> list[str]:
    """The cells of one way of learning."""
    command = [sys.executable, __file__, "--way", way, "--samples", str(n), "--labels", str(n_labels)]
    found = json.loads(common.run([*command, "--columns", str(n_columns)]).output.splitlines()[-1])
    return [way, f"{found['accuracy']:.3f}", f"{found['cpu_seconds']:.0f}", f"{found['bytes'] / 1e9:.2f} GB"]


def measured(way: str, n: int, n_labels: int, n_columns: int) -> dict[str, float]:
    """Fit, then ask for 500 other samples: P@1, and what fitting took."""
    fit(way, *made(64, n_labels, 64, 2))  # what is compiled and loaded then, is not measured
    (X, y), (queries, wanted) = made(n, n_labels, n_columns, 0), made(500, n_labels, n_columns, 1)
    before, start = resident(), time.process_time()
    model, encode = fit(way, X, y)
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"cpu_seconds": seconds, "bytes": peak - before, "accuracy": model.score(encode(queries), wanted)}


def fit(way: str, X: Any, y: Any) -> tuple[Any, Any]:
    """A model, and what stands in front of it."""
    from machxc import MACHClassifier

    model = MACHClassifier(repetitions=2, epochs=4, **WAYS[way])
    if "module" not in way:
        return model.fit(X, y), lambda inputs: inputs
    from machxc.torch import modules

    module = modules.layers(X.shape[1], [256, 128])
    modules.train_encoder(module, X, y, repetitions=2, epochs=4)
    return model.fit(modules.encode(module, X), y), lambda inputs: modules.encode(module, inputs)


def made(n: int, n_labels: int, n_columns: int, seed: int) -> tuple[Any, Any]:
    """Samples float32 [n, columns] and their labels."""
    fixed, source = np.random.default_rng(99), np.random.default_rng(seed)
    places, first = fixed.standard_normal((n_labels, 4, 16)), fixed.standard_normal((16, 64)) / 4
    bend = fixed.standard_normal((64, n_columns)).astype(np.float32) / 8
    labels = np.arange(n) % n_labels
    points = places[labels, source.integers(0, 4, n)] + 0.35 * source.standard_normal((n, 16))
    return np.tanh(points @ first).astype(np.float32) @ bend, labels


def resident() -> int:
    """The memory of this process that is resident now, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
