"""A run: train from a file to a model folder so that nothing is lost when it is killed.

Beside the model-to-be, ``OUTPUT.machxc-run`` holds what the run has done so far::

    run.json        what was asked: data, settings, options. The same command finds its own run by it
    data/           the samples as a converted store, which every repetition maps (while it is made, and what a
                    conversion that was stopped goes on with: data.machxc-convert/)
    repetition-00000.safetensors, ...   the repetitions that are finished

A repetition's file appears when it is complete. When all are there the model folder is put together aside, renamed into
place, and the run folder is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machxc import __version__
from machxc.config import Config, Settings, TextConfig
from machxc.cost import physical_memory
from machxc.data import Dataset, ReadOptions, convert, is_store, open_store
from machxc.data.conversion import work_folder
from machxc.errors import DataError, MachxcError, ModelError, OutputError, SettingError
from machxc.facts import facts_of
from machxc.files import find_folder, link_file, output_errors, replace_folder, sha256_file, staging_folder, write_file
from machxc.folder import check_destination, finish_model, read_repetition, repetition_file, write_repetition
from machxc.model import Model
from machxc.plan import Plan, make_plan, within_machine
from machxc.training import Progress, label_counts, run_repetitions

log = logging.getLogger("machxc.run")

RUN_SUFFIX = ".machxc-run"
_RUN, _DATA, _LOCK = "run.json", "data", "lock"
_VERSION = 1

OnPlan = Callable[[Plan, str], None]
OnRead = Callable[[int, int | None], None]


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


def train_run(
    data: Path | str,
    output: Path | str,
    settings: Settings | None = None,
    *,
    options: ReadOptions | None = None,
    text: TextConfig | None = None,
    jobs: int = 1,
    memory_budget: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_plan: OnPlan | None = None,
    progress: Progress | None = None,
    reading: OnRead | None = None,
) -> Model:
    """Train a model from a file of samples (or a converted store) into the model folder ``output``.

    A run that was killed goes on when the same is asked again; ``resume`` insists on that, and takes a model that is
    complete already as the result. ``overwrite`` replaces a model, and discards a run that was asked for something
    else. ``on_plan`` is given the plan, and why text becomes features as it does, before training starts; ``progress``
    and ``reading`` are called now and then. Raises DataError, SettingError, MemoryBudgetError, OutputError; each leaves
    what was there as it was.
    """
    asked = Asked(settings or Settings(), options or ReadOptions(), text, memory_budget)
    folder = run_folder(output)
    if resume and find_folder(output) is not None and not (overwrite and (folder / _RUN).exists()):
        return _finished(output, asked)
    check_destination(output, overwrite=overwrite)
    with _locked(folder, resume=resume):
        check_destination(output, overwrite=overwrite)  # another process may have finished just now
        dataset = _dataset(folder, data, asked, overwrite=overwrite, resume=resume, reading=reading)
        plan = _plan(dataset, asked, jobs)
        if memory_budget is None:
            plan = within_machine(plan, physical_memory())
        if on_plan is not None:
            on_plan(plan, dataset.text_reason)
        _train_missing(folder, dataset, plan, progress)
        _publish(folder, Path(output), dataset, plan.config, overwrite=overwrite)
    return Model.load(output, verify=False)


def plan_run(
    data: Path | str,
    settings: Settings | None = None,
    *,
    options: ReadOptions | None = None,
    text: TextConfig | None = None,
    jobs: int = 1,
    memory_budget: int | None = None,
    reading: OnRead | None = None,
) -> Plan:
    """The plan that `train_run` would follow, without training. The samples are converted in a temporary folder."""
    asked = Asked(settings or Settings(), options or ReadOptions(), text, memory_budget)
    with tempfile.TemporaryDirectory(prefix="machxc-plan-") as folder:
        dataset = _open_or_convert(data, Path(folder) / _DATA, asked, reading)
        return _plan(dataset, asked, jobs)


def _plan(dataset: Dataset, asked: Asked, jobs: int) -> Plan:
    facts = facts_of(dataset.samples, text=dataset.text is not None)
    return make_plan(facts, asked.settings, text=dataset.text, jobs=jobs, memory_budget=asked.memory_budget)


def _open_or_convert(data: Path | str, store: Path, asked: Asked, reading: OnRead | None) -> Dataset:
    if is_store(data):
        return _stored(data, asked)
    return convert(data, store, asked.options, text=asked.text, progress=reading)


def _stored(data: Path | str, asked: Asked) -> Dataset:
    """A converted store, if what was asked of the reader is what it was converted with."""
    dataset = open_store(data)
    if asked.text not in (None, dataset.text) or asked.options.label_names is not None:
        raise SettingError(
            f"{data} is a converted store: how its texts became features ({dataset.text}) and the names of its labels "
            "were settled when it was converted. Leave these options out, or convert the data again with them"
        )
    return dataset


def run_folder(output: Path | str) -> Path:
    """Where a run into the model folder ``output`` keeps what it has done."""
    path = Path(output).absolute()
    return path.parent / (path.name + RUN_SUFFIX)


@contextlib.contextmanager
def _locked(folder: Path, *, resume: bool) -> Iterator[None]:
    """Make the run folder and lock it. An error takes it away, unless repetitions or parts of the data are finished."""
    if resume and not folder.is_dir():
        log.info("nothing to resume at %s: starting from the beginning", folder)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        _take(lock, folder)
        try:
            yield
        except MachxcError:
            if not _has_repetitions(folder) and not work_folder(folder / _DATA).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _has_repetitions(folder: Path) -> bool:
    return any(folder.glob("repetition-*"))


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):
            raise OSError(errno.EWOULDBLOCK, "the lock was replaced")
    except OSError as error:
        raise OutputError(
            f"another process is training into {folder}; wait for it, or choose another output"
        ) from error


def _dataset(
    folder: Path, data: Path | str, asked: Asked, *, overwrite: bool, resume: bool, reading: OnRead | None
) -> Dataset:
    """The samples: those that an earlier run converted, when it was asked for the same, else converted now."""
    before = _read_run(folder)
    if str(data) == "-" and ((overwrite and not resume) or not _has_repetitions(folder)):
        before = None  # what was read once cannot be compared, and need not be
    if before is not None and ((folder / _DATA).exists() or is_store(data)):
        now = asked.to_dict(_identity(data))
        differing = sorted(name for name in now if now[name] != before.get(name))
        if not differing:
            return _stored(data, asked) if is_store(data) else open_store(folder / _DATA)
        if _has_repetitions(folder) and (resume or not overwrite):
            raise _other_run(folder, differing[0], before, now)
    _clear(folder)
    dataset = _open_or_convert(data, folder / _DATA, asked, reading)
    identity = _identity(data, dataset)
    write_file(folder / _RUN, json.dumps(asked.to_dict(identity), indent=1).encode())
    return dataset


def _read_run(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _RUN).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _other_run(folder: Path, name: str, before: dict[str, Any], now: dict[str, Any]) -> SettingError:
    old, new = before.get(name), now[name]
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        name, old, new = f"{name}: {keys[0]}", old.get(keys[0]), new.get(keys[0])
    return SettingError(
        f"{folder} holds an unfinished run that was asked for something else ({name} was {old!r}, is now {new!r}). "
        "Give the same command again to finish it, or --overwrite to discard it"
    )


def _identity(data: Path | str, dataset: Dataset | None = None) -> dict[str, Any]:
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


def _clear(folder: Path) -> None:
    converting = work_folder(folder / _DATA).name  # goes on if it was asked for the same
    with output_errors(folder):
        for path in folder.iterdir():
            if path.name not in (_LOCK, converting):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _train_missing(folder: Path, dataset: Dataset, plan: Plan, progress: Progress | None) -> None:
    missing = [r for r in range(plan.config.repetitions) if not _is_done(folder, r, plan.config)]
    if len(missing) < plan.config.repetitions:
        log.info(
            "continuing: %d of %d repetitions are there",
            plan.config.repetitions - len(missing),
            plan.config.repetitions,
        )
    if missing:
        store = lambda r, tensors: write_repetition(folder, r, tensors)  # noqa: E731
        run_repetitions(dataset.samples, plan.config, missing, store, plan.jobs, progress)


def _is_done(folder: Path, r: int, config: Config) -> bool:
    try:
        read_repetition(folder, r, config)
    except ModelError:
        return False
    return True


def _publish(folder: Path, output: Path, dataset: Dataset, config: Config, *, overwrite: bool) -> None:
    """Put the model folder together aside, rename it into place, then drop the run."""
    with staging_folder(output) as staged:
        with output_errors(output):
            for r in range(config.repetitions):
                link_file(folder / repetition_file(r), staged / repetition_file(r))
        finish_model(staged, config, dataset.names, label_counts(dataset.samples), len(dataset))
        replace_folder(staged, output, overwrite=overwrite)
    shutil.rmtree(folder, ignore_errors=True)


def _finished(output: Path | str, asked: Asked) -> Model:
    """A model that is complete already, if it is the one that was asked for."""
    model = Model.load(output)
    given = {name: value for name, value in dataclasses.asdict(asked.settings).items() if value is not None}
    trained = model.config.to_dict()
    differing = [name for name, value in given.items() if name != "seed" and trained[name] != value]
    if differing or model.config.seed != asked.settings.seed:
        name = (differing or ["seed"])[0]
        raise SettingError(
            f"{output} is a complete model with {name} = {trained[name]!r}, asked is {given[name]!r}; "
            "leave out --resume and choose another output, or --overwrite to train it anew"
        )
    log.info("%s is complete already: nothing to do", output)
    _drop_published(run_folder(output), Path(output))
    return model


def _drop_published(folder: Path, output: Path) -> None:
    """Remove a run that died after its model was in place: their files are the same."""
    with contextlib.suppress(OSError):
        if os.path.samefile(folder / repetition_file(0), output / repetition_file(0)):
            shutil.rmtree(folder)
