"""What training on more cores, on Ray and through kills costs: rates, overheads and losses, measured here.

python benchmarks/scaling.py cores      one core, two threads, two processes
python benchmarks/scaling.py ray        two Ray nodes of one core against two threads on the same two cores
python benchmarks/scaling.py checkpoints  what checkpoints cost, and how soon a killed run trains again
python benchmarks/scaling.py published  one repetition of the published size on a core: its rate, and what follows
python benchmarks/scaling.py kills      R repetitions, a node killed every minute: equal bytes, and what was lost
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import BUILD, ROOT, header, table
from machxc.config import Settings
from machxc.data import convert, is_store
from machxc.facts import facts_of
from machxc.model import partition_of
from machxc.plan import make_plan
from machxc.repetition.chunks import CHUNK
from machxc.repetition.loop import train_repetition
from machxc.run import Execution, run_folder, train_run, train_shard
from machxc.samples import Features, Labels, Samples
from machxc.testing import make_texts

HERE = BUILD / "scaling"
N, K = 40_000, 5_000
KINDS = {
    "linear, B = 1,000": {"buckets": 1000, "hidden": 0},
    "hidden 128, B = 1,000": {"buckets": 1000, "hidden": 128},
    "hidden 128, B = 4,000, 64 sampled": {"buckets": 4000, "hidden": 128, "negatives": 64},
}


def store() -> Path:
    """The samples, converted once."""
    if not is_store(HERE / "store"):
        HERE.mkdir(parents=True, exist_ok=True)
        texts, labels = make_texts(N, K, labels_per_text=2, noise=8)
        lines = (json.dumps({"text": text, "labels": names}) for text, names in zip(texts, labels, strict=True))
        (HERE / "data.jsonl").write_text("\n".join(lines), "utf-8")
        convert(HERE / "data.jsonl", HERE / "store")
    return HERE / "store"


def output(name: str) -> Path:
    """A place for a model, with nothing there."""
    for path in (HERE / name, run_folder(HERE / name)):
        shutil.rmtree(path, ignore_errors=True)
    return HERE / name


def settings_of(kind: dict[str, int], repetitions: int, epochs: int) -> dict[str, Any]:
    return {"learner": "gradient", "loss": "bce", "repetitions": repetitions, "epochs": epochs, **kind}


def train_here(task: dict[str, Any]) -> dict[str, float]:
    """Train as asked; when training began (it is planned), when it ended, and the processor time of it all."""
    begun: list[float] = []
    hooks: dict[str, Any] = {"on_plan": lambda plan, why: begun.append(time.time())}
    settings, execution = Settings(**task["settings"]), Execution(**task["execution"])
    if execution.shard is not None:
        train_shard(store(), task["output"], execution, settings, jobs=1, **hooks)
    else:
        train_run(store(), task["output"], settings, execution=execution, jobs=task["jobs"], **hooks)
    times = os.times()
    return {"begin": begun[0], "end": time.time(), "cpu": times.user + times.system}


def children(tasks: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Each task in a process of its own, all at once."""
    command = [sys.executable, str(Path(__file__)), "child"]
    processes = [subprocess.Popen([*command, json.dumps(task)], stdout=subprocess.PIPE, text=True) for task in tasks]
    return [json.loads(process.communicate()[0]) for process in processes]


def wall(results: Sequence[dict[str, float]]) -> float:
    return max(r["end"] for r in results) - min(r["begin"] for r in results)


def task_of(kind: dict[str, int], repetitions: int, epochs: int, jobs: int = 1, **execution: Any) -> dict[str, Any]:
    name = f"model-{hashlib.sha256(json.dumps([kind, execution, jobs]).encode()).hexdigest()[:8]}"
    settings = settings_of(kind, repetitions, epochs)
    return {"settings": settings, "output": str(HERE / name), "jobs": jobs, "execution": execution}


def compare_cores(epochs: int) -> None:
    """Two repetitions: one after the other, as two threads, and as two processes (two shards of a run)."""
    rows = []
    for name, kind in KINDS.items():
        ways = {
            "one core": [task_of(kind, 2, epochs, executor="serial")],
            "two threads": [task_of(kind, 2, epochs, 2)],
            "two processes": [task_of(kind, 2, epochs, shard=(i, 2)) for i in range(2)],
        }
        times = {}
        for way, tasks in ways.items():
            for task in tasks:
                task["output"] = str(output(f"cores-{way.replace(' ', '-')}"))
            times[way] = wall(children(tasks))
        one = times["one core"]
        rates = [f"{2 * epochs * N / seconds:,.0f}" for seconds in times.values()]
        rows.append([name, *rates, *(f"{one / times[way]:.2f}" for way in ("two threads", "two processes"))])
    columns = ["samples/s", "one core", "two threads", "two processes", "threads: times", "processes: times"]
    print(table(columns, rows))


def compare_ray(epochs: int) -> None:
    """The same four repetitions on two Ray nodes of one core, and as two threads."""
    sys.path.insert(0, str(ROOT / "tests"))
    from ray_tools import cluster_of

    kind = KINDS["hidden 128, B = 1,000"]
    local = task_of(kind, 4, epochs, 2)
    local["output"] = str(output("local"))
    rows = [["two threads", f"{wall(children([local])):.2f}", ""]]
    with cluster_of(2) as cluster:
        for attempt in ("two Ray nodes, first run", "two Ray nodes, workers up"):
            far = task_of(kind, 4, epochs, executor="ray", address=cluster.address)
            far["output"] = str(output("ray"))
            seconds = wall(children([far]))
            rows.append([attempt, f"{seconds:.2f}", f"{100 * (seconds / float(rows[0][1]) - 1):+.1f} %"])
    print(table(["4 repetitions", "seconds", "against threads"], rows))
    print(f"equal bytes: {digest('ray') == digest('local')}")


def compare_checkpoints(epochs: int) -> None:
    """Without checkpoints, with some every second, and from a kill to the first sample trained on again."""
    kind = KINDS["hidden 128, B = 4,000, 64 sampled"]
    rows = []
    for interval in (1e9, 1.0):
        task = task_of(kind, 2, epochs, 2, checkpoint_interval=interval)
        task["output"] = str(output("checkpoints"))
        rows.append([f"{interval:g} s" if interval < 1e9 else "none", f"{wall(children([task])):.2f}"])
    print(table(["checkpoints every", "seconds"], rows))
    killed = task_of(kind, 2, epochs, 2, checkpoint_interval=1.0)
    killed["output"] = str(output("killed"))
    process = subprocess.Popen([sys.executable, str(Path(__file__)), "child", json.dumps(killed)])
    folder = run_folder(killed["output"])
    while len(list(folder.glob("checkpoint-*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    size = sum(path.stat().st_size for path in folder.glob("checkpoint-*")) / 2
    print(f"a checkpoint has {size / 1e6:.1f} MB")
    begin, first = time.time(), list[float]()
    train_run(
        store(),
        killed["output"],
        Settings(**killed["settings"]),
        jobs=2,
        on_plan=lambda plan, why: first.append(time.time() - begin),
        progress=lambda done, total: first.append(time.time() - begin),
    )
    print(f"going on: planned after {first[0]:.2f} s, the first samples trained after {first[3]:.2f} s")
    print(f"equal bytes: {digest('killed') == digest('checkpoints')}")


def digest(name: str) -> str:
    """One digest of all files of a model."""
    files = sorted((HERE / name).iterdir())
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def published() -> None:
    """Samples of the shape of the product search of the paper, as many as tell the rate; 70 M of them, 10 epochs."""
    n, k, features = 3 * CHUNK, 49_460_000, 8
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 80_000, (n, features), np.uint32), axis=1).ravel()
    offsets = np.arange(0, (n + 1) * features, features, dtype=np.int64)
    labels = Labels(np.arange(n + 1, dtype=np.int64), rng.integers(0, k, n, np.uint32), k)
    samples = Samples(Features(offsets, ids, np.ones(n * features, np.float32), 80_000), labels)
    shape = {"buckets": 20_000, "hidden": 2_000, "negatives": 100, "min_count": 1}
    settings = Settings(**settings_of(shape, 32, 1))
    config = make_plan(facts_of(samples, text=False), settings, text=None).config
    times: list[float] = []
    tensors = train_repetition(samples, config, partition_of(config), 0, lambda _: times.append(time.perf_counter()))
    rate = 2 * CHUNK / (times[2] - times[0])
    print(f"B = 20,000, H = 2,000, 100 sampled buckets, {features} features a sample: {rate:,.0f} samples/s on a core")
    print(f"a repetition is {sum(t.nbytes for t in tensors.values()) / 1e6:,.0f} MB; between trainers go 0 bytes")
    hours = 70e6 * 10 / rate / 3600
    print(f"70 M samples, 10 epochs: {hours:,.0f} hours a repetition on a core, as long for 32 on 32 cores")
    print(f"published: 34.2 hours on 8 V100s, 4 repetitions each: {34.2 / 4:.1f} hours for 32 on 32 such GPUs")


class Lost:
    """Follows the attempts of a run: what each had done when it was last seen, and where the next one began."""

    def __init__(self, folder: Path) -> None:
        self.attempts: dict[str, dict[str, Any]] = {}
        self._folder = folder

    def look(self, *_: object) -> None:
        for path in self._folder.glob("attempt-*"):
            self.attempts[path.name] = json.loads(path.read_bytes())

    def seconds(self) -> list[float]:
        """Seconds of training that each lost attempt had done in vain, by its own rate."""
        found = []
        for attempt in (a for a in self.attempts.values() if a["end"] is None and a["rate"]):
            later = [a for a in self.attempts.values() if a["repetition"] == attempt["repetition"]]
            later = [a for a in later if a["time"] > attempt["time"] and a["from"] is not None]
            if later:
                begun = min(later, key=lambda a: a["time"])["from"]
                found.append(max(0.0, attempt["done"] - begun) / attempt["rate"])
        return found


def kill_nodes(repetitions: int, epochs: int, period: float, interval: float) -> None:
    """A run on two Ray nodes, one of which is killed and replaced every ``period`` seconds."""
    sys.path.insert(0, str(ROOT / "tests"))
    from ray_tools import add_node, cluster_of, kill_node

    kind = KINDS["hidden 128, B = 1,000"]
    undisturbed = output("undisturbed")
    settings, kills = Settings(**settings_of(kind, repetitions, epochs)), 0
    begin = time.time()
    train_run(store(), undisturbed, settings, jobs=2)
    quiet = time.time() - begin
    with cluster_of(2) as cluster:
        model = output("killed-nodes")
        lost, alive = Lost(run_folder(model)), list(cluster.worker_nodes)

        execution = Execution("ray", address=cluster.address, checkpoint_interval=interval)
        hooks: dict[str, Any] = {"execution": execution, "on_status": lost.look}
        begin = time.time()
        thread = threading.Thread(target=train_run, args=(store(), model, settings), kwargs=hooks)
        thread.start()
        while thread.is_alive():
            thread.join(period)
            if thread.is_alive():
                kill_node(alive.pop(0))
                kills += 1
                alive.append(add_node(cluster))
        seconds = time.time() - begin
    print(f"{repetitions} repetitions, a node killed every {period:g} s: {kills} kills, {len(lost.attempts)} attempts")
    print(f"{seconds:.0f} s, {quiet:.0f} s as two threads that nobody kills")
    shown = ", ".join(f"{s:.1f}" for s in lost.seconds())
    print(f"training lost a kill, in seconds (checkpoints every {interval:g} s): {shown or 'none'}")
    print(f"equal bytes: {digest('killed-nodes') == digest('undisturbed')}")


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cores", "ray", "checkpoints", "published", "kills", "child"))
    parser.add_argument("task", nargs="?")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=32)
    parser.add_argument("--period", type=float, default=60.0)
    parser.add_argument("--interval", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.what == "child":
        print(json.dumps(train_here(json.loads(arguments.task))))
        return
    store()
    print(header(), end="\n\n")
    if arguments.what == "published":
        published()
    elif arguments.what == "kills":
        kill_nodes(arguments.repetitions, arguments.epochs, arguments.period, arguments.interval)
    else:
        {"cores": compare_cores, "ray": compare_ray, "checkpoints": compare_checkpoints}[arguments.what](
            arguments.epochs
        )


if __name__ == "__main__":
    main()
