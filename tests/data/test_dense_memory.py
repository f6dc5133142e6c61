"""Dense inputs of many columns: sparse rows are made of them in little more memory than they take."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from machxc import MACHClassifier
from machxc.config import Settings
from machxc.data import convert
from machxc.data.arrays import features_of
from machxc.reordering import samples_of
from machxc.run import train_run
from machxc.samples import Labels

N, WIDTH = 1500, 6144
BYTES = 4 * N * WIDTH  # of the array


def peak_of(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the most memory that NumPy took in it, in arrays like the one given."""
    tracemalloc.start()
    try:
        found = call()
        return found, tracemalloc.get_traced_memory()[1] / BYTES
    finally:
        tracemalloc.stop()


def test_dense_inputs_take_their_own_bytes() -> None:
    array = np.random.default_rng(0).standard_normal((N, WIDTH), np.float32)
    array[::3, ::5] = 0
    labels = Labels(np.arange(N + 1), np.arange(N, dtype=np.uint32) % 7, 7)
    (features, _), made = peak_of(lambda: features_of(array))
    assert made < 3  # 2 are the ids and the values
    samples, reordered = peak_of(lambda: samples_of(features, labels))
    assert reordered < 4  # 2 are those of the copy
    dense = np.zeros_like(array)
    for i in range(N):
        row = samples.features.rows(i, i + 1)
        dense[i, row.indices] = row.values
    assert sorted(map(bytes, dense)) == sorted(map(bytes, array))


def test_wide_dense_inputs_are_learnt_from_an_array_and_from_a_store_alike(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    y = np.arange(80) % 4
    array = (source.standard_normal((4, WIDTH))[y] + source.standard_normal((80, WIDTH))).astype(np.float32)
    values = [" ".join(f"{i}:{v!r}" for i, v in enumerate(row)) for row in array.tolist()]
    lines = [f"{label} {row}" for label, row in zip(y, values, strict=True)]
    (tmp_path / "data.svm").write_text("\n".join(lines) + "\n")
    convert(tmp_path / "data.svm", tmp_path / "store")
    settings: dict[str, Any] = {"hidden": 8, "repetitions": 2, "epochs": 10, "buckets": 4}
    stored = train_run(tmp_path / "store", tmp_path / "model", Settings(**settings))
    assert stored.config.n_features == WIDTH
    found = stored.names.names(stored.top_k(features_of(array)[0], 1)[0][:, 0])
    assert np.mean(found.astype(str) == y.astype(str)) > 0.95
    assert MACHClassifier(**settings).fit(array, y).score(array, y) > 0.95


def test_the_same_as_all_at_once() -> None:
    source = np.random.default_rng(1)
    for shape in ((0, 3), (1, 1), (700, 3001)):
        array = source.integers(-1, 2, shape).astype(np.float64)
        rows, columns = np.nonzero(array)
        features = features_of(array)[0]
        np.testing.assert_array_equal(features.indices, columns)
        np.testing.assert_array_equal(features.values, array[rows, columns])
        np.testing.assert_array_equal(np.diff(features.indptr), np.count_nonzero(array, axis=1))
