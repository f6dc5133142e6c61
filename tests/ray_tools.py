"""A Ray cluster of two nodes with a core each on this machine, and trainers that are slow enough to be disturbed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray: Any = pytest.importorskip("ray", reason="needs the extra ray")


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A cluster whose head does no work, of ``nodes`` nodes with one core.

    Its health checks are as patient as they are by default: on a busy machine, quicker ones bury the living.
    """
    from ray.cluster_utils import Cluster

    head = {"node_ip_address": "127.0.0.2", "num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    try:
        cluster = Cluster(True, head_node_args=head)
    except Exception:  # on a machine that is very busy, it gives up on itself
        ray.shutdown()
        cluster = Cluster(True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(cluster)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(node_ip_address="127.0.0.3", num_cpus=1, object_store_memory=80 << 20)


def another_node(cluster: Any) -> Any:
    """A node that works, other than the one through which this process reaches the cluster."""
    mine = ray.get_runtime_context().get_node_id()
    return next(node for node in cluster.worker_nodes if node.node_id != mine)


def processes_of(node: Any) -> list[psutil.Process]:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def kill_node(node: Any) -> None:
    """End all its processes at once, as when a machine loses its power."""
    for process in reversed(processes_of(node)):
        process.kill()
