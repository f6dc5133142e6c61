"""Samples on their way to a device: read ahead by a thread, in page-locked memory, in one shuffled order.

All repetitions of a group see the same batch, which is copied to the device once; what differs between them, hashes, is
computed there. The order does not depend on which repetitions there are: one is trained alike alone and in a group.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from machxc.repetition.windows import gather, shuffled
from machxc.samples import Array, Int64, Samples
from machxc.torch.device import on

if TYPE_CHECKING:
    from torch import Tensor

SHARED = 1 << 20  # stands for a repetition's number in the order of samples: that of all of them
_AHEAD = 3  # batches that are ready before they are wanted

Sent = tuple[list["Tensor"], int]
"""The arrays of a batch as tensors of this machine, and how many feature values came before."""


@dataclass(frozen=True)
class Batch:
    """n samples as tensors of a device, as they are stored: neither features nor labels are hashed.

    ``offsets`` int64 [n + 1], ``ids`` int64 [m] and ``values`` float32 [m]: features; ``label_offsets`` int64 [n + 1],
    ``labels`` int64 [l]; ``weights`` float32 [n]; ``first``: how many feature values came before, in this epoch;
    ``at_a_time``: of how many samples there should be more in memory than that (0: of all).
    """

    offsets: Tensor
    ids: Tensor
    values: Tensor
    label_offsets: Tensor
    labels: Tensor
    weights: Tensor
    first: int = 0
    at_a_time: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def is_cut(self) -> bool:
        """Whether it has more samples than should be computed with at a time."""
        return 0 < self.at_a_time < len(self)

    def parts(self) -> Iterator[tuple[slice, Batch]]:
        """As many samples as should be computed with at a time: where they are in the batch, and the batch of them."""
        for start in range(0, len(self), self.at_a_time or max(1, len(self))):
            rows = slice(start, min(start + (self.at_a_time or len(self)), len(self)))
            yield rows, self._part(rows)

    def _part(self, rows: slice) -> Batch:
        values, labels = (
            slice(*offsets[[rows.start, rows.stop]].tolist()) for offsets in (self.offsets, self.label_offsets)
        )
        ends = slice(rows.start, rows.stop + 1)
        return Batch(
            self.offsets[ends] - values.start, self.ids[values], self.values[values],
            self.label_offsets[ends] - labels.start, self.labels[labels], self.weights[rows],
            self.first + values.start, self.at_a_time,
        )  # fmt: skip


def batch_of(samples: Samples, device: str, first: int = 0) -> Batch:
    """Samples as a batch on a device."""
    return _sent(_packed(samples), device, first)


def batches(
    samples: Samples, order: Int64, seed: int, epoch: int, size: int, device: str, skip: int = 0
) -> Generator[Batch, None, None]:
    """The samples ``order`` (int64, rising) as batches of at most ``size``, shuffled anew in each epoch.

    ``skip``: so many samples at the front of the epoch are left out, those of whole batches.
    """
    ready: queue.Queue[Sent | BaseException | None] = queue.Queue(_AHEAD)
    stop, ahead = threading.Event(), _ahead(samples, order, seed, epoch, size, device, skip)
    thread = threading.Thread(target=_prepare, args=(ahead, device, ready, stop), name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield _sent(item[0], device, item[1])
    finally:
        stop.set()
        while thread.is_alive():  # it may wait for room
            _drain(ready)
            thread.join(0.01)


def _prepare(ahead: Iterator[Sent], device: str, ready: Any, stop: threading.Event) -> None:
    """What the thread does: batches, then None; or what went wrong."""
    try:
        with on(device):
            for item in ahead:
                ready.put(item)
                if stop.is_set():
                    return
        ready.put(None)
    except BaseException as error:
        ready.put(error)


def _ahead(samples: Samples, order: Int64, seed: int, epoch: int, size: int, device: str, skip: int) -> Iterator[Sent]:
    """Batches, ready to be sent to the device."""
    pinned, done, first = device.startswith("cuda"), 0, 0
    for window in shuffled(samples, order, seed, SHARED, epoch):
        for start in range(0, len(window.order), size):
            chunk = window.order[start : start + size]
            part = gather(window.samples, chunk.astype(np.uint32))
            done += len(chunk)
            if done > skip:
                tensors = _packed(part)
                yield [tensor.pin_memory() for tensor in tensors] if pinned else tensors, first
            first += len(part.features.indices)


def _drain(ready: Any) -> None:
    try:
        while True:
            ready.get_nowait()
    except queue.Empty:
        pass


def _packed(samples: Samples) -> list[Tensor]:
    """The arrays of a batch as tensors of this machine: ids as int32, whose bits are those of uint32."""
    features, labels = samples.features, samples.labels
    weights = np.ones(len(samples), np.float32) if samples.weights is None else samples.weights
    arrays = (features.indptr, features.indices, features.values, labels.indptr, labels.indices, weights)
    return [_tensor(array) for array in arrays]


def _tensor(array: Array) -> Tensor:
    owned = np.ascontiguousarray(array)
    owned = owned if owned.flags.writeable else owned.copy()
    return torch.from_numpy(owned.view(np.int32) if owned.dtype == np.uint32 else owned)


def _sent(tensors: list[Tensor], device: str, first: int) -> Batch:
    offsets, ids, values, label_offsets, labels, weights = (t.to(device, non_blocking=True) for t in tensors)
    return Batch(offsets, _unsigned(ids), values, label_offsets, _unsigned(labels), weights, first)


def _unsigned(ids: Tensor) -> Tensor:
    return ids.to(torch.int64) & 0xFFFFFFFF
