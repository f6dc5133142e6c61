"""From the sums of a sample's input rows to its bucket scores, through one hidden layer or several.

A layer's units are max(0, x + bias), where x is what comes in, multiplied by the layer's weights. With normalisation x
is brought to mean 0 and variance 1 over the units first (Ba et al. 2016), before the bias. A gain for each unit, which
others have besides, would say nothing new: a unit that is multiplied is one whose weights in the next layer are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from machxc.compiled import fast_kernel, inline
from machxc.config import layer_name
from machxc.repetition.arithmetic import copy
from machxc.repetition.int8 import from_int8, scales_of
from machxc.samples import Array, Float32, frozen

EPSILON = 1e-6  # added to the variance: that of sparse inputs is about 1 / H, and 0 where a sample has no feature


class Layers:
    """The trained layers of a repetition behind its input rows: from its stored tensors, in float32.

    ``start``: what the sums of input rows have to start from.
    """

    def __init__(self, tensors: Mapping[str, Array], *, normalised: bool) -> None:
        names = [name for name in map(layer_name, range(1, len(tensors))) if name in tensors]
        self._normalised = normalised
        self._biases = [frozen(tensors[name]) for name in ("hidden_bias", *(f"{name}_bias" for name in names))]
        self._columns = [_columns(tensors, name) for name in names]
        self._output = _columns(tensors, "output")
        self._bias: Float32 = frozen(tensors["bias"])
        self.start = self._start(0)

    def logits(self, sums: Float32, out: Float32) -> None:
        """Bucket scores before softmax or sigmoid, into ``out`` float32 [n, B] (rows of it contiguous).

        ``sums`` float32 [n, H]: those of the input rows, with ``start``; they become the units of the first layer.
        """
        activate(sums, self._biases[0], self._normalised)
        for number, columns in enumerate(self._columns, 1):
            inputs, sums = sums, np.empty((len(sums), columns.shape[1]), np.float32)
            products(inputs, columns, self._start(number), sums)
            activate(sums, self._biases[number], self._normalised)
        products(sums, self._output, self._bias, out)

    def _start(self, number: int) -> Float32:
        """What a layer's sums start from: its bias, unless that is added to what is normalised."""
        bias: Float32 = self._biases[number]
        return np.zeros_like(bias) if self._normalised else bias


def _columns(tensors: Mapping[str, Array], name: str) -> Float32:
    """Stored weights [W, H] in float32, input by input: [H, W]."""
    return np.ascontiguousarray(from_int8(tensors[name], tensors[scales_of(name)]).T)


@fast_kernel
def products(inputs: Float32, columns: Float32, start: Float32, out: Float32) -> None:
    """out [n, W] = start [W] + inputs [n, H], none below 0, times columns [H, W].

    The columns of inputs that are 0, about half, are not read. Four at a time: their sum is read and written once.
    """
    n_inputs = len(columns)
    z, active, units = np.empty(len(start), np.float32), np.zeros(n_inputs + 4, np.int64), np.empty(4, np.float32)
    for i in range(len(inputs)):
        n_active = 0
        for k in range(n_inputs):
            active[n_active] = k
            n_active += inputs[i, k] > np.float32(0.0)
        copy(z, start)
        for first in range(0, n_active, 4):
            some = active[first : first + 4]
            for j in range(4):
                units[j] = inputs[i, some[j]] if first + j < n_active else np.float32(0.0)
            _add_four(z, units, columns[some[0]], columns[some[1]], columns[some[2]], columns[some[3]])
        copy(out[i], z)


@inline
def _add_four(z: Float32, units: Float32, one: Float32, two: Float32, three: Float32, four: Float32) -> None:
    u, v, w, x = units[0], units[1], units[2], units[3]
    for b in range(len(z)):
        z[b] = z[b] + u * one[b] + v * two[b] + w * three[b] + x * four[b]


@fast_kernel
def activate(x: Float32, bias: Float32, normalised: bool) -> None:
    """Sums [n, H] become units, in place; ``bias`` is in them already unless they are to be normalised."""
    n_units = x.shape[1]
    for i in range(len(x)):
        if normalised:
            mean, square = np.float32(0.0), np.float32(0.0)
            for k in range(n_units):
                mean += x[i, k]
            mean /= np.float32(n_units)
            for k in range(n_units):
                x[i, k] -= mean
                square += x[i, k] * x[i, k]
            scale = np.float32(1.0) / np.sqrt(square / np.float32(n_units) + np.float32(EPSILON))
            for k in range(n_units):
                x[i, k] = x[i, k] * scale + bias[k]
        for k in range(n_units):
            x[i, k] = max(x[i, k], np.float32(0.0))
