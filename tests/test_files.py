from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machxc import files
from machxc.errors import OutputError
from machxc.files import (
    check_target,
    find_folder,
    fsync_folder,
    is_temporary,
    lock_file,
    output_errors,
    replace_folder,
    sha256_file,
    staging_folder,
    try_lock,
    write_file,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, forks and permissions of POSIX systems")


def make_folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "content").write_text(content)
    return path


def content_of(path: Path) -> str:
    return (path / "content").read_text()


def names_in(path: Path) -> set[str]:
    return set(os.listdir(path))


def in_child(body: Callable[[], None]) -> int:
    """Run ``body`` in a forked process that ends without any cleaning up, as if killed; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads; ours are idle
        pid = os.fork()
    if not pid:
        try:
            body()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return str(request.param)


# Files.


@pytest.mark.parametrize("parts", [(), (b"",), (b"one",), (b"one", memoryview(b"two"), b"")])
def test_write_file_writes_the_parts_and_leaves_nothing_else(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    path = tmp_path / "file"
    for _ in range(2):
        write_file(path, *parts)
        assert path.read_bytes() == b"".join(parts)
        assert names_in(tmp_path) == {"file"}
    assert sha256_file(path) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_write_file_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"cannot write .*file: No space left on device; the disk is full: free some"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == {"file"}


def test_write_file_continues_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_file(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_write_file_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a folder of the path does not exist: create it first"):
        write_file(tmp_path / "missing" / "file", b"")


@pytest.mark.parametrize("code", sorted(files._ADVICE))
def test_output_errors_names_path_cause_and_advice(code: int) -> None:
    with pytest.raises(OutputError) as caught, output_errors("some/path"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == f"cannot write some/path: {os.strerror(code)}; {files._ADVICE[code]}"


def test_output_errors_lets_its_own_errors_pass() -> None:
    error = OutputError("mine")
    with pytest.raises(OutputError) as caught, output_errors("path"):
        raise error
    assert caught.value is error
    with (
        pytest.raises(OutputError, match=r"cannot write path: odd; check the path and the disk"),
        output_errors("path"),
    ):
        raise OSError("odd")


# Folders.


def test_staging_folder_is_a_hidden_sibling_and_goes_when_unused(tmp_path: Path) -> None:
    target = tmp_path / "made" / "target"
    with staging_folder(target) as staged:
        assert staged.parent == target.parent
        assert is_temporary(staged.name)
        (staged / "sub").mkdir()
        assert names_in(staged) == {"sub"}
    assert names_in(target.parent) == set()


def test_staging_folder_goes_when_the_body_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with staging_folder(tmp_path / "target") as staged:
            write_file(staged / "file", b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names_in(tmp_path) == set()


def test_what_dead_processes_left_is_removed_and_only_that(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def die() -> None:
        with staging_folder(target) as staged:
            write_file(staged / "file", b"x")
            os._exit(1)

    dead = in_child(die)
    (left,) = names_in(tmp_path)
    assert f"-{dead}-" in left
    alive = left.replace(f"-{dead}-", f"-{os.getppid()}-")
    elsewhere = left.replace(files._HOST, "0" * 8)
    other_target = left.replace("target", "target2")
    unlike = left + ".txt"
    keep = {alive, elsewhere, other_target, unlike}
    for name in keep:
        (tmp_path / name).mkdir()
    with staging_folder(target) as one, staging_folder(target) as two:
        assert names_in(tmp_path) == keep | {one.name, two.name}
    write_file(tmp_path / "target2", b"")
    assert names_in(tmp_path) == keep - {other_target} | {"target2"}


def test_an_earlier_process_with_our_id_is_dead(tmp_path: Path) -> None:
    left = tmp_path / f".target.machxc-{files._HOST}-{os.getpid()}-{'0' * 16}"
    left.mkdir()
    with staging_folder(tmp_path / "target"):
        assert not left.exists()


@pytest.mark.usefixtures("swap")
def test_replace_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with staging_folder(target) as staged:
        (staged / "content").write_text("one")
        replace_folder(staged, target, overwrite=False)
    assert content_of(target) == "one"
    with pytest.raises(OutputError, match="it exists already"), staging_folder(target) as staged:
        replace_folder(staged, target, overwrite=False)
    assert content_of(target) == "one"
    with staging_folder(target) as staged:
        (staged / "content").write_text("two")
        replace_folder(staged, target, overwrite=True)
    assert content_of(target) == "two"
    assert names_in(tmp_path) == {"target"}


@pytest.mark.usefixtures("swap")
def test_replace_folder_follows_a_link(tmp_path: Path) -> None:
    real = make_folder(tmp_path / "real", "one")
    link = tmp_path / "link"
    link.symlink_to(real)
    replace_folder(make_folder(tmp_path / "new", "two"), link, overwrite=True)
    assert link.is_symlink()
    assert content_of(real) == content_of(link) == "two"
    assert names_in(tmp_path) == {"real", "link"}


def test_replace_folder_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    with pytest.raises(OutputError, match="it exists and is not a folder"):
        replace_folder(make_folder(tmp_path / "new", "x"), tmp_path / "target", overwrite=True)
    assert (tmp_path / "target").read_text() == "mine"


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("before", [None, "one"])
def test_replace_folder_that_fails_is_undone(
    tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, new = tmp_path / "target", make_folder(tmp_path / "new", "two")
    if before:
        make_folder(target, before)
    names = names_in(tmp_path)

    def fail(path: Path) -> None:
        if path == tmp_path:
            assert content_of(target) == "two"  # the names were exchanged already
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "fsync_folder", fail)
    with pytest.raises(OutputError, match="the disk failed"):
        replace_folder(new, target, overwrite=True)
    assert names_in(tmp_path) == names
    assert content_of(new) == "two"
    assert before is None or content_of(target) == before


def test_a_crash_between_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = make_folder(tmp_path / "target", "one")
    new = make_folder(tmp_path / "new", "two")
    rename = os.rename

    def crash() -> None:
        monkeypatch.setattr(os, "rename", lambda one, other: os._exit(1) if one == new else rename(one, other))
        replace_folder(new, target, overwrite=True)

    in_child(crash)
    assert not target.exists()
    found = find_folder(target)
    assert found is not None
    assert content_of(found) == "one"
    with pytest.raises(OutputError, match="exists already"):
        check_target(target, overwrite=False)
    with staging_folder(target):
        assert find_folder(target) == found  # it is the only complete one: nobody takes it away
    replace_folder(new, target, overwrite=True)
    assert content_of(target) == "two"
    assert names_in(tmp_path) == {"target"}


def test_a_previous_folder_that_was_not_removed_goes_with_the_next_use(tmp_path: Path) -> None:
    target = make_folder(tmp_path / "target", "two")
    make_folder(tmp_path / ".target.machxc-previous", "one")
    assert find_folder(target) == target
    with staging_folder(target):
        pass
    assert names_in(tmp_path) == {"target"}


def test_the_exchange_is_one_step_where_linux_offers_it(tmp_path: Path) -> None:
    one, two = make_folder(tmp_path / "one", "1"), make_folder(tmp_path / "two", "2")
    if not files._exchange(one, two):
        pytest.skip("this system cannot exchange two names")
    assert (content_of(one), content_of(two)) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        files._exchange(one, tmp_path / "missing")


def test_check_target_asks_for_a_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_target(tmp_path / "a" / "b" / "c", overwrite=False)
    assert names_in(tmp_path) == set()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a part of the path is a file"):
        check_target(tmp_path / "file" / "b", overwrite=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write there"):
        check_target(tmp_path / "a", overwrite=False)


def test_the_root_folder_is_refused() -> None:
    assert find_folder("/") == Path("/")
    with pytest.raises(OutputError, match="exists already"):
        check_target("/", overwrite=False)


def test_what_cannot_be_removed_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target, new = make_folder(tmp_path / "target", "one"), make_folder(tmp_path / "new", "two")

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", fail)
    replace_folder(new, target, overwrite=True)
    assert content_of(target) == "two"
    assert "cannot remove" in caplog.text


def test_fsync_folder_needs_a_folder(tmp_path: Path) -> None:
    fsync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_folder(tmp_path / "missing")


# Locks.


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[list[int]]:
    descriptors = [lock_file(tmp_path / "lock") for _ in range(3)]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_lock_is_held_alone_or_with_others(tmp_path: Path, locks: list[int]) -> None:
    path = tmp_path / "lock"
    assert try_lock(locks[0], path, shared=True)
    assert try_lock(locks[1], path, shared=True)
    assert not try_lock(locks[2], path)
    os.close(locks.pop(0))
    os.close(locks.pop(0))
    assert try_lock(locks[0], path)


def test_a_lock_that_was_replaced_is_not_held(tmp_path: Path, locks: list[int]) -> None:
    (tmp_path / "lock").unlink()
    assert not try_lock(locks[0], tmp_path / "lock")
    (tmp_path / "lock").touch()
    assert not try_lock(locks[0], tmp_path / "lock")
