"""The first step of a run: its samples converted, where every trainer finds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machxc.data import Dataset, convert, is_store, open_store
from machxc.errors import SettingError
from machxc.runs.asked import Asked, differing, identity, other_run, read_asked
from machxc.runs.folder import DATA, RUN, LocalFolder, RunFolder, has_work

OnRead = Callable[[int, int | None], None]


def prepare(
    folder: RunFolder,
    data: Path | str,
    asked: Asked,
    *,
    overwrite: bool,
    resume: bool,
    jobs: int,
    reading: OnRead | None,
) -> Dataset:
    """The samples: those that an earlier run converted, when it was asked for the same, else converted now.

    SettingError when the folder holds a run that was asked for something else, unless it is to be discarded.
    """
    before = _earlier(folder, data, overwrite=overwrite, resume=resume)
    if before is not None:
        now = asked.to_dict(identity(data))
        names = differing(before, now)
        if not names:
            return stored(data, asked) if is_store(data) else _converted(folder)
        if has_work(folder) and (resume or not overwrite):
            raise other_run(folder, names[0], before, now)
    folder.clear()
    with folder.new_store(Path(data) if is_store(data) else None) as store:
        dataset = open_or_convert(data, store, asked, jobs, reading)
    folder.write(RUN, json.dumps(asked.to_dict(identity(data, dataset)), indent=1).encode())
    return dataset


def open_or_convert(data: Path | str, store: Path, asked: Asked, jobs: int, reading: OnRead | None) -> Dataset:
    """The dataset of a file of samples, converted into ``store``, or that of a converted store."""
    if is_store(data):
        return stored(data, asked)
    return convert(data, store, asked.options, text=asked.text, jobs=jobs, progress=reading)


def stored(data: Path | str, asked: Asked) -> Dataset:
    """A converted store, if what was asked of the reader is what it was converted with."""
    dataset = open_store(data)
    if asked.text not in (None, dataset.text) or asked.options.label_names is not None:
        raise SettingError(
            f"{data} is a converted store: how its texts became features ({dataset.text}) and the names of its labels "
            "were settled when it was converted. Leave these options out, or convert the data again with them"
        )
    return dataset


def _earlier(folder: RunFolder, data: Path | str, *, overwrite: bool, resume: bool) -> dict[str, Any] | None:
    """What an earlier run was asked, when it is one that could be continued."""
    if str(data) == "-" and ((overwrite and not resume) or not has_work(folder)):
        return None  # what was read once cannot be compared, and need not be
    there = is_store(data) or not isinstance(folder, LocalFolder) or (folder.path / DATA).exists()
    return read_asked(folder) if there else None


def _converted(folder: RunFolder) -> Dataset:
    path = folder.store()
    return open_store(path or Path(folder.name) / DATA)  # None: DataError says what is the matter
