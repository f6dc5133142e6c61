"""A run folder in an object store (s3://, gs://), or wherever else fsspec reaches.

An object appears whole, when all of it is there; that is all that a run asks of its folder. The samples are copied to
this machine once a process, and checkpoints and repetitions through a temporary file.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from machxc.config import Config
from machxc.data import is_store
from machxc.errors import MissingExtraError, OutputError
from machxc.files import find_folder
from machxc.folder import repetition_file
from machxc.formats import Tensors, map_file, parse_tensors, write_tensors
from machxc.runs.folder import DATA
from machxc.samples import Array

_MANIFEST = "store.json"


class RemoteFolder:
    """The run folder at an address; MissingExtraError without fsspec, OutputError when there is no way to go there."""

    def __init__(self, name: str) -> None:
        self.name = name.rstrip("/")
        self._files, self._root = _opened(self.name)
        self._store: Path | None = None

    def names(self) -> list[str]:
        """The names of the files, as they are now."""
        found: list[str] = []
        with self._errors(absent=FileNotFoundError):
            self._files.invalidate_cache()
            found = self._files.ls(self._root, detail=False)
        return [path.rsplit("/", 1)[-1] for path in found]

    def read(self, name: str) -> bytes | None:
        """A small file; None when there is none."""
        found: list[bytes] = []
        with self._errors(absent=FileNotFoundError):
            found.append(self._files.cat_file(self._path(name)))
        return found[0] if found else None

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a small file, whole or not at all."""
        with self._errors():
            self._files.pipe_file(self._path(name), content)

    def read_tensors(self, name: str) -> Tensors | None:
        """The tensors of a file, copied here; None when there is none."""
        with tempfile.TemporaryDirectory(prefix="machxc-") as folder:
            here = Path(folder) / name
            with self._errors(absent=FileNotFoundError):
                self._files.get_file(self._path(name), str(here))
            return parse_tensors(name, map_file(here)) if here.is_file() else None  # mapped: deleted when closed

    def write_tensors(self, name: str, tensors: Mapping[str, Array]) -> None:
        """Write a file of tensors, whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="machxc-") as folder:
            here = Path(folder) / name
            write_tensors(here, tensors)
            with self._errors():
                self._files.put_file(str(here), self._path(name))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._errors(absent=FileNotFoundError):
            self._files.rm_file(self._path(name))

    def is_done(self, r: int, config: Config) -> bool:
        """Whether the file of repetition r is there: it appeared whole. What is in it is checked when it is used."""
        return repetition_file(r) in self.names()

    def export(self, r: int, target: Path) -> None:
        """Copy the file of repetition r here."""
        with self._errors():
            self._files.get_file(self._path(repetition_file(r)), str(target))

    def store(self) -> Path | None:
        """The converted samples, copied here when they are first asked for, and removed when the process ends."""
        if self._store is None:
            here = Path(tempfile.mkdtemp(prefix="machxc-samples-"))
            atexit.register(shutil.rmtree, here, ignore_errors=True)
            with self._errors(absent=FileNotFoundError):
                for path in self._files.ls(self._path(DATA), detail=False):
                    self._files.get_file(path, str(here / path.rsplit("/", 1)[-1]))
            self._store = here
        return self._store if is_store(self._store) else None

    @contextlib.contextmanager
    def new_store(self, given: Path | None) -> Iterator[Path]:
        """The path at which to convert samples, or where they are already; then it is copied there, manifest last."""
        with tempfile.TemporaryDirectory(prefix="machxc-convert-") as folder:
            store = given or Path(folder) / DATA
            yield store
            files = sorted((find_folder(store) or store).iterdir(), key=lambda path: path.name == _MANIFEST)
            with self._errors():
                for path in files:
                    self._files.put_file(str(path), self._path(f"{DATA}/{path.name}"))

    def clear(self) -> None:
        """Remove all that is there."""
        with self._errors(absent=FileNotFoundError):
            self._files.rm(self._root, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _errors(self, *, absent: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """What a file system of fsspec may raise, whichever it is, as an OutputError; ``absent`` is no error."""
        try:
            yield
        except absent:
            pass
        except Exception as error:  # botocore's, gcsfs's, aiohttp's: they have nothing in common
            raise OutputError(
                f"cannot reach {self.name}: {type(error).__name__}: {error}; check the address and your credentials"
            ) from error


def _opened(name: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtraError(f"the run folder {name}", "remote") from None
    try:
        files, root = url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise OutputError(f"cannot reach {name}: {error}") from error
    return files, str(root).rstrip("/")
