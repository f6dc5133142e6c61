"""Repetitions on a Ray cluster: a core task each, no result but what it stores, and a driver that does not give up.

Ray is asked not to retry (it cannot tell a node that is frozen, and would run again what is finished when its node
dies). The driver does: it submits a repetition again when its worker or node is gone, when it failed with an OSError,
and when it gives no sign of life for too long. Whichever attempt ends first ends the repetition.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from machxc.errors import ClusterError, MissingExtraError

log = logging.getLogger("machxc.run")

_PERIOD = 1.0  # seconds between two looks at the cluster
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


class _Driver:
    """One run on a cluster: what was submitted, and when each repetition was last seen alive."""

    def __init__(self, executor: RayExecutor, ray: Any, task: Callable[[int], None]) -> None:
        self._executor, self._ray, self._task = executor, ray, task
        self._remote = ray.remote(num_cpus=1, num_gpus=executor.gpus, max_retries=0)(_call)
        self._refs: dict[Any, int] = {}  # submitted, and not known to be over -> its repetition
        self._seen: dict[int, tuple[object, object, float]] = {}  # sign when submitted, last sign, when that appeared
        self._room = time.monotonic()  # when the cluster was last seen to have room for a repetition

    def run(self, repetitions: Iterable[int]) -> None:
        for r in repetitions:
            self._submit(r)
        looked = time.monotonic()
        while self._refs:
            ready, _ = self._ray.wait(list(self._refs), num_returns=1, timeout=_PERIOD)
            for ref in ready:
                self._take(ref)
            if time.monotonic() - looked >= _PERIOD:
                self._look()
                looked = time.monotonic()

    def end(self) -> None:
        """Leave nothing running."""
        for ref in list(self._refs):
            self._drop(ref)

    def _submit(self, r: int, why: str = "") -> None:
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
        self._seen[r] = sign, sign, time.monotonic()
        self._refs[self._remote.remote(self._task, r)] = r

    def _take(self, ref: Any) -> None:
        """One that is over: finished, or to be begun again; raises what should not have happened."""
        r = self._refs.pop(ref)
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            if not isinstance(cause, OSError):
                raise cause from None
            self._again(r, f"the last time it failed with {type(cause).__name__}: {cause}")
        except self._ray.exceptions.RayError as error:
            self._again(r, f"the last time its worker was lost ({type(error).__name__})")
        else:
            for other in [other for other, number in self._refs.items() if number == r]:
                self._drop(other)

    def _again(self, r: int, why: str) -> None:
        if r not in self._refs.values():  # else another attempt is under way
            self._submit(r, why)

    def _look(self) -> None:
        """Begin again what has stopped giving signs of life; give up when no node is left that could do anything."""
        now, deadline = time.monotonic(), self._executor.deadline
        for r in set(self._refs.values()):
            first, last, since = self._seen[r]
            sign = self._executor.signs(r)
            if sign != last:
                self._seen[r] = first, sign, now
            elif sign != first and now - since > deadline:
                self._submit(r, f"it gave no sign of life for {deadline:g} s")
        if has_room(self._ray, self._executor.gpus):
            self._room = now
        elif now - self._room > deadline:
            check_room(self._ray, self._executor.gpus)

    def _drop(self, ref: Any) -> None:
        self._refs.pop(ref, None)
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
    return any(_fits(node, gpus) for node in ray.nodes())


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


def _fits(node: dict[str, Any], gpus: float) -> bool:
    return bool(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 and node["Resources"].get("GPU", 0) >= gpus)


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
