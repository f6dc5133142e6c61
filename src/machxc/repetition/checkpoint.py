"""Where a repetition in training is, kept at an interval: a killed one goes on from there, and ends in the same bytes.

All that training has changed is kept: the weights and the optimiser's sums, the encoder, the best weights so far (where
training may stop early), and the position. Random numbers need no keeping: each is a hash of the seed and the position.
A checkpoint carries a digest of what it belongs to and a checksum; one that is another's, or damaged, is as good as
none. Counted repetitions (counting.py) take seconds and are counted again instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from machxc.config import Config
from machxc.repetition.deep import DeepLearner
from machxc.repetition.encode import Encoder, encoder_with
from machxc.repetition.linear import LinearLearner
from machxc.repetition.network import NetworkLearner
from machxc.samples import Array, Float32, UInt32

log = logging.getLogger("machxc.repetition")

INTERVAL = 60.0  # seconds from one checkpoint to the next, when nothing else is asked
_SHARE = 20  # writing takes at most one part in so many of the time: a slow disk has fewer checkpoints
_VERSION = 3  # 1: a linear repetition's weights in 32 bits; 2: what was best had starts

Learner = LinearLearner | NetworkLearner | DeepLearner
Tensors = Mapping[str, Array]


@dataclass
class State:
    """A repetition in training.

    ``epoch``, and ``start``: how many of its samples were trained on, with the summed ``loss``. ``best``: the tensors
    with the lowest held-out loss, ``best_loss``, and ``since_best`` the epochs that were no better.
    """

    encoder: Encoder
    learner: Learner
    epoch: int = 0
    start: int = 0
    loss: float = 0.0
    best_loss: float = math.inf
    since_best: int = 0
    best: dict[str, Array] | None = None


class Checkpoints:
    """Keeps the state of one repetition now and then.

    ``load``: the tensors kept last, None when there are none; ``save``: keep these instead, wholly or not at all;
    ``interval``: seconds between two, at least (0: after every chunk of samples); ``of``: who trains, where it is not
    the kernels, which have their samples in another order.
    """

    def __init__(
        self,
        load: Callable[[], Tensors | None],
        save: Callable[[Tensors], None],
        interval: float = INTERVAL,
        of: str = "",
    ) -> None:
        self._load, self._save, self._interval, self._of = load, save, interval, of
        self._next = time.monotonic() + interval
        self.found = False  # whether training went on from one

    def load(self, config: Config, r: int, n_samples: int) -> State | None:
        """The state kept last of repetition r, None when there is none that fits."""
        tensors = self._load()
        if tensors is None:
            return None
        try:
            digest = _digest(config, r, n_samples, self._of)
            state = _unpacked(tensors, config, r, digest, whole=bool(self._of))
        except (KeyError, ValueError) as error:
            log.warning("repetition %d begins anew: its checkpoint cannot be used (%s)", r, error)
            return None
        self.found = True
        return state

    def offer(self, state: State, config: Config, r: int, n_samples: int) -> None:
        """Keep this state if it is time."""
        if self.due:
            self.keep(state, config, r, n_samples)

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def keep(self, state: State, config: Config, r: int, n_samples: int) -> None:
        """Keep this state."""
        begin = time.monotonic()
        self._save(_packed(state, _digest(config, r, n_samples, self._of)))
        now = time.monotonic()
        self._next = now + (max(self._interval, _SHARE * (now - begin)) if self._interval else 0.0)


def _packed(state: State, digest: bytes) -> dict[str, Array]:
    best_loss = np.array([state.loss, state.best_loss], np.float64).view(np.uint64)
    tensors: dict[str, Array] = {
        "position": np.array([state.epoch, state.start, state.since_best], np.int64),
        "losses": best_loss,
        "of": np.frombuffer(digest, np.uint8),
        "slots": state.encoder.slots,
        "row_weights": state.encoder.row_weights,
        **{f"learner.{name}": array for name, array in _arrays(state.learner).items()},
        **{f"best.{name}": array for name, array in (state.best or {}).items()},
    }
    return {**tensors, "checksum": _checksum(tensors)}


def _unpacked(tensors: Tensors, config: Config, r: int, digest: bytes, *, whole: bool) -> State:
    """The state in ``tensors``; KeyError or ValueError when they are not one of this repetition."""
    kept = {name: array for name, array in tensors.items() if name != "checksum"}
    if bytes(kept["of"]) != digest:
        raise ValueError("it belongs to another repetition, or is of another version")
    if not np.array_equal(tensors["checksum"], _checksum(kept)):
        raise ValueError("it is damaged")
    encoder = encoder_with(config, r, np.array(kept["slots"]), np.array(kept["row_weights"]))
    learner = _restored(kept, config, r, len(encoder.row_weights), whole=whole)
    best = {name.removeprefix("best."): np.array(array) for name, array in kept.items() if name.startswith("best.")}
    epoch, start, since_best = map(int, kept["position"])
    loss, best_loss = map(float, kept["losses"].view(np.float64))
    return State(encoder, learner, epoch, start, loss, best_loss, since_best, best or None)


def learner_of(config: Config, r: int, n_rows: int, bias: Float32, *, whole: bool = False) -> Learner:
    """The learner that a config asks for, at its start. ``whole``: its weights have 32 bits, for a device to train."""
    if config.deep:
        return DeepLearner.start(config, r, n_rows, bias)
    if config.hidden:
        return NetworkLearner.start(config, r, n_rows, bias)
    return LinearLearner.start(config, r, n_rows, bias, whole=whole)


def _restored(kept: Tensors, config: Config, r: int, n_rows: int, *, whole: bool) -> Learner:
    learner = learner_of(config, r, n_rows, np.zeros(config.buckets, np.float32), whole=whole)
    for name, array in _arrays(learner).items():
        given = kept[f"learner.{name}"]
        if (given.shape, given.dtype) != (array.shape, array.dtype):
            raise ValueError(f"its {name} is {given.dtype} {given.shape}, expected {array.dtype} {array.shape}")
        np.copyto(array, given)
    return learner


def _arrays(learner: Learner) -> dict[str, Array]:
    """All that training changes, whatever the learner calls it: the fields that are arrays."""
    if isinstance(learner, DeepLearner):
        return dict(learner.arrays)
    values = {field.name: getattr(learner, field.name) for field in dataclasses.fields(learner)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _digest(config: Config, r: int, n_samples: int, of: str) -> bytes:
    from machxc import __version__

    return hashlib.sha256(json.dumps([_VERSION, __version__, config.to_dict(), r, n_samples, of]).encode()).digest()


def _checksum(tensors: Tensors) -> UInt32:
    """CRC-32 of names and bytes, in the order of the names: uint32 [1]."""
    total = 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total = zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(name.encode(), total))
    return np.array([total], np.uint32)
