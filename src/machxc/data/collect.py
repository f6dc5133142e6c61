"""Raw batches -> features and label ids -> the arrays of a dataset, in memory or in files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from machxc.config import TextConfig
from machxc.data.dataset import Dataset, no_unknown
from machxc.data.formats import find_format, raw_batches
from machxc.data.labelling import LabelCoder, Remap, label_coder
from machxc.data.options import UNKNOWN_LABELS, ReadOptions, SourceFacts
from machxc.data.raw import RawBatch, kept_offsets, tidy_labels
from machxc.data.source import Source
from machxc.errors import DataError, SettingError
from machxc.labels import LabelNames
from machxc.samples import Array, Features, Float32, Int64, Labels, Samples

log = logging.getLogger("machxc.data")

_ROWS = 1 << 18  # samples whose labels are renumbered at a time


class Encoder:
    """Turns raw batches into features and label codes: by a trained model's facts, or by what it meets first.

    A trained model has ``names``, and ``text`` or (numeric features) ``n_features`` D; without ``names``, ``text``
    None is chosen from the first texts. ``unknown_labels``: "error", "count", or None: "error" if names are strings.
    """

    def __init__(
        self,
        label_names: Path | str | None,
        *,
        names: LabelNames | None = None,
        text: TextConfig | None = None,
        n_features: int | None = None,
        unknown_labels: str | None = None,
    ) -> None:
        if unknown_labels not in (None, *UNKNOWN_LABELS):
            raise SettingError(
                f"The 'unknown_labels' option must be one of {UNKNOWN_LABELS} or None. Got {unknown_labels!r} instead."
            )
        self.coder: LabelCoder = label_coder(names, label_names, unknown_labels)
        self.text, self.text_reason = text, ""
        self.n_features = n_features or 0
        self.learns_labels = names is None
        self._limit = n_features if text is None else None
        self._left_out = 0

    def features(self, batch: RawBatch) -> Features:
        """The features of a batch: texts hashed, numeric ones that the model does not have left out."""
        if batch.texts is not None:
            return self._text_features(batch, batch.texts)
        assert batch.features is not None
        self._check_text(batch)
        if self._limit is None:
            self.n_features = max(self.n_features, batch.features.n_features)
            return batch.features
        return self._known_features(batch, batch.features, self._limit)

    @property
    def chooses_text(self) -> bool:
        """Whether texts, if there are any, decide how they become features."""
        return self.text is None and self.learns_labels

    def choose_text(self, texts: list[str]) -> None:
        """Choose how texts become features, from the first of them, or all."""
        from machxc.features.text import choose_text_config

        self.text, self.text_reason = choose_text_config(texts)
        log.info("text features: %s", self.text_reason)

    def close(self) -> None:
        """Tell what was left out; once, after the last batch."""
        if self._left_out:
            log.warning(
                "%d feature values have ids of %d or more, which the model does not have: they were left out",
                self._left_out,
                self.n_features,
            )

    def _text_features(self, batch: RawBatch, texts: list[str]) -> Features:
        from machxc.features.text import token_features

        if self.text is None and not self.learns_labels:
            raise batch.error("this sample is a text, but the model was trained with numeric features", 0)
        if self.text is None:
            self.choose_text(texts)
            assert self.text is not None
        features = token_features(texts, self.text)
        self.n_features = features.n_features
        return features

    def _check_text(self, batch: RawBatch) -> None:
        if batch.text == self.text:
            return
        if batch.text is None:
            raise batch.error("this sample has numeric features, but expected texts (text settings were given)", 0)
        if self.text is not None or not self.learns_labels:
            raise batch.error(
                f"the store was made with other text settings ({batch.text}) than expected ({self.text}); "
                "convert the texts again",
                0,
            )
        self.text = batch.text

    def _known_features(self, batch: RawBatch, features: Features, limit: int) -> Features:
        if features.n_features <= limit:
            return Features(features.indptr, features.indices, features.values, limit)
        if batch.n_labels is not None:
            raise DataError(
                f"the header says {features.n_features} features, the model has {limit}; "
                "expected the features that it was trained with",
                path=batch.path,
                line=1,
            )
        kept = features.indices < limit
        self._left_out += len(kept) - int(np.count_nonzero(kept))
        return Features(kept_offsets(features.indptr, kept), features.indices[kept], features.values[kept], limit)


class Column(Protocol):
    """An array that grows at its end."""

    def append(self, values: Array) -> None:
        """Add values of the column's dtype."""
        ...

    def finish(self) -> Array:
        """The whole array; nothing can be appended any more."""
        ...


class Columns(Protocol):
    """Makes columns, and keeps them by their names."""

    def new(self, name: str, dtype: npt.DTypeLike) -> Column:
        """A new, empty column."""
        ...

    def drop(self, name: str) -> None:
        """Forget a column that is not wanted any more."""
        ...


class MemoryColumns:
    """Columns in memory."""

    def new(self, name: str, dtype: npt.DTypeLike) -> Column:
        """A new, empty column."""
        return _MemoryColumn(dtype)

    def drop(self, name: str) -> None:
        """Nothing: memory is freed when nobody refers to it."""


class _MemoryColumn:
    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._parts: list[Array] = [np.empty(0, dtype)]

    def append(self, values: Array) -> None:
        self._parts.append(values)

    def finish(self) -> Array:
        whole = np.concatenate(self._parts, dtype=self._parts[0].dtype)
        self._parts = []
        return whole


class Collector:
    """Gathers the batches of one file into a dataset, whose arrays lie in ``columns``."""

    def __init__(self, encoder: Encoder, columns: Columns) -> None:
        self._encoder, self._columns = encoder, columns
        self._n = 0
        self._indptr = _Offsets(columns.new("features.indptr", np.int64))
        self._ids = columns.new("features.indices", np.uint32)
        self._values = columns.new("features.values", np.float32)
        self._label_indptr = _Offsets(columns.new("labels.indptr", np.int64))
        self._codes = columns.new("labels.codes", np.int64)
        self._weights: Column | None = None
        self._unknown: list[Int64] = []

    def add(self, batch: RawBatch) -> None:
        """Append the samples of a batch."""
        features = self._encoder.features(batch)
        coded = self._encoder.coder.encode(batch)
        self._indptr.append(features.indptr)
        self._ids.append(features.indices)
        self._values.append(features.values)
        self._label_indptr.append(coded.indptr)
        self._codes.append(coded.codes)
        self._unknown.append(coded.unknown if coded.unknown.any() else no_unknown(len(batch)))
        self._add_weights(batch)
        self._n += len(batch)

    def finish(self, source: SourceFacts | None) -> Dataset:
        """The dataset of all that was added."""
        self._encoder.close()
        names, remap = self._encoder.coder.finish()
        indptr, ids, values = self._indptr.finish(), self._ids.finish(), self._values.finish()
        features = Features(indptr, ids, values, self._encoder.n_features)
        weights = None if self._weights is None else self._weights.finish()
        samples = Samples(features, self._labels(names, remap), weights)
        encoder = self._encoder
        return Dataset(samples, names, encoder.text, self._all_unknown(), encoder.text_reason, source)

    def _add_weights(self, batch: RawBatch) -> None:
        if batch.weights is None and self._weights is None:
            return
        if self._weights is None:
            self._weights = self._columns.new("weights", np.float32)
            for start in range(0, self._n, _ROWS):  # samples before the first weight
                self._weights.append(np.ones(min(_ROWS, self._n - start), np.float32))
        self._weights.append(_weights(batch))

    def _labels(self, names: LabelNames, remap: Remap | None) -> Labels:
        indptr, codes = self._label_indptr.finish(), self._codes.finish()
        ids = self._columns.new("labels.indices", np.uint32)
        for start in range(0, self._n, _ROWS):
            rows = np.asarray(indptr[start : start + _ROWS + 1])
            part = np.asarray(codes[rows[0] : rows[-1]])
            if remap is not None:
                part = tidy_labels(rows - rows[0], remap(part))[1]
            ids.append(part.astype(np.uint32))
        self._columns.drop("labels.codes")
        return Labels(indptr, ids.finish(), len(names))

    def _all_unknown(self) -> Int64:
        if any(part.any() for part in self._unknown):
            return np.concatenate(self._unknown)
        return no_unknown(self._n)


def collect(source: Source, options: ReadOptions, columns: Columns, encoder: Encoder) -> Dataset:
    """All samples of a source as one dataset, whose arrays lie in ``columns``. DataError when there are none."""
    format = find_format(source, options)
    collector = Collector(encoder, columns)
    for batch in _looked_ahead(raw_batches(source, options), encoder):
        collector.add(batch)
    dataset = collector.finish(source.facts(format))
    if not len(dataset):
        raise source.error("has no samples; expected at least one")
    if not dataset.samples.features.n_features:
        raise source.error('has no features: not one sample has any; expected some, as "id:value"')
    if options.labels_required and encoder.learns_labels and not len(dataset.samples.labels.indices):
        raise source.error("has no labels: not one sample has any; expected some to learn from")
    return dataset


def _looked_ahead(batches: Iterator[RawBatch], encoder: Encoder) -> Iterator[RawBatch]:
    """The batches, after the first texts of them have decided how texts become features."""
    from machxc.features.text import MANY_TEXTS

    first: list[RawBatch] = []
    texts: list[str] = []
    while encoder.chooses_text and len(texts) < MANY_TEXTS:
        batch = next(batches, None)
        if batch is None or batch.texts is None:
            first += [] if batch is None else [batch]
            break
        first.append(batch)
        texts += batch.texts
    if texts and encoder.chooses_text:
        encoder.choose_text(texts)
    yield from first
    yield from batches


def dataset_of(encoder: Encoder, batch: RawBatch) -> Dataset:
    """One batch as a dataset by itself; the encoder's labels must be known ones."""
    features, coded = encoder.features(batch), encoder.coder.encode(batch)
    names, _ = encoder.coder.finish()
    labels = Labels(coded.indptr, coded.codes.astype(np.uint32), len(names))
    weights = None if batch.weights is None else _weights(batch)
    return Dataset(Samples(features, labels, weights), names, encoder.text, coded.unknown)


def _weights(batch: RawBatch) -> Float32:
    return np.ones(len(batch), np.float32) if batch.weights is None else batch.weights


class _Offsets:
    """A column of offsets, appended to a batch at a time."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._last = 0
        column.append(np.zeros(1, np.int64))

    def append(self, indptr: Int64) -> None:
        self._column.append(indptr[1:] + self._last)
        self._last += int(indptr[-1])

    def finish(self) -> Int64:
        return self._column.finish()
