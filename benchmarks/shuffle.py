"""A true shuffle of the samples of a store, beside reading it from front to back.

    python benchmarks/shuffle.py [--samples N] [--labels K]

Made-up queries in JSON Lines, converted once below build/benchmarks. Then one epoch's samples in order, without
training on them: gathered window by window from the mapped store, and dealt out to temporary files, as a store beyond
memory is; each with the store in the page cache, and after the system was asked to forget it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from common import BUILD, ROOT, header
from machxc.data import open_store
from machxc.repetition import windows
from machxc.samples import Samples

FOLDER = BUILD / "shuffle"


def made(samples: int, labels: int) -> Path:
    store = FOLDER / f"{samples}-{labels}"
    if not store.exists():
        data = FOLDER / "data.jsonl"
        FOLDER.mkdir(parents=True, exist_ok=True)
        program = str(ROOT / "benchmarks" / "sample_files.py")
        writing = [sys.executable, program, "jsonl", str(data), str(labels), "0", str(samples)]
        subprocess.run(writing, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "-m", "machxc.cli", "convert", str(data), str(store), "--quiet"], check=True)
        data.unlink()
    return store


def forget(store: Path) -> None:
    for path in store.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(store: Path) -> None:
    for path in store.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


def epoch(samples: Samples) -> None:
    for _ in windows.shuffled(samples, np.arange(len(samples)), 0, 0, 0):
        pass


def dealt(samples: Samples) -> None:
    with patch.object(windows, "physical_memory", lambda: 1):
        epoch(samples)


def timed(what: str, store: Path, size: int, work: Callable[[Samples], None]) -> None:
    for cold in (False, True):
        samples = open_store(store, verify=False).samples
        if cold:
            forget(store)
        else:
            read_all(store)
        wall, cpu = time.perf_counter(), time.process_time()
        work(samples)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        where = "disk" if cold else "page cache"
        print(f"{what:<28}{where:<12}{wall:>7.2f} s {cpu:>7.2f} CPU s {size / wall / 1e6:>8.0f} MB/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A true shuffle of the samples of a store.")
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--labels", type=int, default=5_000_000)
    arguments = parser.parse_args()
    print(header())
    store = made(arguments.samples, arguments.labels)
    samples = open_store(store, verify=False).samples
    size = windows.samples_bytes(samples)
    count = -(-len(samples) // windows.window_size(samples))
    print(f"{len(samples):,} samples, {size / 1e6:.0f} MB, {count} windows")
    epoch_of_few = Samples(samples.features.rows(0, 10), samples.labels.rows(0, 10))
    epoch(epoch_of_few)
    windows.gather(samples, np.arange(10, dtype=np.uint32))  # kernels are loaded then
    timed("from front to back", store, size, lambda _: read_all(store))
    timed("shuffled", store, size, epoch)
    timed("shuffled, dealt out to files", store, size, dealt)


if __name__ == "__main__":
    main()
