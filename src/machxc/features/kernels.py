"""Code points to sorted, counted token hashes: the compiled side of text features.

The hash, so that anyone can compute it (all arithmetic on 64-bit words, modulo 2**64)::

    absorb(s, x)  = m ^ (m >> 32)         where m = (s ^ x) * 0x9E3779B97F4A7C15
    state(x1..xn) = absorb(... absorb(absorb(SEED, x1), x2) ..., xn)      SEED = 0x243F6A8885A308D3
    token(f, s)   = the upper 32 bits of fmix(s ^ (f * 0xD6E8FEB86659FD93))
    fmix(z)       : z ^= z >> 33; z *= 0xFF51AFD7ED558CCD; z ^= z >> 33; z *= 0xC4CEB9FE1A85EC53; z ^= z >> 33

- A word's state is the state of its code points. The n-gram of words w1..wn is token(n, state(s1..sn)), s1..sn being
  their states.
- The n-gram of characters c1..cn is token(16 + n, state(c1..cn)); both edges of a run of characters are 0x110000, the
  first number that is no code point.

So n-grams of words and of characters, and those of different lengths, are hashed by different functions (f). fmix is
the finaliser of MurmurHash3 (Appleby, public domain), the multiplier of absorb is 2**64 divided by the golden ratio.
Stored models depend on these numbers: they never change.

Helpers are inlined, the large ones, too, as each is called in one place: so they take a quarter less time to compile.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import ZERO, inline, kernel
from machxc.features.unicode import LETTER, MARK, SPACELESS, SYMBOL, UInt8
from machxc.samples import Array, Float32, Int64, UInt32

EDGE = 0x110000
CHARACTERS = 16

_EDGE = np.uint64(EDGE)
_SEED = np.uint64(0x243F6A8885A308D3)
_ABSORB = np.uint64(0x9E3779B97F4A7C15)
_FAMILY = np.uint64(0xD6E8FEB86659FD93)
_FMIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_FMIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_32 = np.uint64(32)
_33 = np.uint64(33)

# Rows up to this long are sorted by insertion, longer ones by radix: where the two take as long.
_INSERTION = 80


@inline
def _absorb(state: np.uint64, value: np.uint64) -> np.uint64:
    mixed = (state ^ value) * _ABSORB
    return mixed ^ (mixed >> _32)


@inline
def _token(family: int, state: np.uint64) -> np.uint32:
    z = state ^ (np.uint64(family) * _FAMILY)
    z = (z ^ (z >> _33)) * _FMIX_1
    z = (z ^ (z >> _33)) * _FMIX_2
    z ^= z >> _33
    return np.uint32(z >> _32)


def count_tokens(
    points: UInt32, classes: UInt8, ends: Int64, gap: int, words: int, chars_min: int, chars_max: int
) -> tuple[Int64, UInt32, Float32]:
    """Token hashes and their counts of every text of a batch.

    ``points`` uint32 [P] and ``classes`` uint8 [P] are code points, text i ending before ``ends[i]`` (int64
    [N]) and the next beginning ``gap`` after that. Returns CSR arrays: indptr int64 [N + 1], hashes uint32 [nnz]
    (strictly increasing in a row), counts float32 [nnz].
    """
    longest = int(np.diff(ends, prepend=-gap).max(initial=gap)) - gap
    # a run of L characters has at most L + 2 <= 3 L n-grams of one length
    most = words + (3 * (chars_max - chars_min + 1) if chars_max > 0 else 0)
    states, row = np.empty(longest, np.uint64), np.empty(most * longest, np.uint32)
    spare = np.empty_like(row)
    # Untouched memory costs nothing: allocate for the worst case, return a copy of what was used.
    hashes, counts = np.empty(most * len(points), np.uint32), np.empty(most * len(points), np.float32)
    indptr = np.zeros(len(ends) + 1, np.int64)
    _count_tokens(points, classes, ends, gap, words, chars_min, chars_max, states, row, spare, hashes, counts, indptr)
    return indptr, hashes[: indptr[-1]].copy(), counts[: indptr[-1]].copy()


@kernel
def _count_tokens(
    points: UInt32, classes: UInt8, ends: Int64, gap: int, words: int, chars_min: int, chars_max: int,
    states: Array, row: UInt32, spare: UInt32, hashes: UInt32, counts: Float32, indptr: Int64,
) -> None:  # fmt: skip
    """`count_tokens` into arrays that are long enough: what makes and copies arrays is slow to compile."""
    start = ZERO
    for i in range(len(ends)):
        n = ZERO
        if words > 0:
            n_words = _word_states(points, classes, start, ends[i], states)
            n = _word_ngrams(states, n_words, words, row)
        if chars_max > 0:
            n = _char_ngrams(points, classes, start, ends[i], chars_min, chars_max, row, n)
        _sort(row, n, spare)
        indptr[i + 1] = _collapse(row, n, hashes, counts, indptr[i])
        start = ends[i] + gap


@inline
def _starts_word(code_class: np.uint8) -> bool:
    # A mark with no letter before it belongs to none: NFKC makes one of a free-standing accent ("don´t").
    return bool(SYMBOL <= code_class < MARK)


@inline
def _end(classes: UInt8, start: int, stop: int, joins: int) -> int:
    """Where the word that starts at ``start`` ends: code points of class ``joins`` or above join; marks always do."""
    bound = joins if classes[start] >= joins else MARK
    end = start + 1
    while end < stop and classes[end] >= bound:
        end += 1
    return end


@inline
def _word_states(points: UInt32, classes: UInt8, start: int, stop: int, states: Array) -> int:
    """Write the state of every word of one text; returns how many. Spaceless letters are words of their own."""
    n = 0
    while start < stop:
        if not _starts_word(classes[start]):
            start += 1
            continue
        end = _end(classes, start, stop, LETTER)
        state = _SEED
        for i in range(start, end):
            state = _absorb(state, np.uint64(points[i]))
        states[n] = state
        n += 1
        start = end
    return n


@inline
def _word_ngrams(states: Array, n_words: int, words: int, row: UInt32) -> int:
    n = 0
    for first in range(n_words):
        state = _SEED
        for last in range(first, min(first + words, n_words)):
            state = _absorb(state, states[last])
            row[n] = _token(last - first + 1, state)
            n += 1
    return n


@inline
def _char_ngrams(
    points: UInt32, classes: UInt8, start: int, stop: int, chars_min: int, chars_max: int, row: UInt32, n: int
) -> int:
    """Append the character n-grams of one text to its first ``n`` tokens; returns how many there are then.

    N-grams are taken within a run of letters, spaceless ones included: those of a sentence without spaces would
    otherwise be single characters.
    """
    while start < stop:
        if not _starts_word(classes[start]):
            start += 1
            continue
        end = _end(classes, start, stop, SPACELESS)
        n = _run_ngrams(points, start, end, chars_min, chars_max, row, n)
        start = end
    return n


@inline
def _run_ngrams(points: UInt32, start: int, end: int, chars_min: int, chars_max: int, row: UInt32, n: int) -> int:
    """The n-grams of one run and an edge on both sides; all of it when it is shorter than ``chars_min``."""
    shortest = min(chars_min, end - start + 2)
    for first in range(start - 1, end + 2 - shortest):
        state = _SEED
        for last in range(first, min(first + chars_max, end + 1)):
            at_edge = last < start or last == end
            state = _absorb(state, _EDGE if at_edge else np.uint64(points[last]))
            length = last - first + 1
            if length >= shortest and not (length == 1 and at_edge):
                row[n] = _token(CHARACTERS + length, state)
                n += 1
    return n


@inline
def _collapse(row: UInt32, n: int, hashes: UInt32, counts: Float32, end: int) -> int:
    """Append a sorted row to the CSR arrays, equal hashes counted; returns their new end."""
    for i in range(n):
        if i > 0 and row[i] == row[i - 1]:
            counts[end - 1] += np.float32(1)
        else:
            hashes[end] = row[i]
            counts[end] = 1
            end += 1
    return end


@inline
def _sort(row: UInt32, n: int, spare: UInt32) -> None:
    """Sort the first ``n`` of a row, in place."""
    if n > _INSERTION:
        _radix_sort(row, n, spare)
        return
    for i in range(1, n):
        value, j = row[i], i - 1
        while j >= 0 and row[j] > value:
            row[j + 1] = row[j]
            j -= 1
        row[j + 1] = value


@inline
def _radix_sort(row: UInt32, n: int, spare: UInt32) -> None:
    """Least significant byte first, four stable passes: an even number, so that the result is back in ``row``."""
    source, target = row, spare
    for shift in (0, 8, 16, 24):
        starts = np.zeros(257, np.int64)
        for i in range(n):
            starts[((source[i] >> np.uint32(shift)) & np.uint32(255)) + 1] += 1
        for i in range(1, len(starts)):
            starts[i] += starts[i - 1]
        for i in range(n):
            byte = (source[i] >> np.uint32(shift)) & np.uint32(255)
            target[starts[byte]] = source[i]
            starts[byte] += 1
        source, target = target, source
