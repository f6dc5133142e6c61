"""The one door to Numba: how every kernel of the project is compiled.

Kernels release the GIL (repetitions train side by side on threads) and are cached on disk (a second run compiles
nothing). ``fast`` kernels may reassociate floating-point sums, so that inner loops vectorise: the order of a sum
then depends on the processor's vector width, never on the run.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import _nrt_python
from numba.extending import intrinsic

_F = TypeVar("_F", bound=Callable[..., object])
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "no_cfunc_wrapper": True,  # nothing calls kernels from C
    "error_model": "numpy",  # no kernel divides by 0: nothing is compiled that would see and raise it
}
_LOCK = "machxc.lock"

# a literal has a type of its own: Numba would compile what is called with it once more for that
ZERO: Any = np.int64(0)


def kernel(function: _F) -> _F:
    """Compile ``function`` with strict floating-point semantics."""
    return _cached(function)


def part(function: _F) -> _F:
    """Compile a function that only kernels call: without the wrappers by which Python would, a fifth of the time."""
    return _cached(function, no_cpython_wrapper=True)


def fast_kernel(function: _F) -> _F:
    """Compile ``function``, allowing sums to be reordered and fused (no NaN or infinity reaches these kernels)."""
    return _cached(function, fastmath=True)


def fast_part(function: _F) -> _F:
    """`fast_kernel` and `part` at once."""
    return _cached(function, fastmath=True, no_cpython_wrapper=True)


def inline(function: _F) -> _F:
    """Compile a helper that is inlined into the kernels that call it: a small one, or one that is called in one place.

    Called in one place, it may take a quarter less time to compile than as a `part`; else it is compiled in each place.
    """
    return _cached(function, inline="always")


class _Cache(FunctionCache):  # type: ignore[misc]  # Numba has no types
    """Numba's cache, but for what it gets ready to compile before it loads anything: 30 MB, and 0.2 s of every run.

    What loaded code calls of Numba's runtime is in it, or among the functions that are made known here. To compile,
    Numba gets ready itself. And processes save one after the other: two that save the same function for other types at
    once would give both files one name.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        _make_runtime_known()
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with _alone(self._impl.locator):
            super().save_overload(sig, data)


def _cached(function: _F, **options: Any) -> _F:
    """Compile when called, or load what was compiled before."""
    dispatcher = numba.njit(**options, **_OPTIONS)(function)
    if isinstance(dispatcher, Dispatcher):  # not where compiling is switched off
        dispatcher._cache = _Cache(function)  # type: ignore[attr-defined]  # as its enable_caching does
    return cast(_F, dispatcher)


@contextlib.contextmanager
def _alone(locator: Any) -> Iterator[None]:
    """Hold the lock of a folder of Numba's cache; where that cannot be locked, go on without."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # not on Windows

            locator.ensure_cache_path()
            lock = stack.enter_context(open(os.path.join(locator.get_cache_path(), _LOCK), "ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def _make_runtime_known() -> None:
    """The functions in C of Numba's runtime, by the names that `numba.core.runtime` gives them, to the linker."""
    for name, address in _nrt_python.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def _prefetch(typing: Any, array: Any, index: Any) -> Any:
    """The line of the cache with ``array[index]`` (one dimension): begin to read it, it will be needed and changed.

    A hint to the processor, which changes no result; what is not there to be read is no error.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        view = context.make_array(kind)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, kind, view, [arguments[1]])
        number = ir.IntType(32)
        called = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [place.type], called)
        builder.call(function, [place, *(ir.Constant(number, value) for value in (_TO_WRITE, _NEAR, _DATA))])
        return context.get_dummy_value()

    return types.void(array, index), generate


_TO_WRITE, _NEAR, _DATA = 1, 2, 1  # of LLVM's prefetch
prefetch: Callable[[Any, int | np.integer[Any]], None] = intrinsic(_prefetch)


def _larger(typing: Any, one: Any, other: Any) -> Any:
    """The larger of two float32 numbers, neither NaN: the maximum of many vectorises, as with `max` it does not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.FloatType()
        kind = ir.FunctionType(number, [number, number])
        function = builder.module.declare_intrinsic("llvm.maxnum", [number], kind)
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate


larger: Callable[[np.float32, np.float32], np.float32] = intrinsic(_larger)
