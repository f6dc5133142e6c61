from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import by_slot, config_of, encoded, features_of, sparse_rows

from machxc.config import Config
from machxc.repetition import random
from machxc.repetition.encode import Encoder, Rows, encoder_of, fit_encoder, n_slots, slot_hash
from machxc.repetition.lengths import most_slots
from machxc.samples import Features

WAYS = st.fixed_dictionaries(
    {
        "sublinear_tf": st.booleans(),
        "idf": st.booleans(),
        "l2": st.booleans(),
        "min_count": st.integers(1, 3),
        "seed": st.integers(0, 2**63 - 1),
    }
)


def numbers(config: Config, r: int) -> tuple[int, int, int]:
    multiplier, addend, shift = slot_hash(config, r)
    return int(multiplier), int(addend), int(shift)


def check_against_plain(features: Features, config: Config, r: int) -> None:
    encoder = fit_encoder(features, config, r)
    found = by_slot(encoder, encoder(features))
    for row, expected in zip(found, encoded(features, config, numbers(config, r)), strict=True):
        assert [slot for slot, _ in row] == [slot for slot, _ in expected]
        np.testing.assert_allclose([w for _, w in row], [w for _, w in expected], rtol=2e-5, atol=1e-7)


@given(sparse_rows(50), WAYS)
@settings(deadline=None, max_examples=150)
def test_columns_are_encoded_as_a_plain_loop_does(rows: list[dict[int, float]], ways: dict[str, Any]) -> None:
    config = config_of(n_features=50, feature_bits=6, **ways)
    assert n_slots(config) == 50
    check_against_plain(features_of(rows, 50), config, 0)


@given(sparse_rows(2**32), WAYS, st.integers(1, 8), st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_hashed_features_are_encoded_as_a_plain_loop_does(
    rows: list[dict[int, float]], ways: dict[str, Any], bits: int, r: int
) -> None:
    config = config_of(n_features=2**32, feature_bits=bits, **ways)
    assert n_slots(config) == 2**bits
    check_against_plain(features_of(rows, 2**32), config, r)


def test_32_feature_bits_leave_every_token_its_slot() -> None:
    config = config_of(n_features=2**32, feature_bits=32)
    assert numbers(config, 0) == (0, 0, 0)


def zipf(random_: np.random.Generator, n: int, n_features: int, each: int) -> Features:
    rows = [dict.fromkeys((int(i) % n_features for i in random_.zipf(1.3, each)), 1.0) for _ in range(n)]
    return features_of(rows, n_features)


@pytest.mark.parametrize("n_features", [1000, 2**32])
def test_rows_are_in_order_of_falling_frequency(n_features: int) -> None:
    features = zipf(np.random.default_rng(0), 500, n_features, 10)
    config = config_of(n_features=n_features, feature_bits=10, min_count=2)
    encoder = fit_encoder(features, config, 0)
    counts = np.bincount(encoder(features).rows, minlength=len(encoder.row_weights))
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] >= 2
    assert sorted(encoder.slots[encoder.slots >= 0]) == list(range(len(counts)))


def test_slots_that_training_did_not_see_are_skipped() -> None:
    config = config_of(n_features=50)
    encoder = fit_encoder(features_of([{1: 1.0, 2: 1.0}], 50), config, 0)
    rows = encoder(features_of([{2: 3.0, 7: 4.0}, {8: 1.0}, {}], 50))
    assert by_slot(encoder, rows) == [[(2, 1.0)], [], []]
    assert rows.indptr.tolist() == [0, 1, 1, 1]


def test_repetitions_hash_features_each_their_own_way() -> None:
    config = config_of(n_features=2**32, feature_bits=8, repetitions=40)
    hashes = [numbers(config, r) for r in range(40)]
    assert len(set(hashes)) == 40
    assert all(multiplier % 2 and shift == 56 for multiplier, _, shift in hashes)
    assert numbers(config_of(n_features=2**32, feature_bits=8, seed=1), 0) != hashes[0]


def test_features_collide_as_often_as_chance_has_it() -> None:
    pairs = 200 * 199 // 2
    collisions = 0
    config = config_of(n_features=2**32, feature_bits=8, repetitions=100)
    ids = np.concatenate([np.arange(100) * 1000, np.random.default_rng(0).integers(0, 2**32, 100)])
    for r in range(100):
        multiplier, addend, shift = numbers(config, r)
        slots = [((multiplier * int(i) + addend) % 2**64) >> shift for i in ids]
        collisions += sum(n * (n - 1) // 2 for n in np.bincount(slots))
    assert 0.8 < collisions / (100 * pairs / 256) < 1.2


def same(a: Rows, b: Rows) -> bool:
    return [x.tobytes() for x in (a.indptr, a.rows, a.weights)] == [x.tobytes() for x in (b.indptr, b.rows, b.weights)]


def dense_features(n: int = 300, d: int = 40) -> Features:
    return features_of([dict.fromkeys(range(d), 1.0 + i % 3) for i in range(n)], d)


def fitted(features: Features, **changed: Any) -> Encoder:
    return fit_encoder(features, config_of(n_features=features.n_features, **changed), 0)


def test_order_chooses_and_orders_samples() -> None:
    features = features_of([{1: 1.0}, {}, {2: 1.0, 3: 2.0}], 50)
    encoder = fitted(features)
    found = by_slot(encoder, encoder(features, np.array([2, 0, 1, 2])))
    whole = by_slot(encoder, encoder(features))
    assert found == [whole[2], whole[0], whole[1], whole[2]]
    assert len(encoder(features, np.empty(0, np.int64))) == 0


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_its_share_and_makes_up_for_it(dropout: float) -> None:
    features = dense_features()
    encoder, state = fitted(features), random.stream(0, random.DROPOUT, 0, 0)
    whole, rows = encoder(features), encoder(features, None, dropout, state)
    n = len(whole.rows)
    assert abs(len(rows.rows) / n - (1 - dropout)) < 4 * (dropout * (1 - dropout) / n) ** 0.5
    np.testing.assert_allclose(rows.weights, whole.weights[0] / (1 - dropout) ** 0.5, rtol=1e-5)
    share_of_feature = np.bincount(rows.rows, minlength=40) / 300
    assert np.abs(share_of_feature - (1 - dropout)).max() < 5 * (dropout * (1 - dropout) / 300) ** 0.5


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 59), min_size=1, max_size=80), st.integers(1, 80))
@settings(deadline=None, max_examples=50)
def test_dropout_depends_on_the_sample_not_on_its_chunk(seed: int, order: list[int], cut: int) -> None:
    features = dense_features(60, 12)
    encoder, state, chosen = fitted(features), random.stream(seed, random.DROPOUT, 0, 0), np.array(order)
    whole = by_slot(encoder, encoder(features, chosen, 0.4, state))
    assert by_slot(encoder, encoder(features, chosen[:cut], 0.4, state)) == whole[:cut]
    assert by_slot(encoder, encoder(features, chosen[cut:], 0.4, state)) == whole[cut:]


def test_epochs_drop_other_features() -> None:
    features = dense_features()
    encoder = fitted(features)
    one, other = (encoder(features, None, 0.5, random.stream(0, random.DROPOUT, 0, epoch)) for epoch in range(2))
    assert not same(one, other)
    assert same(one, encoder(features, None, 0.5, random.stream(0, random.DROPOUT, 0, 0)))


def test_dropout_of_0_is_none() -> None:
    features = dense_features()
    encoder = fitted(features)
    assert same(encoder(features), encoder(features, None, 0.0, np.uint64(5)))


@given(sparse_rows(50, max_rows=20), WAYS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_the_encoder_does_not_depend_on_the_order_of_samples(
    rows: list[dict[int, float]], ways: dict[str, Any], shuffled: Any
) -> None:
    config, other = config_of(**ways), list(rows)
    shuffled.shuffle(other)
    one, two = fit_encoder(features_of(rows, 50), config, 0), fit_encoder(features_of(other, 50), config, 0)
    np.testing.assert_array_equal(one.slots, two.slots)
    np.testing.assert_allclose(one.row_weights, two.row_weights, rtol=1e-6)


@pytest.mark.parametrize("value", [1e-36, 1e-20, 1e20, -1e20, 1e36])
@pytest.mark.parametrize("l2", [True, False])
def test_values_of_any_size_are_scaled_to_a_unit_norm(value: float, l2: bool) -> None:
    features = features_of([{1: value, 2: value}, {1: value, 2: value}], 50)
    rows = fitted(features, l2=l2)(features)
    np.testing.assert_allclose(rows.weights, np.sign(value) * 0.5**0.5, rtol=1e-5)


@pytest.mark.parametrize("l2", [True, False])
def test_values_far_beyond_those_of_training_are_bounded(l2: bool) -> None:
    encoder = fitted(features_of([{1: 1.0}, {1: 1.0, 2: 1.0}], 50), l2=l2)
    weights = encoder(features_of([{1: 1e30}, {1: -1e38}, {1: 1e3}, {1: 1e3, 2: -1e9}], 50)).weights
    assert (np.abs(weights) <= 65000).all()
    assert np.sign(weights).tolist() == [1, -1, 1, 1, -1]
    assert weights[2] == pytest.approx(1 if l2 else 1e3 / 1.5**0.5)


@pytest.mark.parametrize("bits", [5, 8, 11, 17, 20])
@pytest.mark.parametrize("l2", [True, False])
@pytest.mark.parametrize("min_count", [1, 2, 99])
def test_an_encoder_is_restored_from_its_tensors(bits: int, l2: bool, min_count: int) -> None:
    """Of 50 samples, in as few bytes as its numbers need; without a row; and of very many slots, as they are."""
    config = config_of(n_features=2**32, feature_bits=bits, idf=True, sublinear_tf=True, l2=l2, min_count=min_count)
    features = zipf(np.random.default_rng(1), 50, 2**32, 8)
    encoder, n_slots = fit_encoder(features, config, 1), 1 << bits
    stored = encoder.tensors()
    many = n_slots > most_slots(len(encoder.row_weights))
    assert many == ("slots" in stored) == ("row_slots" not in stored)
    assert many or stored["row_slots"].dtype == np.min_scalar_type(stored["row_slots"].max(initial=0))
    assert int(stored["repeats"].sum()) == len(encoder.row_weights)
    again = encoder_of(config, 1, stored)
    assert again.slots.tobytes() == encoder.slots.tobytes()
    assert again.row_weights.tobytes() == encoder.row_weights.tobytes()
    assert same(encoder(features), again(features))


def test_idf_is_that_of_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    from scipy.sparse import random as random_sparse

    matrix = random_sparse(40, 30, 0.2, "csr", random_state=0, data_rvs=lambda n: np.arange(n) % 4 + 1.0)
    matrix.sort_indices()
    expected = text.TfidfTransformer(sublinear_tf=True).fit_transform(matrix)
    features = Features(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.uint32), matrix.data.astype(np.float32), 30
    )
    encoder = fit_encoder(features, config_of(n_features=30, idf=True, sublinear_tf=True), 0)
    rows = encoder(features)
    np.testing.assert_allclose(rows.weights, expected.data, rtol=1e-5)
