"""Raw batches -> features and label ids -> the arrays of a dataset, in memory or in files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from machxc.config import TextConfig
from machxc.data.columns import Column, Columns, MemoryColumns, Offsets
from machxc.data.dataset import Dataset, no_unknown
from machxc.data.formats import find_format, raw_batches
from machxc.data.labelling import NamedLabels, label_coder
from machxc.data.new_labels import NewLabels
from machxc.data.options import UNKNOWN_LABELS, ReadOptions, SourceFacts
from machxc.data.raw import RawBatch, kept_offsets
from machxc.data.source import Mark, Source
from machxc.errors import DataError, SettingError
from machxc.labels import LabelNames
from machxc.packed import Strings
from machxc.samples import Features, Float32, Int64, Labels, Samples
from machxc.threads import ahead

log = logging.getLogger("machxc.data")

PART = 1 << 26  # bytes of texts, features and labels after which a part ends
_ROWS = 1 << 18  # weights that are written at a time


class Encoder:
    """Turns raw batches into features and label codes: by a trained model's facts, or by what it meets first.

    A trained model has ``names``, and ``text`` or (numeric features) ``n_features`` D; without ``names``, ``text``
    None is chosen from the first texts. ``unknown_labels``: "error", "count", or None: "error" if names are strings.
    ``columns``: where the names of a file of ``label_names`` are to lie (None: in memory).
    """

    def __init__(
        self,
        label_names: Path | str | None,
        *,
        names: LabelNames | None = None,
        text: TextConfig | None = None,
        n_features: int | None = None,
        unknown_labels: str | None = None,
        columns: Columns | None = None,
    ) -> None:
        if unknown_labels not in (None, *UNKNOWN_LABELS):
            raise SettingError(
                f"The 'unknown_labels' option must be one of {UNKNOWN_LABELS} or None. Got {unknown_labels!r} instead."
            )
        self.coder = label_coder(names, label_names, unknown_labels, columns or MemoryColumns())
        self.text, self.text_reason = text, ""
        self.n_features = n_features or 0
        self.learns_labels = names is None
        self._limit = n_features if text is None else None
        self._left_out = 0

    @property
    def state(self) -> dict[str, Any]:
        """What was chosen or counted so far, for `restore`."""
        text = None if self.text is None else dataclasses.asdict(self.text)
        return {"text": text, "text_reason": self.text_reason, "n_features": self.n_features}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of another encoder."""
        self.text = None if state["text"] is None else TextConfig(**state["text"])
        self.text_reason, self.n_features = state["text_reason"], state["n_features"]

    def gatherer(self, columns: Columns, state: dict[str, Any] | None) -> NewLabels | NamedLabels:
        """What gathers the labels of samples in ``columns``, going on from the state of another one."""
        return NewLabels(columns, state) if self.coder is None else NamedLabels(self.coder, columns, state)

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

    def _text_features(self, batch: RawBatch, texts: Strings) -> Features:
        from machxc.features.text import packed_features

        if self.text is None and not self.learns_labels:
            raise batch.error("this sample is a text, but the model was trained with numeric features", 0)
        if self.text is None:
            self.choose_text(texts.tolist())
            assert self.text is not None
        features = packed_features(texts, self.text)
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


class Collector:
    """Gathers the batches of one file into a dataset, whose arrays lie in ``columns``, part by part.

    ``state``: that of another collector, whose columns are gone on with.
    """

    def __init__(self, encoder: Encoder, columns: Columns, state: dict[str, Any] | None = None) -> None:
        state = state or {"n": 0, "features": None, "labels": None, "weighted": False}
        self._encoder, self._columns = encoder, columns
        self._n: int = state["n"]
        self._indptr = Offsets(columns.new("features.indptr", np.int64), state["features"])
        self._ids = columns.new("features.indices", np.uint32)
        self._values = columns.new("features.values", np.float32)
        self._labels = encoder.gatherer(columns, state["labels"])
        self._weights: Column | None = columns.new("weights", np.float32) if state["weighted"] else None
        self._unknown: list[Int64] = [no_unknown(self._n)]
        if "encoder" in state:
            encoder.restore(state["encoder"])

    def add(self, batch: RawBatch, features: Features) -> None:
        """Append the samples of a batch, and their features."""
        self._indptr.append(features.indptr)
        self._ids.append(features.indices)
        self._values.append(features.values)
        unknown = self._labels.add(batch)
        self._unknown.append(unknown if unknown.any() else no_unknown(len(batch)))
        self._add_weights(batch)
        self._n += len(batch)

    def end_part(self) -> dict[str, Any]:
        """Write what waits for the end of a part; returns the state to go on from."""
        self._labels.end_part()
        facts = {"n": self._n, "features": self._indptr.last, "weighted": self._weights is not None}
        return {**facts, "labels": self._labels.state, "encoder": self._encoder.state}

    def finish(self, source: SourceFacts | None) -> Dataset:
        """The dataset of all that was added."""
        encoder = self._encoder
        encoder.close()
        labels, names = self._labels.finish()
        indptr, ids, values = self._indptr.finish(), self._ids.finish(), self._values.finish()
        features = Features(indptr, ids, values, encoder.n_features)
        weights = None if self._weights is None else self._weights.finish()
        samples = Samples(features, labels, weights)
        return Dataset(samples, names, encoder.text, self._all_unknown(), encoder.text_reason, source)

    def _add_weights(self, batch: RawBatch) -> None:
        if batch.weights is None and self._weights is None:
            return
        if self._weights is None:
            self._weights = self._columns.new("weights", np.float32)
            for start in range(0, self._n, _ROWS):  # samples before the first weight
                self._weights.append(np.ones(min(_ROWS, self._n - start), np.float32))
        self._weights.append(_weights(batch))

    def _all_unknown(self) -> Int64:
        if any(part.any() for part in self._unknown):
            return np.concatenate(self._unknown)
        return no_unknown(self._n)


OnPart = Callable[[Mark, dict[str, Any]], None]
"""Called after each part but the last, with the mark to go on from, and what the collector is to be made with then."""


def collect(
    source: Source,
    options: ReadOptions,
    encoder: Encoder,
    collector: Collector,
    *,
    mark: Mark | None = None,
    on_part: OnPart | None = None,
    jobs: int = 1,
) -> Dataset:
    """All samples of a source, from a mark on, as one dataset. DataError when there are none.

    With several ``jobs`` one thread reads, and makes the features, while this one gathers them.
    """
    format = find_format(source, options)
    size, last = 0, None
    encoded = _encoded(_looked_ahead(raw_batches(source, options, mark), encoder), encoder)
    for batch, features in ahead(encoded) if jobs > 1 and source.is_file else encoded:
        if size >= PART and last is not None:
            state, size = collector.end_part(), 0
            if on_part is not None:
                on_part(last, state)
        collector.add(batch, features)
        size, last = size + _size(batch), batch.mark
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
        texts += batch.texts.tolist()
    if texts and encoder.chooses_text:
        encoder.choose_text(texts)
    yield from first
    yield from batches


def _encoded(batches: Iterator[RawBatch], encoder: Encoder) -> Iterator[tuple[RawBatch, Features]]:
    for batch in batches:
        yield batch, encoder.features(batch)


def dataset_of(encoder: Encoder, batch: RawBatch) -> Dataset:
    """One batch as a dataset by itself; the encoder's labels must be known ones."""
    assert encoder.coder is not None
    features, coded, names = encoder.features(batch), encoder.coder.encode(batch), encoder.coder.names
    labels = Labels(coded.indptr, coded.codes.astype(np.uint32), len(names))
    weights = None if batch.weights is None else _weights(batch)
    return Dataset(Samples(features, labels, weights), names, encoder.text, coded.unknown)


def _weights(batch: RawBatch) -> Float32:
    return np.ones(len(batch), np.float32) if batch.weights is None else batch.weights


def _size(batch: RawBatch) -> int:
    """About how many bytes of memory a batch takes."""
    labels = batch.labels.values
    size = len(labels.bytes) if isinstance(labels, Strings) else 8 * len(labels)
    if batch.texts is not None:
        return size + len(batch.texts.bytes)
    assert batch.features is not None
    return size + 8 * len(batch.features.indices)
