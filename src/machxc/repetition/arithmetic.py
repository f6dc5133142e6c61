"""What both models share: a vector exponential, the loss and its gradient.

Inner loops run over contiguous float32 vectors, which the compiler turns into vector instructions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from machxc.compiled import fast_kernel, inline, larger
from machxc.samples import Float32

Int32 = npt.NDArray[np.int32]
UInt16 = npt.NDArray[np.uint16]

LARGEST_WEIGHT = np.float32(65000.0)  # of a feature in a sample: sums of products with it are far from infinity
BIAS_RATE = 0.1  # of the learning rate: the bias starts at the buckets' frequencies and need not go far


@inline
def _fraction(f: np.float32) -> np.float32:
    """2**f for f from 0 to 1: a polynomial."""
    p = np.float32(1.8775767e-3)
    p = p * f + np.float32(8.9893397e-3)
    p = p * f + np.float32(5.5826318e-2)
    p = p * f + np.float32(2.4015361e-1)
    p = p * f + np.float32(6.9315308e-1)
    return p * f + np.float32(9.9999994e-1)


@inline
def exp(x: np.float32) -> np.float32:
    """exp(x), within 4e-6 relative (3e-7 for x in [-1, 1]); vectorises, as the library's does not.

    exp(x) = 2**n * 2**f with n the integer part of x * log2(e): n goes into the exponent's bits, 2**f is a polynomial.
    Beyond x = +-87.3 the result is 2**+-126. The error grows with x as x * log2(e) is rounded to a float32.
    """
    y = x * np.float32(1.44269504)
    y = max(min(y, np.float32(126.0)), np.float32(-126.0))
    n = np.floor(y)
    power: np.float32 = _fraction(y - n) * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return power


@inline
def exp_below(x: np.float32) -> np.float32:
    """`exp` for x <= 0, in fewer operations: 2**n is added to the exponent's bits, and 2**f is not above 2."""
    y = x * np.float32(1.44269504)
    y = larger(y, np.float32(-125.0))
    n = np.floor(y)
    power: np.float32 = np.int32(
        np.float32(_fraction(y - n)).view(np.int32) + np.int32(np.int32(n) << np.int32(23))
    ).view(np.float32)
    return power


@fast_kernel
def exponential(x: Float32) -> None:
    """x = exp(x) in place."""
    for i in range(len(x)):
        x[i] = exp(x[i])


@fast_kernel
def softmax_gradient(z: Float32, targets: Int32, weight: np.float32, g: Float32) -> np.float32:
    """g = weight * (softmax(z) - y), y uniform over the target buckets; returns weight * cross-entropy (nats)."""
    top = z[0]
    for b in range(len(z)):
        top = max(top, z[b])
    for b in range(len(z)):
        g[b] = z[b] - top
    exponential(g)
    total = np.float32(0.0)
    for b in range(len(z)):
        total += g[b]
    share = np.float32(1.0) / np.float32(len(targets))
    loss = np.float32(0.0)
    for t in targets:
        loss += (top + np.log(total) - z[t]) * share
    scale = weight / total
    for b in range(len(z)):
        g[b] *= scale
    for t in targets:
        g[t] -= weight * share
    return weight * loss


@fast_kernel
def sigmoid_gradient(z: Float32, targets: Int32, weight: np.float32, g: Float32) -> np.float32:
    """g = weight * (sigmoid(z) - y); returns weight * the target buckets' part of the cross-entropy (nats).

    The other buckets' part would take a logarithm each; the targets' alone tells as well how training goes.
    """
    for b in range(len(z)):
        g[b] = -z[b]
    exponential(g)
    loss = np.float32(0.0)
    for t in targets:
        loss += np.log(np.float32(1.0) + g[t])
    for b in range(len(z)):
        g[b] = weight / (np.float32(1.0) + g[b])
    for t in targets:
        g[t] -= weight
    return weight * loss


@inline
def add_row(z: Float32, weight: np.float32, row: Float32) -> None:
    """z += weight * row."""
    for b in range(len(z)):
        z[b] += weight * row[b]


@inline
def copy(z: Float32, source: Float32) -> None:
    """z = source. (As an array assignment it would bring the checks of broadcasting, slow to compile.)"""
    for b in range(len(z)):
        z[b] = source[b]
