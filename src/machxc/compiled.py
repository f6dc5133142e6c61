"""The one door to Numba: how every kernel of the project is compiled.

Kernels release the GIL (repetitions train side by side on threads) and are cached on disk (a second run compiles
nothing). ``fast`` kernels may reassociate floating-point sums, so that inner loops vectorise: the order of a sum
then depends on the processor's vector width, never on the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_F = TypeVar("_F", bound=Callable[..., object])
_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "no_cfunc_wrapper": True}  # nothing calls kernels from C

# a literal has a type of its own: Numba would compile what is called with it once more for that
ZERO: Any = np.int64(0)


def kernel(function: _F) -> _F:
    """Compile ``function`` with strict floating-point semantics."""
    return cast(_F, numba.njit(**_OPTIONS)(function))


def part(function: _F) -> _F:
    """Compile a function that only kernels call: without the wrappers by which Python would, a fifth of the time."""
    return cast(_F, numba.njit(no_cpython_wrapper=True, **_OPTIONS)(function))


def fast_kernel(function: _F) -> _F:
    """Compile ``function``, allowing sums to be reordered and fused (no NaN or infinity reaches these kernels)."""
    return cast(_F, numba.njit(fastmath=True, error_model="numpy", **_OPTIONS)(function))


def fast_part(function: _F) -> _F:
    """`fast_kernel` and `part` at once."""
    options = {"fastmath": True, "error_model": "numpy", "no_cpython_wrapper": True}
    return cast(_F, numba.njit(**options, **_OPTIONS)(function))


def inline(function: _F) -> _F:
    """Compile a helper that is small enough to be inlined into the kernels that call it."""
    return cast(_F, numba.njit(inline="always", **_OPTIONS)(function))


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
