"""What a run was asked to do, and whether another command asks for the same."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machxc import __version__
from machxc.config import Settings, TextConfig
from machxc.data import Dataset, ReadOptions, is_store
from machxc.errors import DataError, SettingError
from machxc.files import find_folder, sha256_file
from machxc.repetition.checkpoint import INTERVAL
from machxc.runs.folder import RUN, RunFolder
from machxc.torch.device import check_device

EXECUTORS = ("local", "serial", "ray")
_VERSION = 1


@dataclass(frozen=True)
class Asked:
    """What a run was asked to do; another command with the same continues it."""

    settings: Settings
    options: ReadOptions
    text: TextConfig | None
    memory_budget: int | None

    def to_dict(self, data: dict[str, Any]) -> dict[str, Any]:
        """Plain data; ``data`` identifies the samples."""
        asked = dataclasses.asdict(self)
        asked["options"] = {name: str(value) for name, value in asked["options"].items()}
        facts = {"version": _VERSION, "machxc": __version__, "data": data, **asked}  # another machxc may plan otherwise
        return dict(json.loads(json.dumps(facts)))


@dataclass(frozen=True)
class Execution:
    """Where the repetitions of a run are trained, and how it is watched over. But for the device, nothing here changes
    a byte of them.

    ``executor``: local (side by side on the cores of this machine), serial, or ray, on the cluster at ``address``
    ("auto": that of this machine) with ``gpus`` for each repetition. ``shard`` (i, n): only repetitions r with
    r mod n = i. ``checkpoint_interval``: seconds. ``deadline``: seconds without a sign of life after which a
    repetition on the cluster is begun elsewhere, too; ``attempts``: how often one is begun there at most.
    ``run_folder``: where the run keeps what it has done (None: beside the model), a path or an address for fsspec.
    ``device``: what computes ("cpu": the kernels; see `machxc.torch.device`); a run may go on with another one.
    SettingError when these make no sense.
    """

    executor: str = "local"
    address: str | None = None
    gpus: float = 0.0
    shard: tuple[int, int] | None = None
    checkpoint_interval: float = INTERVAL
    deadline: float = 60.0
    attempts: int = 10
    run_folder: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise SettingError(f"'executor' must be one of {EXECUTORS}. Got {self.executor!r} instead.")
        if (self.executor == "ray") != (self.address is not None):
            raise SettingError("'address' goes with the executor ray: that of the cluster, or auto for this machine's")
        check_device(self.device)
        if self.executor == "ray" and self.device.startswith("cuda") and not self.gpus:
            raise SettingError(
                f"device={self.device!r} on a cluster needs 'gpus': the share of a GPU that each group of repetitions "
                "asks for, as 1 or 0.25"
            )
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            i, n = self.shard
            raise SettingError(f"'shard' must be i/n with 0 <= i < n, as 0/4 to 3/4. Got {i}/{n} instead.")
        if self.gpus < 0 or self.checkpoint_interval < 0 or self.deadline <= 0 or self.attempts < 1:
            raise SettingError(
                "expected gpus and checkpoint_interval of 0 or more, a deadline above 0, and attempts of 1 or more. "
                f"Got {self.gpus}, {self.checkpoint_interval}, {self.deadline} and {self.attempts} instead."
            )


def read_asked(folder: RunFolder) -> dict[str, Any] | None:
    """What the run in a folder was asked; None when there is none, or it does not say."""
    try:
        found = json.loads(folder.read(RUN) or b"")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names in which what is asked now differs from what was."""
    return sorted(name for name in now if now[name] != before.get(name))


def other_run(folder: RunFolder, name: str, before: dict[str, Any], now: dict[str, Any]) -> SettingError:
    """The error that says that a run was asked for something else."""
    old, new = before.get(name), now[name]
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        name, old, new = f"{name}: {keys[0]}", old.get(keys[0]), new.get(keys[0])
    return SettingError(
        f"{folder.name} holds an unfinished run that was asked for something else ({name} was {old!r}, is now "
        f"{new!r}). Give the same command again to finish it, or --overwrite to discard it"
    )


def identity(data: Path | str, dataset: Dataset | None = None) -> dict[str, Any]:
    """What tells whether the samples are the same: the digest of the bytes, not the name of the file."""
    if is_store(data):
        return {"store": sha256_file((find_folder(data) or Path(data)) / "store.json")}
    if dataset is not None and dataset.source is not None:
        return {"sha256": dataset.source.sha256}
    if str(data) == "-":
        raise DataError(
            "standard input cannot be read again to continue an unfinished run; give a file, or --overwrite"
        )
    try:
        return {"sha256": sha256_file(data)}
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=str(data)) from error
