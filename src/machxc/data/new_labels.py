"""Labels to train with: names are what is found, whatever their number, in memory that does not grow with it.

Samples come in parts. Within a part a label's code is its rank among the distinct labels of the part, which are kept
as one sorted list; in the end the lists are merged into the names of all, and codes become label ids. Sorted lists
have one order everywhere, so that neither ids nor names depend on where parts end.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from machxc.data.columns import Column, Columns, Offsets, release
from machxc.data.dataset import no_unknown
from machxc.data.raw import RawBatch, RawLabels, tidy_labels
from machxc.data.records import mixed_labels
from machxc.front_coding import Coder
from machxc.labels import LabelNames
from machxc.packed import Strings, distinct_strings, joined, merge_sorted, plain_integers, sorted_order, take
from machxc.samples import MAX_LABELS, Array, Int64, Labels, starts_of

_MERGED = 1 << 20  # names that are merged at a time
_TABLE = 1 << 22  # integers of so narrow a range are told apart by a table
_SIGN = np.uint64(1 << 63)


@dataclass
class _Part:
    """Counts of a part: samples, label codes, distinct labels; whether these are integers."""

    n_samples: int
    n_codes: int
    n_names: int
    integers: bool


class NewLabels:
    """Gathers the labels of samples in ``columns``. Strings are sorted by their UTF-8 bytes, integers by size.

    Integers become names 0 .. K - 1 when the file says K, or when few are missing below the largest. ``state``: that of
    another one, whose columns are gone on with.
    """

    def __init__(self, columns: Columns, state: dict[str, Any] | None = None) -> None:
        state = state or {"kind": None, "typed": True, "n_labels": None, "parts": [], "last": None, "last_end": None}
        self._columns = columns
        self._kind: str | None = state["kind"]
        self._typed: bool = state["typed"]
        self._n_labels: int | None = state["n_labels"]
        self._parts = [_Part(**part) for part in state["parts"]]
        self._indptr = Offsets(columns.new("labels.indptr", np.int64), state["last"])
        self._codes = columns.new("part.codes", np.uint32)
        self._names = columns.new("part.bytes", np.uint8)
        self._ends = Offsets(columns.new("part.ends", np.int64), state["last_end"])
        self._waiting: list[RawLabels] = []

    @property
    def state(self) -> dict[str, Any]:
        """What to know, beside the columns, to go on after the last part."""
        parts = [dataclasses.asdict(part) for part in self._parts]
        facts = {"kind": self._kind, "typed": self._typed, "n_labels": self._n_labels}
        return {**facts, "parts": parts, "last": self._indptr.last, "last_end": self._ends.last}

    def add(self, batch: RawBatch) -> Int64:
        """The labels of a batch; returns how many of each sample are unknown: none.

        DataError when they are integers and those before strings, or the other way round.
        """
        labels = batch.labels
        self._n_labels = batch.n_labels
        if len(labels.values):
            kind = "strings" if isinstance(labels.values, Strings) else "integers"
            if self._kind not in (None, kind):
                raise batch.error(mixed_labels(labels.value(0)), labels.row(0))
            self._kind, self._typed = kind, labels.typed
        self._waiting.append(labels)
        return no_unknown(len(batch))

    def end_part(self) -> None:
        """Write what was added since the last part ended."""
        if not self._waiting:
            return
        indptr = _joined_offsets([labels.indptr for labels in self._waiting])
        if self._n_labels is None:
            names, integers, codes = self._distinct()
        else:  # labels are ids already, and fit 32 bits
            names, integers, codes = Strings.of([]), True, self._integers()
        self._waiting = []
        indptr, codes = tidy_labels(indptr, codes)
        self._indptr.append(indptr)
        self._codes.append(codes.astype(np.uint32))
        self._names.append(names.bytes)
        self._ends.append(names.offsets)
        self._parts.append(_Part(len(indptr) - 1, len(codes), len(names), integers))

    def finish(self) -> tuple[Labels, LabelNames]:
        """The labels of all samples, and their names."""
        self.end_part()
        indptr, codes = self._indptr.finish(), self._codes.finish()
        names, maps = self._named()
        ids = self._columns.new("labels.indices", np.uint32)
        sample = code = 0
        for part, new_ids in zip(self._parts, maps, strict=True):
            rows = np.asarray(indptr[sample : sample + part.n_samples + 1])
            given = np.asarray(codes[code : code + part.n_codes])
            ids.append(given if new_ids is None else _renumbered(rows - rows[0], given, new_ids))
            sample, code = sample + part.n_samples, code + part.n_codes
            release(indptr, codes)
        return Labels(indptr, ids.finish(), len(names)), names

    def _integers(self) -> Int64:
        return np.concatenate([np.empty(0, np.int64), *(np.asarray(labels.values) for labels in self._waiting)])

    def _distinct(self) -> tuple[Strings, bool, Int64]:
        """Names of the part, sorted; whether they are integers; codes."""
        if self._kind != "strings":
            return _distinct_integers(self._integers())
        strings = joined([labels.values for labels in self._waiting if isinstance(labels.values, Strings)])
        integers = None if self._typed else plain_integers(strings)
        if integers is not None:
            return _distinct_integers(integers)
        names, codes = distinct_strings(strings)
        return names, False, codes

    def _named(self) -> tuple[LabelNames, Iterator[Array | None]]:
        """The names of all labels, and for each part the label ids of its codes (None: codes are label ids)."""
        names = Strings(self._names.finish(), self._ends.finish())
        bounds = np.cumsum([0, *(part.n_names for part in self._parts)])
        if self._n_labels is not None:
            return LabelNames.ids(self._n_labels), iter([None] * len(self._parts))
        if not all(part.integers for part in self._parts):
            return self._named_by_strings(names, bounds)
        ids = self._columns.scratch("part.ids", np.uint32, int(bounds[-1]))
        integers = self._columns.new("names.integers", np.int64)
        for firsts in _merged(names, bounds, ids):
            integers.append(_integers_of(take(names, firsts)))
            release(names.bytes, names.offsets, ids)
        found = integers.finish()
        if not _are_ids(found):
            return LabelNames.from_arrays("integers", len(found), {"integers": found}, verify=False), _cut(ids, bounds)
        n = int(found[-1]) + 1 if len(found) else 0
        self._columns.drop("names.integers")
        return LabelNames.ids(n), (_integers_of(part) for part in _rows(names, bounds))

    def _named_by_strings(self, names: Strings, bounds: Int64) -> tuple[LabelNames, Iterator[Array | None]]:
        ranks: list[Array | None] = [None] * len(self._parts)
        if any(part.integers and part.n_names for part in self._parts):
            names, ranks = self._spelt(names, bounds)
        ids = self._columns.scratch("part.ids", np.uint32, int(bounds[-1]))
        coded, blocks = self._columns.new("names.coded", np.uint8), self._columns.new("names.blocks", np.uint64)
        coder, n = Coder(), 0
        for firsts in _merged(names, bounds, ids):
            _append(coder.add(take(names, firsts)), coded, blocks)
            n += len(firsts)
            release(names.bytes, names.offsets, ids)
        _append(coder.finish(), coded, blocks)
        arrays = {"coded": coded.finish(), "blocks": blocks.finish()}
        parts = zip(_cut(ids, bounds), ranks, strict=True)
        found = LabelNames.from_arrays("strings", n, arrays, verify=False)
        return found, (part if rank is None else part[rank] for part, rank in parts)

    def _spelt(self, names: Strings, bounds: Int64) -> tuple[Strings, list[Array | None]]:
        """All lists as strings, and for those that were integers the rank of each code among them."""
        text, ends = self._columns.new("spelt.bytes", np.uint8), Offsets(self._columns.new("spelt.ends", np.int64))
        ranks: list[Array | None] = []
        for part, given in zip(self._parts, _rows(names, bounds), strict=True):
            spelt, rank = given, None
            if part.integers:
                written = Strings.of([str(number) for number in _integers_of(given).tolist()])
                order = sorted_order(written, np.arange(len(written)))
                spelt, rank = take(written, order), _inverse(order)
            text.append(spelt.bytes)
            ends.append(spelt.offsets)
            ranks.append(rank)
        return Strings(text.finish(), ends.finish()), ranks


def _merged(names: Strings, bounds: Int64, ids: Array) -> Iterator[Int64]:
    """`merge_sorted` of the parts' names. A single part needs no merging, and most first runs no kernels for that."""
    if len(bounds) > 2:
        yield from merge_sorted(names, bounds, ids, _MERGED)
        return
    for start in range(0, len(names), _MERGED):
        firsts = np.arange(start, min(start + _MERGED, len(names)))
        ids[firsts[0] : firsts[-1] + 1] = firsts
        yield firsts


def _append(written: tuple[Array, Array], coded: Column, blocks: Column) -> None:
    coded.append(written[0])
    blocks.append(written[1])


def _renumbered(indptr: Int64, codes: Array, new_ids: Array) -> Array:
    """Label ids of codes, sorted within each sample: only where integers became strings they are not."""
    return tidy_labels(indptr, new_ids[codes].astype(np.int64))[1].astype(np.uint32)


def _rows(names: Strings, bounds: Int64) -> Iterator[Strings]:
    for start, stop in itertools.pairwise(bounds.tolist()):
        yield names.rows(start, stop)


def _cut(ids: Array, bounds: Int64) -> Iterator[Array]:
    for start, stop in itertools.pairwise(bounds.tolist()):
        yield np.asarray(ids[start:stop])


def _inverse(order: Int64) -> Int64:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def _distinct_integers(integers: Int64) -> tuple[Strings, bool, Int64]:
    """As `NewLabels._distinct`; by a table where they lie close together, as ids do, else sorted."""
    low, high = (int(integers.min()), int(integers.max())) if len(integers) else (0, 0)
    if high - low >= max(_TABLE, len(integers)):
        distinct, codes = np.unique(integers, return_inverse=True)
        return _packed_integers(distinct), True, codes
    places = integers - low
    table = np.zeros(high - low + 1, bool)
    table[places] = True
    distinct = np.flatnonzero(table) + low if len(integers) else integers
    return _packed_integers(distinct), True, (np.cumsum(table) - 1)[places]


def _are_ids(values: Int64) -> bool:
    """Whether these distinct integers (sorted) are 0 .. K - 1 with few missing."""
    return not len(values) or (values[0] >= 0 and int(values[-1]) < min(4 * len(values) + 1024, MAX_LABELS))


def _packed_integers(values: Int64) -> Strings:
    """Integers as strings of eight bytes that sort as they do."""
    packed = (values.astype(np.uint64) ^ _SIGN).astype(">u8")
    return Strings(packed.view(np.uint8), np.arange(len(values) + 1) * 8)


def _integers_of(packed: Strings) -> Int64:
    return (np.ascontiguousarray(packed.bytes).view(">u8").astype(np.uint64) ^ _SIGN).astype(np.int64)


def _joined_offsets(parts: list[Int64]) -> Int64:
    return starts_of(np.concatenate([np.diff(part) for part in parts]))
