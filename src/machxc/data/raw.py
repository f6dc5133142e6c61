"""What every format's reader makes of its file: raw batches, a few thousand samples at a time, with their lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from machxc.compiled import kernel
from machxc.config import TextConfig
from machxc.data.source import Mark
from machxc.errors import DataError
from machxc.packed import Strings
from machxc.samples import Features, Float32, Int64, UInt32, starts_of

BATCH = 8192  # samples of a dataset that is read in parts, at most; and of a batch of Python values
BATCH_CHARACTERS = 1 << 23  # a batch of texts ends when it has so many


@dataclass(frozen=True)
class RawLabels:
    """Label sets as the file has them: ``indptr`` int64 [n + 1] and, flat, integers (int64) or strings.

    ``typed``: False where the format does not tell integers from strings (the cells of a table), and the labels are
    integers if all of them look so.
    """

    indptr: Int64
    values: Int64 | Strings
    typed: bool = True

    def value(self, place: int) -> int | str:
        """One label, as Python has it."""
        found = self.values[place]
        return found if isinstance(found, str) else int(found)

    def row(self, place: int) -> int:
        """The sample that the label at ``place`` in ``values`` belongs to."""
        return int(np.searchsorted(self.indptr, place, side="right")) - 1


@dataclass(frozen=True)
class RawBatch:
    """Some samples in the order of the file; one of ``texts`` and ``features`` is there.

    ``lines``: where each begins, from 1, int64 [n]. ``n_labels``: K where the file's header says it (then
    ``features.n_features`` is the header's D too). ``text``: how the features were made from texts, where they were.
    ``mark``: where a reader can go on after this batch, if it can there.
    """

    path: str
    lines: Int64
    labels: RawLabels
    texts: Strings | None = None
    features: Features | None = None
    weights: Float32 | None = None
    n_labels: int | None = None
    text: TextConfig | None = None
    mark: Mark | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, message: str, row: int) -> DataError:
        """A DataError about sample ``row`` of this batch."""
        return DataError(message, path=self.path, line=int(self.lines[row]))


def kept_offsets(indptr: Int64, kept: Any) -> Int64:
    """The offsets of rows of which only the elements ``kept`` (bool [nnz]) stay."""
    return starts_of(kept)[indptr]


def is_rising(indptr: Int64, values: Int64 | UInt32) -> bool:
    """Whether the values of each row are strictly increasing."""
    if len(values) < 2:
        return True
    rising = values[1:] > values[:-1]
    starts = indptr[1:-1]
    rising[starts[(starts > 0) & (starts < len(values))] - 1] = True
    return bool(rising.all())


def tidy_labels(indptr: Int64, values: Int64) -> tuple[Int64, Int64]:
    """Label sets with their values sorted and each of them once."""
    if is_rising(indptr, values):
        return indptr, values
    new_indptr, values = np.zeros(len(indptr), np.int64), values.copy()
    used = _tidy_rows(np.asarray(indptr), values, new_indptr)
    return new_indptr, values[:used]


@kernel
def _tidy_rows(indptr: Int64, values: Int64, new_indptr: Int64) -> int:
    """Sort each row and close the gaps that repeated values leave, in place; returns how many values stay."""
    used = 0
    for i in range(len(indptr) - 1):
        start, stop = indptr[i], indptr[i + 1]
        gap = 1  # Shell's sort with Knuth's gaps: Numba's own takes nearly a second to compile
        while gap < stop - start:
            gap = 3 * gap + 1
        while gap > 0:
            for j in range(start + gap, stop):
                value, k = values[j], j
                while k >= start + gap and values[k - gap] > value:
                    values[k] = values[k - gap]
                    k -= gap
                values[k] = value
            gap //= 3
        first = used
        for j in range(start, stop):
            if used == first or values[used - 1] != values[j]:
                values[used] = values[j]
                used += 1
        new_indptr[i + 1] = used
    return used


def tidy_features(features: Features) -> Features:
    """Rows with ids sorted, values of the same id summed, and zeros left out: a value of 0 is the same as none."""
    indptr, ids, values = features.indptr, features.indices, features.values
    if not is_rising(indptr, ids):
        rows = np.repeat(np.arange(len(indptr) - 1, dtype=np.uint64), np.diff(indptr))
        keys = (rows << np.uint64(32)) | ids
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        with np.errstate(over="ignore"):  # the caller checks that values are finite
            values = np.add.reduceat(values[order].astype(np.float64), np.flatnonzero(first)).astype(np.float32)
        indptr, ids = kept_offsets(indptr, first), ids[order][first]
    if not values.all():
        kept = values != 0
        indptr, ids, values = kept_offsets(indptr, kept), ids[kept], values[kept]
    return Features(indptr, ids, values, features.n_features)
