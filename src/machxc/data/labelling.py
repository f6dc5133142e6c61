"""Labels as a file has them -> label ids: the ids of a trained model, or new ones with their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from machxc.data.raw import RawBatch, RawLabels, kept_offsets, tidy_labels
from machxc.data.records import mixed_labels
from machxc.data.source import read_lines
from machxc.errors import DataError
from machxc.labels import LabelNames
from machxc.samples import MAX_LABELS, Int64

_PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # "007" is a name, not 7
_MERGE_AT = 1 << 20

Remap = Callable[[Int64], Int64]


@dataclass(frozen=True)
class Coded:
    """Label sets as numbers: ``indptr`` int64 [n + 1], ``codes`` int64 (sorted and unique in a row).

    ``unknown`` int64 [n]: labels of each sample that the model does not have, which are not among the codes.
    """

    indptr: Int64
    codes: Int64
    unknown: Int64


class LabelCoder(Protocol):
    """Turns the labels of one batch after the other into codes, and in the end codes into label ids."""

    def encode(self, batch: RawBatch) -> Coded:
        """The codes of a batch's labels; DataError, with the line, for a label that cannot be."""
        ...

    def finish(self) -> tuple[LabelNames, Remap | None]:
        """The names, and what turns codes into label ids (None: they are label ids already)."""
        ...


class NewLabels:
    """Labels to train with: the names are what is found.

    Strings are sorted by their UTF-8 bytes, integers by size, so that label ids do not depend on the order of samples.
    Integers become names 0 .. K - 1 when the file says K, or when few are missing below the largest.
    """

    def __init__(self) -> None:
        self._n_labels: int | None = None
        self._codes: dict[str, int] = {}
        self._distinct = _Distinct()
        self._typed = True

    def encode(self, batch: RawBatch) -> Coded:
        """The codes of a batch's labels: integers are their own, strings are counted as they come."""
        self._n_labels = batch.n_labels
        labels = batch.labels
        codes = labels.values
        if isinstance(codes, list):
            self._typed = labels.typed
            self._check_kind(batch, self._distinct.is_empty)
            known = self._codes
            codes = np.array([known.setdefault(name, len(known)) for name in codes], np.int64)
        elif len(codes) and self._n_labels is None:
            self._check_kind(batch, not self._codes)
            self._distinct.add(codes)
        return Coded(*tidy_labels(labels.indptr, codes), np.zeros(len(batch), np.int64))

    def finish(self) -> tuple[LabelNames, Remap | None]:
        """The names of all that was found, and how codes become label ids."""
        if self._n_labels is not None:
            return LabelNames.ids(self._n_labels), None
        if not self._codes:
            return _integer_names(self._distinct.values())
        names = list(self._codes)
        if not self._typed and all(map(_PLAIN_INTEGER.fullmatch, names)):
            integers = np.array(list(map(int, names)), np.int64)
            found, remap = _integer_names(np.unique(integers))
            return found, lambda codes: integers[codes] if remap is None else remap(integers[codes])
        order = sorted(range(len(names)), key=names.__getitem__)  # by code points, which is by UTF-8 bytes
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        return LabelNames.strings(names[i] for i in order), lambda codes: ranks[codes]

    def _check_kind(self, batch: RawBatch, same: bool) -> None:
        if not same:
            raise batch.error(mixed_labels(batch.labels.values[0]), batch.labels.row(0))


class KnownLabels:
    """Labels that have names already: a trained model's, or those of a file of names.

    ``count_unknown``: whether a label without a name is counted, or an error that says ``advice``. ``ids_of_integers``
    int64: the label id of each integer in the data (-1: unknown), where integers are line numbers of a file of names.
    """

    def __init__(
        self, names: LabelNames, *, count_unknown: bool, advice: str, ids_of_integers: Int64 | None = None
    ) -> None:
        self._names, self._count_unknown, self._advice = names, count_unknown, advice
        self._ids_of_integers = ids_of_integers

    def encode(self, batch: RawBatch) -> Coded:
        """The label ids of a batch's labels; those without a name are counted or an error."""
        labels = batch.labels
        listed, places = _distinct_labels(labels)
        indptr, codes = tidy_labels(labels.indptr, places)
        codes = self._ids_of(batch, listed)[codes]
        known = codes >= 0
        if not known.all():
            self._check_unknown(batch)
        kept = kept_offsets(indptr, known)
        unknown = np.diff(indptr) - np.diff(kept)
        return Coded(*tidy_labels(kept, codes[known]), unknown)

    def finish(self) -> tuple[LabelNames, Remap | None]:
        """The names given; codes are label ids."""
        return self._names, None

    def _ids_of(self, batch: RawBatch, listed: Int64 | list[str]) -> Int64:
        integers = self._names.kind != "strings" or self._ids_of_integers is not None
        if isinstance(listed, list) and integers and not batch.labels.typed:
            return self._ids_of_cells(listed)
        if len(listed) and isinstance(listed, list) == integers:
            raise self._kind_error(batch)
        if isinstance(listed, list):
            return self._names.ids_of(listed)
        return self._integer_ids(listed)

    def _ids_of_cells(self, listed: list[str]) -> Int64:
        """Ids of strings that were meant as integers; other strings are unknown."""
        plain = np.array([bool(_PLAIN_INTEGER.fullmatch(name)) for name in listed], bool)
        ids = np.full(len(listed), -1, np.int64)
        ids[plain] = self._integer_ids(np.array([int(listed[i]) for i in np.flatnonzero(plain)], np.int64))
        return ids

    def _integer_ids(self, integers: Int64) -> Int64:
        table = self._ids_of_integers
        if table is None:
            return self._names.ids_of(integers)
        inside = (integers >= 0) & (integers < len(table))
        return np.where(inside, table[np.where(inside, integers, 0)], -1)

    def _check_unknown(self, batch: RawBatch) -> None:
        if self._count_unknown:
            return
        listed, places = _distinct_labels(batch.labels)
        place = int(np.flatnonzero(self._ids_of(batch, listed)[places] < 0)[0])
        label = batch.labels.values[place]
        raise batch.error(f"the label {_plain(label)!r} is unknown; {self._advice}", batch.labels.row(place))

    def _kind_error(self, batch: RawBatch) -> DataError:
        label = _plain(batch.labels.values[0])
        if isinstance(label, str):
            message = f"expected integer labels, got the string {label!r}; give the labels as integers"
        else:
            message = (
                f"expected labels by their names, which are strings, got the integer {label}; give the names, or the "
                "file of label names (label_names) whose line numbers the integers are"
            )
        return batch.error(message, batch.labels.row(0))


def label_coder(names: LabelNames | None, label_names: Path | str | None, unknown_labels: str | None) -> LabelCoder:
    """The coder for a model's ``names`` (None: training), a file of ``label_names``, and the policy for unknown."""
    lines = None if label_names is None else read_lines(label_names)
    if lines is not None and not lines:
        raise DataError("has no label names; expected one a line", path=str(label_names))
    if names is None:
        return NewLabels() if lines is None else _labels_of_file(lines, str(label_names))
    count = names.kind != "strings" if unknown_labels is None else unknown_labels == "count"
    advice = "train with it, correct it, or have unknown labels counted as misses (unknown_labels='count')"
    if lines is None:
        return KnownLabels(names, count_unknown=count, advice=advice)
    if names.kind != "strings":
        raise DataError(
            "this file names labels, but the model was trained with integer labels; leave it out", path=str(label_names)
        )
    return KnownLabels(names, count_unknown=count, advice=advice, ids_of_integers=names.ids_of(lines))


def _labels_of_file(lines: list[str], path: str) -> KnownLabels:
    try:
        names = LabelNames.strings(lines)
    except DataError as error:
        raise DataError(
            f"expected one label name a line, each once: {error} (label i is on line i + 1)", path=path
        ) from None
    advice = f"{path} names the labels 0 to {len(lines) - 1}: add its name there, or correct the label"
    return KnownLabels(names, count_unknown=False, advice=advice, ids_of_integers=np.arange(len(lines)))


def _distinct_labels(labels: RawLabels) -> tuple[Int64 | list[str], Int64]:
    """The distinct labels of a batch, and for every label its place among them."""
    if isinstance(labels.values, list):
        places: dict[str, int] = {}
        codes = np.array([places.setdefault(name, len(places)) for name in labels.values], np.int64)
        return list(places), codes
    return np.unique(labels.values, return_inverse=True)


def _integer_names(values: Int64) -> tuple[LabelNames, Remap | None]:
    """Names of these distinct integers (sorted): 0 .. K - 1 when that leaves few labels without a sample."""
    if not len(values):
        return LabelNames.ids(0), None
    largest = int(values[-1])
    if int(values[0]) >= 0 and largest + 1 <= min(4 * len(values) + 1024, MAX_LABELS):
        return LabelNames.ids(largest + 1), None
    return LabelNames.integers(values), lambda codes: np.searchsorted(values, codes)


def _plain(label: object) -> object:
    return int(label) if isinstance(label, np.integer) else label


class _Distinct:
    """Distinct integers of a stream, in memory proportional to their number."""

    def __init__(self) -> None:
        self._values: Int64 = np.empty(0, np.int64)
        self._new: list[Int64] = []
        self._n_new = 0

    @property
    def is_empty(self) -> bool:
        return not len(self._values) and not self._new

    def add(self, values: Int64) -> None:
        self._new.append(np.unique(values))
        self._n_new += len(self._new[-1])
        if self._n_new > max(_MERGE_AT, len(self._values)):
            self.values()

    def values(self) -> Int64:
        """All of them, sorted."""
        if self._new:
            self._values = np.unique(np.concatenate([self._values, *self._new]))
            self._new, self._n_new = [], 0
        return self._values
