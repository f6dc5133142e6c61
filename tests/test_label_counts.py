"""Counts of samples a label: the same numbers whichever way they are held, and bytes that do not grow with K."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.errors import ModelError
from machxc.label_counts import LabelCounts
from machxc.samples import Labels


@st.composite
def label_sets(draw: st.DrawFn) -> Labels:
    n_labels = draw(st.integers(1, 300))
    rows = draw(st.lists(st.sets(st.integers(0, n_labels - 1), max_size=5), max_size=20))
    indptr = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return Labels(indptr, np.array([i for row in rows for i in sorted(row)], np.uint32), n_labels)


@given(label_sets())
@settings(deadline=None)
def test_they_are_the_counts_of_a_plain_count(labels: Labels) -> None:
    plain = np.bincount(labels.indices, minlength=labels.n_labels)
    counted = LabelCounts.of(labels)
    every = np.arange(labels.n_labels)
    for counts in (
        counted,
        LabelCounts.dense(plain),
        LabelCounts(labels.n_labels, {"counts": plain.astype(np.uint32)}),
    ):
        assert len(counts) == labels.n_labels
        assert np.asarray(counts).tolist() == counts[every].tolist() == plain.tolist()
        assert counts.seen.tolist() == np.flatnonzero(plain).tolist()
        assert [counts.n_seen, counts.n_pairs] == [int((plain > 0).sum()), int(plain.sum())]
        assert counts.bitmap().tolist() == np.packbits(plain > 0, bitorder="little").tolist()
        assert counts == counted
        assert LabelCounts.from_arrays(labels.n_labels, counts.arrays()) == counted
    assert counted != LabelCounts.dense(plain + 1)
    assert counted != LabelCounts.dense(np.append(plain, 0))


@given(label_sets())
@settings(deadline=None)
def test_they_take_the_smaller_of_two_forms(labels: Labels) -> None:
    counts = LabelCounts.of(labels)
    size = sum(array.nbytes for array in counts.arrays().values())
    assert size == min(4 * len(counts), 8 * counts.n_seen)
    assert LabelCounts.dense(np.asarray(counts)).arrays().keys() == counts.arrays().keys()


def test_a_few_of_four_billion_labels_are_a_few_numbers() -> None:
    ids = np.array([0, 7, 2**32 - 2], np.uint32)
    labels = Labels(np.array([0, 2, 3, 6], np.int64), np.concatenate((ids[:2], ids[2:], ids)), 2**32 - 1)
    counts = LabelCounts.of(labels)
    assert counts[[0, 1, 7, 2**32 - 3, 2**32 - 2]].tolist() == [2, 0, 2, 0, 2]
    assert sum(array.nbytes for array in counts.arrays().values()) == 24


@pytest.mark.parametrize("seen", [[1, 1], [2, 1], [1, 5]], ids=["twice", "falling", "beyond K"])
def test_ids_that_do_not_rise_below_k_are_refused(seen: list[int]) -> None:
    arrays = {"seen": np.array(seen, np.uint32), "seen_counts": np.ones(2, np.uint32)}
    with pytest.raises(ModelError, match="rising label ids below 5"):
        LabelCounts.from_arrays(5, arrays)
