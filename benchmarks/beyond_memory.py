"""Counting from a store that does not stay in memory: what is read from the disk, at random and from front to back.

    python benchmarks/beyond_memory.py [--samples N] [--labels K]

Made-up queries in JSON Lines, converted once below build/benchmarks; then one repetition of counted weights, in a
process of its own, while a thread makes the system forget the store again and again, as if there were no memory for
it. Once samples are read in the order of their buckets, once as a store is that is more than half of the memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import patch

from common import header, run, table
from machxc.config import Settings
from machxc.data import open_store
from machxc.data.columns import release
from machxc.facts import facts_of
from machxc.model import partition_of
from machxc.plan import make_plan
from machxc.repetition import windows
from machxc.repetition.counting import count_repetition
from shuffle import forget, made

WAYS = {"at random": 1 << 60, "from front to back": 1}  # bytes of memory that the machine seems to have
PAUSE = 0.05  # seconds between two times that all is forgotten


def io_bytes() -> int:
    """Bytes that this process had read from disks."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["read_bytes"])


def counted(store: Path, memory: int) -> dict[str, object]:
    """Count one repetition in a store that is forgotten all the time."""
    dataset, ended = open_store(store, verify=False), threading.Event()
    plan = make_plan(facts_of(dataset.samples, text=True), Settings(learner="counts"), text=dataset.text)

    def forget_it() -> None:
        while not ended.wait(PAUSE):
            release(*dataset.samples.arrays())
            forget(store)

    thread = threading.Thread(target=forget_it)
    with patch.object(windows, "physical_memory", lambda: memory), tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        thread.start()
        read, wall, cpu = io_bytes(), time.perf_counter(), time.process_time()
        try:
            tensors = count_repetition(dataset.samples, plan.config, partition_of(plan.config), 0)
        finally:
            ended.set()
            thread.join()
        told = [(io_bytes() - read) / 1e6, time.perf_counter() - wall, time.process_time() - cpu]
    digest = hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
    planned = plan.training_bytes / 1e6
    return {"told": told, "digest": digest, "planned": planned, "size": windows.samples_bytes(dataset.samples) / 1e6}


def main() -> None:
    """Print the machine and a row for each way; or be one of its processes."""
    parser = argparse.ArgumentParser(description="What counting reads of a store that does not stay in memory.")
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--labels", type=int, default=500_000)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    store = made(arguments.samples, arguments.labels)
    if arguments.way:
        print(json.dumps(counted(store, WAYS[arguments.way])))
        return
    print(header())
    rows, digests = [], set()
    for way in WAYS:
        sizes = [f"--samples={arguments.samples}", f"--labels={arguments.labels}"]
        ran = run([sys.executable, os.path.abspath(__file__), *sizes, "--way", way])
        found = json.loads(ran.output)
        digests.add(found["digest"])
        numbers = [*(f"{number:,.0f}" for number in found["told"]), f"{ran.peak_bytes / 1e6:,.0f}"]
        rows.append([way, *numbers, f"{found['planned']:,.0f}"])
    print(f"{arguments.samples:,} samples, {found['size']:,.0f} MB\n")
    print(table(["samples are read", "MB read", "seconds", "CPU s", "MB peak", "MB planned"], rows))
    print("\nthe same bytes" if len(digests) == 1 else "\nOTHER BYTES")


if __name__ == "__main__":
    main()
