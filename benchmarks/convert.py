"""How fast, and in how much memory, `machxc convert` reads each format; and what it costs to be killed on the way.

    python benchmarks/convert.py [--megabytes N] [--formats NAME ...] [--labels K] [--text AS] [--killed]

Queries of the made-up catalogue with the products they are for, written once in each format below build/benchmarks,
and converted each by a process of its own. MB/s: bytes of input as they are after decompression (of Parquet, the
bytes of its columns in memory), over all processor time of that process but its start (that of converting one sample).
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import BUILD, ROOT, header, run

FOLDER = BUILD / "convert"
FORMATS = {  # the content's name in sample_files.py, and the file's
    "jsonl": ("jsonl", "a.jsonl"),
    "jsonl, names": ("names", "b.jsonl"),
    "csv": ("csv", "c.csv"),
    "xmc": ("xmc", "d.xmc"),
    "parquet": ("parquet", "e.parquet"),
    "jsonl.gz": ("jsonl", "f.jsonl.gz"),
    "jsonl.zst": ("jsonl", "g.jsonl.zst"),
    "jsonl, stdin": ("jsonl", "a.jsonl"),
}


def written(name: str, labels: int, megabytes: int) -> tuple[Path, int]:
    """The file of a format, made if need be, and its size after decompression."""
    content, file = FORMATS[name]
    path = FOLDER / f"{labels}-{megabytes}-{file}"
    told = path.with_suffix(path.suffix + ".size")
    if not told.exists():
        program = str(ROOT / "benchmarks" / "sample_files.py")
        told.write_text(run([sys.executable, program, content, str(path), str(labels), str(megabytes)]).output)
    return path, int(told.read_text())


def command(path: Path, store: Path, text: list[str], *, stdin: bool) -> list[str]:
    machxc = [sys.executable, "-m", "machxc.cli", "convert"]
    options = [str(store), "--overwrite", "--label-separator", "|", "--json", *text]
    if not stdin:
        return [*machxc, str(path), *options]
    return ["sh", "-c", f'exec "$@" < "{path}"', "sh", *machxc, "-", *options]


def killed(path: Path, store: Path, text: list[str]) -> str:
    """Kill a conversion again and again, each time a bit later; is the store then the one of a run in peace?"""
    again, kills, wait = command(path, store, text, stdin=False), 0, 2.0
    while True:
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL)
        try:
            if process.wait(wait):
                raise subprocess.CalledProcessError(process.returncode, again)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, wait = kills + 1, wait * 1.1
    return f"{kills} times"


def measured(name: str, labels: int, megabytes: int, text: list[str]) -> None:
    path, size = written(name, labels, megabytes)
    tiny, _ = written(name, 100, 0)
    store = FOLDER / "store"
    stdin = name.endswith("stdin")
    start = min(run(command(tiny, store, text, stdin=stdin)).cpu_seconds for _ in range(2))
    begin = time.perf_counter()
    ran = run(command(path, store, text, stdin=stdin))
    facts = json.loads(ran.output)
    cpu = ran.cpu_seconds - start
    print(
        f"{name:<14}{size / 1e6:>8.0f} MB {facts['n_samples']:>12,} samples {facts['n_labels']:>12,} labels "
        f"{cpu:>8.1f} CPU s {size / 1e6 / cpu:>7.0f} MB/s {ran.peak_bytes / 2**20:>7.0f} MiB peak "
        f"{time.perf_counter() - begin:>7.1f} s  store {facts['bytes'] / 1e6:.0f} MB",
        flush=True,
    )


def check_killed(labels: int, megabytes: int, text: list[str]) -> None:
    path, _ = written("jsonl", labels, megabytes)
    stores = FOLDER / "store", FOLDER / "killed"
    run(command(path, stores[0], text, stdin=False))
    kills = killed(path, stores[1], text)
    names = sorted(os.listdir(stores[0]))
    same = names == sorted(os.listdir(stores[1])) and all(
        filecmp.cmp(stores[0] / name, stores[1] / name, shallow=False) for name in names
    )
    print(f"killed {kills}, the same command again each time: {'the same bytes' if same else 'OTHER BYTES'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of machxc convert.")
    parser.add_argument("--megabytes", type=int, default=200, help="of input, about (default: 200)")
    parser.add_argument("--labels", type=int, default=1_000_000, help="products of the catalogue (default: 1000000)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--text", nargs="*", default=[], metavar="OPTION", help="as --text '--words=2', for convert")
    parser.add_argument("--killed", action="store_true", help="kill conversions, and compare what comes out")
    arguments = parser.parse_args()
    print(header())
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        if arguments.killed:
            check_killed(arguments.labels, arguments.megabytes, arguments.text)
        else:
            for name in arguments.formats:
                measured(name, arguments.labels, arguments.megabytes, arguments.text)
    finally:
        for store in ("store", "killed"):
            shutil.rmtree(FOLDER / store, ignore_errors=True)


if __name__ == "__main__":
    main()
