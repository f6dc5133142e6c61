"""Sorted names in blocks of 16, each name written as what it has more than the one before it.

Sorted names begin alike: names of a shop take a third of their bytes. The blocks are::

    coded   uint8: for each name how many bytes it shares with the name before it (0 for the first of a block), how many
            more it has, and these. A number below 255 is a byte; a larger one is 255, and four bytes, the least first
    blocks  uint64 [ceil(n / 16) + 1]: where each block begins, and the end

A name is found by a binary search among the first names of blocks, and within one block; the name of a place is spelt
from the beginning of its block. Neither looks at the other blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from machxc.compiled import ZERO, kernel, part
from machxc.packed import Strings, joined
from machxc.samples import Int64, frozen, starts_of

UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]
Number = Any
"""In a kernel, int64."""

BLOCK = 16  # names
_ESCAPE = 255


class Coder:
    """Codes sorted names that come in parts; `add` and `finish` return what is to be written next of both arrays."""

    def __init__(self) -> None:
        self._waiting = Strings.of([])
        self._end = 0

    def add(self, names: Strings) -> tuple[UInt8, UInt64]:
        """Code the blocks that are full with these names: bytes, and where the blocks begin."""
        names = joined([self._waiting, names])
        whole = len(names) // BLOCK * BLOCK
        rest = names.rows(whole, len(names))
        self._waiting = Strings(rest.bytes.copy(), rest.offsets)
        return self._coded(names.rows(0, whole))

    def finish(self) -> tuple[UInt8, UInt64]:
        """Code the last block; the places are those of all blocks that are left, and the end."""
        coded, begins = self._coded(self._waiting)
        return coded, np.append(begins, np.uint64(self._end))

    def _coded(self, names: Strings) -> tuple[UInt8, UInt64]:
        coded = np.empty(len(names.bytes) + 10 * len(names), np.uint8)
        begins = np.empty(-(-len(names) // BLOCK), np.int64)
        size = _encode(frozen(names.bytes), frozen(names.offsets), coded, begins)
        begins += self._end
        self._end += size
        return coded[:size].copy(), begins.astype(np.uint64)


def encode(names: Strings) -> tuple[UInt8, UInt64]:
    """The arrays ``coded`` and ``blocks`` of sorted, distinct names."""
    coder = Coder()
    parts = coder.add(names), coder.finish()
    return np.concatenate([coded for coded, _ in parts]), np.concatenate([begins for _, begins in parts])


def names_at(coded: UInt8, blocks: UInt64, places: Int64) -> Strings:
    """The names at these places (of arrays that `is_whole`)."""
    lengths = np.empty(len(places), np.int64)
    longest = _measure(frozen(coded), frozen(blocks), places, lengths)
    offsets = starts_of(lengths)
    text = np.empty(int(offsets[-1]) + longest, np.uint8)  # those before it in its block may be longer than the last
    _spell(frozen(coded), frozen(blocks), places, offsets, text)
    return Strings(text[: offsets[-1]], offsets)


def place_of(coded: UInt8, blocks: UInt64, n: int, sought: bytes) -> int:
    """The place of a name among ``n``, -1 where there is none (of arrays that `is_whole`)."""
    name = np.frombuffer(sought, np.uint8)
    return int(_find(frozen(coded), frozen(blocks), n, frozen(name))) if n else -1


def places_of(coded: UInt8, blocks: UInt64, n: int, names: Strings) -> Int64:
    """`place_of` for many names: int64 [names]. Quickest where they are sorted: neighbours are in the same blocks."""
    places = np.full(len(names), -1, np.int64)
    if n:
        _find_all(frozen(coded), frozen(blocks), n, frozen(names.bytes), frozen(names.offsets), places)
    return places


def is_whole(coded: UInt8, blocks: UInt64, n: int) -> bool:
    """Whether these are blocks of ``n`` names that are not empty: what the other functions take for granted."""
    if len(blocks) != -(-n // BLOCK) + 1 or int(blocks[0]) != 0 or int(blocks[-1]) != len(coded):
        return False
    return bool((blocks[1:] > blocks[:-1]).all()) and bool(_is_whole(frozen(coded), frozen(blocks), n))


@part
def _write(number: int, coded: UInt8, at: int) -> int:
    if number < _ESCAPE:
        coded[at] = number
        return at + 1
    coded[at] = _ESCAPE
    for i in range(4):
        coded[at + 1 + i] = number >> (8 * i) & 255
    return at + 5


@part
def _read(coded: UInt8, at: Number) -> tuple[Number, Number]:
    """The number that begins here, and where it ends."""
    if coded[at] < _ESCAPE:
        return np.int64(coded[at]), at + 1
    number = np.int64(0)
    for i in range(4):
        number |= np.int64(coded[at + 1 + i]) << (8 * i)
    return number, at + 5


@kernel
def _encode(text: UInt8, offsets: Int64, coded: UInt8, begins: Int64) -> Number:
    at = ZERO
    for i in range(len(offsets) - 1):
        start, stop, shared = offsets[i], offsets[i + 1], ZERO
        if i % BLOCK == 0:
            begins[i // BLOCK] = at
        else:
            before = offsets[i - 1]
            most = min(start - before, stop - start)
            while shared < most and text[before + shared] == text[start + shared]:
                shared += 1
        at = _write(shared, coded, at)
        at = _write(stop - start - shared, coded, at)
        for j in range(start + shared, stop):
            coded[at] = text[j]
            at += 1
    return at


@kernel
def _is_whole(coded: UInt8, blocks: UInt64, n: int) -> bool:
    for block in range(len(blocks) - 1):
        at, stop, length = np.int64(blocks[block]), np.int64(blocks[block + 1]), np.int64(0)
        for i in range(min(BLOCK, n - BLOCK * block)):
            shared = more = np.int64(0)
            for which in range(2):
                if at >= stop or (coded[at] == _ESCAPE and at + 5 > stop):
                    return False
                number, at = _read(coded, at)
                if which == 0:
                    shared = number
                else:
                    more = number
            if shared > length or more == 0 or more > stop - at or (i == 0 and shared > 0):
                return False
            length, at = shared + more, at + more
        if at != stop:
            return False
    return True


@kernel
def _measure(coded: UInt8, blocks: UInt64, places: Int64, lengths: Int64) -> Number:
    """How long each name is; returns how long the longest is that must be spelt on the way."""
    longest = at = np.int64(0)
    for k in range(len(places)):
        length, n = np.int64(0), 1
        if not _goes_on(places, k):
            at, n = np.int64(blocks[places[k] // BLOCK]), places[k] % BLOCK + 1
        for _ in range(n):
            shared, at = _read(coded, at)
            more, at = _read(coded, at)
            length, at = shared + more, at + more
            longest = max(longest, length)
        lengths[k] = length
    return longest


@part
def _goes_on(places: Int64, k: int) -> bool:
    """Whether a name is the next of its block after the one before, which so need not be spelt again."""
    return bool(k > 0 and places[k] == places[k - 1] + 1 and places[k] % BLOCK != 0)


@kernel
def _spell(coded: UInt8, blocks: UInt64, places: Int64, offsets: Int64, text: UInt8) -> None:
    at = np.int64(0)
    for k in range(len(places)):
        start, n, before = offsets[k], 1, offsets[k - 1] if k > 0 else 0
        goes_on = _goes_on(places, k)
        if not goes_on:
            at, n = np.int64(blocks[places[k] // BLOCK]), places[k] % BLOCK + 1
        for _ in range(n):
            shared, at = _read(coded, at)
            more, at = _read(coded, at)
            if goes_on:
                for j in range(shared):
                    text[start + j] = text[before + j]
            for j in range(more):
                text[start + shared + j] = coded[at + j]
            at += more


@part
def _starts_after(coded: UInt8, block: Any, name: UInt8) -> bool:
    """Whether the first name of a block comes after a name."""
    _, at = _read(coded, np.int64(block))
    length, at = _read(coded, at)
    for j in range(min(length, len(name))):
        if coded[at + j] != name[j]:
            return bool(coded[at + j] > name[j])
    return bool(length > len(name))


@kernel
def _find(coded: UInt8, blocks: UInt64, n: int, name: UInt8) -> int:
    low, high = 0, len(blocks) - 1  # the last block that does not start after the name is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if _starts_after(coded, blocks[middle], name):
            high = middle
        else:
            low = middle
    at, same = np.int64(blocks[low]), np.int64(0)  # how many bytes the name before shares with the one that is sought
    for i in range(min(BLOCK, n - BLOCK * low)):
        shared, at = _read(coded, at)
        more, at = _read(coded, at)
        if shared <= same:  # else it differs where the one before does, which is smaller
            same, end = shared, at + more
            j = at
            while j < end and same < len(name) and coded[j] == name[same]:
                j += 1
                same += 1
            if j == end and same == len(name):
                return BLOCK * low + i
            if j < end and (same == len(name) or coded[j] > name[same]):
                return -1
        at += more
    return -1


@kernel
def _find_all(coded: UInt8, blocks: UInt64, n: int, text: UInt8, offsets: Int64, places: Int64) -> None:
    for i in range(len(places)):
        places[i] = _find(coded, blocks, n, text[offsets[i] : offsets[i + 1]])
