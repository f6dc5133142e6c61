"""All repetitions in one call: as one after the other to the last bit, and as in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import config_of, features_of, sparse_rows

from machxc.config import Config
from machxc.repetition.bfloat import to_bfloat
from machxc.repetition.encode import Encoder, fit_encoder
from machxc.repetition.linear import LinearScorer
from machxc.repetition.stored import pack, unpack
from machxc.repetition.together import Together, fits
from machxc.samples import Features, Float32

# what encoding depends on, by name: settings
ENCODERS: dict[str, dict[str, Any]] = {
    "own slots": {"feature_bits": 6},
    "own slots, few rows": {"feature_bits": 6, "min_count": 3, "idf": True, "sublinear_tf": True},
    "hashed": {"feature_bits": 4, "idf": True, "sublinear_tf": True},
    "hashed, not of length 1": {"feature_bits": 4, "l2": False},
}


def repetitions_of(config: Config, features: Features, seed: int) -> list[tuple[Encoder, LinearScorer]]:
    """Repetitions with weights at random, of which most are 0, and in some of which no feature has a row."""
    random = np.random.default_rng(seed)
    made = []
    for r in range(config.repetitions):
        encoder = fit_encoder(features, config, r)
        table = random.normal(0, 1, (len(encoder.row_weights), config.buckets)).astype(np.float32)
        table *= random.random(table.shape) < 0.3
        rows, buckets = np.nonzero(table)
        starts = np.searchsorted(rows, np.arange(len(table) + 1)).astype(np.int64)
        packed = pack(starts, buckets.astype(np.uint16), to_bfloat(table[rows, buckets]))
        made.append((encoder, LinearScorer({**packed, "bias": random.normal(0, 1, config.buckets).astype(np.float32)})))
    return made


def apart(repetitions: list[tuple[Encoder, LinearScorer]], features: Features, buckets: int) -> Float32:
    out = np.empty((len(features), len(repetitions), buckets), np.float32)
    for r, (encoder, scorer) in enumerate(repetitions):
        scorer.logits(encoder(features), out[:, r])
    return out


@pytest.mark.parametrize("kind", ENCODERS)
@given(
    rows=sparse_rows(50),
    asked=sparse_rows(50),
    seed=st.integers(0, 99),
    buckets=st.sampled_from([2, 33, 600]),
    repetitions=st.integers(2, 5),
)
@settings(deadline=None, max_examples=40)
def test_all_in_one_call_are_those_one_after_the_other(
    kind: str, rows: list[dict[int, float]], asked: list[dict[int, float]], seed: int, buckets: int, repetitions: int
) -> None:
    config = config_of(buckets=buckets, repetitions=repetitions, **ENCODERS[kind])
    made = repetitions_of(config, features_of(rows, 50), seed)
    features = features_of(asked, 50)
    found = np.empty((len(features), repetitions, buckets), np.float32)
    Together.of(made).sketch(features, found)
    assert found.tobytes() == apart(made, features, buckets).tobytes()
    for r, (encoder, scorer) in enumerate(made):
        np.testing.assert_allclose(found[:, r], plainly(encoder, scorer, features, config), rtol=1e-3, atol=1e-3)


def plainly(encoder: Encoder, scorer: LinearScorer, features: Features, config: Config) -> Any:
    """The logits of one repetition, in float64, from what the encoder has been tested to give."""
    starts, columns, weights = unpack(
        {"lengths": np.diff(scorer.starts), "entries": scorer.entries, "levels": scorer.levels}
    )
    table = np.zeros((len(starts) - 1, config.buckets))
    table[np.repeat(np.arange(len(table)), np.diff(starts)), columns] = weights
    given = encoder(features)
    samples = np.zeros((len(features), len(table)))
    np.add.at(samples, (np.repeat(np.arange(len(features)), np.diff(given.indptr)), given.rows), given.weights)
    return samples @ table + scorer.bias


def test_encoders_are_alike_without_a_hash_only() -> None:
    rows = [{i % 50: 1.0, (i * 7) % 50: 2.0} for i in range(40)]
    for kind, alike in (("own slots", True), ("hashed", False)):
        config = config_of(**ENCODERS[kind])
        assert Together.of(repetitions_of(config, features_of(rows, 50), 0)).alike == alike


def test_it_is_for_several_repetitions_with_few_narrow_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{i % 50: 1.0, (i * 7) % 50: 2.0} for i in range(40)]
    scorers = [scorer for _, scorer in repetitions_of(config_of(), features_of(rows, 50), 0)]
    assert fits(scorers)
    assert not fits(scorers[:1])
    assert not fits([*scorers, object()])
    wide = LinearScorer({"lengths": np.zeros(0, np.uint8), "entries": np.zeros(0, np.uint32),
                         "levels": scorers[0].levels, "bias": scorers[0].bias})  # fmt: skip
    assert not fits([*scorers, wide])
    monkeypatch.setattr("machxc.repetition.together.MOST_ENTRIES", 3)
    assert not fits(scorers)
