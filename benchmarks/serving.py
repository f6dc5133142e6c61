"""What the server can do, beside other indexes behind a handler: capacity, latency, bulk, overload, start.

    python benchmarks/serving.py [--only machxc usearch bm25s] [--seconds 5]
    python benchmarks/serving.py --missing MODEL TEST     # recall with repetitions taken away from a model

The data are the names of 234,908 populated places (benchmarks/datasets.py); machxc serves the model of its default
settings, the others what benchmarks/serving_peer.py builds of the same names, in an environment of their own
(build/benchmarks/serving). A server runs on one core, the load (benchmarks/load.py) on another.

capacity    queries a second, 64 connections that each ask again as soon as they are answered
CPU         milliseconds of the server's processor time for each of them: what other programs change least
p50, p99    milliseconds, at half of that capacity and random times, from when a request was due
recall@10   of 1,000 held-out names
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import common
import datasets
import load

FOLDER = common.BUILD / "serving"
PYTHON = FOLDER / "bin" / "python"  # of the others
MODEL = common.BUILD / "serving-machxc"
PACKAGES = (
    "usearch==2.26.6", "bm25s==0.3.16", "fastapi", "uvicorn", "httptools", "uvloop", "scikit-learn",
)  # fmt: skip
PEERS = {"usearch": "FastAPI + usearch (HNSW)", "bm25s": "FastAPI + bm25s"}
CONNECTIONS = 64
N_RECALL, N_BULK = 1000, 500
SERVER_CORE, LOAD_CORE = 0, 1
LIBRARY = """
import json, sys, time
from machxc import Model, answer
model, texts = Model.load(sys.argv[1]), json.load(open(sys.argv[2]))
n = int(sys.argv[3])
answer(model, texts[:n])
begin, done = time.perf_counter(), 0
while time.perf_counter() - begin < 4:
    answer(model, texts[done % 5000 : done % 5000 + n])
    done += n
print(done / (time.perf_counter() - begin))
"""


@dataclass(frozen=True)
class Queries:
    """Held-out names, and the place of each."""

    texts: list[str]
    labels: list[str]

    @classmethod
    def read(cls, path: Path) -> Queries:
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return cls([sample["text"] for sample in samples], [sample["labels"][0] for sample in samples])

    def requests(self) -> list[bytes]:
        return [load.request_of({"queries": [text]}) for text in self.texts]

    def bulk(self, n: int) -> list[bytes]:
        return [load.request_of({"queries": self.texts[i : i + n]}) for i in range(0, len(self.texts) - n, n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("machxc", *PEERS), default=("machxc", *PEERS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--missing", nargs=2, metavar=("MODEL", "TEST"), help="recall with repetitions taken away")
    parser.add_argument("--build", action="store_true", help="only make what is served")
    arguments = parser.parse_args()
    print(common.header(), end="\n\n", flush=True)
    if arguments.missing:
        print(missing(*arguments.missing))
        return
    files = datasets.files("geonames")
    for name in arguments.only:
        build(name, files.train)
    if not arguments.build:
        measure(arguments.only, Queries.read(files.test), arguments.seconds)


def measure(names: Sequence[str], queries: Queries, seconds: float) -> None:
    os.sched_setaffinity(0, {LOAD_CORE})
    rows = []
    if "machxc" in names:
        print(start_up(), flush=True)
        rows.append(measure_machxc(queries, seconds))
    rows += [measure_peer(name, queries, seconds) for name in names if name != "machxc"]
    columns = ("server", "capacity (queries/s)", "CPU (ms/query)", "p50 (ms)", "p99 (ms)", "recall@10")
    print("\n" + common.table(columns, rows))


# --- what is served ---


def build(name: str, train: Path) -> None:
    """Make what a server serves, once."""
    if name == "machxc":
        if not MODEL.exists():
            program = [sys.executable, "-m", "machxc.cli", "train", str(train), "--output", str(MODEL), "--quiet"]
            subprocess.run(program, check=True)
        return
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(PYTHON), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    if not (index(name) / "labels.json").exists():
        subprocess.run([*peer("build"), name, str(train), str(index(name))], check=True)


def index(name: str) -> Path:
    return common.BUILD / f"serving-{name}"


def peer(verb: str) -> list[str]:
    return [str(PYTHON), str(Path(__file__).with_name("serving_peer.py")), verb]


@contextlib.contextmanager
def serving(command: Sequence[str], port: int) -> Iterator[tuple[str, int, float]]:
    """A server on its core: its URL, its process, and the seconds until it was ready."""
    begin = time.perf_counter()
    pin = lambda: os.sched_setaffinity(0, {SERVER_CORE})  # noqa: E731
    process = subprocess.Popen(command, preexec_fn=pin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            if process.poll() is not None:
                raise RuntimeError(process.communicate()[1])
            time.sleep(0.005)
        yield url, process.pid, time.perf_counter() - begin
    finally:
        process.terminate()
        process.communicate()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=60) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def machxc(port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "machxc.cli", "serve", str(MODEL), "--port", str(port), *options]


# --- measurements ---


def start_up() -> str:
    """Seconds from the start of the program until it is ready, all but the first time."""
    times = []
    for _ in range(4):
        port = free_port()
        with serving(machxc(port, "--drain", "0"), port) as (_, _, seconds):
            times.append(seconds)
    return f"start to ready: {min(times[1:]):.2f} to {max(times[1:]):.2f} s on one core"


def measure_machxc(queries: Queries, seconds: float) -> list[str]:
    port = free_port()
    with serving(machxc(port, "--drain", "0"), port) as (url, process, _):
        row, capacity = measured("machxc serve", url, process, queries, seconds)
        for share in (0.25, 0.75):
            found = load.open_loop(url, queries.requests(), share * capacity, CONNECTIONS, seconds)
            times = f"p50 {found.percentile(50):.1f} ms, p99 {found.percentile(99):.1f} ms"
            print(f"machxc at {share:.0%} of capacity: {times}", flush=True)
        bulk = load.closed(url, queries.bulk(N_BULK), 2, seconds)
    print(bulk_result(queries, bulk.rate * N_BULK), flush=True)
    port = free_port()
    with serving(machxc(port, "--drain", "0", "--queue", "16"), port) as (url, process, _):
        print(overload(url, process, queries, capacity, 2 * seconds), flush=True)
    return row


def measure_peer(name: str, queries: Queries, seconds: float) -> list[str]:
    port = free_port()
    with serving([*peer("serve"), name, str(index(name)), str(port)], port) as (url, process, _):
        return measured(PEERS[name], url, process, queries, seconds)[0]


def measured(name: str, url: str, process: int, queries: Queries, seconds: float) -> tuple[list[str], float]:
    """A line of the table, and the capacity."""
    requests = queries.requests()
    kept = load.closed(url, requests[:N_RECALL], 8, 0, keep=True)
    right = sum(queries.labels[i] in answer["results"][0]["labels"] for i, answer in kept.answers.items())
    before = cpu_seconds(process)
    whole = load.closed(url, requests[N_RECALL:], CONNECTIONS, seconds)
    taken = (cpu_seconds(process) - before) / max(1, len(whole.latencies))
    half = load.open_loop(url, requests[N_RECALL:], whole.rate / 2, CONNECTIONS, 2 * seconds)
    times = [f"{half.percentile(percent):.1f}" for percent in (50, 99)]
    row = [name, f"{whole.rate:,.0f}", f"{1000 * taken:.2f}", *times, f"{right / N_RECALL:.1%}"]
    print(" | ".join(row), dict(whole.statuses), dict(half.statuses), flush=True)
    return row, whole.rate


def cpu_seconds(process: int) -> float:
    """Seconds of processor time that a process has taken."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def bulk_result(queries: Queries, rate: float) -> str:
    """The rate of bulk requests beside that of the library in a process of its own, on the same core."""
    texts = common.BUILD / "serving-texts.json"
    texts.write_text(json.dumps(queries.texts), encoding="utf-8")
    command = [sys.executable, "-c", LIBRARY, str(MODEL), str(texts), str(N_BULK)]
    pin = lambda: os.sched_setaffinity(0, {SERVER_CORE})  # noqa: E731
    done = subprocess.run(command, preexec_fn=pin, capture_output=True, text=True, check=True)
    own = float(done.stdout)
    return f"bulk, {N_BULK} queries a request: {rate:,.0f} queries/s, the library {own:,.0f}: {rate / own:.0%}"


def overload(url: str, process: int, queries: Queries, capacity: float, seconds: float) -> str:
    """Connections that ask again at once, whatever they are answered, of a server with a short queue."""
    memory = psutil.Process(process).memory_info
    load.closed(url, queries.requests(), CONNECTIONS, 1.0)
    before = memory().rss
    found = load.closed(url, queries.requests(), CONNECTIONS, seconds)
    grown = (memory().rss - before) / 2**20
    times = f"p50 {found.percentile(50):.1f} ms, p99 {found.percentile(99):.1f} ms"
    asked = sum(found.statuses.values()) / seconds
    load_shown = f"{asked:,.0f} requests/s ({asked / capacity:.1f} times capacity)"
    return f"overload, a queue of 16: {load_shown}, {dict(found.statuses)}, of 200s {times}, memory {grown:+.1f} MB"


def missing(model: str, test: str) -> str:
    """Recall with 0 to 8 repetitions taken away."""
    from machxc import Model, evaluate

    whole, rows = Model.load(model), []
    for n in range(9):
        found = evaluate(whole.subset(whole.numbers[n:]), test, ks=(1, 10))
        rows.append(
            [f"{len(whole.numbers) - n} of {len(whole.numbers)}", f"{found['R@1']:.1%}", f"{found['R@10']:.1%}"]
        )
    return common.table(("repetitions", "recall@1", "recall@10"), rows)


if __name__ == "__main__":
    main()
