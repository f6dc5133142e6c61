"""label_scores: what top_k gives, for labels that are given."""

from __future__ import annotations

import numpy as np
import pytest

from machxc.config import ESTIMATORS, LOSSES
from machxc.errors import DataError
from machxc.partition import HashPartition
from machxc.retrieval import label_scores, top_k


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_same_scores_as_top_k(loss: str, estimator: str) -> None:
    partition = HashPartition(50, 7, 5, seed=3)
    logits = np.random.default_rng(0).normal(0, 3, (4, 5, 7)).astype(np.float32)
    ids, scores = top_k(logits, partition, 50, loss=loss, estimator=estimator)
    given = label_scores(logits, partition, np.arange(50), loss=loss, estimator=estimator)
    assert given.dtype == np.float32
    np.testing.assert_array_equal(np.take_along_axis(given, ids, 1), scores)


def test_any_order_and_repeats() -> None:
    partition = HashPartition(9, 4, 3, seed=0)
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    every = label_scores(logits, partition, np.arange(9), loss="bce", estimator="mean")
    some = label_scores(logits, partition, np.array([8, 0, 8]), loss="bce", estimator="mean")
    np.testing.assert_array_equal(some, every[:, [8, 0, 8]])


def test_a_label_out_of_range_is_named() -> None:
    with pytest.raises(DataError, match="label id 9 is out of range"):
        label_scores(
            np.zeros((1, 3, 4), np.float32), HashPartition(9, 4, 3, 0), np.array([9]), loss="bce", estimator="mean"
        )
