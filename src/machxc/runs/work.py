"""The work on one repetition of a run: in this process, in another one, or on another machine.

A trainer needs the run folder and a number, nothing else: no other trainer, and no network. While it works it writes
down, every second, how far it is; whoever waits for it knows by that whether it is alive.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machxc.config import Config
from machxc.data import open_store
from machxc.errors import ModelError, OutputError
from machxc.folder import repetition_file, write_repetition
from machxc.formats import Tensors
from machxc.maps import check, guarded
from machxc.model import partition_of
from machxc.repetition.checkpoint import INTERVAL, Checkpoints
from machxc.repetition.loop import n_trained, train_repetition
from machxc.runs.folder import RunFolder, checkpoint_file, is_address, open_folder, read_plan
from machxc.samples import Array, Samples
from machxc.torch.groups import GroupTask, training_devices

BEAT, FAR_BEAT = 1.0, 5.0  # seconds between two signs of life on a disk, and in an object store
OnSamples = Callable[[int], None]


@dataclass(frozen=True)
class RunTask:
    """Train repetitions of the run in ``folder`` (a path or an address), knowing only that: the task of a cluster.

    ``groups``: repetitions that train in step on ``device``, or on the first that it stands for where the task runs.
    """

    folder: str
    interval: float = INTERVAL
    device: str = "cpu"
    groups: tuple[tuple[int, ...], ...] = ()

    def __call__(self, r: int) -> None:
        """Train repetition r, or the group of which it is the first, unless they are finished."""
        folder, config, samples = _opened(self.folder)
        group = next((numbers for numbers in self.groups if numbers[0] == r), None)
        if group is None:
            train_in(folder, samples, config, r, interval=self.interval)
            return
        task = GroupTask(training_devices(config, self.device)[0], group)
        train_group_in(folder, samples, config, task, interval=self.interval)


def train_in(
    folder: RunFolder,
    samples: Samples,
    config: Config,
    r: int,
    *,
    interval: float = INTERVAL,
    on_samples: OnSamples | None = None,
    threads: int = 1,
) -> None:
    """Train repetition r of a run into its folder, from its checkpoint if there is one; nothing to do when it is done.

    ``interval``: seconds between two checkpoints; ``threads``: how many may work on it.
    """
    if folder.is_done(r, config):
        return
    kept, arrays = _checkpoints(folder, r, interval), samples.arrays()
    with guarded(), Attempt(folder, r, config.epochs * n_trained(config, len(samples))) as attempt:

        def counted(n: int) -> None:
            check(*arrays)
            attempt.add(n, went_on=kept.found)
            if on_samples is not None:
                on_samples(n)

        tensors = train_repetition(samples, config, partition_of(config), r, counted, kept, threads)
        check(*arrays)
        folder.write_tensors(repetition_file(r), tensors)
    folder.remove(checkpoint_file(r))


def train_group_in(
    folder: RunFolder,
    samples: Samples,
    config: Config,
    group: GroupTask,
    *,
    interval: float = INTERVAL,
    on_samples: OnSamples | None = None,
) -> None:
    """Train those repetitions of a group that are not finished, in step on its device, into the run's folder."""
    from machxc.torch.train import train_group

    missing = [r for r in group.numbers if not folder.is_done(r, config)]
    if not missing:
        return
    each = config.epochs * n_trained(config, len(samples))
    arrays = samples.arrays()
    with guarded(), contextlib.ExitStack() as stack:
        attempts = {r: stack.enter_context(Attempt(folder, r, each)) for r in missing}
        kept = {r: _checkpoints(folder, r, interval, of="torch") for r in missing}

        def counted(numbers: Sequence[int], n: int) -> None:
            check(*arrays)
            for r in numbers:
                attempts[r].add(n // len(numbers), went_on=kept[r].found)
            if on_samples is not None:
                on_samples(n)

        def store(r: int, tensors: Mapping[str, Array]) -> None:
            check(*arrays)
            folder.write_tensors(repetition_file(r), tensors)
            folder.remove(checkpoint_file(r))

        train_group(samples, config, partition_of(config), missing, group.device, store, counted, kept)


def train_alone(store: Path | str, config: Mapping[str, Any], r: int, folder: Path | str) -> None:
    """Train repetition r from a converted store, a config as plain data, and its number; write its file into a folder.

    The whole of what one of R machines has to do that never talk: the files of all of them, copied into one folder,
    are a model (`machxc.folder.finish_model` completes it).
    """
    chosen, samples = Config.from_dict(dict(config)), open_store(store).samples
    with guarded():
        tensors = train_repetition(samples, chosen, partition_of(chosen), r)
        check(*samples.arrays())
        write_repetition(folder, r, tensors)


class Attempt:
    """One go at a repetition: a file that says who is at it, how far he is, and, by changing, that he is alive."""

    def __init__(self, folder: RunFolder, r: int, total: int) -> None:
        self._folder, self._name = folder, attempt_file(r, secrets.token_hex(8))
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._period = FAR_BEAT if is_address(folder.name) else BEAT
        self._base: tuple[int, float] | None = None  # samples and time at the first sign of life: rates start there
        self._facts: dict[str, Any] = {
            "repetition": r, "from": None, "done": 0, "total": total, "rate": 0.0, "beat": 0, "host": platform.node(),
            "pid": os.getpid(), "time": time.time(), "end": None,
        }  # fmt: skip
        self._thread = threading.Thread(target=self._live, name="alive", daemon=True)

    def __enter__(self) -> Attempt:
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        self._facts["end"] = "done" if kind is None else f"{kind.__name__}: {error}"
        with contextlib.suppress(OSError):
            self._tell()

    def add(self, n: int, *, went_on: bool = False) -> None:
        """Count n samples more; ``went_on``: from a checkpoint, so that the first n are those of an earlier attempt."""
        with self._lock:
            if self._facts["from"] is None:
                self._facts["from"] = n if went_on else 0
            self._facts["done"] += n

    def _live(self) -> None:
        while not self._ended.wait(self._period):
            with contextlib.suppress(OSError):  # it is the repetition that matters
                self._tell()

    def _tell(self) -> None:
        with self._lock:
            done, now = self._facts["done"], time.monotonic()
            if self._base is not None:
                self._facts["rate"] = (done - self._base[0]) / max(1e-9, now - self._base[1])
            elif done:
                self._base = done, now
            self._facts["time"] = time.time()
            self._facts["beat"] += 1
            content = json.dumps(self._facts).encode()
        self._folder.write(self._name, content, durable=False)


def attempt_file(r: int, token: str) -> str:
    """The name of the file of one attempt at repetition ``r``."""
    return f"attempt-{r:05d}-{token}.json"


def _checkpoints(folder: RunFolder, r: int, interval: float, of: str = "") -> Checkpoints:
    name = checkpoint_file(r)

    def load() -> Tensors | None:
        try:
            return folder.read_tensors(name)
        except ModelError:
            return {}  # damaged: said, and passed over, as one that does not fit

    def save(tensors: Mapping[str, Array]) -> None:
        folder.write_tensors(name, tensors)

    return Checkpoints(load, save, interval, of)


@functools.lru_cache(maxsize=1)
def _opened(name: str) -> tuple[RunFolder, Config, Samples]:
    """The run folder, config and samples; OutputError when they are not to be seen from here."""
    folder = open_folder(name)
    plan = read_plan(folder)
    store = None if plan is None else plan[1] or folder.store()
    if plan is None or store is None or not store.is_dir():
        raise OutputError(
            f"{platform.node()} cannot see the run in {name} and its samples ({store}); expected a folder that all "
            "nodes share, at the same path, or an address such as s3://bucket/run"
        )
    return folder, plan[0], open_store(store, verify=False).samples
