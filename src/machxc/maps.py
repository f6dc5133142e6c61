"""Files that are mapped into memory, and what becomes of a process when one of them is cut or altered meanwhile.

A page that the file has no longer, or that a disk or a network cannot deliver, ends the process that touches it, by a
signal (SIGBUS). While `guarded`, zeros stand in for what is gone from there on, so that kernels come to an end, and the
file is remembered: `check` raises an error that names it, before what was computed goes anywhere. Zeros are harmless:
offsets that are cut make rows that are empty (who adds up lengths of rows takes negative ones for 0).

The signal is handled on Linux, on 64-bit processors; elsewhere `check` notices what was altered, and no more. The
handler is Python: the signal comes from the very instruction that reads a mapped file, in NumPy or in a kernel, never
from the midst of the interpreter's own work.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from machxc.errors import MachxcError
from machxc.samples import Array

_HANDLED = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64", "ppc64le")
_ADDRESS = 16  # of the address in siginfo_t, and the flag of sigaction that asks for it: bits/types/siginfo_t.h
_SA_SIGINFO = 4
_FIXED = 0x10  # MAP_FIXED
_PAGE = mmap.PAGESIZE


@dataclass(eq=False)
class _Map:
    """A file in memory, from ``start`` to ``stop``; ``status`` as it was when it was mapped."""

    start: int
    stop: int
    path: Path
    status: os.stat_result
    error: type[MachxcError]
    cut: bool = False

    def is_altered(self) -> bool:
        """Whether the file was written to; one that another took the place of is still there, and is as it was."""
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        if not os.path.samestat(now, self.status):
            return False
        return (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns)

    def failure(self) -> MachxcError:
        """What to raise."""
        how = "was cut, or could not be read any more," if self.cut else "was written to"
        return self.error(f"{self.path}: {how} while it was in use; leave it alone, and make it or copy it again")


_maps: dict[int, _Map] = {}  # by their start; an entry goes when its map does
_cut: set[int] = set()  # those of them that were found cut
_history: list[_Map] = []  # all that ever were


def map_array(path: Path, dtype: npt.DTypeLike, error: type[MachxcError]) -> Array:
    """A file of numbers as a read-only array; ``error``: what `check` raises when it is cut or altered."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return np.empty(0, dtype)  # nothing to map
        array = np.memmap(file, dtype, mode="r")
        watch(mapping_of(array), path, os.fstat(file.fileno()), error)
    return array


def watch(content: mmap.mmap | None, path: Path, status: os.stat_result, error: type[MachxcError]) -> None:
    """Watch a file that is mapped as a whole, as long as it is."""
    if content is None:
        return
    start = int(np.frombuffer(content, np.uint8).ctypes.data)
    _maps[start] = _Map(start, start + len(content), path, status, error)
    weakref.finalize(content, _forget, start).atexit = False


def check(*arrays: Array) -> None:
    """Raise the error of a mapped file behind ``arrays`` that was found cut, or was written to."""
    for known in {id(known): known for known in map(_map_of, arrays) if known is not None}.values():
        if known.cut or known.is_altered():
            raise known.failure()


def any_cut() -> bool:
    """Whether any file that is mapped was found cut: asks no file, as `check` does, and takes no time."""
    return bool(_cut)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Outlive files that are cut while they are mapped: the body goes on, with zeros, and ends in an error."""
    before = len(_history)
    with _handler:
        try:
            yield
        except Exception as error:
            if len(_history) > before:
                raise _history[before].failure() from error
            raise
    if len(_history) > before:
        raise _history[before].failure()


def mapping_of(array: Array) -> mmap.mmap | None:
    """The map that an array is a view of, if it is one."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None


def _forget(start: int) -> None:
    _maps.pop(start, None)
    _cut.discard(start)


def _map_of(array: Array) -> _Map | None:
    content = mapping_of(array)
    return None if content is None else _maps.get(int(np.frombuffer(content, np.uint8).ctypes.data))


def _put_zeros(address: int) -> bool:
    """Put zeros in the place of a file, from the page of ``address`` on; False when no file of ours is there."""
    found = next((known for known in list(_maps.values()) if known.start <= address < known.stop), None)
    if found is None:
        return False
    page = address // _PAGE * _PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED
    put = _libc().mmap(page, found.stop - page, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    found.cut = True
    _cut.add(found.start)
    _history.append(found)
    return int(put or 0) == page


class _Action(ctypes.Structure):
    """``struct sigaction`` of Linux's C libraries: bits/sigaction.h."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * (1024 // (8 * ctypes.sizeof(ctypes.c_ulong)))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class _Handler:
    """Handles the signal while anybody is guarded, as a context manager; then what was there before does again."""

    def __init__(self) -> None:
        self._lock, self._n, self._before = threading.Lock(), 0, _Action()
        self._function: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._n += 1
            if self._n == 1 and _HANDLED:
                kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
                self._function = self._function or kind(self._on_signal)
                handler = ctypes.cast(self._function, ctypes.c_void_p)
                action = _Action(handler=handler.value, flags=_SA_SIGINFO)
                _libc().sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self._before))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n -= 1
            if not self._n and _HANDLED:
                self._restore()

    def _on_signal(self, number: int, info: int, context: int) -> None:
        if not _put_zeros(ctypes.c_size_t.from_address(info + _ADDRESS).value):
            self._restore()  # not ours: the instruction is tried again, and what was there before sees to it

    def _restore(self) -> None:
        _libc().sigaction(signal.SIGBUS, ctypes.byref(self._before), None)


def _libc() -> Any:
    global _loaded
    if _loaded is None:
        _loaded = ctypes.CDLL(None, use_errno=True)
        _loaded.mmap.restype = ctypes.c_void_p
        _loaded.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
        _loaded.sigaction.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    return _loaded


_loaded: Any = None
_handler = _Handler()
