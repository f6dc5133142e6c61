"""Labels as a file has them -> label ids, where the names are known: a trained model's, or those of a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from machxc.data.columns import Columns, Offsets
from machxc.data.name_files import ids_of_file, names_of_file
from machxc.data.raw import RawBatch, RawLabels, kept_offsets, tidy_labels
from machxc.errors import DataError
from machxc.labels import LabelNames
from machxc.packed import Strings, distinct_strings
from machxc.samples import Int64, Labels

_PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # "007" is a name, not 7


IdsOfIntegers = Callable[[Int64], Int64]
"""The label ids of integers in the data, -1 for those that are none."""


@dataclass(frozen=True)
class Coded:
    """Label sets as numbers: ``indptr`` int64 [n + 1], ``codes`` int64 (sorted and unique in a row).

    ``unknown`` int64 [n]: labels of each sample that the model does not have, which are not among the codes.
    """

    indptr: Int64
    codes: Int64
    unknown: Int64


class KnownLabels:
    """Labels that have names already: a trained model's, or those of a file of names.

    ``count_unknown``: whether a label without a name is counted, or an error that says ``advice``. ``ids_of_integers``:
    gives the label ids of integers in the data (-1: unknown), where they are line numbers of a file of names.
    """

    def __init__(
        self,
        names: LabelNames,
        *,
        count_unknown: bool,
        advice: str,
        ids_of_integers: Callable[[Int64], Int64] | None = None,
    ) -> None:
        self.names, self._count_unknown, self._advice = names, count_unknown, advice
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

    def _ids_of(self, batch: RawBatch, listed: Int64 | list[str]) -> Int64:
        integers = self.names.kind != "strings" or self._ids_of_integers is not None
        if isinstance(listed, list) and integers and not batch.labels.typed:
            return self._ids_of_cells(listed)
        if len(listed) and isinstance(listed, list) == integers:
            raise self._kind_error(batch)
        if isinstance(listed, list):
            return self.names.ids_of(listed)
        return self._integer_ids(listed)

    def _ids_of_cells(self, listed: list[str]) -> Int64:
        """Ids of strings that were meant as integers; other strings are unknown."""
        plain = np.array([bool(_PLAIN_INTEGER.fullmatch(name)) for name in listed], bool)
        ids = np.full(len(listed), -1, np.int64)
        ids[plain] = self._integer_ids(np.array([int(listed[i]) for i in np.flatnonzero(plain)], np.int64))
        return ids

    def _integer_ids(self, integers: Int64) -> Int64:
        return (self._ids_of_integers or self.names.ids_of)(integers)

    def _check_unknown(self, batch: RawBatch) -> None:
        if self._count_unknown:
            return
        listed, places = _distinct_labels(batch.labels)
        place = int(np.flatnonzero(self._ids_of(batch, listed)[places] < 0)[0])
        label = batch.labels.value(place)
        raise batch.error(f"the label {label!r} is unknown; {self._advice}", batch.labels.row(place))

    def _kind_error(self, batch: RawBatch) -> DataError:
        label = batch.labels.value(0)
        if isinstance(label, str):
            message = f"expected integer labels, got the string {label!r}; give the labels as integers"
        else:
            message = (
                f"expected labels by their names, which are strings, got the integer {label}; give the names, or the "
                "file of label names (label_names) whose line numbers the integers are"
            )
        return batch.error(message, batch.labels.row(0))


class NamedLabels:
    """Gathers the labels of samples in ``columns``, as label ids; ``state``: that of another one to go on from."""

    def __init__(self, coder: KnownLabels, columns: Columns, state: dict[str, Any] | None = None) -> None:
        self._coder = coder
        self._indptr = Offsets(columns.new("labels.indptr", np.int64), None if state is None else state["last"])
        self._ids = columns.new("labels.indices", np.uint32)

    @property
    def state(self) -> dict[str, Any]:
        """What to know, beside the columns, to go on."""
        return {"last": self._indptr.last}

    def add(self, batch: RawBatch) -> Int64:
        """The labels of a batch; returns how many of each sample have no name (int64 [n])."""
        coded = self._coder.encode(batch)
        self._indptr.append(coded.indptr)
        self._ids.append(coded.codes.astype(np.uint32))
        return coded.unknown

    def end_part(self) -> None:
        """Nothing: all is written."""

    def finish(self) -> tuple[Labels, LabelNames]:
        """The labels of all samples, and their names."""
        names = self._coder.names
        return Labels(self._indptr.finish(), self._ids.finish(), len(names)), names


def label_coder(
    names: LabelNames | None, label_names: Path | str | None, unknown_labels: str | None, columns: Columns
) -> KnownLabels | None:
    """The coder for a model's ``names`` (None: training), a file of ``label_names``, and the policy for unknown.

    None when there are neither: names are what is found. ``columns``: where the names of a file are to lie.
    """
    if names is None:
        return None if label_names is None else _labels_of_file(label_names, columns)
    count = names.kind != "strings" if unknown_labels is None else unknown_labels == "count"
    advice = "train with it, correct it, or have unknown labels counted as misses (unknown_labels='count')"
    if label_names is None:
        return KnownLabels(names, count_unknown=count, advice=advice)
    if names.kind != "strings":
        raise DataError(
            "this file names labels, but the model was trained with integer labels; leave it out", path=str(label_names)
        )
    return KnownLabels(
        names, count_unknown=count, advice=advice, ids_of_integers=_looked_up(ids_of_file(label_names, names))
    )


def _labels_of_file(path: Path | str, columns: Columns) -> KnownLabels:
    names = names_of_file(path, columns)
    advice = f"{path} names the labels 0 to {len(names) - 1}: add its name there, or correct the label"
    return KnownLabels(names, count_unknown=False, advice=advice, ids_of_integers=LabelNames.ids(len(names)).ids_of)


def _looked_up(table: Int64) -> IdsOfIntegers:
    """What finds integers in a table."""

    def look_up(integers: Int64) -> Int64:
        inside = (integers >= 0) & (integers < len(table))
        return np.where(inside, table[np.where(inside, integers, 0)], -1)

    return look_up


def _distinct_labels(labels: RawLabels) -> tuple[Int64 | list[str], Int64]:
    """The distinct labels of a batch, and for every label its place among them."""
    if isinstance(labels.values, Strings):
        distinct, codes = distinct_strings(labels.values)
        return distinct.tolist(), codes
    return np.unique(labels.values, return_inverse=True)
