"""Read a file of samples, whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from machxc.config import TextConfig
from machxc.data.collect import Collector, Encoder, collect, dataset_of
from machxc.data.columns import MemoryColumns
from machxc.data.dataset import Dataset
from machxc.data.formats import raw_batches
from machxc.data.options import Progress, ReadOptions
from machxc.data.raw import BATCH, RawBatch, RawLabels
from machxc.data.source import Source
from machxc.data.store import is_store, open_store
from machxc.errors import DataError
from machxc.labels import LabelNames
from machxc.packed import Strings


def read(
    path: Path | str,
    options: ReadOptions | None = None,
    *,
    names: LabelNames | None = None,
    text: TextConfig | None = None,
    n_features: int | None = None,
    unknown_labels: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a file of samples, or a converted store, into memory ("-": standard input).

    For training, ``names`` is None: label names are what is found, and ``text`` None is chosen from the first texts.
    For a trained model, give its ``names`` and either its ``text`` or its ``n_features`` D. Then labels that it does
    not have are an error, or are counted in `Dataset.unknown` (``unknown_labels`` "error" or "count"; None: an error
    when names are strings); ids of features that it does not have are left out, with one warning in the log.
    DataError, with file and line, for what is wrong; SettingError for options that make no sense.
    """
    options = options or ReadOptions()
    encoder = Encoder(options.label_names, names=names, text=text, n_features=n_features, unknown_labels=unknown_labels)
    if _is_stored(path, options):
        return _read_store(open_store(path), str(path), options, encoder, (names, text, n_features))
    with Source(path, progress) as source:
        return collect(source, options, encoder, Collector(encoder, MemoryColumns()))


def batches(
    path: Path | str,
    options: ReadOptions | None = None,
    *,
    names: LabelNames,
    text: TextConfig | None = None,
    n_features: int | None = None,
    unknown_labels: str | None = None,
    size: int = BATCH,
    progress: Progress | None = None,
) -> Iterator[Dataset]:
    """Read a file for a trained model, as `read` does, in datasets of at most ``size`` samples.

    Memory is bounded by a block of the file. Errors come when the sample that is wrong is reached.
    """
    options = options or ReadOptions()
    encoder = Encoder(options.label_names, names=names, text=text, n_features=n_features, unknown_labels=unknown_labels)
    found = False
    for batch in _raw_batches(path, options, progress):
        dataset = dataset_of(encoder, batch)
        for start in range(0, len(dataset), size):
            found = True
            yield dataset.rows(start, min(start + size, len(dataset)))
    if not found:
        raise DataError("has no samples; expected at least one", path=str(path))
    encoder.close()


def _raw_batches(path: Path | str, options: ReadOptions, progress: Progress | None) -> Iterator[RawBatch]:
    if _is_stored(path, options):
        yield from _store_batches(open_store(path), str(path))
        return
    with Source(path, progress) as source:
        yield from raw_batches(source, options)


def _is_stored(path: Path | str, options: ReadOptions) -> bool:
    """Whether to read a path as a store; `open_store` tells what is wrong with one that was said to be."""
    return is_store(path) or (options.format == "store" and str(path) != "-")


def _read_store(
    stored: Dataset,
    path: str,
    options: ReadOptions,
    encoder: Encoder,
    model: tuple[LabelNames | None, TextConfig | None, int | None],
) -> Dataset:
    """A store as it is where that will do, else a copy in memory with other label ids or fewer features."""
    names, text, n_features = model
    if options.label_names is None and names is None and text in (None, stored.text):
        return stored
    if options.label_names is None and names == stored.names and text == stored.text:
        features = stored.samples.features
        if n_features is None or text is not None or features.n_features <= n_features:
            return stored
    collector = Collector(encoder, MemoryColumns())
    for batch in _store_batches(stored, path):
        collector.add(batch, encoder.features(batch))
    return collector.finish(stored.source)


def _store_batches(stored: Dataset, path: str) -> Iterator[RawBatch]:
    """The samples of a store as a file's reader would give them; the "line" is the number of the sample."""
    for start in range(0, len(stored), BATCH):
        part = stored.rows(start, min(start + BATCH, len(stored))).samples
        named = stored.names.names(part.labels.indices)
        values = Strings.of(named.tolist()) if stored.names.kind == "strings" else named
        labels = RawLabels(part.labels.indptr, values if len(named) else np.empty(0, np.int64))
        lines = np.arange(start, start + len(part)) + 1
        yield RawBatch(path, lines, labels, None, part.features, part.weights, text=stored.text)
