"""Packed strings do what lists of Python strings do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.config import TextConfig
from machxc.features.text import packed_features, token_features
from machxc.packed import Strings, distinct_strings, joined, merge_sorted, plain_integers, sorted_order, take

quick = settings(deadline=None, max_examples=100)
# many that begin alike, differ after eight bytes, or in a zero byte at the end
TEXTS = st.lists(st.text(st.sampled_from("ab\0é🙂"), max_size=12) | st.sampled_from(["same start a", "same start b"]))


@quick
@given(TEXTS)
def test_strings_are_kept_as_they_are(texts: list[str]) -> None:
    packed = Strings.of(texts)
    assert packed.tolist() == texts == [packed[i] for i in range(len(packed))]
    half = len(texts) // 2
    assert packed.rows(half, len(texts)).tolist() == texts[half:]
    assert joined([packed.rows(0, half), packed.rows(half, len(texts))]).tolist() == texts
    assert take(packed, np.arange(len(texts))[::-1].copy()).tolist() == texts[::-1]


def test_half_a_character_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        Strings.of(["a", "\ud83d"])


@quick
@given(TEXTS)
def test_distinct_strings_are_sorted_by_their_bytes(texts: list[str]) -> None:
    names, codes = distinct_strings(Strings.of(texts))
    assert names.tolist() == sorted(set(texts), key=str.encode)
    assert [names[code] for code in codes] == texts
    order = sorted_order(Strings.of(texts), np.arange(len(texts)))
    assert [texts[i] for i in order] == sorted(texts, key=str.encode)


@quick
@given(st.lists(TEXTS, max_size=6), st.integers(1, 9))
def test_sorted_lists_are_merged(lists: list[list[str]], step: int) -> None:
    lists = [sorted(set(texts), key=str.encode) for texts in lists]
    packed = joined([Strings.of([]), *map(Strings.of, lists)])
    bounds = np.cumsum([0, *map(len, lists)])
    ids = np.empty(len(packed), np.uint32)
    firsts = list(merge_sorted(packed, bounds, ids, step))
    merged = [packed[int(place)] for chunk in firsts for place in chunk]
    assert merged == sorted({text for texts in lists for text in texts}, key=str.encode)
    assert all(len(chunk) <= step for chunk in firsts)
    assert [merged[i] for i in ids] == [text for texts in lists for text in texts]


@quick
@given(st.lists(st.integers(-(10**18) + 1, 10**18 - 1)))
def test_plain_integers_are_read(values: list[int]) -> None:
    found = plain_integers(Strings.of(list(map(str, values))))
    assert found is not None
    assert found.tolist() == values


@pytest.mark.parametrize("text", ["", "-", "01", "-0", "+1", "1 ", "1.0", "1" * 19, "-" + "1" * 19, "x", "١"])
def test_what_python_would_write_otherwise_is_no_plain_integer(text: str) -> None:
    assert plain_integers(Strings.of(["7", text])) is None


@quick
@given(
    st.lists(st.text(max_size=20) | st.text(st.characters(max_codepoint=127), max_size=20)),
    st.sampled_from([TextConfig(words=2), TextConfig(words=1, chars_min=2, chars_max=4, fold=True)]),
)
def test_features_of_packed_texts_are_those_of_texts(texts: list[str], config: TextConfig) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    expected, found = token_features(texts, config), packed_features(Strings.of(texts), config)
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
