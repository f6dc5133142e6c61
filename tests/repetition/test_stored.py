from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.compiled import fast_kernel
from machxc.config import MOST_BUCKETS
from machxc.folder import _highest_bucket
from machxc.repetition.bfloat import from_bfloat, to_bfloat
from machxc.repetition.stored import add_narrow, add_wide, pack, rows_of, unpack
from machxc.samples import Array, Float32, starts_of

Rows = list[dict[int, float]]
"""Of each row, its weights by bucket."""


@fast_kernel
def added_narrow(z: Array, weight: np.float32, entries: Array, levels: Array) -> None:
    add_narrow(z, weight, entries, levels)


@fast_kernel
def added_wide(z: Array, weight: np.float32, entries: Array, levels: Array) -> None:
    add_wide(z, weight, entries, levels)


def packed(rows: Rows, width: Any = np.uint32) -> dict[str, Array]:
    buckets = np.array([bucket for row in rows for bucket in sorted(row)], width)
    weights = np.array([row[bucket] for row in rows for bucket in sorted(row)], np.float32)
    return pack(np.cumsum([0, *map(len, rows)], dtype=np.int64), buckets, to_bfloat(weights))


def scored(tensors: dict[str, Array], row: int, n_buckets: int) -> Float32:
    """0.5 + twice a row."""
    z = np.full(n_buckets, 0.5, np.float32)
    add = added_narrow if tensors["entries"].dtype == np.uint16 else added_wide
    part = slice(*starts_of(tensors["lengths"])[row : row + 2])
    add(z, np.float32(2.0), tensors["entries"][part], tensors["levels"])
    return z


weights = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: abs(x) > 2.0**-60)


def rows_below(n_buckets: int) -> st.SearchStrategy[Rows]:
    return st.lists(st.dictionaries(st.integers(0, n_buckets - 1), weights, max_size=12), max_size=6)


def assert_unpacked(tensors: dict[str, Array], rows: Rows) -> None:
    """Buckets are exact; a weight is its own bfloat16: there are fewer of them than levels."""
    starts, buckets, found = unpack(tensors)
    assert starts.tolist() == np.cumsum([0, *map(len, rows)]).tolist()
    assert buckets.tolist() == [bucket for row in rows for bucket in sorted(row)]
    given = np.array([row[bucket] for row in rows for bucket in sorted(row)], np.float32)
    np.testing.assert_array_equal(found, from_bfloat(to_bfloat(given)))
    assert _highest_bucket(tensors["lengths"], tensors["entries"]) == max((max(r) for r in rows if r), default=-1)


@given(st.sampled_from([1, 2, 7, 8, 9, 250, 256, 257]), st.data())
@settings(deadline=None, max_examples=200)
def test_buckets_that_many_rows_have_are_a_bit_each_and_read_as_steps(n_buckets: int, data: st.DataObject) -> None:
    """Where that takes fewer bytes, and buckets are at most 256: the entries are the same."""
    kept = st.sets(st.integers(0, n_buckets - 1), min_size=0, max_size=n_buckets)
    rows = [
        {bucket: float(1 + bucket % 50) for bucket in row}
        for row in data.draw(st.lists(kept | st.just(set(range(n_buckets))), max_size=6))
    ]
    apart, n = packed(rows), sum(map(len, rows))
    buckets = np.array([bucket for row in rows for bucket in sorted(row)], np.uint16)
    weights = np.array([row[bucket] for row in rows for bucket in sorted(row)], np.float32)
    tensors = pack(np.cumsum([0, *map(len, rows)], dtype=np.int64), buckets, to_bfloat(weights), n_buckets)
    fewer = len(rows) * -(-n_buckets // 8) < n
    assert ("present" in tensors) == (n_buckets <= 256 and fewer)
    for read in (rows_of, unpack):
        found: tuple[Array, ...] = read(tensors)
        expected: tuple[Array, ...] = read(apart)
        assert [(x.dtype, x.tolist()) for x in found] == [(x.dtype, x.tolist()) for x in expected]


@given(st.sampled_from([1, 2, 255, 256, 257, 511, 70_000]).flatmap(rows_below))
@settings(deadline=None, max_examples=300)
def test_few_weights_come_back_as_they_are(rows: Rows) -> None:
    assert_unpacked(packed(rows), rows)


@given(rows_below(600))
@settings(deadline=None, max_examples=50)
def test_ids_of_16_bits_are_packed_as_those_of_32(rows: Rows) -> None:
    one, other = packed(rows, np.uint16), packed(rows)
    assert {name: tensor.tobytes() for name, tensor in one.items()} == {n: t.tobytes() for n, t in other.items()}


@given(st.sampled_from([3, 300, 5000]).flatmap(rows_below))
@settings(deadline=None, max_examples=100)
def test_rows_are_added_as_they_were_packed(rows: Rows) -> None:
    tensors = packed(rows)
    for i, row in enumerate(rows):
        expected = np.full(5000, 0.5, np.float32)
        for bucket, weight in row.items():
            expected[bucket] += np.float32(2.0) * from_bfloat(to_bfloat(np.array([weight], np.float32)))[0]
        np.testing.assert_allclose(scored(tensors, i, 5000), expected, rtol=1e-6)


@pytest.mark.parametrize("bucket", [0, 1, 254, 255, 256, 510, 511, 765, 766, 65535])
@pytest.mark.parametrize("before", [0, 1, 300])
def test_steps_of_any_length(bucket: int, before: int) -> None:
    """With a full row beside it, so that entries are narrow."""
    full, row = dict.fromkeys(range(4000), 1.0), {before: 2.0, before + bucket: 3.0}
    tensors = packed([row, full, {bucket: 1.0}])
    assert tensors["entries"].dtype == np.uint16
    assert_unpacked(tensors, [row, full, {bucket: 1.0}])


def test_entries_are_narrow_unless_that_takes_more_room() -> None:
    assert packed([{0: 1.0, 300: 1.0}])["entries"].tolist() == [1, 255 << 8, 45 << 8 | 1]
    assert packed([{300: 1.0}, {301: 1.0}])["entries"].tolist() == [255 << 8, 45 << 8 | 1, 255 << 8, 46 << 8 | 1]
    assert packed([{300: 1.0}, {600: 1.0}])["entries"].tolist() == [300 << 8 | 1, 600 << 8 | 1]
    last = packed([{MOST_BUCKETS - 1: 1.0}])
    assert last["entries"].dtype == np.uint32
    assert_unpacked(last, [{MOST_BUCKETS - 1: 1.0}])


def test_nothing_is_packed_to_nothing() -> None:
    nothing: list[Rows] = [[], [{}], [{}, {}]]
    for rows in nothing:
        tensors = packed(rows)
        assert len(tensors["entries"]) == 0
        assert_unpacked(tensors, rows)


def distributions() -> dict[str, npt.NDArray[np.float64]]:
    random = np.random.default_rng(0)
    return {
        "normal": random.normal(0, 1, 100_000),
        "pruned": 0.5 + random.gamma(1.0, 1.0, 100_000) * random.choice([-1, 1, 1], 100_000),
        "all sizes": np.exp(random.uniform(-40, 40, 100_000)),
        "one far away": np.append(random.normal(0, 1, 9_999), 1e6),
        "near each other": 3.0 + random.random(10_000),
    }


@pytest.mark.parametrize("kind", distributions())
def test_many_weights_become_the_nearest_of_255_levels(kind: str) -> None:
    weights = distributions()[kind].astype(np.float32)
    n = len(weights)
    tensors = pack(np.array([0, n], np.int64), np.arange(n, dtype=np.uint32), to_bfloat(weights))
    _, _, found = unpack(tensors)
    levels = tensors["levels"][1:][tensors["levels"][1:] != 0]
    exact = from_bfloat(to_bfloat(weights)).astype(np.float64)
    assert tensors["levels"][0] == 0
    assert (np.diff(levels) > 0).all()
    assert len(levels) >= min(200, len(np.unique(exact)))
    at = np.clip(np.searchsorted(levels, exact), 1, len(levels) - 1)
    nearest = np.minimum(np.abs(exact - levels[at - 1]), np.abs(exact - levels[at]))
    wrong = np.abs(found - exact)
    assert (wrong <= nearest * (1 + 1e-5) + np.abs(exact) * 1e-6).all()
    assert np.sqrt((wrong**2).mean()) <= 0.01 * exact.std()


def test_packing_is_deterministic() -> None:
    weights = distributions()["normal"].astype(np.float32)
    given = np.array([0, len(weights)], np.int64), np.arange(len(weights), dtype=np.uint32), to_bfloat(weights)
    assert {k: v.tobytes() for k, v in pack(*given).items()} == {k: v.tobytes() for k, v in pack(*given).items()}
