"""Many strings in two arrays: no Python object a string, so that kernels read and write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from machxc.compiled import ZERO, inline, kernel, part
from machxc.samples import Int64, UInt32, frozen, starts_of

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Strings:
    """Strings, as valid UTF-8: string i is ``bytes[offsets[i] : offsets[i + 1]]`` (uint8, int64 [n + 1])."""

    bytes: UInt8
    offsets: Int64

    @classmethod
    def of(cls, texts: Sequence[str]) -> Strings:
        """The strings of a list; UnicodeEncodeError when one has half a character."""
        joined = "".join(texts)
        if joined.isascii():
            lengths = np.fromiter(map(len, texts), np.int64, len(texts))
            return cls(np.frombuffer(joined.encode(), np.uint8), starts_of(lengths))
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        return bytes(self.bytes[self.offsets[i] : self.offsets[i + 1]]).decode()

    def rows(self, start: int, stop: int) -> Strings:
        """Strings start to stop, without copying them."""
        offsets = self.offsets[start : stop + 1]
        return Strings(self.bytes[offsets[0] : offsets[-1]], offsets - offsets[0])

    def tolist(self) -> list[str]:
        """As Python strings."""
        data, offsets = bytes(self.bytes), self.offsets.tolist()
        if data.isascii():
            text = data.decode()
            return [text[start:stop] for start, stop in pairwise(offsets)]
        return [data[start:stop].decode() for start, stop in pairwise(offsets)]


def joined(parts: Sequence[Strings]) -> Strings:
    """All strings of several, in order."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(part.offsets) for part in parts)])
    return Strings(np.concatenate([np.empty(0, np.uint8), *(part.bytes for part in parts)]), starts_of(lengths))


def distinct_strings(strings: Strings) -> tuple[Strings, Int64]:
    """The distinct ones, sorted by their bytes, and for each string its place among them (int64 [n])."""
    n = len(strings)
    codes, firsts, hashes = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.uint64)
    table = np.zeros(1 << max(4, (3 * n // 2).bit_length()), np.uint64)
    _hash_all(*_read_only(strings), hashes)
    n_distinct = _number(*_read_only(strings), hashes, table, codes, firsts)
    firsts = firsts[:n_distinct]
    order = firsts[sorted_order(strings, firsts)]
    ranks = np.empty(n, np.int64)
    ranks[order] = np.arange(n_distinct)
    return take(strings, order), ranks[firsts][codes]


def plain_integers(strings: Strings) -> Int64 | None:
    """The strings as integers, if all are written as Python writes an integer, of at most 18 digits."""
    values = np.empty(len(strings), np.int64)
    return values if _parse_integers(*_read_only(strings), values) else None


def sorted_order(strings: Strings, chosen: Int64) -> Int64:
    """The order (int64, places in ``chosen``) that sorts the strings ``chosen`` by their bytes.

    By the eight bytes after what all of them begin with, then, where those are the same, by all that follows.
    """
    keys = np.empty(len(chosen), np.uint64)
    skipped = _keys(*_read_only(strings), chosen, keys)
    order = np.argsort(keys, kind="stable")
    _sort_equal(*_read_only(strings), chosen, keys, order, np.empty_like(order), skipped)
    return order


def is_rising(strings: Strings) -> bool:
    """Whether each string comes before the next, by their bytes."""
    return bool(_is_rising(*_read_only(strings)))


def take(strings: Strings, places: Int64) -> Strings:
    """The strings at these places, copied."""
    offsets = starts_of(strings.offsets[places + 1] - strings.offsets[places])
    out = np.empty(int(offsets[-1]), np.uint8)
    _copy(*_read_only(strings), places, out)
    return Strings(out, offsets)


def merge_sorted(lists: Strings, bounds: Int64, ids: UInt32, step: int) -> Iterator[Int64]:
    """Merge sorted lists of distinct strings, one after the other in ``lists``: list p from bounds[p] to bounds[p + 1].

    Yields where the distinct strings are first, in sorted order (int64), after each ``step`` strings, and writes the
    rank of every string among them into ``ids`` (uint32, as long as ``lists``).
    """
    n = len(bounds) - 1
    text, offsets = _read_only(lists)
    cursors, keys, heap = bounds[:-1].copy(), np.zeros(n, np.uint64), np.zeros(n, np.int64)
    progress = np.array([0, 0, -1], np.int64)  # lists in the heap, distinct strings so far, where the last one is
    _fill(text, offsets, cursors, bounds, keys, heap, progress)
    while True:
        firsts = np.empty(step, np.int64)
        found = _merge(text, offsets, cursors, bounds, keys, heap, progress, ids, firsts)
        yield firsts[:found]
        if not progress[0]:
            return


def _read_only(strings: Strings) -> tuple[Any, Any]:
    """The arrays as kernels are given them: where some are read-only and some not, they are compiled twice."""
    return frozen(strings.bytes), frozen(strings.offsets)


@part
def is_less(text: Any, a: int, a_end: int, b: int, b_end: int) -> bool:
    """Whether the bytes from ``a`` to ``a_end`` come before those from ``b`` to ``b_end``."""
    while a < a_end and b < b_end:
        if text[a] != text[b]:
            return bool(text[a] < text[b])
        a += 1
        b += 1
    return a == a_end and b < b_end


@kernel
def _is_rising(text: Any, offsets: Int64) -> bool:
    for i in range(len(offsets) - 2):
        if not is_less(text, offsets[i], offsets[i + 1], offsets[i + 1], offsets[i + 2]):
            return False
    return True


@part
def eight_bytes(text: Any, start: int, stop: int) -> np.uint64:
    """The first eight bytes, as a number that compares as they do; zeros beyond the stop."""
    key = np.uint64(0)
    for i in range(start, start + 8):
        byte = np.uint64(text[i]) if i < stop else np.uint64(0)
        key = (key << np.uint64(8)) | byte
    return key


@inline
def _hash(text: Any, start: int, stop: int) -> np.uint64:
    state = np.uint64(stop - start)
    while start < stop:
        state = (state ^ eight_bytes(text, start, stop)) * np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(32)
        start += 8
    state *= np.uint64(0xD6E8FEB86659FD93)
    return state ^ (state >> np.uint64(32))


@part
def _same(text: Any, a: int, b: int, length: int) -> bool:
    i = 0
    while i < length and text[a + i] == text[b + i]:
        i += 1
    return i == length


@kernel
def _hash_all(text: Any, offsets: Int64, hashes: Any) -> None:
    for i in range(len(hashes)):
        hashes[i] = _hash(text, offsets[i], offsets[i + 1])


@kernel
def _number(text: Any, offsets: Int64, hashes: Any, table: Any, codes: Int64, firsts: Int64) -> int:
    """Number the strings as they come: ``codes`` of all, ``firsts``: where each is first; returns how many differ.

    ``table``: the upper half of a hash and, below, the number of the string that has it, plus 1.
    """
    n_distinct = 0
    mask, low = np.uint64(len(table) - 1), np.uint64(0xFFFFFFFF)
    for i in range(len(codes)):
        start, length, tag = offsets[i], offsets[i + 1] - offsets[i], hashes[i] & ~low
        place = hashes[i] & mask
        while True:
            entry = table[place]
            if entry == 0:
                table[place], firsts[n_distinct], codes[i] = tag | np.uint64(n_distinct + 1), i, n_distinct
                n_distinct += 1
                break
            if entry & ~low == tag:
                known = np.int64(entry & low) - 1
                first = offsets[firsts[known]]
                if offsets[firsts[known] + 1] - first == length and _same(text, first, start, length):
                    codes[i] = known
                    break
            place = (place + np.uint64(1)) & mask
    return n_distinct


@kernel
def _parse_integers(text: Any, offsets: Int64, values: Int64) -> bool:
    for i in range(len(values)):
        at, stop = offsets[i], offsets[i + 1]
        negative = at < stop and text[at] == 45
        at += negative
        if at == stop or stop - at > 18 or (text[at] == 48 and (negative or stop - at > 1)):
            return False
        number = 0
        while at < stop and 48 <= text[at] <= 57:
            number = 10 * number + (int(text[at]) - 48)
            at += 1
        if at < stop:
            return False
        values[i] = -number if negative else number
    return True


@kernel
def _keys(text: Any, offsets: Int64, chosen: Int64, keys: Any) -> int:
    """Eight bytes of each, after what all of them begin with; returns how long that is."""
    if len(chosen) == 0:
        return 0
    base = offsets[chosen[0]]
    shared = offsets[chosen[0] + 1] - base
    for i in chosen:
        start, length = offsets[i], min(shared, offsets[i + 1] - offsets[i])
        shared = 0
        while shared < length and text[start + shared] == text[base + shared]:
            shared += 1
        if shared == 0:
            break
    for n in range(len(chosen)):
        keys[n] = eight_bytes(text, offsets[chosen[n]] + shared, offsets[chosen[n] + 1])
    return int(shared)


@kernel
def _sort_equal(text: Any, offsets: Int64, chosen: Int64, keys: Any, order: Int64, spare: Int64, skipped: int) -> None:
    """Sort what has the same key, in ``order`` that is sorted by key."""
    start = ZERO
    while start < len(order):
        stop = start + 1
        while stop < len(order) and keys[order[stop]] == keys[order[start]]:
            stop += 1
        _merge_sort(text, offsets, chosen, order, spare, start, stop, skipped)
        start = stop


@inline
def _merge_sort(
    text: Any, offsets: Int64, chosen: Int64, order: Int64, spare: Int64, start: int, stop: int, skipped: int
) -> None:
    width = 1
    while width < stop - start:
        for low in range(start, stop, 2 * width):
            middle, high = min(low + width, stop), min(low + 2 * width, stop)
            one, other = low, middle
            for at in range(low, high):
                if one == middle:
                    from_one = False
                elif other == high:
                    from_one = True
                else:
                    a, b = chosen[order[one]], chosen[order[other]]
                    from_one = not is_less(
                        text, offsets[b] + skipped, offsets[b + 1], offsets[a] + skipped, offsets[a + 1]
                    )
                if from_one:
                    spare[at] = order[one]
                    one += 1
                else:
                    spare[at] = order[other]
                    other += 1
            for at in range(low, high):  # a slice assigned to a slice would take seconds to compile
                order[at] = spare[at]
        width *= 2


@kernel
def _copy(text: Any, offsets: Int64, places: Int64, out: Any) -> None:
    at = 0
    for place in places:
        for i in range(offsets[place], offsets[place + 1]):
            out[at] = text[i]
            at += 1


@part
def _comes_first(text: Any, offsets: Int64, cursors: Int64, keys: Any, one: int, other: int) -> bool:
    if keys[one] != keys[other]:
        return bool(keys[one] < keys[other])
    a, b = cursors[one], cursors[other]
    return is_less(text, offsets[a], offsets[a + 1], offsets[b], offsets[b + 1])


@part
def _sink(text: Any, offsets: Int64, cursors: Int64, keys: Any, heap: Int64, n: int, at: int) -> None:
    """Restore the order of a heap of ``n`` lists, whose entry ``at`` has become larger."""
    moved = heap[at]
    while 2 * at + 1 < n:
        child = 2 * at + 1
        if child + 1 < n and _comes_first(text, offsets, cursors, keys, heap[child + 1], heap[child]):
            child += 1
        if not _comes_first(text, offsets, cursors, keys, heap[child], moved):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moved


@kernel
def _fill(text: Any, offsets: Int64, cursors: Int64, bounds: Int64, keys: Any, heap: Int64, progress: Int64) -> None:
    n = ZERO
    for p in range(len(cursors)):
        if cursors[p] < bounds[p + 1]:
            keys[p] = eight_bytes(text, offsets[cursors[p]], offsets[cursors[p] + 1])
            heap[n] = p
            n += 1
    progress[0] = n
    for at in range(n // 2 - 1, -1, -1):
        _sink(text, offsets, cursors, keys, heap, n, at)


@kernel
def _merge(
    text: Any, offsets: Int64, cursors: Int64, bounds: Int64, keys: Any, heap: Int64, progress: Int64, ids: Any,
    firsts: Int64,
) -> int:  # fmt: skip
    n, n_distinct, last = progress[0], progress[1], progress[2]
    found = 0
    for _ in range(len(firsts)):
        if n == 0:
            break
        p = heap[0]
        place = cursors[p]
        start, length = offsets[place], offsets[place + 1] - offsets[place]
        known = last >= 0 and offsets[last + 1] - offsets[last] == length and _same(text, offsets[last], start, length)
        if not known:
            firsts[found] = place
            found += 1
            last = place
        ids[place] = n_distinct + found - 1
        cursors[p] += 1
        if cursors[p] == bounds[p + 1]:
            n -= 1
            heap[0] = heap[n]
        else:
            keys[p] = eight_bytes(text, offsets[cursors[p]], offsets[cursors[p] + 1])
        _sink(text, offsets, cursors, keys, heap, n, ZERO)
    progress[0], progress[1], progress[2] = n, n_distinct + found, last
    return found
