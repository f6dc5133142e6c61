"""Runs on a Ray cluster, and what happens to its nodes meanwhile: everything is trained, once, in the same bytes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from machxc.config import Settings
from machxc.errors import ClusterError
from machxc.executors.ray import RayExecutor
from machxc.executors.scoring import ScatteredModel
from machxc.folder import repetition_file
from machxc.run import Execution, run_folder, train_run
from machxc.runs.folder import checkpoint_file
from machxc.runs.status import RunStatus
from machxc.runs.work import RunTask
from machxc.testing import make_samples, tiny_model
from ray_tools import add_node, another_node, cluster_of, kill_node, processes_of
from run_tools import SETTINGS, digests, undisturbed

R = 4
SLOW = Settings(repetitions=R, buckets=512, hidden=64, epochs=400, learner="gradient")  # seconds a repetition


@pytest.fixture
def cluster() -> Iterator[Any]:
    with cluster_of(2) as cluster:
        yield cluster


def on(cluster: Any, **others: Any) -> Execution:
    return Execution("ray", address=cluster.address, checkpoint_interval=0.5, **others)


class Trained:
    """A run in a thread, and what can be seen of it meanwhile."""

    def __init__(self, data: Path, output: Path, execution: Execution) -> None:
        self.folder, self.last = run_folder(output), RunStatus(())
        self.error: BaseException | None = None
        self.attempts: list[dict[str, Any]] = []
        self._arguments = data, output, execution
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        data, output, execution = self._arguments
        try:
            train_run(data, output, SLOW, execution=execution, on_status=self._told)
        except BaseException as error:
            self.error = error

    def _told(self, status: RunStatus) -> None:
        self.last, self.attempts = status, [json.loads(path.read_bytes()) for path in self.folder.glob("attempt-*")]

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert self._thread.is_alive(), self.error
            assert time.monotonic() < deadline, self.last
            time.sleep(0.05)

    def end(self) -> float:
        """Wait for it; the seconds that took."""
        begin = time.monotonic()
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return time.monotonic() - begin

    def at_work(self, cluster: Any) -> Any:
        """A node that trains a repetition of which there is a checkpoint; None when there is none."""
        for path in self.folder.glob("attempt-*"):
            attempt = json.loads(path.read_bytes())
            kept = self.folder / checkpoint_file(attempt["repetition"])
            nodes = [n for n in cluster.worker_nodes if attempt["pid"] in {p.pid for p in processes_of(n)}]
            if attempt["end"] is None and attempt["done"] < attempt["total"] / 2 and kept.exists() and nodes:
                return nodes[0]
        return None


def expected(data: Path) -> dict[str, str]:
    output = data.parent / "expected"
    train_run(data, output, SLOW, jobs=2)
    return digests(output)


def test_a_cluster_gives_the_same_bytes_and_says_what_it_cannot_give(tmp_path: Path, data: Path) -> None:
    """One cluster for all that is quick: starting it takes most of the time."""
    with cluster_of(1) as cluster:
        statuses: list[RunStatus] = []
        train_run(data, tmp_path / "model", SETTINGS, execution=on(cluster), on_status=statuses.append)
        assert digests(tmp_path / "model") == undisturbed()
        assert [r.attempts for r in statuses[-1].repetitions] == [1, 1, 1, 1]
        assert statuses[-1].count("done") == 4
        with pytest.raises(ClusterError, match=r"no node .* \(1 CPU and 0.5 GPU\); its nodes: .*1 CPU and 0 GPU"):
            train_run(tmp_path / "is not even read", tmp_path / "other", execution=on(cluster, gpus=0.5))
        executor = RayExecutor(cluster.address, attempts=2)
        with pytest.raises(ClusterError, match=r"begun 2 times .* OutputError: .* cannot see the run in .*nowhere"):
            executor.run(RunTask(str(tmp_path / "nowhere")), [7], lambda: None)
        assert executor.begun == {7: 2}
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("address", ["127.0.0.2:1", "nowhere", "ray://127.0.0.2:1"])
def test_a_cluster_that_is_not_there(tmp_path: Path, data: Path, address: str) -> None:
    with pytest.raises(ClusterError, match=r"no Ray cluster at 127.0.0.2:1|expected the address of a Ray cluster"):
        train_run(data, tmp_path / "model", SETTINGS, execution=Execution("ray", address=address))
    assert not run_folder(tmp_path / "model").exists()


@pytest.mark.slow
def test_a_node_that_is_killed_costs_one_attempt(tmp_path: Path, data: Path, cluster: Any) -> None:
    run = Trained(data, tmp_path / "model", on(cluster))
    run.until(lambda: run.at_work(cluster) is not None)
    kill_node(run.at_work(cluster))
    add_node(cluster)
    run.end()
    assert sorted(r.attempts for r in run.last.repetitions) == [1, 1, 1, 2]
    again = [a for a in run.attempts if a["from"]]
    assert len(again) == 1  # it went on from its checkpoint
    lost = [a for a in run.attempts if a["end"] is None]
    assert [a["repetition"] for a in lost] == [again[0]["repetition"]]
    assert digests(tmp_path / "model") == expected(data)


@pytest.mark.slow
def test_a_node_that_is_frozen_is_not_waited_for(tmp_path: Path, data: Path) -> None:
    """Ray itself would notice after a minute, and not try again."""
    with cluster_of(2) as cluster:
        run = Trained(data, tmp_path / "model", on(cluster, deadline=4.0))
        run.until(lambda: run.at_work(cluster) is not None)
        frozen = processes_of(run.at_work(cluster))
        for process in frozen:
            os.kill(process.pid, signal.SIGSTOP)
        try:
            add_node(cluster)
            run.end()
        finally:
            for process in frozen:
                process.send_signal(signal.SIGCONT)
        assert sorted(r.attempts for r in run.last.repetitions) == [1, 1, 1, 2]
        assert digests(tmp_path / "model") == expected(data)


@pytest.mark.slow
def test_what_is_finished_is_not_trained_again_when_its_node_dies(tmp_path: Path, data: Path, cluster: Any) -> None:
    run = Trained(data, tmp_path / "model", on(cluster))
    run.until(lambda: sum((run.folder / repetition_file(r)).exists() for r in range(R)) == 2)
    before = [(run.folder / repetition_file(r)).stat().st_mtime_ns for r in range(R) if _there(run, r)]
    kill_node(another_node(cluster))
    add_node(cluster)
    run.end()
    after = [(tmp_path / "model" / repetition_file(r)).stat().st_mtime_ns for r in range(R)]
    assert set(before) <= set(after)
    assert sum(r.attempts for r in run.last.repetitions) <= R + 1  # none of the two that were finished
    assert digests(tmp_path / "model") == expected(data)


def _there(run: Trained, r: int) -> bool:
    return (run.folder / repetition_file(r)).exists()


@pytest.mark.slow
def test_scoring_goes_on_with_the_repetitions_that_are_left(tmp_path: Path, cluster: Any) -> None:
    model, queries = tiny_model(repetitions=4, buckets=8), make_samples(50, 20, seed=2).features
    model.save(tmp_path / "model")
    with ScatteredModel(tmp_path / "model", cluster.address, 2, deadline=20.0) as scattered:
        whole = scattered.top_k(queries, 5)  # the actors' kernels are compiled, or read
        assert (whole.numbers, whole.exact) == ((0, 1, 2, 3), True)
        for found, expected in zip((whole.ids, whole.scores), model.top_k(queries, 5), strict=True):
            np.testing.assert_array_equal(found, expected)
        scattered.deadline = 2.0
        kill_node(another_node(cluster))
        begin = time.monotonic()
        part = scattered.top_k(queries.rows(0, 8), 5)
        assert time.monotonic() - begin < 2.0 + 5.0
        assert part.numbers in ((0, 1), (2, 3))
        ids, scores = model.subset(list(part.numbers)).top_k(queries.rows(0, 8), 5)
        np.testing.assert_array_equal(part.ids, ids)
        np.testing.assert_array_equal(part.scores, scores)
