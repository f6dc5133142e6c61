"""Text features against a slow oracle that follows the documentation word by word, and against fixed values."""

from __future__ import annotations

import contextlib
import re
import time
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.config import TextConfig
from machxc.errors import DataError
from machxc.features import text as text_module
from machxc.features import unicode
from machxc.features.text import MANY_TEXTS, choose_text_config, token_features
from machxc.samples import Features

WORDS = TextConfig(words=1)
BIGRAMS = TextConfig(words=2)
CHARS = TextConfig(words=0, chars_min=2, chars_max=4)
BOTH = TextConfig(words=1, chars_min=2, chars_max=4)
FOLDED = TextConfig(words=1, chars_min=2, chars_max=4, fold=True)

# --- the oracle: Python integers, strings, regular expressions ---

MASK = 2**64 - 1
SEED = 0x243F6A8885A308D3
EDGE = 0x110000
LETTER_OF = {
    unicode.SEPARATOR: " ",
    unicode.SYMBOL: "S",
    unicode.SPACELESS: "C",
    unicode.LETTER: "L",
    unicode.MARK: "M",
}


def fmix(z: int) -> int:
    z = (z ^ (z >> 33)) * 0xFF51AFD7ED558CCD & MASK
    z = (z ^ (z >> 33)) * 0xC4CEB9FE1A85EC53 & MASK
    return z ^ (z >> 33)


def state(values: list[int]) -> int:
    s = SEED
    for x in values:
        m = (s ^ x) * 0x9E3779B97F4A7C15 & MASK
        s = m ^ (m >> 32)
    return s


def token(family: int, values: list[int]) -> int:
    return fmix(state(values) ^ (family * 0xD6E8FEB86659FD93 & MASK)) >> 32


FOLDS = {"æ": "ae", "œ": "oe", "ı": "i", "ȷ": "j", "ſ": "s"}
SPELLING = {0, 6, 7, 8, 9} | set(range(84, 133))


def folded(text: str) -> str:
    """A character at a time, in the words of the documentation, until nothing changes."""
    result = ""
    for c in text:
        bases = ""
        for part in unicodedata.normalize("NFD", c):
            base, found, _ = unicodedata.name(part, "").partition(" WITH ")
            if " SMALL LETTER " in base and found:
                with contextlib.suppress(KeyError):
                    part = unicodedata.lookup(base)
            if unicodedata.combining(part) in SPELLING:
                bases += FOLDS.get(part, part)
        result += unicodedata.normalize("NFC", bases)
    return result if result == text else folded(result)


def normalised(text: str, fold: bool = False) -> str:
    kept, marks = "", 0
    for c in text:
        marks = marks + 1 if unicode.class_of(ord(c)) == unicode.MARK else 0
        kept += c if marks <= 30 else ""
    text = unicodedata.normalize("NFKC", kept).casefold().replace("i\u0307", "i")
    text = unicodedata.normalize("NFKC", text)
    text = folded(text) if fold else text
    return "".join(c for c in text if unicode.class_of(ord(c)) != unicode.IGNORED)


def pieces(text: str, pattern: str) -> list[list[int]]:
    kinds = "".join(LETTER_OF[unicode.class_of(ord(c))] for c in text)
    return [[ord(c) for c in text[m.start() : m.end()]] for m in re.finditer(pattern, kinds)]


def ngrams(items: list[int], n: int) -> list[list[int]]:
    return [items[i : i + n] for i in range(len(items) - n + 1)]


def oracle(text: str, config: TextConfig) -> dict[int, float]:
    text = normalised(text, config.fold)
    counts: Counter[int] = Counter()
    words = [state(word) for word in pieces(text, "L[LM]*|[CS]M*")]
    for n in range(1, config.words + 1):
        counts.update(token(n, gram) for gram in ngrams(words, n))
    if config.chars_max:
        for run in pieces(text, "[LC][LCM]*|SM*"):
            padded = [EDGE, *run, EDGE]
            lengths = range(min(config.chars_min, len(padded)), config.chars_max + 1)
            grams = [gram for n in lengths for gram in ngrams(padded, n) if gram != [EDGE]]
            counts.update(token(16 + len(gram), gram) for gram in grams)
    return {key: float(counts[key]) for key in sorted(counts)}


def row(features: Features, i: int) -> dict[int, float]:
    start, stop = int(features.indptr[i]), int(features.indptr[i + 1])
    return dict(zip(features.indices[start:stop].tolist(), features.values[start:stop].tolist(), strict=True))


def assert_equal_to_oracle(texts: list[str], config: TextConfig) -> None:
    features = token_features(texts, config)
    features.check()
    arrays = (features.indptr, features.indices, features.values)
    assert [array.dtype.name for array in arrays] == ["int64", "uint32", "float32"]
    assert len(features) == len(texts)
    assert features.n_features == 2**32
    for i, text in enumerate(texts):
        assert list(row(features, i).items()) == list(oracle(text, config).items()), f"{text!r}"


def same(first: str, second: str, config: TextConfig = BOTH) -> bool:
    features = token_features([first, second], config)
    return bool(row(features, 0)) and row(features, 0) == row(features, 1)


def words_of(text: str) -> Counter[int]:
    return Counter({key: int(count) for key, count in row(token_features([text], WORDS), 0).items()})


# --- against the oracle ---

TRICKY = "aAbz İıßéΣς\u0345 .'’ʼʹ_-9½²٣ \x00\x1f\u200b\u00ad\u200d\ufe0f\u0301\u0323\u034f\u0640"
TRICKY += "øłđǿǣœҋйẜấが゙ก็้తైज़क़أ̷ַ"
TRICKY += "é́ｱﾞｶガーカ々〇中文字กำเแလေ្ខ한\u1112\u1161\u11abक्षिم👩💻🏽🇫❤$+\ud800\udfff\uffff\U000e0041\U0010ffff\U00020000"
ANY_TEXT = st.one_of(
    st.text(),
    st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"])),  # lone surrogates too
    st.text(st.sampled_from(TRICKY), max_size=40),
    st.text("\u0301\u0316ﾞa", max_size=100),
)
ANY_CONFIG = st.one_of(
    st.builds(TextConfig, words=st.integers(1, 5), fold=st.booleans()),
    st.integers(1, 16).flatmap(
        lambda low: st.builds(
            TextConfig,
            words=st.integers(0, 3),
            chars_min=st.just(low),
            chars_max=st.integers(low, 16),
            fold=st.booleans(),
        )
    ),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(ANY_TEXT, max_size=6), ANY_CONFIG, st.sampled_from([1, 7, 1 << 17]))
def test_equals_oracle_on_any_text(texts: list[str], config: TextConfig, block: int) -> None:
    with mock.patch.object(text_module, "_BLOCK", block):
        assert_equal_to_oracle(texts, config)


@pytest.mark.parametrize("config", [BIGRAMS, CHARS, BOTH, FOLDED, TextConfig(words=5, chars_min=1, chars_max=16)])
def test_equals_oracle_on_every_code_point(config: TextConfig) -> None:
    rng = np.random.default_rng(5)
    points = rng.integers(0, 0x110000, 3000).tolist() + rng.integers(0, 0x3100, 3000).tolist()
    assert_equal_to_oracle(["".join(map(chr, points[i : i + 20])) for i in range(0, len(points), 20)], config)


def test_equals_oracle_on_a_long_text() -> None:
    rng = np.random.default_rng(6)
    text = " ".join(f"wörd{i}" for i in rng.integers(0, 5000, 20_000).tolist())
    assert_equal_to_oracle(["before", text, "after"], BIGRAMS)


def test_a_text_of_a_megabyte_takes_well_under_a_second_whatever_it_holds() -> None:
    token_features(["warm"], BOTH)
    texts = ["word " * 200_000, "x" * 10**6, "中" * 10**6, "é " * 500_000, "a" + "\u0301\u0316" * 500_000]
    start = time.process_time()
    features = token_features(texts, BOTH)
    assert time.process_time() - start < 5
    # x with edges on both sides; the counts are those of a million x: 2-, 3- and 4-grams.
    grams = row(features, 1)
    assert grams[token(18, [ord("x")] * 2)] == 10**6 - 1
    assert grams[token(19, [ord("x")] * 3)] == 10**6 - 2
    assert grams[token(18, [EDGE, ord("x")])] == 1


# --- fixed values: stored models depend on these numbers ---


def test_golden_hashes() -> None:
    assert fmix(1) == 0xB456BCFC34C2CB2C  # MurmurHash3's own finaliser
    assert row(token_features(["Paris"], WORDS), 0) == GOLDEN["Paris", 1]
    assert row(token_features(["New York, New York"], BIGRAMS), 0) == GOLDEN["New York, New York", 2]
    assert row(token_features(["Ost"], TextConfig(words=0, chars_min=2, chars_max=3)), 0) == GOLDEN["Ost", "chars"]
    assert row(token_features(["Straße 北京"], BIGRAMS), 0) == GOLDEN["Straße 北京", 2]


GOLDEN: dict[tuple[str, Any], dict[int, float]] = {
    ("Paris", 1): {2929357450: 1.0},
    ("New York, New York", 2): {1009116926: 2.0, 1864113716: 1.0, 2665411080: 2.0, 3653732437: 2.0},
    ("Ost", "chars"): {
        1105180915: 1.0,
        1157049424: 1.0,
        1675755034: 1.0,
        3203545338: 1.0,
        3547587537: 1.0,
        4180958019: 1.0,
        4183471634: 1.0,
    },
    ("Straße 北京", 2): {409664886: 1.0, 1312213435: 1.0, 1394224265: 1.0, 2975101630: 1.0, 3628126870: 1.0},
}


# --- Unicode ---


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("STRASSE", "Straße", id="sharp s"),
        pytest.param("İSTANBUL", "istanbul", id="Turkish dotted I"),
        pytest.param("ＡＢＣ１２", "abc12", id="full width"),
        pytest.param("ｶﾞﾊﾟ", "ガパ", id="half-width kana"),
        pytest.param("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국", id="Hangul jamo"),
        pytest.param("Cafe\u0301", "CAFÉ", id="combining accent"),
        pytest.param("a\u0323\u0307", "a\u0307\u0323", id="order of marks"),
        pytest.param("ΟΔΟΣ", "οδος", id="final sigma"),
        pytest.param("ﬁnd ½", "find 1⁄2", id="ligature and fraction"),
        pytest.param("co\u00adoperate", "cooperate", id="soft hyphen"),
        pytest.param("می\u200cخواهم", "میخواهم", id="zero-width non-joiner"),
        pytest.param("محـــمد", "محمد", id="tatweel"),
        pytest.param("❤\ufe0f 👍🏽", "❤👍", id="emoji variation and skin colour"),
        pytest.param("👩\u200d💻", "👩💻", id="emoji joined"),
        pytest.param("don't", "don’t", id="apostrophes"),
        pytest.param("don´t", "don t", id="acute for apostrophe"),
        pytest.param("Hawaiʻi", "hawai'i", id="letter apostrophe"),
        pytest.param("ʿAmmān, Tverʹ", "ammān tver", id="transliteration"),
        pytest.param("snake_case-word", "snake case word", id="underscore and hyphen"),
        pytest.param("a\x1fb", "a b", id="the boundary itself"),
        pytest.param("a\u200bb", "a b", id="zero-width space"),
    ],
)
def test_texts_that_are_the_same(first: str, second: str) -> None:
    assert same(first, second)
    assert same(first, second, BIGRAMS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("The cat, the cat.", ["the", "cat", "the", "cat"], id="English"),
        pytest.param("l'eau d’été", ["l", "eau", "d", "été"], id="French"),
        pytest.param("3.14 1,000 x86_64", ["3", "14", "1", "000", "x86", "64"], id="numbers"),
        pytest.param("क्षत्रिय हिन्दी", ["क्षत्रिय", "हिन्दी"], id="Devanagari conjuncts"),
        pytest.param("مُحَمَّد علي", ["مُحَمَّد", "علي"], id="Arabic with marks"),
        pytest.param("ที่นี่", ["ที่", "นี่"], id="Thai"),
        pytest.param("北京大学", ["北", "京", "大", "学"], id="Chinese"),
        pytest.param("東京タワーへ", ["東", "京", "タ", "ワ", "ー", "へ"], id="Japanese"),
        pytest.param("iPhone手机15", ["iphone", "手", "机", "15"], id="mixed scripts"),
        pytest.param("서울특별시 강남구", ["서울특별시", "강남구"], id="Korean has spaces"),
        pytest.param("ខ្មែរ", ["ខ្", "មែ", "រ"], id="Khmer"),
        pytest.param("go🎉🎉now €5", ["go", "🎉", "🎉", "now", "€", "5"], id="symbols"),
        pytest.param("🇫🇷", ["🇫", "🇷"], id="a flag"),
        pytest.param("a + b = c", ["a", "b", "c"], id="mathematics"),
        pytest.param("\U00020000\U0003fffd\ue000", ["\U00020000", "\U0003fffd", "\ue000"], id="rare and private"),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    expected: Counter[int] = Counter()
    for word in words:
        expected += words_of(word)
    assert len(expected) == len(set(words))
    assert words_of(text) == expected


def test_a_spaceless_name_has_character_ngrams_across_its_characters() -> None:
    grams = row(token_features(["北京"], CHARS), 0)
    points = [EDGE, ord("北"), ord("京"), EDGE]
    assert set(grams) == {token(16 + n, gram) for n in (2, 3, 4) for gram in ngrams(points, n)}


def test_a_word_shorter_than_the_ngrams_gives_itself() -> None:
    grams = row(token_features(["ab"], TextConfig(words=0, chars_min=6, chars_max=8)), 0)
    assert grams == {token(16 + 4, [EDGE, ord("a"), ord("b"), EDGE]): 1.0}


def test_what_normalises_to_a_mark_is_a_mark() -> None:
    """So that the limit on marks in a row, applied before normalisation, limits what normalisation sorts."""
    for point in range(0x110000):
        first = unicodedata.normalize("NFKD", chr(point))[0]
        if unicodedata.combining(first):
            assert unicode.class_of(point) == unicode.MARK, hex(point)


# --- folding ---


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("Igarapé Grande", "IGARAPE GRANDE", id="Portuguese"),
        pytest.param("Böğürtlen, Iğdır", "Bogurtlen, Igdir", id="Turkish"),
        pytest.param("Łódź", "lodz", id="Polish"),
        pytest.param("Đà Nẵng", "Da Nang", id="Vietnamese"),
        pytest.param("Đa\u0300 Na\u0306\u0303ng", "Da Nang", id="combining marks"),
        pytest.param("Ærøskøbing", "Aeroskobing", id="Danish"),
        pytest.param("Œuf", "OEUF", id="French"),
        pytest.param("Ǣ ǽ Ǿ", "ae ae o", id="letters with marks that are letters with more"),
        pytest.param("Ελλάς", "ΕΛΛΑΣ", id="Greek"),
        pytest.param("Королёв, Нижний", "Королев, Нижнии", id="Russian"),
        pytest.param("Ґанок, Қазақ", "ганок, казак", id="Cyrillic strokes and descenders"),
        pytest.param("ҋ", "и", id="a mark on a letter of a mark"),
        pytest.param("أحمد مُحَمَّد", "احمد محمد", id="Arabic"),
        pytest.param("שָׁלוֹם", "שלום", id="Hebrew"),
    ],
)
def test_folded_texts_that_are_the_same(first: str, second: str) -> None:
    assert same(first, second, FOLDED)
    assert not same(first, second)
    assert not same(first, second, CHARS)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("が", "か", id="kana voicing"),
        pytest.param("ぱ", "は", id="kana half voicing"),
        pytest.param("हिन्दी", "हनद", id="Devanagari vowel signs and virama"),
        pytest.param("ज़", "ज", id="nukta"),
        pytest.param("తై", "తె", id="Telugu two-part vowel"),
        pytest.param("ภูเก็ต", "ภเกต", id="Thai vowels"),
        pytest.param("ไม้", "ไม", id="Thai tones"),
        pytest.param("བོད", "བད", id="Tibetan vowels"),
        pytest.param("한", "하", id="Hangul"),
    ],
)
def test_what_a_script_spells_with_is_not_folded(first: str, second: str) -> None:
    assert not same(first, second, FOLDED)
    assert same(first, first, FOLDED)
    points = unicode.code_points([first], fold=True)[0]
    assert np.array_equal(points, unicode.code_points([first])[0])


def test_every_code_point_folds_to_what_folds_to_itself() -> None:
    """And that normalises to itself, and is to a word what the code point was; it is two letters at most."""
    for point in range(0x110000):
        c = chr(point)
        if unicode.normalised(c) != c:
            continue
        fold = unicode.folded_of(point)
        assert fold == folded(c) == unicode.normalised(fold), hex(point)
        assert "".join(unicode.folded_of(ord(letter)) for letter in fold) == fold, hex(point)
        assert {unicode.class_of(ord(letter)) for letter in fold} <= {unicode.class_of(point)}, hex(point)
        assert len(fold) <= 2, hex(point)


@settings(deadline=None, max_examples=300)
@given(ANY_TEXT)
def test_folding_again_changes_nothing(text: str) -> None:
    points, _ = unicode.code_points([text], fold=True)
    once = folded(normalised(text).replace(unicode.BOUNDARY, " "))
    assert points.tolist() == [*map(ord, once), ord(unicode.BOUNDARY)]
    assert np.array_equal(unicode._folded(points.copy()), points)


@settings(deadline=None, max_examples=200)
@given(st.lists(ANY_TEXT, max_size=6))
def test_texts_fold_together_as_alone(texts: list[str]) -> None:
    together = token_features(texts, FOLDED)
    for i, text in enumerate(texts):
        assert row(together, i) == row(token_features([text], FOLDED), 0)


@given(st.text(st.characters(max_codepoint=0x7F)))
def test_ascii_is_not_folded(text: str) -> None:
    alone, beside = token_features([text], FOLDED), token_features(["é", text], FOLDED)
    assert row(alone, 0) == row(beside, 1) == row(token_features([text], BOTH), 0)


# --- the hash ---


def test_tokens_spread_evenly_and_collide_as_chance_has_it() -> None:
    names = [f"word{i}" for i in range(100_000)]
    features = token_features(names, BIGRAMS)
    assert (np.diff(features.indptr) == 1).all()
    tokens = features.indices
    for shift in range(0, 32, 4):
        slots = np.bincount((tokens >> shift) & 15, minlength=16)
        chi_square = float(((slots - len(tokens) / 16) ** 2).sum() / (len(tokens) / 16))
        assert chi_square < 45  # 15 degrees of freedom: one in 10,000 exceeds it
    expected = len(tokens) ** 2 / 2 / 2**32
    assert len(tokens) - len(np.unique(tokens)) < expected + 6 * expected**0.5


def test_one_letter_changes_half_of_the_bits() -> None:
    changed = []
    for i, text in enumerate(["kitten sitting", "a", "aaaaaaaa", "北京"] * 5):
        other = text[:-1] + chr(ord(text[-1]) + 1 + i // 4)
        a, b = (token_features([t], WORDS).indices for t in (text, other))
        changed += [
            int(x ^ y).bit_count() for x in set(a.tolist()) - set(b.tolist()) for y in set(b.tolist()) - set(a.tolist())
        ]
    assert 14 < float(np.mean(changed)) < 18
    assert min(changed) >= 5


def test_families_do_not_share_tokens() -> None:
    """A one-word text as a word, a word bigram, or character n-grams of several lengths: all distinct."""
    word = set(row(token_features(["aa"], WORDS), 0))
    pair = set(row(token_features(["aa aa"], BIGRAMS), 0)) - word
    chars = set(row(token_features(["aa"], TextConfig(words=0, chars_min=1, chars_max=4)), 0))
    assert (len(word), len(pair), len(chars)) == (1, 1, 1 + 3 + 2 + 1)
    assert not word & chars
    assert not pair & chars


# --- shapes, threads, errors ---


@pytest.mark.parametrize("config", [BIGRAMS, CHARS, BOTH])
@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["...", " \t\n", "\u0301", "\u200d", "-'-"]])
def test_texts_without_words_are_empty_rows(texts: list[str], config: TextConfig) -> None:
    features = token_features(texts, config)
    features.check()
    assert features.indptr.tolist() == [0] * (len(texts) + 1)
    assert len(features.indices) == len(features.values) == 0


def test_arrays_and_series_of_texts_are_sequences_too() -> None:
    texts = ["Paris", "New York", ""]
    expected = token_features(texts, BOTH)
    for given_texts in (tuple(texts), np.array(texts), np.array(texts, object)):
        features = token_features(given_texts, BOTH)  # type: ignore[arg-type]
        assert np.array_equal(features.indices, expected.indices)
        assert np.array_equal(features.indptr, expected.indptr)


def test_many_threads_agree() -> None:
    rng = np.random.default_rng(7)
    texts = ["".join(map(chr, rng.integers(0x20, 0x30000, 30).tolist())) for _ in range(2000)]
    with mock.patch.object(unicode, "_classes", np.zeros(0x110000, np.uint8)), ThreadPoolExecutor(8) as pool:
        unicode._folds[:] = 0
        results = list(pool.map(lambda _: token_features(texts, FOLDED), range(8)))
    alone = token_features(texts, FOLDED)
    for result in results:
        assert np.array_equal(result.indices, alone.indices)
        assert np.array_equal(result.values, alone.values)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b", 3], r"text 2 is not a str but int: 3"),
        (["a", None], r"text 1 is not a str but NoneType"),
        ([float("nan")], r"text 0 is not a str but float: nan"),
        ([b"a"], r"text 0 is not a str but bytes"),
        ("Paris", r"expected a sequence of texts, got one str"),
        (b"Paris", r"expected a sequence of texts, got one bytes"),
    ],
)
def test_what_is_not_text_is_named(texts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        token_features(texts, BIGRAMS)
    with pytest.raises(DataError, match=message):
        choose_text_config(texts)


# --- the choice ---


def test_names_get_characters_and_titles_get_words() -> None:
    config, reason = choose_text_config(["Paris", "New York", "Rio de Janeiro"])
    assert config == TextConfig(words=1, chars_min=2, chars_max=4, fold=True)
    assert reason.startswith("words and character 2- to 4-grams without diacritical marks, as")
    assert "2.00 words on average" in reason
    config, reason = choose_text_config(["how to cook rice", "why is my bread flat"])
    assert config == TextConfig(words=1)
    assert "4.50 words on average" in reason


def test_many_texts_get_word_bigrams() -> None:
    texts = ["how to cook rice so that it does not stick", "why is my bread flat"] * (MANY_TEXTS // 2)
    assert choose_text_config(texts)[0] == TextConfig(words=2)
    assert choose_text_config(texts[:-1])[0] == TextConfig(words=1)


def test_queries_of_a_few_words_get_no_bigrams_however_many() -> None:
    config, reason = choose_text_config(["red shoes size 40", "size 40 running shoes red"] * (MANY_TEXTS // 2))
    assert (config, "fewer than 6" in reason) == (TextConfig(words=1), True)


def test_a_spaceless_character_counts_as_a_word() -> None:
    assert choose_text_config(["北京大学图书馆"])[0] == TextConfig(words=1)
    assert choose_text_config(["北京"])[0].chars_max == 4


def test_empty_texts_do_not_count_towards_the_mean() -> None:
    config, reason = choose_text_config(["", "one two three four", "..."])
    assert (config, "4.00 words" in reason) == (TextConfig(words=1), True)
    assert choose_text_config([]) == choose_text_config(["", "?"])
    assert choose_text_config([])[0] == TextConfig(words=1)


def test_a_long_list_is_sampled_evenly() -> None:
    assert "2.00 words" in choose_text_config(["a", "b c d"] * 2 + ["e f"] * 500_000)[1]
