"""Repetitions on a Ray cluster: a core task each, no result but what it stores, and a driver that does not give up.

Ray is asked not to retry (it cannot tell a node that is frozen, and would run again what is finished when its node
dies). The driver does: it submits a repetition again when its worker or node is gone, when it failed with an OSError,
and when it gives no sign of life for too long. Whichever attempt ends first ends the repetition.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from machxc.errors import ClusterError, MissingExtraError

log = logging.getLogger("machxc.run")

_PERIOD = 1.0  # seconds between two looks at the cluster
_FORGIVEN = 10  # deadlines after which a node on which something fell silent is given work again
_CONNECT = 3.0  # seconds in which a cluster must take a connection


class RayExecutor:
    """Repetitions side by side on the cluster at ``address`` (``host:port``, or ``auto``: that of this machine).

    ``gpus``: share of a GPU that a repetition asks for, beside its core. ``signs(r)``: something that changes while
    repetition r is being trained (None before that); when it has not changed for ``deadline`` seconds, the repetition
    is begun elsewhere, too. ``attempts``: how often one is begun at most. After `run`, ``begun`` counts how often each
    repetition was handed to the cluster.
    """

    def __init__(
        self,
        address: str,
        *,
        gpus: float = 0.0,
        deadline: float = 60.0,
        attempts: int = 10,
        signs: Callable[[int], object] = lambda r: None,
    ) -> None:
        self.address, self.gpus, self.deadline, self.attempts, self.signs = address, gpus, deadline, attempts, signs
        self.begun: Counter[int] = Counter()

    def run(self, task: Callable[[int], None], repetitions: Iterable[int], cancel: Callable[[], None]) -> None:
        """Call ``task(r)`` for each repetition on the cluster; ClusterError when it cannot give what is asked."""
        with connected(self.address) as ray:
            check_room(ray, self.gpus)
            driver = _Driver(self, ray, task)
            try:
                driver.run(repetitions)
            except BaseException:
                cancel()
                raise
            finally:
                driver.end()


@dataclass
class _Attempt:
    """A repetition handed to a node; signs of life: when it was handed over, the last one, and when that appeared."""

    r: int
    node: str
    first: object
    last: object
    since: float


class _Driver:
    """One run on a cluster: what waits, and what was handed to which node.

    Each task is bound to a node, as many as that has room for. Left to Ray, tasks wait for ever behind one that was
    promised to a node that is frozen, also when other nodes are idle, and when it is known to be dead.
    """

    def __init__(self, executor: RayExecutor, ray: Any, task: Callable[[int], None]) -> None:
        self._executor, self._ray, self._task = executor, ray, task
        self._remote = ray.remote(num_cpus=1, num_gpus=executor.gpus, max_retries=0)(_call)
        self._waiting: deque[tuple[int, str]] = deque()  # repetitions to begin, and why again
        self._attempts: dict[Any, _Attempt] = {}  # those not known to be over
        self._suspects: dict[str, float] = {}  # nodes on which something fell silent, and when
        self._room = time.monotonic()  # when the cluster was last seen to have room for a repetition

    def run(self, repetitions: Iterable[int]) -> None:
        self._waiting.extend((r, "") for r in repetitions)
        looked = -math.inf
        while self._waiting or self._attempts:
            if time.monotonic() - looked >= _PERIOD:
                self._look()
                looked = time.monotonic()
            self._fill()
            self._wait()

    def end(self) -> None:
        """Leave nothing running."""
        for ref in list(self._attempts):
            self._drop(ref)

    def _wait(self) -> None:
        if not self._attempts:
            time.sleep(_PERIOD)
            return
        ready, _ = self._ray.wait(list(self._attempts), num_returns=1, timeout=_PERIOD)
        for ref in ready:
            self._take(ref)

    def _fill(self) -> None:
        """Hand what waits to the nodes that have most room."""
        if not self._waiting:
            return
        room = self._free()
        while self._waiting and room and max(room.values()) > 0:
            node = max(room, key=lambda name: room[name])
            room[node] -= 1
            self._submit(*self._waiting.popleft(), node)

    def _free(self) -> dict[str, int]:
        """How many repetitions more each node has room for; none those on which something fell silent lately."""
        used = Counter(attempt.node for attempt in self._attempts.values())
        nodes = {n["NodeID"]: _slots(n, self._executor.gpus) for n in self._ray.nodes() if n["Alive"]}
        return {name: slots - used[name] for name, slots in nodes.items() if name not in self._suspects}

    def _submit(self, r: int, why: str, node: str) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        executor = self._executor
        if executor.begun[r] >= executor.attempts:
            raise ClusterError(
                f"repetition {r} was begun {executor.begun[r]} times on the cluster, and did not finish; {why}. "
                "The same command goes on from what is finished"
            )
        if why:
            log.warning("repetition %d is begun again (attempt %d): %s", r, executor.begun[r] + 1, why)
        executor.begun[r] += 1
        sign = executor.signs(r)
        bound = self._remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        self._attempts[bound.remote(self._task, r)] = _Attempt(r, node, sign, sign, time.monotonic())

    def _take(self, ref: Any) -> None:
        """One that is over: finished, or to be begun again; raises what should not have happened."""
        r = self._attempts.pop(ref).r
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            if not isinstance(cause, OSError):
                raise cause from None
            self._again(r, f"the last time it failed with {type(cause).__name__}: {cause}")
        except self._ray.exceptions.TaskUnschedulableError:  # the node had gone before: it was not begun
            self._executor.begun[r] -= 1
            self._again(r, "")
        except self._ray.exceptions.RayError as error:
            self._again(r, f"the last time its worker was lost ({type(error).__name__})")
        else:
            self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != r)
            for other in [other for other, attempt in self._attempts.items() if attempt.r == r]:
                self._drop(other)

    def _again(self, r: int, why: str) -> None:
        under_way = {attempt.r for attempt in self._attempts.values()} | {number for number, _ in self._waiting}
        if r not in under_way:
            self._waiting.append((r, why))

    def _look(self) -> None:
        """Begin again what has fallen silent; give up when no node is left that could do anything."""
        now, deadline = time.monotonic(), self._executor.deadline
        self._suspects = {node: since for node, since in self._suspects.items() if now - since < _FORGIVEN * deadline}
        for attempt in list(self._attempts.values()):
            sign = self._executor.signs(attempt.r)
            if sign != attempt.last:
                attempt.last, attempt.since = sign, now
            elif now - attempt.since > deadline and (sign != attempt.first or attempt.node in self._suspects):
                self._fell_silent(attempt, now)
        if has_room(self._ray, self._executor.gpus):
            self._room = now
        elif now - self._room > deadline:
            check_room(self._ray, self._executor.gpus)

    def _fell_silent(self, attempt: _Attempt, now: float) -> None:
        attempt.since = math.inf  # said once
        self._suspects[attempt.node] = now
        if sum(other.r == attempt.r and other.since < math.inf for other in self._attempts.values()) == 0:
            self._waiting.append((attempt.r, f"it gave no sign of life for {self._executor.deadline:g} s"))

    def _drop(self, ref: Any) -> None:
        self._attempts.pop(ref, None)
        with contextlib.suppress(Exception):  # what is gone already needs no ending
            self._ray.cancel(ref, force=True)


def _call(task: Callable[[int], None], r: int) -> int:
    """What runs on the cluster."""
    task(r)
    return r


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ray, connected to a cluster: a connection that is there already, or one that ends with the body.

    MissingExtraError without ray; ClusterError when there is no cluster at ``address``.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _no_cluster(address, str(error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()  # disconnects: the cluster goes on


def import_ray() -> Any:
    """The module ray; MissingExtraError when it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingExtraError("a Ray cluster", "ray") from None
    return ray


def has_room(ray: Any, gpus: float) -> bool:
    """Whether a node of the cluster has what a repetition asks for, busy or not."""
    return any(node["Alive"] and _slots(node, gpus) >= 1 for node in ray.nodes())


def check_room(ray: Any, gpus: float) -> None:
    """Raise ClusterError when no node of the cluster has what a repetition asks for, busy or not."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if has_room(ray, gpus):
        return
    found = ", ".join(f"{n.get('CPU', 0):g} CPU and {n.get('GPU', 0):g} GPU" for n in nodes) or "none"
    raise ClusterError(
        f"no node of the cluster has what a repetition asks for (1 CPU and {gpus:g} GPU); its nodes: {found}. "
        "Ask for less, or start such nodes first"
    )


def check_cluster(address: str, gpus: float) -> None:
    """Raise ClusterError, within seconds, when there is no cluster, or it has not what a repetition asks for."""
    with connected(address) as ray:
        check_room(ray, gpus)


def slots_of(address: str, gpus: float) -> int:
    """How many tasks that ask for so much of a GPU the cluster has room for, busy or not: at least 1."""
    with connected(address) as ray:
        return max(1, sum(_slots(node, gpus) for node in ray.nodes() if node["Alive"]))


def _slots(node: dict[str, Any], gpus: float) -> int:
    """How many repetitions a node has room for."""
    cores, devices = int(node["Resources"].get("CPU", 0)), node["Resources"].get("GPU", 0)
    return min(cores, int(devices / gpus + 1e-9)) if gpus else cores


def _check_address(address: str) -> None:
    """Ray tries for minutes to reach what is not there: ask first."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise ClusterError(f"expected the address of a Ray cluster as host:port, or auto. Got {address!r} instead")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> ClusterError:
    first = why.strip().splitlines()[0] if why.strip() else "no answer"
    return ClusterError(
        f"there is no Ray cluster at {address} ({first}); check the address, and start one with `ray start --head`"
    )
