"""From a file of samples to a converted store, in parts, so that a conversion that was killed goes on.

Beside the store-to-be, ``STORE.machxc-convert`` holds what there is so far::

    state.json   what was asked, how far the file was read, how long each column was then; replaced after each part
    NAME.bin     the columns: what is beyond their lengths in state.json is forgotten
    lock         held while a process works on it

When all is there the columns get a second name in a new folder, which is renamed into place with its manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from machxc import __version__
from machxc.config import TextConfig
from machxc.data.collect import Collector, Encoder, collect
from machxc.data.columns import FileColumns
from machxc.data.dataset import Dataset
from machxc.data.options import Progress, ReadOptions
from machxc.data.source import ChangedError, Mark, Source
from machxc.data.store import MANIFEST, is_store, manifest, open_store
from machxc.errors import DataError, OutputError
from machxc.files import (
    check_target,
    link_file,
    lock_file,
    output_errors,
    replace_folder,
    sha256_file,
    staging_folder,
    try_lock,
    write_file,
)
from machxc.maps import check, guarded

log = logging.getLogger("machxc.data")

WORK_SUFFIX = ".machxc-convert"
_STATE, _LOCK = "state.json", "lock"


def convert(
    path: Path | str,
    store: Path | str,
    options: ReadOptions | None = None,
    *,
    text: TextConfig | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Dataset:
    """Read a file of samples once, write it as a converted store, and open that.

    Memory is bounded, whatever the size of the file and the number of labels. The folder appears when it is complete,
    or not at all. A conversion that was killed, or ended by an error after its first part, goes on when the same is
    asked again. ``text``: how texts become features; None: chosen from the first ones.
    ``jobs``: threads, of which two are made use of; they change no byte. DataError for what is wrong with
    the data, OutputError when ``store`` exists (without ``overwrite``) or cannot be written.
    """
    options = options or ReadOptions()
    check_target(store, overwrite=overwrite)
    if is_store(path):
        raise DataError("is a converted store already; use it as it is, or copy the folder", path=str(path))
    with _work_folder(store) as folder, output_errors(store), guarded():
        work = _Work(folder, options, text)
        with _from_the_beginning_if_changed(work, path), Source(path, progress) as source:
            work.run(source, jobs)
        if work.dataset is None:
            with Source(path, progress) as source:
                work.run(source, jobs)
        assert work.dataset is not None
        with staging_folder(store) as staged:
            for name in work.facts:
                link_file(folder / f"{name}.bin", staged / f"{name}.bin")
            write_file(staged / MANIFEST, manifest(work.dataset, work.facts))
            check(*work.dataset.arrays())
            replace_folder(staged, store, overwrite=overwrite)
        shutil.rmtree(folder, ignore_errors=True)
    return open_store(store, verify=False)


def work_folder(store: Path | str) -> Path:
    """Where a conversion into the folder ``store`` keeps what it has done."""
    path = Path(os.path.realpath(store))
    return path.parent / (path.name + WORK_SUFFIX)


class _Work:
    """A conversion in its folder."""

    def __init__(self, folder: Path, options: ReadOptions, text: TextConfig | None) -> None:
        self.dataset: Dataset | None = None
        self.facts: dict[str, dict[str, Any]] = {}
        self._folder, self._options, self._text = folder, options, text
        self._asked = _asked(options, text)

    def run(self, source: Source, jobs: int) -> None:
        """Read the source, from where the last part ended. ChangedError when what was read before is not the same."""
        before = self._before()
        self.clear(() if before is None else (_STATE, *(f"{name}.bin" for name in before["columns"])))
        lengths = None if before is None else before["columns"]
        with FileColumns(self._folder) as named, FileColumns(self._folder, lengths) as columns:
            encoder = Encoder(self._options.label_names, text=self._text, columns=named)
            collector = Collector(encoder, columns, None if before is None else before["collector"])
            mark = None if before is None else Mark(**before["mark"])
            if mark is not None:
                log.info("continuing the conversion in %s", self._folder)

            def on_part(reached: Mark, state: dict[str, Any]) -> None:
                self._save({"mark": dataclasses.asdict(reached), "columns": columns.lengths(), "collector": state})

            self.dataset = collect(source, self._options, encoder, collector, mark=mark, on_part=on_part, jobs=jobs)
            self.facts = dict(sorted({**columns.kept_facts(), **named.kept_facts()}.items()))

    def clear(self, kept: Collection[str] = ()) -> None:
        """Forget what there is, but the files ``kept``."""
        for path in self._folder.iterdir():
            if path.name != _LOCK and path.name not in kept:
                path.unlink()

    def _before(self) -> dict[str, Any] | None:
        """The state after the last part of an earlier process that was asked for the same; None: there is none."""
        try:
            found = json.loads((self._folder / _STATE).read_bytes())
            if found["asked"] != self._asked:
                log.info("%s was asked for something else: converting from the beginning", self._folder)
                return None
            whole = all(
                (self._folder / f"{name}.bin").stat().st_size >= length for name, length in found["columns"].items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return dict(found) if whole else None

    def _save(self, state: dict[str, Any]) -> None:
        write_file(self._folder / _STATE, json.dumps({"asked": self._asked, **state}).encode())


def _asked(options: ReadOptions, text: TextConfig | None) -> dict[str, Any]:
    """What must be the same for a conversion to go on: all but the data, whose digest is compared on the way."""
    given = {name: str(value) for name, value in dataclasses.asdict(options).items()}
    if options.label_names is not None:
        with contextlib.suppress(OSError):
            given["label_names"] = sha256_file(options.label_names)
    return {"machxc": __version__, "options": given, "text": None if text is None else dataclasses.asdict(text)}


@contextlib.contextmanager
def _from_the_beginning_if_changed(work: _Work, path: Path | str) -> Iterator[None]:
    """Forget a conversion whose data have changed since, so that another try begins anew."""
    try:
        yield
    except ChangedError:
        work.clear()
        if str(path) == "-":
            raise
        log.warning("%s was changed since a part of it was converted: converting from the beginning", path)


@contextlib.contextmanager
def _work_folder(store: Path | str) -> Iterator[Path]:
    """The folder of a conversion, locked. When the body ends by an error, it stays if a part is complete."""
    folder = work_folder(store)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / _LOCK)
    try:
        if not try_lock(lock, folder / _LOCK):
            raise OutputError(f"another process is converting into {folder}; wait for it, or choose another name")
        try:
            yield folder
        except BaseException as error:
            if not (folder / _STATE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            elif isinstance(error, OutputError):
                raise OutputError(f"{error}. What is converted is kept in {folder}: ask again to go on") from error
            raise
    finally:
        os.close(lock)
