"""Samples as plain Python values, each format written by a few obvious lines, and datasets turned back into values."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from machxc.data import Dataset


@dataclass
class Sample:
    labels: list[Any]
    features: dict[int, float] = field(default_factory=dict)
    text: str = ""
    weight: float = 1.0


def float32(number: float) -> float:
    return float(np.float32(number))


def xmc(samples: list[Sample], n_features: int, n_labels: int) -> bytes:
    lines = [f"{len(samples)} {n_features} {n_labels}", *map(_sparse_line, samples)]
    return ("\n".join(lines) + "\n").encode()


def svmlight(samples: list[Sample]) -> bytes:
    return ("\n".join(map(_sparse_line, samples)) + "\n").encode()


def _sparse_line(sample: Sample) -> str:
    features = " ".join(f"{id_}:{value!r}" for id_, value in sample.features.items())
    return f"{','.join(map(str, sample.labels))} {features}"


def jsonl(samples: list[Sample], kind: str, n_features: int = 0) -> bytes:
    """``kind``: "text", "object", "pairs" or "dense"."""
    lines = []
    for sample in samples:
        contents: dict[str, dict[str, Any]] = {
            "text": {"text": sample.text},
            "object": {"features": {str(id_): value for id_, value in sample.features.items()}},
            "pairs": {"features": [[id_, value] for id_, value in sample.features.items()]},
            "dense": {"features": [sample.features.get(i, 0.0) for i in range(n_features)]},
        }
        lines.append(json.dumps({**contents[kind], "labels": sample.labels, "weight": sample.weight}))
    return ("\n".join(lines) + "\n").encode()


def table(samples: list[Sample], delimiter: str, separator: str) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["id", "text", "labels", "w"])
    for i, sample in enumerate(samples):
        writer.writerow([i, sample.text, separator.join(map(str, sample.labels)), sample.weight])
    return file.getvalue().encode()


def parquet(samples: list[Sample]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet as pq

    columns = {
        "text": [sample.text for sample in samples],
        "labels": [sample.labels for sample in samples],
        "w": [sample.weight for sample in samples],
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def compressed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return zstandard.compress(data) if suffix == ".zst" else data


def saved(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def features_of(dataset: Dataset) -> list[dict[int, float]]:
    features = dataset.samples.features
    rows = (features.rows(i, i + 1) for i in range(len(features)))
    return [dict(zip(row.indices.tolist(), row.values.tolist(), strict=True)) for row in rows]


def labels_of(dataset: Dataset) -> list[list[Any]]:
    labels = dataset.samples.labels
    rows = (labels.rows(i, i + 1).indices for i in range(len(labels)))
    return [dataset.names.names(row.astype(np.int64)).tolist() for row in rows]


def weights_of(dataset: Dataset) -> list[float]:
    weights = dataset.samples.weights
    return [1.0] * len(dataset) if weights is None else weights.tolist()


def assert_valid(dataset: Dataset) -> None:
    """The promises of `Samples`, uniqueness and order within a row included."""
    samples = dataset.samples
    samples.features.check()
    samples.labels.check()
    assert len(dataset) > 0
    assert len(dataset.names) == samples.labels.n_labels
    for rows in (samples.features, samples.labels):
        for i in range(len(rows)):
            assert (np.diff(rows.rows(i, i + 1).indices.astype(np.int64)) > 0).all()
    if samples.weights is not None:
        assert (samples.weights >= 0).all()


def assert_same(one: Dataset, other: Dataset) -> None:
    """Two datasets agree in every array."""
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(one.samples.features, name), getattr(other.samples.features, name))
    for name in ("indptr", "indices"):
        np.testing.assert_array_equal(getattr(one.samples.labels, name), getattr(other.samples.labels, name))
    assert one.samples.features.n_features == other.samples.features.n_features
    assert one.names == other.names
    assert (one.text, one.source, weights_of(one)) == (other.text, other.source, weights_of(other))
    np.testing.assert_array_equal(one.unknown, other.unknown)
