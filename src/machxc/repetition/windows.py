"""The order of samples in an epoch: a true shuffle of all of them, read from the store in long strides.

Every sample throws for one of W windows, and each window is shuffled (Fisher and Yates): that is a shuffle by a random
key whose first digit is the window, so that every order of the samples is equally likely. A window is gathered into
memory before it is trained on, its samples in the order of the store: the store is read from front to back, once for
each window, and only the window, some tens of MB, is read at random.

A store beyond memory would be read from the disk W times. It is read once instead, and its samples are dealt out to a
temporary file a window, which then is read once: the same windows, from three passes over the data, whatever W. So are
samples that are wanted in another order, as counting wants them by their buckets.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from machxc.compiled import kernel
from machxc.cost import physical_memory
from machxc.files import output_errors
from machxc.repetition import random
from machxc.repetition.chunks import WINDOW, WINDOW_BYTES
from machxc.repetition.random import draw
from machxc.samples import Array, Features, Int64, Labels, Samples, UInt32, frozen

_DEALT = 1 << 17  # samples that are dealt out to files at a time
_MOST_FILES = 512


@dataclass(frozen=True)
class Window:
    """Samples in memory, and the order in which to train on them (int64 [n])."""

    samples: Samples
    order: Int64


def shuffled(samples: Samples, chosen: Int64, seed: int, r: int, epoch: int) -> Iterator[Window]:
    """The samples ``chosen`` (int64, rising) in the order of an epoch of repetition r: the same wherever it runs."""
    n_windows = -(-len(chosen) // window_size(samples))
    if n_windows <= 1:
        order = chosen.copy()
        random.shuffle(order, random.stream(seed, random.SHUFFLE, r, epoch))
        yield Window(samples, order)
        return
    members = np.empty(len(chosen), np.uint32)
    ends = np.zeros(n_windows + 1, np.int64)
    _deal(chosen, random.stream(seed, random.SHUFFLE, r, epoch), ends, members)
    bounds = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    if is_beyond_memory(samples):
        parts = _dealt_out(samples, members, bounds)
    else:
        parts = (gather(samples, members[a:b]) for a, b in bounds)
    for number, part in enumerate(parts):
        order = np.arange(len(part), dtype=np.int64)
        random.shuffle(order, random.stream(seed, random.SHUFFLE, r, epoch, number))
        yield Window(part, order)


def in_order(samples: Samples, members: UInt32) -> Iterator[tuple[Features, Int64]]:
    """The features of the samples ``members`` (uint32 [n]), in that order, some at a time: where each of these lies.

    Those of a store beyond memory are dealt out to files, so that it is read from front to back.
    """
    size = window_size(samples)
    bounds = [(start, min(start + size, len(members))) for start in range(0, len(members), size)]
    if not bounds or not is_beyond_memory(samples):
        yield from ((samples.features, members[a:b].astype(np.int64)) for a, b in bounds)
        return
    rising, places = np.empty(len(members), np.uint32), np.empty(len(members), np.uint32)
    for a, b in bounds:
        rising[a:b], places[a:b] = _sorted(members[a:b])
    for (a, b), part in zip(bounds, _dealt_out(samples, rising, bounds), strict=True):
        yield part.features, places[a:b].astype(np.int64)


def at_hand(samples: Samples, members: Int64) -> tuple[Features, Int64]:
    """The features of the samples ``members`` (int64 [n]) of any order, and where each of these lies.

    Of a store beyond memory they are copied, which is read from front to back.
    """
    if not is_beyond_memory(samples):
        return samples.features, members
    rising, places = _sorted(members.astype(np.uint32))
    return gather(samples, rising).features, places


def batch_size(samples: Samples, least: int, others: int) -> int:
    """How many samples to take up at a time, each with ``others``.

    They are a window's where these are taken out of a store beyond memory, which must be read for each batch.
    """
    return max(least, window_size(samples) // others) if is_beyond_memory(samples) else least


def is_beyond_memory(samples: Samples) -> bool:
    """Whether samples are so many that the system cannot be expected to keep their files in memory."""
    return samples_bytes(samples) > physical_memory() // 2


def window_size(samples: Samples) -> int:
    """About how many samples a window has."""
    mean = max(1, samples_bytes(samples) // max(1, len(samples)))
    return max(1, min(WINDOW, WINDOW_BYTES // mean))


def samples_bytes(samples: Samples) -> int:
    """The bytes of all arrays of samples."""
    return 8 * len(samples.features.indices) + 4 * len(samples.labels.indices) + 20 * len(samples)


def gather(samples: Samples, members: UInt32) -> Samples:
    """A copy of the samples ``members`` (uint32 [n])."""
    features, labels = samples.features, samples.labels
    indptr, indices = gather_rows(features.indptr, features.indices, members)
    values = gather_rows(features.indptr, features.values, members)[1]
    label_indptr, ids = gather_rows(labels.indptr, labels.indices, members)
    weights = None if samples.weights is None else np.asarray(samples.weights[members])
    taken = Features(indptr, indices, values, features.n_features)
    return Samples(taken, Labels(label_indptr, ids, labels.n_labels), weights)


def gather_rows(indptr: Int64, items: Array, members: UInt32) -> tuple[Int64, Array]:
    """The rows ``members`` (uint32 [n]) of a CSR matrix with ``items`` of 4 bytes: indptr and items."""
    ends = np.zeros(len(members) + 1, np.int64)
    _add_lengths(frozen(indptr), members, ends)
    out = np.empty(int(ends[-1]), items.dtype)
    _gather(frozen(indptr), frozen(items).view(np.uint32), members, out.view(np.uint32))
    return ends, out


def _dealt_out(samples: Samples, members: UInt32, bounds: list[tuple[int, int]]) -> Iterator[Samples]:
    """The samples of each window, by way of temporary files: as `gather` would give them."""
    rounds = math.ceil(len(bounds) / _MOST_FILES)
    for start in range(0, len(bounds), math.ceil(len(bounds) / rounds)):
        some = bounds[start : start + math.ceil(len(bounds) / rounds)]
        with output_errors(tempfile.gettempdir()), _Files(len(some)) as files:
            for first in range(0, len(samples), _DEALT):
                block = _block(samples, first, min(first + _DEALT, len(samples)))
                for window, (a, b) in enumerate(some):
                    low, high = a + np.searchsorted(members[a:b], [first, first + len(block)])
                    files.add(window, gather(block, members[low:high] - np.uint32(first)))
            for window in range(len(some)):
                yield files.read(window, samples)


def _sorted(members: UInt32) -> tuple[UInt32, Int64]:
    """The members in rising order, and where each of them comes to lie in it."""
    order = np.argsort(members, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return members[order], places


def _block(samples: Samples, start: int, stop: int) -> Samples:
    weights = None if samples.weights is None else samples.weights[start:stop]
    return Samples(samples.features.rows(start, stop), samples.labels.rows(start, stop), weights)


class _Files:
    """A temporary file for each window, with blocks of samples one after the other."""

    def __init__(self, n: int) -> None:
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(n)]  # noqa: SIM115 (closed at the exit)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()

    def add(self, window: int, block: Samples) -> None:
        """Append a block of samples to the file of a window."""
        features, labels = block.features, block.labels
        counts = np.array([len(block), len(features.indices), len(labels.indices)], np.int64)
        arrays: list[Array] = [counts, np.diff(features.indptr), np.diff(labels.indptr)]
        arrays += [features.indices, features.values, labels.indices]
        arrays += [] if block.weights is None else [block.weights]
        for array in arrays:
            self._files[window].write(array.tobytes())

    def read(self, window: int, whole: Samples) -> Samples:
        """The samples of a window."""
        file, parts = self._files[window], list[list[Array]]()
        file.seek(0)
        while head := file.read(24):
            n, n_values, n_labels = np.frombuffer(head, np.int64).tolist()
            kinds = [(np.int64, n), (np.int64, n), (np.uint32, n_values), (np.float32, n_values), (np.uint32, n_labels)]
            kinds += [] if whole.weights is None else [(np.float32, n)]
            parts.append([np.frombuffer(file.read(np.dtype(kind).itemsize * count), kind) for kind, count in kinds])
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        indptr, label_indptr = (np.concatenate([[0], np.cumsum(column)]).astype(np.int64) for column in columns[:2])
        features = Features(indptr, columns[2], columns[3], whole.features.n_features)
        labels = Labels(label_indptr, columns[4], whole.labels.n_labels)
        return Samples(features, labels, columns[5] if whole.weights is not None else None)


@kernel
def _deal(chosen: Int64, state: np.uint64, ends: Int64, members: UInt32) -> None:
    """Let each sample throw for a window; ``members`` by window, rising in each, and where each window ends."""
    n_windows = np.uint64(len(ends) - 1)
    starts = np.zeros(len(ends), np.int64)
    for i in range(len(chosen)):
        starts[np.int64(draw(state, i) % n_windows) + 1] += 1
    for window in range(1, len(starts)):
        starts[window] += starts[window - 1]
        ends[window] = starts[window]
    for i in range(len(chosen)):
        w = int(draw(state, i) % n_windows)
        members[starts[w]] = chosen[i]
        starts[w] += 1


@kernel
def _add_lengths(indptr: Int64, members: UInt32, ends: Int64) -> None:
    for n in range(len(members)):
        member = np.int64(members[n])
        ends[n + 1] = ends[n] + max(np.int64(0), indptr[member + 1] - indptr[member])  # below: of a file cut meanwhile


@kernel
def _gather(indptr: Int64, items: UInt32, members: UInt32, out: UInt32) -> None:
    at = 0
    for member in members:
        for j in range(indptr[member], indptr[np.int64(member) + 1]):
            out[at] = items[j]
            at += 1
