"""Text to token hashes: word and character n-grams, hashed to 32 bits and counted. No vocabulary, nothing fitted.

What a word is: features/unicode.py. The hash: features/kernels.py.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from machxc.compiled import kernel
from machxc.config import TextConfig
from machxc.errors import DataError
from machxc.features.kernels import count_tokens
from machxc.features.unicode import BOUNDARY, classes_of, code_points
from machxc.packed import Strings, take
from machxc.samples import Array, Features, Float32, Int64, UInt32

N_TOKENS = 2**32

# Characters normalised and counted at a time: what bounds memory, and stays in a core's cache.
_BLOCK = 1 << 17
_CHOOSE_FROM = 10_000
_FEW_WORDS, _SEVERAL_WORDS = 3.0, 6.0

MANY_TEXTS = 50_000  # from so many on word bigrams help; below, they repeat too seldom (docs/algorithm.md)

_ASCII_POINTS = np.array([ord(chr(byte).lower()) for byte in range(0x80)], np.uint32)

_Rows = tuple[Int64, UInt32, Float32]


def token_features(texts: Sequence[str], config: TextConfig) -> Features:
    """Count the n-grams that ``config`` takes of each text: one row a text, D = 2**32.

    indices are token hashes (uint32, strictly increasing in a row), values are counts (float32). A text without words
    is an empty row. Deterministic, and safe to call from many threads. DataError when an item is not a str.
    """
    texts = _checked(texts)
    blocks = [_block(block, config) for block in _blocks(texts)]
    if len(blocks) == 1:
        return Features(*blocks[0], N_TOKENS)
    return Features(*_concatenated(blocks), N_TOKENS)


def packed_features(texts: Strings, config: TextConfig) -> Features:
    """`token_features` of packed strings: those in ASCII are read as they lie there."""
    blocks = [_packed_block(texts.rows(start, stop), config) for start, stop in _bounds(np.diff(texts.offsets))]
    return Features(*_concatenated(blocks), N_TOKENS)


def choose_text_config(texts: Sequence[str]) -> tuple[TextConfig, str]:
    """The n-grams to take of texts like these, and why, in one sentence.

    Names and other texts of few words are told apart by their letters, and written with and without accents: words
    and character 2- to 4-grams, without diacritical marks. Queries of a few words more come in any order: words.
    Longer texts: words, and from `MANY_TEXTS` texts on word bigrams. A letter of a script without spaces counts as a
    word. DataError as token_features.
    """
    texts = _checked(texts)
    many = len(texts) >= MANY_TEXTS
    texts = texts[:: max(1, len(texts) // _CHOOSE_FROM)]
    counted = token_features(texts, TextConfig(words=1))
    with_words = int(np.count_nonzero(np.diff(counted.indptr)))
    if not with_words:
        return TextConfig(words=1), "words, as no text has a word to judge by"
    mean = float(counted.values.sum(dtype=np.float64)) / with_words
    if mean < _FEW_WORDS:
        config = TextConfig(words=1, chars_min=2, chars_max=4, fold=True)
        few = f"a text has {mean:.2f} words on average, fewer than {_FEW_WORDS:g}"
        return config, f"words and character 2- to 4-grams without diacritical marks, as {few}"
    mean_words = f"a text has {mean:.2f} words on average"
    if mean < _SEVERAL_WORDS:
        return TextConfig(words=1), f"words, as {mean_words}, fewer than {_SEVERAL_WORDS:g}: their order tells little"
    if many:
        return TextConfig(words=2), f"word uni- and bigrams, as {mean_words}"
    return TextConfig(words=1), f"words, as {mean_words} and bigrams repeat seldom in fewer than {MANY_TEXTS:,} texts"


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str | bytes):
        raise DataError(f"expected a sequence of texts, got one {type(texts).__name__}; put it in a list")
    checked = list(texts)
    for i, text in enumerate(checked):
        if not isinstance(text, str):
            raise DataError(
                f"text {i} is not a str but {type(text).__name__}: {text!r:.60}; "
                "convert numbers to str, and fill or drop missing values"
            )
    return checked


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    """The texts in blocks of about _BLOCK characters, at least one block and one text a block."""
    for start, stop in _bounds(np.fromiter(map(len, texts), np.int64, len(texts))):
        yield texts[start:stop]


def _bounds(lengths: Int64) -> Iterator[tuple[int, int]]:
    """Where the blocks of texts of these lengths begin and end."""
    block_of = (np.cumsum(lengths + 1) - lengths - 1) // _BLOCK
    return itertools.pairwise([0, *(np.flatnonzero(np.diff(block_of)) + 1).tolist(), len(lengths)])


def _block(texts: list[str], config: TextConfig) -> _Rows:
    points, classes = code_points(texts, config.fold)
    ends = np.flatnonzero(points == ord(BOUNDARY))
    return count_tokens(points, classes, ends, 1, config.words, config.chars_min, config.chars_max)


def _packed_block(texts: Strings, config: TextConfig) -> _Rows:
    ascii = np.empty(len(texts), np.bool_)
    _which_ascii(texts.bytes, texts.offsets, ascii)
    if ascii.all():
        return _ascii_block(texts, config)
    if not ascii.any():
        return _block(texts.tolist(), config)
    places = [np.flatnonzero(ascii), np.flatnonzero(~ascii)]
    parts = [_ascii_block(take(texts, places[0]), config), _block(take(texts, places[1]).tolist(), config)]
    return _rows_in_order(*_concatenated(parts), np.argsort(np.concatenate(places)))


def _ascii_block(texts: Strings, config: TextConfig) -> _Rows:
    points, classes = np.empty(len(texts.bytes), np.uint32), np.empty(len(texts.bytes), np.uint8)
    _look_up(texts.bytes, _ASCII_POINTS, _ascii_classes(), points, classes)
    return count_tokens(points, classes, texts.offsets[1:], 0, config.words, config.chars_min, config.chars_max)


@functools.cache
def _ascii_classes() -> Array:
    """The class of each ASCII byte."""
    return classes_of(_ASCII_POINTS)


@kernel
def _which_ascii(data: Array, offsets: Int64, ascii: Array) -> None:
    for i in range(len(ascii)):
        all_bits = np.uint8(0)
        for j in range(offsets[i], offsets[i + 1]):
            all_bits |= data[j]
        ascii[i] = all_bits < 0x80


@kernel
def _look_up(data: Array, point_of: UInt32, class_of: Array, points: UInt32, classes: Array) -> None:
    for i in range(len(data)):
        points[i], classes[i] = point_of[data[i]], class_of[data[i]]


@kernel
def _rows_in_order(indptr: Int64, indices: UInt32, values: Float32, order: Int64) -> _Rows:
    new_indptr = np.zeros(len(indptr), np.int64)
    new_indices, new_values = np.empty_like(indices), np.empty_like(values)
    at = 0
    for n in range(len(order)):
        for j in range(indptr[order[n]], indptr[order[n] + 1]):
            new_indices[at], new_values[at] = indices[j], values[j]
            at += 1
        new_indptr[n + 1] = at
    return new_indptr, new_indices, new_values


def _concatenated(blocks: list[_Rows]) -> _Rows:
    lengths = np.concatenate([np.diff(indptr) for indptr, _, _ in blocks])
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return indptr, np.concatenate([block[1] for block in blocks]), np.concatenate([block[2] for block in blocks])
