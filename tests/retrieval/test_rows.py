"""Logits made and ranked in one kernel: the same as made first and ranked then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.config import ESTIMATORS, LOSSES
from machxc.errors import DataError
from machxc.partition import HashPartition
from machxc.repetition.encode import Rows
from machxc.repetition.linear import LinearScorer
from machxc.repetition.stored import pack
from machxc.retrieval import top_k
from machxc.retrieval.rows import RowRanker
from machxc.samples import Array, Float32


def scorer_of(rng: np.random.Generator, n_rows: int, n_buckets: int, share: float, bias: Float32) -> LinearScorer:
    """Rows with a share of the buckets: few are stored as wide entries, many as narrow ones."""
    there = rng.random((n_rows, n_buckets)) < share
    starts = np.concatenate(([0], np.cumsum(there.sum(axis=1)))).astype(np.int64)
    buckets = np.nonzero(there)[1].astype(np.uint32)
    weights = (rng.standard_normal(len(buckets)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return LinearScorer({**pack(starts, buckets, weights), "bias": bias})


def rows_of(rng: np.random.Generator, n: int, n_rows: int) -> Rows:
    lengths = rng.integers(0, min(6, n_rows + 1), n)
    rows = [rng.choice(n_rows, length, replace=False) for length in lengths]
    indptr = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Rows(indptr, np.concatenate([*rows, []]).astype(np.int32), rng.random(indptr[-1], np.float32))


def logits_of(scorer: LinearScorer, rows: Rows) -> Float32:
    out = np.empty((len(rows), 1, len(scorer.bias)), np.float32)
    scorer.logits(rows, out[:, 0])
    return out


def asked(seed: int, n_labels: int, share: float, ties: bool) -> tuple[LinearScorer, HashPartition, Rows, Array]:
    rng = np.random.default_rng(seed)
    partition = HashPartition(n_labels, 1 << max(1, (n_labels - 1).bit_length()), 1, seed)
    bias = rng.standard_normal(partition.n_buckets).astype(np.float32)
    scorer = scorer_of(rng, 7, partition.n_buckets, share, np.round(bias) if ties else bias)
    return scorer, partition, rows_of(rng, 5, 7), rng.random(n_labels) < rng.random()


@given(
    seed=st.integers(0, 2**32),
    n_labels=st.integers(1, 300) | st.sampled_from([4_000, 8_192, 9_000]),
    share=st.sampled_from([0.0, 0.001, 0.1, 0.7]),
    ties=st.booleans(),
    k=st.integers(1, 400),
    loss=st.sampled_from(LOSSES),
    estimator=st.sampled_from(ESTIMATORS),
)
@settings(deadline=None, max_examples=150)
def test_answers_are_those_of_logits_made_first(
    seed: int, n_labels: int, share: float, ties: bool, k: int, loss: str, estimator: str
) -> None:
    scorer, partition, rows, seen = asked(seed, n_labels, share, ties)
    ranker = RowRanker(scorer, partition, np.packbits(seen, bitorder="little"), loss)
    how: dict[str, Any] = {"loss": loss, "estimator": estimator, "seen": seen, "method": "scan"}
    expected = top_k(logits_of(scorer, rows), partition, k, **how)
    ids, scores = ranker.top_k(rows, k, estimator)
    assert ids.tobytes() == expected[0].tobytes()
    assert scores.tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("share", [0.001, 0.5], ids=["wide", "narrow"])
def test_entries_of_both_kinds_are_read(share: float) -> None:
    scorer = asked(1, 9_000, share, False)[0]
    assert scorer.entries.dtype == (np.uint32 if share < 0.1 else np.uint16)


@pytest.mark.parametrize(
    ("bias", "fine"), [(9e29, True), (-9e29, True), (2e30, False), (np.inf, False), (np.nan, False)]
)
def test_logits_that_are_too_large_are_refused(bias: float, fine: bool) -> None:
    scorer, partition, rows, seen = asked(3, 40, 0.5, False)
    scorer.bias = np.full_like(scorer.bias, np.float32(bias))
    ranker = RowRanker(scorer, partition, np.packbits(seen, bitorder="little"), "softmax")
    if fine:
        ranker.top_k(rows, 3, "mean")
    else:
        with pytest.raises(DataError, match="not finite, or too large"):
            ranker.top_k(rows, 3, "mean")


def test_only_rows_that_a_query_has_can_make_its_logits_too_large() -> None:
    weights = (np.array([1.0, 2.0**101], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensors = pack(np.array([0, 1, 2]), np.array([0, 1], np.uint32), weights)
    scorer = LinearScorer({**tensors, "bias": np.zeros(4, np.float32)})
    ranker = RowRanker(scorer, HashPartition(4, 4, 1, 0), np.array([15], np.uint8), "bce")
    for row in (0, 1):
        rows = Rows(np.array([0, 1]), np.array([row], np.int32), np.ones(1, np.float32))
        if row == 0:
            assert ranker.top_k(rows, 1, "mean")[1] == pytest.approx(1 / (1 + np.exp(-1)))
        else:
            with pytest.raises(DataError, match="too large"):
                ranker.top_k(rows, 1, "mean")
