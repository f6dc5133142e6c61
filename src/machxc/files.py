"""The disk: writing that survives a crash. Whole files and whole folders are put in place by one rename.

What is being written has a hidden name beside its target, ``.NAME.machxc-HOST-PID-TOKEN``, and is renamed when it is
complete and on the disk. A process that dies leaves such a name behind; the next writer of the same target on the same
machine removes it (those of living processes and of other machines are left alone).

A folder that exists is replaced by exchanging the two names in one step (Linux). Where that is not to be had, the
previous folder waits as ``.NAME.machxc-previous`` until the new one is in place: `find_folder` knows both names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from machxc.errors import OutputError

log = logging.getLogger("machxc.files")

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.machxc-(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,10})-[0-9a-f]{16}")
_PREVIOUS = re.compile(r"\..+\.machxc-previous")
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # linux/fcntl.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # an old kernel, or a file system that cannot

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space, or write elsewhere",
    errno.EFBIG: "the file would be larger than allowed there: write elsewhere",
    errno.EACCES: "no permission to write there: choose a place of your own",
    errno.EPERM: "no permission to write there: choose a place of your own",
    errno.EROFS: "the file system is read-only: write elsewhere",
    errno.EEXIST: "it exists already: choose another name, or remove it",
    errno.ENOTEMPTY: "it exists already: choose another name, or remove it",
    errno.EISDIR: "it is a folder: choose another name",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.ENOENT: "a folder of the path does not exist: create it first",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EFAULT: "a file that it is made from was cut meanwhile: make or copy that again",
    errno.EIO: "the disk failed: check it, or write elsewhere",
}

_mine: set[str] = set()  # names of temporaries that this process is working on


@contextlib.contextmanager
def output_errors(path: Path | str) -> Iterator[None]:
    """Turn an OSError of the body into an OutputError that names ``path``, the cause, and what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the path and the disk, or write elsewhere")
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def write_file(path: Path | str, *parts: bytes | memoryview) -> None:
    """Write ``parts`` one after the other as the file ``path``: wholly and on the disk, or not at all.

    The file may exist: readers see the old content or the new, never a mix. Raises OutputError.
    """
    path = Path(path)
    with output_errors(path):
        remove_stale(path)
        with _temporary(path) as temporary:
            _write_new(temporary, parts)
            os.replace(temporary, path)
        fsync_folder(path.parent)


def link_file(source: Path | str, target: Path | str) -> None:
    """A second name for a file, or where the file system has none, a copy that is on the disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb+") as file:
            os.fsync(file.fileno())


def fsync_folder(path: Path | str) -> None:
    """Wait until the names in a folder are on the disk (does nothing where folders cannot be opened: Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging_folder(target: Path | str) -> Iterator[Path]:
    """Make a new empty folder beside ``target``, to be filled and handed to `replace_folder`.

    It is on the same disk, and is removed when the body ends without having renamed it. Folders missing on the way to
    ``target`` are created. Raises OutputError.
    """
    target = _real(target)
    with output_errors(target):
        os.makedirs(target.parent, exist_ok=True)
        remove_stale(target)
    with _temporary(target) as staged:
        with output_errors(target):
            os.mkdir(staged)
        yield staged


def replace_folder(new: Path | str, target: Path | str, *, overwrite: bool) -> None:
    """Rename the complete folder ``new`` (on the same disk) to ``target``; an older ``target`` is removed afterwards.

    At every instant `find_folder` finds the older folder or the new one. Raises OutputError when the rename fails
    (nothing has changed then), when ``target`` exists and ``overwrite`` is False, or when it is not a folder.
    """
    new, target = Path(new), _real(target)
    with output_errors(target):
        check_target(target, overwrite=overwrite)
        fsync_folder(new)
        with contextlib.ExitStack() as undo:
            _swap_in(new, target, undo)
            fsync_folder(target.parent)
            undo.pop_all()
    for older in (new, _previous(target)):
        _remove(older)


def check_target(target: Path | str, *, overwrite: bool) -> None:
    """Raise OutputError when `replace_folder` would refuse ``target``: ask before hours of work, not after."""
    target = _real(target)
    if os.path.lexists(target) and not target.is_dir():
        raise OutputError(f"cannot write {target}: it exists and is not a folder; choose another path")
    with output_errors(target):
        _check_writable(next((folder for folder in target.parents if os.path.lexists(folder)), target))
    if find_folder(target) is not None and not overwrite:
        raise OutputError(f"cannot write {target}: it exists already; choose another path, or ask to overwrite it")


def find_folder(target: Path | str) -> Path | None:
    """Where the complete folder ``target`` is now, None when there is none; writes nothing.

    It is elsewhere only after a crash in the middle of `replace_folder`, on systems that cannot exchange two names.
    """
    target = _real(target)
    return next((folder for folder in (target, _previous(target)) if folder.is_dir()), None)


def lock_file(path: Path | str) -> int:
    """Open the file ``path``, made if need be, to be locked: a descriptor. Raises OSError."""
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)


def try_lock(lock: int, path: Path | str, *, shared: bool = False) -> bool:
    """Take the lock of `lock_file`, alone or with others; False when somebody holds it otherwise, or replaced it."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except OSError:
        return False


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_temporary(name: str) -> bool:
    """Whether ``name`` is one that this module gives to what is not, or no longer, in place."""
    return bool(_TEMPORARY.fullmatch(name) or _PREVIOUS.fullmatch(name))


def remove_stale(target: Path | str) -> None:
    """Remove what dead processes of this machine left beside ``target`` while they wrote it."""
    target = Path(target)
    with contextlib.suppress(FileNotFoundError), os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(f".{target.name}.machxc-")]
        for name in names:
            if _is_stale(name, target):
                _remove(target.parent / name)


def _is_stale(name: str, target: Path) -> bool:
    if name == _previous(target).name:
        return os.path.lexists(target)  # else it is the only complete one
    match = _TEMPORARY.fullmatch(name)
    if match is None or match["name"] != target.name or match["host"] != _HOST or name in _mine:
        return False
    return int(match["pid"]) == os.getpid() or not _is_alive(int(match["pid"]))


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there, signal 0 would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside ``target`` that only we use; whatever still has it at the end is removed."""
    path = target.parent / (f".{target.name}.machxc-{_HOST}-{os.getpid()}-{secrets.token_hex(8)}")
    _mine.add(path.name)
    try:
        yield path
    finally:
        _remove(path)
        _mine.discard(path.name)


def _write_new(path: Path, parts: tuple[bytes | memoryview, ...]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for part in parts:
            _write_all(descriptor, memoryview(part))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, view: memoryview) -> None:
    step = 1 << 26  # one call writes 2 GB at most, and a signal is answered between calls
    while len(view):
        view = view[os.write(descriptor, view[:step]) :]


def _check_writable(folder: Path) -> None:
    code = errno.ENOTDIR if not folder.is_dir() else 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES
    if code:
        raise OSError(code, os.strerror(code), str(folder))


def _swap_in(new: Path, target: Path, undo: contextlib.ExitStack) -> None:
    """Give ``target``'s name to ``new``; ``undo`` learns how to take it back."""
    if os.path.lexists(target):
        if _exchange(new, target):
            undo.callback(_exchange, new, target)
            return
        previous = _previous(target)
        _remove(previous)
        os.rename(target, previous)
        undo.callback(os.rename, previous, target)
    os.rename(new, target)
    undo.callback(os.rename, target, new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    import ctypes

    renameat2 = None if os.name != "posix" else getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _remove(path: Path) -> None:
    """Remove a file or a folder of ours if it is there; a failure is logged: what is in place is complete anyway."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cannot remove %s: %s; remove it by hand", path, error)


def _previous(target: Path) -> Path:
    return target.parent / f".{target.name}.machxc-previous"


def _real(target: Path | str) -> Path:
    """The path with links followed: what a link points to is replaced, not the link."""
    return Path(os.path.realpath(target))
