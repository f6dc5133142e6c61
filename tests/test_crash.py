"""Saving over an existing model while the disk fails or the process is killed: the old model or the new, never a mix.

The operations on the disk are those of the module ``os`` as `machxc.files` and `machxc.formats` see it, so a stand-in
for that module can count them, and fail or kill at the n-th.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from folder_tools import assert_same_model, fingerprint, tiny
from machxc import files, formats
from machxc.errors import OutputError
from machxc.files import find_folder, is_temporary, write_file
from machxc.folder import ModelData, load_model, read_repetition, save_model, write_repetition

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and signals of POSIX systems")

OLD, NEW = tiny(partition=True), tiny(seed=1, hidden=2)
CHANGES = ("open", "write", "fsync", "replace", "rename", "mkdir", "makedirs")
OPERATIONS = (*CHANGES, "close", "unlink", "rmdir")


@pytest.fixture(autouse=True)
def quick_fsync() -> Iterator[None]:
    """A killed process loses nothing that the kernel has taken: waiting for the disk would only be slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class Disk:
    """Stands in for the module ``os``: ``act(operation, n)`` is called before the n-th operation on the disk."""

    def __init__(self, act: Callable[[str, int], None], operations: tuple[str, ...] = OPERATIONS) -> None:
        self.count, self._act, self._operations = 0, act, operations

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        return self._watched(name, function) if name in self._operations else function

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            self.step(name)
            if name == "write":  # in two steps: a process may die between them
                descriptor, data = arguments
                half = function(descriptor, data[: len(data) // 2])
                self.step(name)
                return half + function(descriptor, data[len(data) // 2 :])
            return function(*arguments, **named)

        return operation

    def step(self, name: str) -> None:
        self.count += 1
        self._act(name, self.count)


@pytest.fixture(params=["exchange", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    """Installs a `Disk`; exchanging two names is one of its operations, or is not to be had."""
    real = files._exchange

    def install(disk: Disk) -> None:
        def exchanged(one: Path, other: Path) -> bool:
            disk.step("exchange")
            return real(one, other)

        monkeypatch.setattr(files, "os", disk)
        monkeypatch.setattr(formats, "os", disk)  # what has been written is read again
        if request.param == "exchange":
            monkeypatch.setattr(files, "_exchange", exchanged)
        else:
            monkeypatch.setattr(files, "_exchange", lambda one, other: False)

    return install


def forked(body: Callable[[], None]) -> int:
    """Start ``body`` in a process of its own; it ends with 0, or 1 when ``body`` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads; ours are idle
        pid = os.fork()
    if not pid:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return pid


def killed(pid: int) -> bool:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_at(point: int) -> Callable[[str, int], None]:
    def kill(name: str, n: int) -> None:
        if n == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if is_temporary(name)]


def assert_old_or_new(path: Path) -> ModelData:
    loaded = load_model(path)
    assert_same_model(loaded, OLD if loaded.config.seed == OLD.config.seed else NEW)
    return loaded


def test_what_gets_a_name_is_on_the_disk_already(tmp_path: Path, exchange: Callable[[Disk], None]) -> None:
    """After a power failure a name may only lead to what was synchronised before it was given."""
    path, events = tmp_path / "model", list[str]()
    save_model(path, OLD)
    exchange(Disk(lambda name, n: events.append(name), ("write", "fsync", "replace", "rename")))
    save_model(path, NEW, overwrite=True)
    named = [i for i, name in enumerate(events) if name in ("replace", "rename", "exchange")]
    assert len(named) in (6, 7)  # five files, and the folder: one exchange or two renames
    for i in named[:6]:
        assert events[i - 1] == "fsync"
        assert events[i + 1] in ("fsync", "rename")
    assert events[-1] == "fsync"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_operation(
    code: int, tmp_path: Path, exchange: Callable[[Disk], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    save_model(path, OLD)
    before, failures = fingerprint(path), 0

    def fail(name: str, n: int) -> None:
        if n == failures + 1:
            raise OSError(code, os.strerror(code))

    while True:
        exchange(Disk(fail, CHANGES))
        try:
            save_model(path, NEW, overwrite=True)
            break
        except OutputError as error:
            assert os.strerror(code) in str(error)  # noqa: PT017
        failures += 1
        monkeypatch.undo()
        assert os.listdir(tmp_path) == ["model"]
        assert fingerprint(path) == before
    assert failures > 40
    monkeypatch.undo()
    assert_same_model(load_model(path), NEW)
    assert os.listdir(tmp_path) == ["model"]


def test_a_disk_that_fails_while_the_first_model_is_saved(
    tmp_path: Path, exchange: Callable[[Disk], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, failures = tmp_path / "made" / "model", 0

    def fail(name: str, n: int) -> None:
        if n == failures + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    while True:
        exchange(Disk(fail, CHANGES))
        try:
            save_model(path, NEW)
            break
        except OutputError:
            failures += 1
        monkeypatch.undo()
        assert find_folder(path) is None
        assert not path.parent.exists() or os.listdir(path.parent) == []
    assert failures > 40


def test_killed_at_any_operation(
    tmp_path: Path, exchange: Callable[[Disk], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every point of one save: some 100 of them, and half of each write."""
    path = tmp_path / "model"
    save_model(path, OLD)
    points, news = 1, 0

    def save() -> None:
        disk = Disk(kill_at(points))
        exchange(disk)
        monkeypatch.setattr("shutil.os", disk)  # it removes the old model
        save_model(path, NEW, overwrite=True)

    while killed(forked(save)):
        points += 1
        news += assert_old_or_new(path).config.seed == NEW.config.seed
        save_model(path, OLD, overwrite=True)
        assert os.listdir(tmp_path) == ["model"]
        assert_same_model(load_model(path), OLD)
    assert points > 100
    assert 0 < news < points / 2  # the new model appears late, and then the old one is removed
    assert_same_model(load_model(path), NEW)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """The same with a real clock: processes that save again and again, killed when they do not expect it."""
    path, rng = tmp_path / "model", random.Random(0)
    save_model(path, OLD)
    marker = tmp_path / "started"

    def save_for_ever() -> None:
        write_file(marker, b"")
        while True:
            save_model(path, NEW, overwrite=True)
            save_model(path, OLD, overwrite=True)

    for _ in range(25):
        marker.unlink(missing_ok=True)
        pid = forked(save_for_ever)
        deadline = time.monotonic() + 10
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        assert killed(pid)
        assert_old_or_new(path)
    save_model(path, NEW, overwrite=True)
    assert temporaries(tmp_path) == []
    assert_same_model(load_model(path), NEW)


def test_killed_while_a_repetition_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished repetitions stay; the one that was being written is there wholly, or not, and is written again."""
    config = OLD.config
    write_repetition(tmp_path, 0, OLD.repetitions[0])
    before, point, whole = fingerprint(tmp_path), 0, False

    def write() -> None:
        monkeypatch.setattr(files, "os", Disk(kill_at(point)))
        write_repetition(tmp_path, 1, OLD.repetitions[1])

    while not whole:
        point += 1
        whole = not killed(forked(write))
        names = set(os.listdir(tmp_path)) - set(temporaries(tmp_path))
        for r in range(len(names)):
            read_repetition(tmp_path, r, config)
        write_repetition(tmp_path, 1, OLD.repetitions[1])
        assert temporaries(tmp_path) == []
        assert before.items() <= fingerprint(tmp_path).items()
        (tmp_path / "repetition-00001.safetensors").unlink()
    assert point > 8


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The kernel itself refuses to write: a limit on the size of files."""
    path = tmp_path / "model"
    save_model(path, OLD)
    before = fingerprint(path)

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        with pytest.raises(OutputError, match="the file would be larger than allowed"):
            save_model(path, NEW, overwrite=True)

    assert not killed(forked(save))
    assert fingerprint(path) == before
    assert os.listdir(tmp_path) == ["model"]
