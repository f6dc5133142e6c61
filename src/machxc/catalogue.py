"""A made-up shop, as large as one likes: queries to learn from, with the products they are for as labels.

`Catalogue` says what is made; below it, everything is computed from the id of a product or the number of a sample, by
kernels that only hash: draw (state, position) is the one source of what is random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from machxc import partition
from machxc.compiled import inline, kernel, part
from machxc.errors import DataError, SettingError
from machxc.partition import HashPartition, UInt64
from machxc.repetition.random import draw, stream
from machxc.samples import MAX_LABELS, Array, Int64, Labels, UInt32

_CHUNK = 1 << 14  # samples, or names, made at a time
_ROOM = 128  # no text and no name is longer
_MOST = 4  # labels of a sample
_LINE_BITS = np.array([0, 0, 0, 1, 1, 2, 2, 3])  # 2**n variants has a line, in one block of eight products or another
_SHOP, _POPULARITY, _NUMBERS, _TURNS, _SAMPLES = range(5)  # what random numbers are for
_BLOCKS, _LINES, _BRANDS, _BRAND_WORDS, _MODEL_WORDS, _NOUNS, _FACETS, _SHARED_WORDS = range(8)

_FIELDS = 10  # of a title, in this order
_BRAND, _MODEL, _SERIES, _FACET, _NOUN, _SIZE, _COLOUR, _NUMBER = 0, 1, 2, 3, 6, 7, 8, 9  # there are three facets
_TYPED = np.array([110, 190, 60, 60, 50, 40, 110, 90, 100, 10])  # how often a query has it: so many times of 256
_EXACT = 1 << _MODEL | 1 << _SERIES | 1 << _NUMBER  # what a vague query leaves out
_VAGUE, _CHATS, _DISORDERED, _SYNONYM, _MISTYPED, _JOINED = 190, 64, 102, 38, 20, 10  # of 256 times
_NAME = np.array([_BRAND, _MODEL, _SERIES, _SIZE, _COLOUR, _NUMBER])

_TABLE = (
    b"small medium large xlarge 10cm 20cm 40cm 80cm 1kg 2kg 5kg 10kg 8gb 16gb 32gb 64gb "  # sizes, of four kinds
    b"black white red blue green grey pink gold silver brown beige navy teal olive purple orange "
    b"pro max ultra mini plus neo air lite one prime sport classic smart home eco duo "
    b"buy best cheap new for sale with price online original review shop offer good the where"
).split()
_LETTERS = np.array([list(entry.ljust(8)) for entry in _TABLE], np.uint8)
_SIZES, _COLOURS, _SERIES_WORDS, _CHATTER = 0, 16, 32, 48  # where they begin in the table
_CONSONANTS = np.frombuffer(b"bdfghjklmnprstvz", np.uint8)
_VOWELS = np.frombuffer(b"aeio", np.uint8)
_CODAS = np.frombuffer(b"  nr", np.uint8)
_SPACE = 32
_MADE_UP = np.uint64(1 << 63)  # a word is a number: below 64 of the table, from here on made up, else a model number

Letters = npt.NDArray[np.uint8]
_permute: Any = inline(partition.permute)


@dataclass(frozen=True)
class Catalogue:
    """Queries for the products of a made-up shop, with the products as labels: as many as one likes.

    **Products.** Ids are a tree: 2,048 are a category, 64 of these one brand's, and each block of eight is one line
    (a model of the brand) of eight variants, or two lines of four, four of two, or eight of one. Variants of a line
    differ in size (one of two) and colour (one of up to four). The title of a product: brand, model, a series ("pro"),
    three facets, the category's noun, size, colour, and a model number of its own. A brand is in four categories; some
    five lines share a model's word; a facet is one of sixteen words of the category, half of them shared with other
    categories. Words are made up, of two or three syllables, but sizes, colours and series.

    **Queries.** The product is drawn by popularity: Zipf's law with exponent 0.8; in stream 0, to train on, every
    fourth sample takes the next product in turn instead, so that its first 4 K samples have each product. A query has
    some words of the title, two or more: the model in three of four, the others less often, the number seldom. But the
    eighth of the products that is most popular is often asked for vaguely: without model, series and number. Each word
    may be one of its up to three synonyms, be mistyped, or stick to the word before it; some queries have a word that
    says nothing ("buy"), and some are in disorder.

    **Labels.** All variants of the line that fit what the query says of size, colour and number: 1 to 4, as a query for
    a line of eight always says something of them.

    **Difficulty.** The right product is often not the one with most words in common: what is not said must be made up
    for by what is popular. With K = 20,000 and 4 K training samples, BM25 on all texts of a label ranks a right label
    first for 45 % of 20,000 queries of stream 1, and a tree of linear classifiers (Parabel) for 50 %.

    Everything is computed from ids and the seed, nothing is held: memory does not grow with ``n_labels`` or the number
    of samples. The same bytes everywhere: what is random is integers, and floats are only added and multiplied.

    ``n_labels`` K in [1, 2**32 - 1], ``seed`` >= 0; SettingError otherwise.
    """

    n_labels: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n_labels <= MAX_LABELS or self.seed < 0:
            raise SettingError(
                f"expected 1 <= n_labels <= {MAX_LABELS} and seed >= 0. Got {self.n_labels} and {self.seed} instead."
            )

    def name(self, ids: Array | Sequence[int]) -> list[str]:
        """The names of labels: brand, model, series, size, colour, model number. No two labels have the same."""
        given = np.asarray(ids, np.int64)
        if given.size and not 0 <= given.min() <= given.max() < self.n_labels:
            raise DataError(f"label ids are out of range: expected ids in [0, {self.n_labels})")
        names: list[str] = []
        for start in range(0, len(given), _CHUNK):
            some = given[start : start + _CHUNK]
            letters, ends = np.empty(_ROOM * len(some), np.uint8), np.empty(len(some), np.int64)
            _write_names(self._shop, some, letters, ends)
            names += _texts(letters, ends)
        return names

    def samples(self, n: int, stream: int = 0, start: int = 0) -> Iterator[tuple[str, list[str]]]:
        """``n`` texts from number ``start`` of a stream on, each with the names of its labels.

        Stream 0 is to train on, and has every label; others have the same products and popularity. A sample depends
        on nothing but its stream and number.
        """
        for texts, labels in self.batches(n, stream, start):
            names, ends = self.name(labels.indices), labels.indptr.tolist()
            for i, text in enumerate(texts):
                yield text, names[ends[i] : ends[i + 1]]

    def batches(self, n: int, stream: int = 0, start: int = 0) -> Iterator[tuple[list[str], Labels]]:
        """`samples`, some thousands at a time, with label ids."""
        key = self._stream(_SAMPLES, stream)
        for first in range(start, start + n, _CHUNK):
            count = min(_CHUNK, start + n - first)
            letters, ends = np.empty(_ROOM * count, np.uint8), np.empty(count, np.int64)
            indptr, indices = np.zeros(count + 1, np.int64), np.empty(_MOST * count, np.uint32)
            _write_samples(self._shop, key, stream == 0, first, letters, ends, indices, indptr)
            yield _texts(letters, ends), Labels(indptr, indices[: indptr[-1]].copy(), self.n_labels)

    @cached_property
    def _shop(self) -> _Shop:
        root = int((self.n_labels + 1) ** 0.2 * 2**20) - 1
        while root**5 < (self.n_labels + 1) << 100:  # rounded up, exactly: float powers differ between machines
            root += 1
        bits = max(1, (self.n_labels - 1).bit_length())
        bijections = (self._bijection(purpose) for purpose in (_POPULARITY, _NUMBERS, _TURNS))
        return _Shop(self._stream(_SHOP), self.n_labels, bits, root / 2**20, *bijections)

    def _stream(self, *path: int) -> np.uint64:
        return stream(self.seed, 0x6361_7461, *path)

    def _bijection(self, purpose: int) -> UInt64:
        seed = int(self._stream(purpose)) >> 1
        return np.array(HashPartition(self.n_labels, 1, 1, seed).parameters(0), np.uint64)


class _Shop(NamedTuple):
    """What the kernels know of a catalogue. ``root``: (K + 1) ** 0.2; rows of numbers for `permute`."""

    state: np.uint64
    n_labels: int
    bits: int
    root: float
    popularity: UInt64
    numbers: UInt64
    turns: UInt64


def _texts(letters: Letters, ends: Int64) -> list[str]:
    whole = letters[: ends[-1]].tobytes().decode("ascii")
    return [whole[start:end] for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]


@kernel
def _write_names(shop: _Shop, ids: Int64, letters: Letters, ends: Int64) -> None:
    title = np.empty(_FIELDS, np.uint64)
    at = 0
    for i in range(len(ids)):
        _title(shop, ids[i], title)
        for j in range(len(_NAME)):
            if j > 0:
                letters[at] = _SPACE
                at += 1
            at = _spell(title[_NAME[j]], letters, at)
        ends[i] = at


@kernel
def _write_samples(
    shop: _Shop, key: np.uint64, in_turn: bool, first: int, letters: Letters, ends: Int64, labels: UInt32, indptr: Int64
) -> None:
    title, query = np.empty(_FIELDS, np.uint64), np.empty(_FIELDS + 1, np.uint64)
    at, n_labels = 0, 0
    for i in range(len(ends)):
        state, number = draw(key, first + i), first + i
        if in_turn and number % 4 == 0:
            product, vague = _shuffled(shop, shop.turns, number // 4 % shop.n_labels), False
        else:
            rank = _zipf(shop, draw(state, 0))
            product = _shuffled(shop, shop.popularity, rank)
            vague = rank < shop.n_labels >> 3 and _chance(draw(state, 1), 0, _VAGUE)
        line, n_variants = _line_of(shop, product)
        typed = _typed_fields(state, n_variants, vague)
        _title(shop, product, title)
        at = _write_query(state, title, typed, query, letters, at)
        ends[i] = at
        for other in range(line, min(line + n_variants, shop.n_labels)):
            if _fits(product - line, other - line, typed):
                labels[n_labels] = other
                n_labels += 1
        indptr[i + 1] = n_labels


@part
def _zipf(shop: _Shop, h: np.uint64) -> int:
    """A rank in [0, K), the first the most frequent: a power, as the exponent is 1 - 1 / 5."""
    x = 1.0 + (shop.root - 1.0) * (np.float64(h >> np.uint64(11)) * 2.0**-53)
    return min(int(x * x * x * x * x) - 1, shop.n_labels - 1)


@part
def _typed_fields(state: np.uint64, n_variants: int, vague: bool) -> int:
    """Which fields of the title a query has, a bit each."""
    typed, count = 0, 0
    for field in range(_FIELDS):
        said = not (vague and _EXACT >> field & 1)
        if said and _chance(draw(state, 8 + field), 0, _TYPED[field]):
            typed |= 1 << field
            count += 1
    if count < 2:
        typed |= 1 << (_BRAND if vague else _MODEL) | 1 << _NOUN
    if n_variants == 8 and not typed & (1 << _SIZE | 1 << _COLOUR | 1 << _NUMBER):
        typed |= 1 << _COLOUR
    return typed


@part
def _fits(wanted: int, variant: int, typed: int) -> bool:
    """Whether a variant is all that is said of the wanted one."""
    if wanted == variant:
        return True
    same_size = (wanted & 1) == (variant & 1) or not typed & (1 << _SIZE)
    same_colour = (wanted >> 1) == (variant >> 1) or not typed & (1 << _COLOUR)
    return same_size and same_colour and not typed & (1 << _NUMBER)


@part
def _write_query(state: np.uint64, title: UInt64, typed: int, query: UInt64, letters: Letters, at: int) -> int:
    """Choose words, shuffle and spell them; where the text ends."""
    n, h = 0, draw(state, 2)
    for field in range(_FIELDS):
        if typed >> field & 1:
            query[n] = _synonym(title[field], draw(state, 8 + field))
            n += 1
    if _chance(h, 0, _CHATS):
        query[n] = _CHATTER + _below(draw(state, 3), 16)
        n += 1
    if _chance(h, 8, _DISORDERED):
        for j in range(n - 1, 0, -1):
            other = _below(draw(state, 32 + j), j + 1)
            query[j], query[other] = query[other], query[j]
    for j in range(n):
        h = draw(state, 64 + j)
        if j > 0 and not _chance(h, 0, _JOINED):
            letters[at] = _SPACE
            at += 1
        end = _spell(query[j], letters, at)
        if end - at > 4 and _chance(h, 8, _MISTYPED):
            end = _mistype(h, letters, at, end)
        at = end
    return at


@part
def _synonym(entry: np.uint64, h: np.uint64) -> np.uint64:
    """A word, or sometimes one of its synonyms; model numbers have none."""
    n_synonyms = _below(draw(entry, 0), 4)
    if n_synonyms == 0 or (np.uint64(64) <= entry < _MADE_UP) or not _chance(h, 8, _SYNONYM):
        return entry
    return draw(entry, 1 + _below(h, n_synonyms)) | _MADE_UP


@part
def _title(shop: _Shop, product: int, title: UInt64) -> None:
    """The words of a product's title."""
    line, _ = _line_of(shop, product)
    h, variant, category = _fact(shop, _LINES, line), product - line, product >> 11
    brand = _below(_fact(shop, _BRANDS, product >> 6), 8 + (shop.n_labels >> 8))
    title[_BRAND] = _fact(shop, _BRAND_WORDS, brand) | _MADE_UP
    title[_MODEL] = _fact(shop, _MODEL_WORDS, _below(draw(h, 0), 8 + (shop.n_labels >> 3))) | _MADE_UP | np.uint64(1)
    title[_SERIES] = _SERIES_WORDS + _below(draw(h, 1), 16)
    for j in range(3):
        facet = 16 * j + min(_below(draw(h, 2 + j), 16), _below(draw(h, 5 + j), 16))
        entry = _fact(shop, _FACETS, 48 * category + facet)
        shared = _fact(shop, _SHARED_WORDS, _below(entry, 2000))
        title[_FACET + j] = (entry if facet & 1 else shared) | _MADE_UP
    title[_NOUN] = _fact(shop, _NOUNS, category) | _MADE_UP
    size = _below(draw(h, 8), 4) + (variant & 1) * (1 + _below(draw(h, 9), 3))
    title[_SIZE] = _SIZES + 4 * _below(_fact(shop, _NOUNS, category), 4) + size % 4
    title[_COLOUR] = _COLOURS + (_below(draw(h, 10), 16) + (variant >> 1) * (1 + 2 * _below(draw(h, 11), 8))) % 16
    title[_NUMBER] = 64 + _shuffled(shop, shop.numbers, product)


@part
def _line_of(shop: _Shop, product: int) -> tuple[int, int]:
    """The first product of its line, and the line's number of variants (past K, they are not)."""
    bits = _LINE_BITS[_below(_fact(shop, _BLOCKS, product >> 3), 8)]
    return product >> bits << bits, 1 << bits


@part
def _spell(entry: np.uint64, letters: Letters, at: int) -> int:
    """Write a word; where it ends."""
    if entry < np.uint64(64):
        for letter in _LETTERS[entry]:
            if letter != _SPACE:
                letters[at] = letter
                at += 1
    elif entry < _MADE_UP:
        rest = np.int64(entry) - 64
        letters[at], letters[at + 1] = 97 + rest % 26, 97 + rest // 26 % 26
        at, rest = at + 2, rest // 676
        while True:
            letters[at] = 48 + rest % 10
            at, rest = at + 1, rest // 10
            if rest == 0:
                break
    else:
        for syllable in range(2 + np.int64(entry & np.uint64(1))):
            h = np.int64(entry >> np.uint64(8 * syllable + 1) & np.uint64(255))
            letters[at], letters[at + 1] = _CONSONANTS[h & 15], _VOWELS[h >> 4 & 3]
            at += 2
            if _CODAS[h >> 6] != _SPACE:
                letters[at] = _CODAS[h >> 6]
                at += 1
    return at


@part
def _mistype(h: np.uint64, letters: Letters, start: int, end: int) -> int:
    """Swap two letters, or leave out, double or replace one; where the word ends."""
    place, kind = start + _below(h, end - start - 1), h >> np.uint64(16) & np.uint64(3)
    if kind == 0:
        letters[place], letters[place + 1] = letters[place + 1], letters[place]
    elif kind == 1:
        letters[place] = 97 + _below(h * h, 26)
    elif kind == 2:
        for j in range(place, end - 1):
            letters[j] = letters[j + 1]
        end -= 1
    else:
        for j in range(end, place, -1):
            letters[j] = letters[j - 1]
        end += 1
    return end


@part
def _shuffled(shop: _Shop, p: UInt64, i: int) -> int:
    """Another id for every id: a bijection of w bits, applied until the result is one."""
    shift, mask = np.uint64((shop.bits + 1) // 2), np.uint64((1 << shop.bits) - 1)
    y = np.uint64(i)
    while True:
        y = _permute(y, p[0], p[1], p[2], p[3], p[4], p[5], shift, mask)
        if y < np.uint64(shop.n_labels):
            return int(y)


@part
def _fact(shop: _Shop, kind: int, number: int) -> np.uint64:
    """A random number of the catalogue."""
    return draw(draw(shop.state, kind), number)


@part
def _chance(h: np.uint64, place: int, times: int) -> bool:
    """True ``times`` times of 256, by eight bits of the lower half of a random number, from ``place`` on."""
    return bool((h >> np.uint64(place)) & np.uint64(255) < np.uint64(times))


@part
def _below(h: np.uint64, limit: int) -> int:
    """A number in [0, limit), limit < 2**32, from the upper half of a random one."""
    return int((h >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32))
