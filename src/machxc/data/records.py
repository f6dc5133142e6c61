"""Samples that come one by one as Python values (JSONL, tables), gathered and checked a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from machxc.data.raw import BATCH, BATCH_CHARACTERS, RawBatch, RawLabels, tidy_features
from machxc.data.source import Mark
from machxc.errors import DataError
from machxc.packed import Strings
from machxc.samples import Features, Float32, Int64, starts_of

_LARGEST = float(np.finfo(np.float32).max)
_MAX_FEATURE = 2**32 - 1


class Records:
    """Gathers samples of one file until there are enough for a `RawBatch`.

    ``typed``: see `RawLabels`. Every sample has a text, or every sample has numeric features: ``of_texts`` says which,
    None before the first.
    """

    def __init__(self, path: str, *, typed: bool, of_texts: bool | None = None) -> None:
        self._path, self._typed = path, typed
        self.of_texts = of_texts
        self._clear()

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def full(self) -> bool:
        """Whether it is time to `take`."""
        return len(self._lines) >= BATCH or self._size >= BATCH_CHARACTERS

    def add_text(self, line: int, text: str, labels: list[Any], weight: Any) -> None:
        """One sample with a text."""
        self._only(line, of_texts=True)
        self._texts.append(text)
        self._size += len(text)
        self._add(line, labels, weight)

    def add_features(self, line: int, ids: list[Any], values: list[Any], labels: list[Any], weight: Any) -> None:
        """One sample with numeric features."""
        self._only(line, of_texts=False)
        self._ids += ids
        self._values += values
        self._n_features.append(len(ids))
        self._size += 8 * len(ids)
        self._add(line, labels, weight)

    def take(self, mark: Mark | None = None) -> RawBatch:
        """What was gathered, checked; DataError with the line of what is wrong."""
        batch = RawBatch(
            self._path,
            np.array(self._lines, np.int64),
            self._raw_labels(),
            self._checked_texts() if self.of_texts else None,
            None if self.of_texts else self._features(),
            checked_weights(self._path, self._lines, self._weights),
            mark=mark,
        )
        self._clear()
        return batch

    def _clear(self) -> None:
        self._lines: list[int] = []
        self._texts: list[str] = []
        self._ids: list[Any] = []
        self._values: list[Any] = []
        self._n_features: list[int] = []
        self._labels: list[Any] = []
        self._n_labels: list[int] = []
        self._weights: list[Any] = []
        self._size = 0

    def _only(self, line: int, *, of_texts: bool) -> None:
        if self.of_texts is None:
            self.of_texts = of_texts
        elif self.of_texts != of_texts:
            given, before = ("a text", "features") if of_texts else ("features", "a text")
            raise self._error(f"this sample has {given}, those before have {before}; expected one kind all along", line)

    def _add(self, line: int, labels: list[Any], weight: Any) -> None:
        self._lines.append(line)
        self._labels += labels
        self._n_labels.append(len(labels))
        self._weights.append(weight)

    def _error(self, message: str, line: int) -> DataError:
        return DataError(message, path=self._path, line=line)

    def _line(self, indptr: Int64, place: int) -> int:
        return self._lines[int(np.searchsorted(indptr, place, side="right")) - 1]

    def _checked_texts(self) -> Strings:
        if not _is_unicode(self._texts):
            row = next(i for i, text in enumerate(self._texts) if not _is_unicode([text]))
            raise self._error(
                "the text is not valid Unicode (it has half a character, as \\ud83d alone); mend or drop it",
                self._lines[row],
            )
        return Strings.of(self._texts)

    def _raw_labels(self) -> RawLabels:
        indptr = starts_of(self._n_labels)
        types = set(map(type, self._labels))
        if types == {int}:
            return RawLabels(indptr, self._integers(indptr), self._typed)
        if types == {str} and "" not in self._labels and _is_unicode(self._labels):
            return RawLabels(indptr, Strings.of(self._labels), self._typed)
        if types:
            raise self._label_error(indptr)
        return RawLabels(indptr, np.empty(0, np.int64), self._typed)

    def _integers(self, indptr: Int64) -> Int64:
        try:
            return np.array(self._labels, np.int64)
        except OverflowError:
            place = next(i for i, label in enumerate(self._labels) if not -(2**63) <= label < 2**63)
            raise self._error(
                f"an integer label is out of range: expected one that fits 64 bits, got {_short(self._labels[place])}; "
                "write it as a string",
                self._line(indptr, place),
            ) from None

    def _label_error(self, indptr: Int64) -> DataError:
        first = type(self._labels[0])
        for place, label in enumerate(self._labels):
            line = self._line(indptr, place)
            if type(label) not in (int, str) or label == "" or (type(label) is str and not _is_unicode([label])):
                return self._error(
                    f"expected a label that is an integer or a non-empty string, got {_short(label)}", line
                )
            if type(label) is not first:
                return self._error(mixed_labels(label), line)
        raise AssertionError("no label is wrong")

    def _features(self) -> Features:
        indptr = starts_of(self._n_features)
        if not (set(map(type, self._ids)) <= {int} and set(map(type, self._values)) <= {int, float}):
            raise self._feature_error(indptr)
        try:
            ids, values = np.array(self._ids, np.int64), np.array(self._values, np.float64)
        except OverflowError:
            raise self._feature_error(indptr) from None
        good = (ids >= 0) & (ids <= _MAX_FEATURE) & (np.abs(values) <= _LARGEST)  # a NaN compares as False
        if not good.all():
            raise self._feature_error(indptr)
        n_features = int(ids.max()) + 1 if len(ids) else 0
        features = Features(indptr, ids.astype(np.uint32), values.astype(np.float32), n_features)
        return self._summed(features)

    def _summed(self, features: Features) -> Features:
        tidy = tidy_features(features)
        bad = np.flatnonzero(~np.isfinite(tidy.values))
        if len(bad):
            raise self._error("the values of one feature add up to more than fits", self._line(tidy.indptr, bad[0]))
        return tidy

    def _feature_error(self, indptr: Int64) -> DataError:
        for place, (id_, value) in enumerate(zip(self._ids, self._values, strict=True)):
            line = self._line(indptr, place)
            if type(id_) is not int or not 0 <= id_ <= _MAX_FEATURE:
                return self._error(f"expected a feature id in [0, 2**32), got {_short(id_)}", line)
            if type(value) not in (int, float) or not _is_float32(value):
                return self._error(f"feature {id_}: expected a finite number, got {_short(value)}", line)
        raise AssertionError("no feature is wrong")


def checked_weights(path: str, lines: Sequence[int] | Int64, weights: Sequence[Any]) -> Float32 | None:
    """Weights of samples, 1 where there is None, or None if all are; DataError with the line of one that is wrong."""
    if weights.count(None) == len(weights):
        return None
    for line, weight in zip(lines, weights, strict=True):
        good = weight is None or (type(weight) in (int, float) and weight >= 0 and _is_float32(weight))
        if not good:
            message = f"expected a weight that is a finite number, 0 or more, got {_short(weight)}"
            raise DataError(message, path=path, line=int(line))
    return np.array([1.0 if weight is None else weight for weight in weights], np.float32)


def mixed_labels(label: Any) -> str:
    """The message for a label of another type than those before it."""
    given, before = ("a string", "integers") if isinstance(label, str) else ("an integer", "strings")
    return f"the label {_short(label)} is {given}, those before are {before}; write all labels in one way"


def _is_float32(value: float) -> bool:
    return -_LARGEST <= value <= _LARGEST and not math.isnan(value)


def _is_unicode(texts: list[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    """A value for a message: as Python writes it, cut to 60 characters."""
    try:
        shown = repr(value)
    except ValueError:  # an int of thousands of digits
        return "a number of thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
