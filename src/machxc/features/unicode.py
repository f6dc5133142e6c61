"""Text as code points, and what each code point is to a word: the Unicode side of text features.

A batch of texts is normalised and looked up as one string; the rules are simple on purpose, and close to the default
word boundaries of Unicode Standard Annex 29:

- Texts are compared after NFKC, full case folding, and NFKC again: "Straße" = "STRASSE", full-width "Ａ" = "a", jamo =
  syllables. A Turkish "İ" folds to a plain "i" (Unicode keeps the dot as a mark, which nobody types).
- Letters, numbers, and the marks after them are inside a word. A mark after none is dropped, as is the 31st in a row.
  An unassigned or private code point counts as a letter.
- Punctuation, white space, controls, and the symbols of mathematics separate words. So do apostrophes, hyphens and
  underscores, in every form: "king's" = "king", "s"; "l'eau" = "l", "eau"; "3.14" = "3", "14".
- In scripts written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar, ...) each letter with its marks is a word, so
  that word bigrams are character bigrams there.
- A symbol that means something alone (emoji, currency, ...) is a word of one character: a flag is two words, a
  family is its members.
- What is not seen or not typed is ignored, as if it were not in the text: joiners, soft hyphens, direction and
  variation selectors, the Arabic tatweel, the skin colour of an emoji, the primes and half rings of transliteration
  ("Tverʹ", "ʿAmman"). A zero-width space separates, as it is meant to.

Where it is asked for, letters are then folded, each code point for itself:

- Accents and points go: "Río" = "rio", "Ελλάς" = "ελλας", "شَمس" = "شمس", "أحمد" = "احمد". What a script spells with
  stays: the voicing of kana (が is not か), nukta, virama, vowel and tone signs of Indic scripts, Thai, Lao, Tibetan.
- A small letter whose Unicode name is that of another "with" something is that other: ø = o, ł = l, đ = d, ґ = г.
- æ = ae, œ = oe, ı = i, ȷ = j.

This holds in every script alike, so it also joins letters which some languages tell apart: й = и, å = a, ñ = n.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from machxc.samples import UInt32

UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]

# Stands between the texts of a batch. A control character: it composes with nothing, so that each text is normalised
# as if it were alone.
BOUNDARY = "\x1f"

# Of the marks in a row, this many are read: as many as the Stream-Safe Text Format of Unicode Standard Annex 15 allows.
MOST_MARKS = 30

# What a code point is to a word. The order matters to the kernels: what joins a word comes last.
UNSEEN, SEPARATOR, IGNORED, SYMBOL, SPACELESS, LETTER, MARK = range(7)

# By range, whatever the category, so that code points which a later Unicode version assigns do not change their class.
_IGNORED_RANGES = (
    (0x02B9, 0x02BA),  # primes, for a soft or hard sign
    (0x02BD, 0x02BF),  # reversed comma and half rings, for ayn and hamza
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x0640, 0x0640),  # Arabic tatweel
    (0x180B, 0x180F),  # Mongolian variation selectors
    (0xFE00, 0xFE0F),  # variation selectors
    (0x1F3FB, 0x1F3FF),  # emoji skin colours
    (0xE0000, 0xE0FFF),  # tags, more variation selectors
)
_SEPARATOR_RANGES = (
    (0x02BB, 0x02BC),  # apostrophes that are letters to Unicode, not to who types them
    (0x200B, 0x200B),  # zero-width space
)
_SYMBOL_RANGES = ((0x1F000, 0x1FAFF),)  # emoji, with those to come
_MARK_RANGES = ((0xFF9E, 0xFF9F),)  # half-width kana voicing: letters that NFKC turns into marks
_IDEOGRAPH_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFD))
# Here letters alone are words of one character; digits and marks are what they are elsewhere.
_SPACELESS_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x3005, 0x3007),  # ideographic iteration, closing and zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3031, 0x303C),  # kana repeat marks
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),  # Bopomofo and Katakana extensions
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar extension B
    (0xAA60, 0xAADF),  # Myanmar extension A, Tai Viet
    (0x17000, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # kana extensions, Nushu
)

# Filled as code points are seen. Two threads may fill one entry at once: both write the same.
_classes: UInt8 = np.zeros(0x110000, np.uint8)

# What a code point is folded to, filled likewise: one letter, plus 2**32 times a second one. 0: not seen yet.
_folds: UInt64 = np.zeros(0x110000, np.uint64)
_NOTHING = "\u034f"  # what a mark is folded to: it is ignored

# Combining classes of the marks with which a script spells: 6 to 9 (readings of Han, nukta, kana voicing, virama), and
# those of vowel and tone signs of Telugu, Thai, Lao and Tibetan. Folding leaves them; other marks are diacritical.
_SPELLING_CLASSES = frozenset((0, *range(6, 10), *range(84, 133)))
_WITH = re.compile(r"(.+ SMALL LETTER .+?) WITH .+")
_LETTERS = {"æ": "ae", "œ": "oe", "ı": "i", "ȷ": "j", "ſ": "s"}  # a long s is left where it was "with" something


def normalised(text: str) -> str:
    """Text in the form in which it is compared: NFKC, case folded, NFKC."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", _with_short_mark_runs(text)).casefold().replace("i\u0307", "i")
    return unicodedata.normalize("NFKC", folded)


def _each_normalised(texts: Sequence[str]) -> list[str]:
    """`normalised` of each: in one call those not ASCII, and the others, twenty times cheaper, kept out of it."""
    normal = iter(normalised(BOUNDARY.join(text for text in texts if not text.isascii())).split(BOUNDARY))
    return [text.lower() if text.isascii() else next(normal) for text in texts]


def _with_short_mark_runs(text: str) -> str:
    """Drop what exceeds MOST_MARKS marks in a row: normalisation sorts them, in time quadratic in their number."""
    points = _encoded(text)
    marks = classes_of(points) == MARK
    if np.count_nonzero(marks) <= MOST_MARKS:
        return text
    places = np.arange(len(points))
    last_base = np.maximum.accumulate(np.where(marks, -1, places))
    kept = places - last_base <= MOST_MARKS
    return text if kept.all() else points[kept].tobytes().decode("utf-32-le", "surrogatepass")


def _encoded(text: str) -> UInt32:
    # Through a bytearray, for a writable array: kernels are compiled anew for read-only ones.
    return np.frombuffer(bytearray(text.encode("utf-32-le", "surrogatepass")), dtype="<u4")


def code_points(texts: Sequence[str], fold: bool = False) -> tuple[UInt32, UInt8]:
    """The normalised texts, each ended by a `BOUNDARY`: code points uint32 [P] and their classes uint8 [P].

    ``fold``: letters are folded. What is IGNORED is left out. Texts may hold any str, lone surrogates and BOUNDARY (it
    is a separator) included.
    """
    joined = BOUNDARY.join([*texts, ""])
    if joined.count(BOUNDARY) != len(texts):
        return code_points([text.replace(BOUNDARY, " ") for text in texts], fold)
    joined = normalised(joined) if joined.isascii() else BOUNDARY.join([*_each_normalised(texts), ""])
    points = _encoded(joined)
    if fold and not joined.isascii():
        points = _folded(points)
    classes = classes_of(points)
    kept = classes != IGNORED
    return (points, classes) if kept.all() else (points[kept], classes[kept])


def _folded(points: UInt32) -> UInt32:
    """Each code point as `folded_of` has it, written over ``points``; a mark that goes becomes _NOTHING."""
    places = np.flatnonzero(points > 0x7F)
    seen = points[places]
    folds = _folds[seen]
    unseen = np.unique(seen[folds == 0])
    if len(unseen):
        letters = (map(ord, folded_of(point) or _NOTHING) for point in unseen.tolist())
        _folds[unseen] = [next(each) + (next(each, 0) << 32) for each in letters]
        folds = _folds[seen]
    points[places] = folds.astype(np.uint32)
    pairs = np.flatnonzero(folds >> 32)
    return np.insert(points, places[pairs] + 1, folds[pairs] >> 32) if len(pairs) else points


def folded_of(point: int) -> str:
    """What one code point of a normalised text is folded to: nothing, a letter, or two."""
    marked = unicodedata.normalize("NFD", chr(point))
    letters = (_base_of(c) for c in marked if unicodedata.combining(c) in _SPELLING_CLASSES)
    return unicodedata.normalize("NFC", "".join(letters))


def _base_of(letter: str) -> str:
    name = _WITH.fullmatch(unicodedata.name(letter, ""))
    if name:
        try:
            return folded_of(ord(unicodedata.lookup(name[1])))  # "short i with tail": the short i is folded in turn
        except KeyError:  # there is no such letter without
            pass
    return _LETTERS.get(letter, letter)


def classes_of(points: UInt32) -> UInt8:
    """The class (UNSEEN excepted) of every code point: uint8, of the shape of ``points``."""
    classes = _classes[points]
    unseen = np.unique(points[classes == UNSEEN])
    if len(unseen):
        _classes[unseen] = [class_of(point) for point in unseen.tolist()]
        classes = _classes[points]
    return classes


def class_of(point: int) -> int:
    """The class of one code point, by its range and its Unicode category."""
    category = unicodedata.category(chr(point))
    if _within(point, _SEPARATOR_RANGES):
        return SEPARATOR
    if category == "Cf" or _within(point, _IGNORED_RANGES):
        return IGNORED
    if _within(point, _IDEOGRAPH_RANGES):
        return SPACELESS
    if category in ("Cn", "Co"):
        return SYMBOL if _within(point, _SYMBOL_RANGES) else LETTER
    if category[0] == "M" or _within(point, _MARK_RANGES):
        return MARK
    return _class_of_category(category, _within(point, _SPACELESS_RANGES))


def _class_of_category(category: str, spaceless: bool) -> int:
    if category in ("So", "Sc"):
        return SYMBOL
    if spaceless and category in ("Lo", "Lm", "Nl"):
        return SPACELESS
    return LETTER if category[0] in "LN" else SEPARATOR


def _within(point: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= point <= last for first, last in ranges)
