"""The repetition with several hidden layers, or with normalised ones: how it starts, and how it is stored.

PyTorch trains it (machxc.torch); the kernels of this package score it, as they score one with a single layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from machxc.config import Config, layer_name
from machxc.errors import SettingError
from machxc.repetition import random
from machxc.repetition.encode import Rows
from machxc.repetition.int8 import as_int8
from machxc.repetition.network import NetworkScorer, uniform
from machxc.repetition.targets import Targets
from machxc.samples import Array, Float32


@dataclass
class DeepLearner:
    """A repetition in training, at rest: weights and row-wise Adagrad sums by name, all float32.

    ``table`` [rows, H1], ``layer_1`` [H2, H1] and so on, ``output`` [B, Hn], each with the ``_squares`` of its rows
    (the table's are ``squares``); ``hidden_bias``, ``layer_1_bias`` and so on, ``bias``, each with a ``_square`` [1].
    """

    normalised: bool
    arrays: dict[str, Float32]

    @classmethod
    def start(cls, config: Config, r: int, n_rows: int, bias: Float32) -> DeepLearner:
        """Weights at random, so that units of all layers are about as large; outputs 0, as in a network of one layer.

        Rows of the table are uniform in +-sqrt(3 / H), other weights in +-sqrt(6 / inputs) (He et al. 2015).
        """
        sizes = config.layers
        arrays = {"squares": np.zeros(n_rows, np.float32)}
        arrays["table"] = _drawn((n_rows, sizes[0]), 3.0 / sizes[0], random.stream(config.seed, random.WEIGHTS, r))
        arrays |= _bias("hidden_bias", np.zeros(sizes[0], np.float32))
        for number, (before, after) in enumerate(pairwise(sizes), 1):
            name, state = layer_name(number), random.stream(config.seed, random.WEIGHTS, r, number)
            arrays[name] = _drawn((after, before), 6.0 / before, state)
            arrays[f"{name}_squares"] = np.zeros(after, np.float32)
            arrays |= _bias(f"{name}_bias", np.zeros(after, np.float32))
        arrays["output"] = np.zeros((config.buckets, sizes[-1]), np.float32)
        arrays["output_squares"] = np.zeros(config.buckets, np.float32)
        return cls(config.normalisation == "layer", arrays | _bias("bias", bias))

    @property
    def table(self) -> Float32:
        """Input rows: float32 [rows, H1]."""
        return self.arrays["table"]

    @property
    def bias(self) -> Float32:
        """That of the buckets: float32 [B]."""
        return self.arrays["bias"]

    def train(self, rows: Rows, targets: Targets, rates: tuple[float, float], position: int) -> float:
        """SettingError: the kernels have one hidden layer, without normalisation or dropout."""
        raise SettingError(NEEDS_TORCH)

    def logits(self, rows: Rows) -> Float32:
        """Bucket scores before softmax or sigmoid, of the weights as they are stored: float32 [n, B]."""
        out = np.empty((len(rows), len(self.bias)), np.float32)
        NetworkScorer(self.tensors(), normalised=self.normalised).logits(rows, out)
        return out

    def tensors(self) -> dict[str, Array]:
        """The trained weights as they are stored: matrices in 8 bits, with a scale for each row (see int8.py)."""
        kept = {name: array for name, array in self.arrays.items() if not name.endswith(("square", "squares"))}
        stored: dict[str, Array] = {}
        for name, array in kept.items():
            stored |= as_int8(name, array) if array.ndim == 2 else {name: array.copy()}
        return stored


NEEDS_TORCH = (
    "several hidden layers, 'normalisation' and 'hidden_dropout' are trained by PyTorch; the kernels have one hidden "
    "layer without either. Set device (--device) to cuda, or to torch-cpu to train on the processor; it takes "
    "pip install 'machxc[torch]'. The model then answers without PyTorch."
)


def _drawn(shape: tuple[int, int], square: float, state: np.uint64) -> Float32:
    weights = np.empty(shape, np.float32)
    uniform(weights, np.float32(np.sqrt(square)), state)
    return weights


def _bias(name: str, start: Float32) -> dict[str, Float32]:
    return {name: start, f"{name}_square": np.zeros(1, np.float32)}
