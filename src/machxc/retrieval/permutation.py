"""`machxc.partition.permute` in 32-bit arithmetic: twice as many labels in a vector as with the 64 bits of NumPy's.

The same bijection: ids have at most 32 bits, and what a product has above them is masked away in either width. Written
for LLVM itself, as Numba widens whatever it multiplies or shifts to 64 bits.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic


def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    x, p0, p1, p2, p3, p4, p5, shift, mask = arguments
    for factor, term in ((p0, p1), (p2, p3)):
        x = builder.and_(builder.add(builder.mul(x, factor), term), mask)
        x = builder.xor(x, builder.lshr(x, shift))
    return builder.and_(builder.add(builder.mul(x, p4), p5), mask)


@intrinsic  # type: ignore[untyped-decorator]
def permute32(
    context: Any, x: Any, p0: Any, p1: Any, p2: Any, p3: Any, p4: Any, p5: Any, shift: Any, mask: Any
) -> tuple[Any, Any]:
    """In kernels: permute32(x, p0, ..., p5, shift, mask), all uint32, is what `permute` is; ``shift`` below 32."""
    return types.uint32(*[types.uint32] * 9), _generate
