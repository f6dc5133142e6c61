"""The run folder: all that the processes of a run, wherever they are, have in common.

::

    run.json        what was asked: data, settings, options. The same command finds its own run by it
    plan.json       {"config": ..., "store": path or null}: what every trainer needs besides its number
    data/           the samples as a converted store, which every repetition maps (unless they were one: "store")
    data.machxc-convert/                what a conversion that was stopped goes on with
    checkpoint-00003.safetensors        a repetition in training, as it was some seconds ago (see checkpoint.py)
    attempt-00003-TOKEN.json            who has begun it, how far he came, and when he was last alive (see work.py)
    repetition-00003.safetensors        a repetition that is finished

Files appear whole or not at all, and any number of trainers may write the same one: all would write the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from machxc.config import Config
from machxc.data import is_store
from machxc.data.conversion import work_folder
from machxc.errors import ModelError
from machxc.files import find_folder, link_file, output_errors
from machxc.folder import read_repetition, repetition_file
from machxc.formats import Tensors, json_fields, map_file, parse_json, parse_tensors, write_tensors
from machxc.samples import Array

RUN_SUFFIX = ".machxc-run"
RUN, PLAN, DATA = "run.json", "plan.json", "data"
LOCK, TURN = "lock", "turn"  # see locks.py


class RunFolder(Protocol):
    """A run folder, wherever it is. Methods raise OSError (an OutputError when it cannot be written)."""

    name: str
    """Its path or address: `open_folder` opens it by that, on another machine, too."""

    def names(self) -> list[str]:
        """The names of the files."""

    def read(self, name: str) -> bytes | None:
        """A small file; None when there is none."""

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a small file, whole or not at all; ``durable`` False: it need not survive a power failure."""

    def read_tensors(self, name: str) -> Tensors | None:
        """The tensors of a file, None when there is none; ModelError when it is damaged."""

    def write_tensors(self, name: str, tensors: Mapping[str, Array]) -> None:
        """Write a file of tensors, whole or not at all."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def is_done(self, r: int, config: Config) -> bool:
        """Whether repetition r is finished, and one of ``config``."""

    def export(self, r: int, target: Path) -> None:
        """Make the file of repetition r the new local file ``target``."""

    def store(self) -> Path | None:
        """The converted samples as a local folder; None when there are none."""

    def new_store(self, given: Path | None) -> contextlib.AbstractContextManager[Path]:
        """The local path at which to convert samples for all trainers; ``given``: a store that they are in already."""

    def clear(self) -> None:
        """Remove all that is there, but locks."""


class LocalFolder:
    """A run folder on a disk of this machine, or one that several machines share."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = str(path)

    def names(self) -> list[str]:
        """The names of the files."""
        return os.listdir(self.path)

    def read(self, name: str) -> bytes | None:
        """A small file; None when there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a small file, whole or not at all; ``durable`` False: it need not survive a power failure."""
        path, temporary = self.path / name, self.path / f".{name}.{secrets.token_hex(8)}"
        with output_errors(path):
            try:
                with open(temporary, "xb") as file:
                    file.write(content)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def read_tensors(self, name: str) -> Tensors | None:
        """The tensors of a file, mapped read-only; None when there is none."""
        try:
            return parse_tensors(name, map_file(self.path / name))
        except FileNotFoundError:
            return None

    def write_tensors(self, name: str, tensors: Mapping[str, Array]) -> None:
        """Write a file of tensors, whole and on the disk or not at all."""
        write_tensors(self.path / name, tensors)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with output_errors(self.path / name):
            (self.path / name).unlink(missing_ok=True)

    def is_done(self, r: int, config: Config) -> bool:
        """Whether the file of repetition r is there, complete, and one of ``config``."""
        try:
            read_repetition(self.path, r, config)
        except ModelError:
            return False
        return True

    def export(self, r: int, target: Path) -> None:
        """A second name for the file of repetition r, or where the file system has none, a copy."""
        link_file(self.path / repetition_file(r), target)

    def store(self) -> Path | None:
        """The converted samples."""
        return self.path / DATA if is_store(self.path / DATA) else None

    @contextlib.contextmanager
    def new_store(self, given: Path | None) -> Iterator[Path]:
        """The path at which to convert samples; ``given``: a store that they are in already, and stay."""
        yield given or self.path / DATA

    def clear(self) -> None:
        """Remove all that is there, but locks, and what a stopped conversion goes on with if the same is asked."""
        kept = (LOCK, TURN, work_folder(self.path / DATA).name)
        with output_errors(self.path):
            for path in self.path.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def open_folder(name: str) -> RunFolder:
    """The run folder of a path, or of an address such as ``s3://bucket/run``; MissingExtraError without fsspec."""
    if not is_address(name):
        return LocalFolder(name)
    from machxc.runs.remote import RemoteFolder

    return RemoteFolder(name)


def is_address(name: str) -> bool:
    """Whether a run folder is reached through fsspec, and not through the file system."""
    return "://" in name


def run_folder(output: Path | str) -> Path:
    """Where a run into the model folder ``output`` keeps what it has done, unless it is told otherwise."""
    path = Path(output).absolute()
    return path.parent / (path.name + RUN_SUFFIX)


def write_plan(folder: RunFolder, config: Config, store: Path | str | None) -> None:
    """Write down what every trainer needs; ``store``: where the samples are, None: in the run folder."""
    where = None if store is None else str((find_folder(store) or Path(store)).absolute())
    folder.write(PLAN, json.dumps({"config": config.to_dict(), "store": where}, indent=1).encode())


def read_plan(folder: RunFolder) -> tuple[Config, Path | None] | None:
    """The config of a run, and where its samples are (None: in the run folder); None before it was planned."""
    content = folder.read(PLAN)
    if content is None:
        return None
    where = f"{folder.name}: {PLAN}"
    config, store = json_fields(where, _without_none(parse_json(where, content)), {"config": dict, "store": str})
    return Config.from_dict(config), Path(store) if store else None


def _without_none(plan: Any) -> Any:
    return {**plan, "store": plan.get("store") or ""} if isinstance(plan, dict) else plan


def checkpoint_file(r: int) -> str:
    """The name of the checkpoint of repetition ``r``."""
    return f"checkpoint-{r:05d}.safetensors"


def has_work(folder: RunFolder) -> bool:
    """Whether something in a run folder took time to make: a repetition, or a part of one."""
    with contextlib.suppress(OSError):
        return any(name.startswith(("repetition-", "checkpoint-")) for name in folder.names())
    return False
