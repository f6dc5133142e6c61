"""Lines of JSON to packed texts and labels: the compiled side of JSON Lines.

The kernel reads what most files have: objects of a text, labels, perhaps a weight, and other keys of plain values. What
it is not sure about it does not judge: it says so, and the whole block of lines is parsed again by Python's `json`,
which also words the errors. So it must never take what `json` would refuse, or read anything differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from machxc.compiled import ZERO, kernel, part
from machxc.data.source import n_lines
from machxc.packed import UInt8
from machxc.samples import Float32, Int64

_QUOTE, _BACKSLASH, _COMMA, _COLON, _MINUS = 34, 92, 44, 58, 45
_EXACT_DIGITS = 15  # a number of so many digits is exact in float64, and so is a power of ten up to 22
_LITERALS = tuple(np.frombuffer(word, np.uint8) for word in (b"true", b"false", b"null"))
_TEN = np.array([10.0**i for i in range(23)])
NO_LABELS, INTEGERS, STRINGS = range(3)


class Parsed(NamedTuple):
    """Samples as packed arrays; ``kind`` of the labels: 0 there are none, 1 integers, 2 strings."""

    lines: Int64
    texts: UInt8
    text_offsets: Int64
    label_indptr: Int64
    integers: Int64
    strings: UInt8
    string_offsets: Int64
    weights: Float32
    weighted: bool
    kind: int


def parse_lines(block: bytes, keys: Sequence[bytes], *, needs_labels: bool, needs_weight: bool) -> Parsed | None:
    """Parse whole lines in UTF-8; None where `json` has to. ``keys``: of the text, the labels and the weight."""
    data = np.frombuffer(block, np.uint8)
    n_rows = n_lines(block) + 1
    most_labels = int(np.count_nonzero(data == 44)) + n_rows
    room = Parsed(
        np.empty(n_rows, np.int64),
        np.empty(len(data), np.uint8),
        np.zeros(n_rows + 1, np.int64),
        np.zeros(n_rows + 1, np.int64),
        np.empty(most_labels, np.int64),
        np.empty(len(data), np.uint8),
        np.zeros(most_labels + 1, np.int64),
        np.empty(n_rows, np.float32),
        False,
        0,
    )
    text, label, weight = (np.frombuffer(key, np.uint8) for key in keys)
    features = np.frombuffer(b"features", np.uint8)
    n, kind, weighted = _parse(data, text, label, weight, features, needs_labels, needs_weight, *room[:8])
    if n < 0:
        return None
    n_labels = room.label_indptr[n]
    return Parsed(
        room.lines[:n],
        room.texts[: room.text_offsets[n]],
        room.text_offsets[: n + 1],
        room.label_indptr[: n + 1],
        room.integers[:n_labels],
        room.strings[: room.string_offsets[n_labels] if kind == STRINGS else 0],
        room.string_offsets[: n_labels + 1],
        room.weights[:n],
        bool(weighted),
        int(kind),
    )


@part
def _skip_blanks(data: Any, at: int) -> int:
    while at < len(data) and (data[at] == 32 or data[at] == 9 or data[at] == 13):
        at += 1
    return at


@part
def _is_key(data: Any, start: int, stop: int, key: Any) -> bool:
    if stop - start != len(key):
        return False
    i = 0
    while i < len(key) and data[start + i] == key[i]:
        i += 1
    return i == len(key)


@part
def _hex(data: Any, at: int) -> int:
    """The number of four hexadecimal digits; -1 if they are not."""
    number = 0
    if at + 4 > len(data):
        return -1
    for i in range(at, at + 4):
        digit = int(data[i])
        if 48 <= digit <= 57:
            digit -= 48
        elif 97 <= digit | 32 <= 102:
            digit = (digit | 32) - 87
        else:
            return -1
        number = 16 * number + digit
    return number


@part
def _put(point: int, out: Any, used: int) -> int:
    """Append a code point in UTF-8."""
    if point < 0x80:
        out[used] = point
        return used + 1
    if point < 0x800:
        out[used], out[used + 1] = 0xC0 | point >> 6, 0x80 | point & 63
        return used + 2
    if point < 0x10000:
        out[used], out[used + 1], out[used + 2] = 0xE0 | point >> 12, 0x80 | point >> 6 & 63, 0x80 | point & 63
        return used + 3
    out[used], out[used + 1] = 0xF0 | point >> 18, 0x80 | point >> 12 & 63
    out[used + 2], out[used + 3] = 0x80 | point >> 6 & 63, 0x80 | point & 63
    return used + 4


@part
def _escape(data: Any, at: int, out: Any, used: int) -> tuple[int, int]:
    """Append what is escaped after the backslash at ``at``; returns where it ends (-1: unsure), and the new end."""
    if at + 1 >= len(data):
        return -1, used
    char = data[at + 1]
    if char == 117:  # \u
        point = _hex(data, at + 2)
        at += 6
        if 0xD800 <= point < 0xDC00 and at + 1 < len(data) and data[at] == _BACKSLASH and data[at + 1] == 117:
            low = _hex(data, at + 2)
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00) if 0xDC00 <= low < 0xE000 else -1
            at += 6
        if point < 0 or 0xD800 <= point < 0xE000:
            return -1, used
        return at, _put(point, out, used)
    plain = char
    if char == 110:
        plain = np.uint8(10)
    elif char == 116:
        plain = np.uint8(9)
    elif char == 114:
        plain = np.uint8(13)
    elif char == 98:
        plain = np.uint8(8)
    elif char == 102:
        plain = np.uint8(12)
    elif char != _QUOTE and char != _BACKSLASH and char != 47:
        return -1, used
    out[used] = plain
    return at + 2, used + 1


@part
def _string(data: Any, at: int, out: Any, used: int) -> tuple[int, int]:
    """Append the string whose quote is before ``at``; returns where it ends (after the quote; -1: unsure), new end."""
    while at < len(data):
        char = data[at]
        if char == _QUOTE:
            return at + 1, used
        if char < 32:
            return -1, used
        if char == _BACKSLASH:
            at, used = _escape(data, at, out, used)
            if at < 0:
                return -1, used
        else:
            out[used] = char
            used += 1
            at += 1
    return -1, used


@part
def _integer(data: Any, at: int) -> tuple[int, int]:
    """An integer of at most 18 digits, and where it ends (-1: it is none)."""
    negative = data[at] == _MINUS
    first = at + negative
    number, at = 0, first
    while at < len(data) and 48 <= data[at] <= 57:
        number = 10 * number + (data[at] - 48)
        at += 1
        if at - first > 18:
            return 0, -1
    if at == first or at == len(data) or (data[first] == 48 and at - first > 1):
        return 0, -1
    if data[at] == 46 or data[at] | 32 == 101:  # a fraction, or an exponent
        return 0, -1
    return (-number if negative else number), at


@part
def _decimal(data: Any, at: int) -> tuple[float, int]:
    """A number without exponent that float64 holds as it is written, and where it ends (-1: unsure)."""
    negative = data[at] == _MINUS
    first = at + negative
    number, point, at = 0, -1, first
    while at < len(data) and (48 <= data[at] <= 57 or (data[at] == 46 and point < 0 and at > first)):
        if data[at] == 46:
            point = at
        else:
            number = 10 * number + (data[at] - 48)
        at += 1
        if at - first > _EXACT_DIGITS:
            return 0.0, -1
    if at == first or at == len(data) or data[at - 1] == 46 or data[at] == 46 or data[at] | 32 == 101:
        return 0.0, -1
    if data[first] == 48 and at - first > 1 and point != first + 1:
        return 0.0, -1
    value = np.float64(number)
    if point >= 0:
        value /= _TEN[at - point - 1]
    return (-value if negative else value), at


@part
def _literal(data: Any, at: int) -> int:
    """Where true, false or null ends; -1 if it is none of them."""
    for word in _LITERALS:
        end = at + len(word)
        if end <= len(data) and _is_key(data, at, end, word):
            return end
    return -1


@part
def _labels(
    data: Any, at: int, kind: int, integers: Int64, strings: Any, string_offsets: Int64, n: int
) -> tuple[int, int, int]:
    """A label or a list of them: where it ends (-1: unsure), the kind, and how many labels there are then."""
    in_list = data[at] == 91
    if in_list:
        at = _skip_blanks(data, at + 1)
        if at < len(data) and data[at] == 93:
            return at + 1, kind, n
    while at < len(data):
        if data[at] == _QUOTE and kind != INTEGERS:
            kind = STRINGS
            at, end = _string(data, at + 1, strings, string_offsets[n])
            if at < 0 or end == string_offsets[n]:
                return -1, kind, n
            string_offsets[n + 1] = end
        elif kind != STRINGS:
            kind = INTEGERS
            integers[n], at = _integer(data, at)
            if at < 0:
                return -1, kind, n
        else:
            return -1, kind, n
        n += 1
        if not in_list:
            return at, kind, n
        at = _skip_blanks(data, at)
        if at < len(data) and data[at] == 93:
            return at + 1, kind, n
        if at == len(data) or data[at] != _COMMA:
            return -1, kind, n
        at = _skip_blanks(data, at + 1)
    return -1, kind, n


@part
def _other(data: Any, at: int, out: Any, used: int) -> int:
    """Where a plain value that nobody asked for ends; -1: unsure. A string is written after ``used``, to be lost."""
    if data[at] == _QUOTE:
        return _string(data, at + 1, out, used)[0]
    if data[at] == _MINUS or 48 <= data[at] <= 57:
        return _decimal(data, at)[1]
    return _literal(data, at)


@part
def _key_end(data: Any, at: int) -> int:
    """Where the key ends whose quote is before ``at``; -1: unsure."""
    while at < len(data) and data[at] != _QUOTE and data[at] != _BACKSLASH and data[at] >= 32:
        at += 1
    return at if at < len(data) and data[at] == _QUOTE else -1


@kernel
def _parse(
    data: Any, text_key: Any, label_key: Any, weight_key: Any, features_key: Any, needs_labels: bool,
    needs_weight: bool, lines: Int64, texts: Any, text_offsets: Int64, label_indptr: Int64, integers: Int64,
    strings: Any, string_offsets: Int64, weights: Float32,
) -> tuple[int, int, int]:  # fmt: skip
    """Number of samples (-1: unsure), kind of labels, and whether any has a weight."""
    n, n_labels, kind, weighted, line, at = ZERO, ZERO, ZERO + NO_LABELS, 0, -1, ZERO
    while at < len(data):
        line += 1
        at = _skip_blanks(data, at)
        if at < len(data) and data[at] == 10:
            at += 1
            continue
        if at == len(data):
            break
        if data[at] != 123:
            return -1, 0, 0
        text_end, has_labels, has_weight = -1, False, False
        weights[n] = np.float32(1.0)
        at = _skip_blanks(data, at + 1)
        while True:
            if at >= len(data) or data[at] != _QUOTE:
                return -1, 0, 0
            key = at + 1
            key_end = _key_end(data, key)
            if key_end < 0:
                return -1, 0, 0
            at = _skip_blanks(data, key_end + 1)
            if at >= len(data) or data[at] != _COLON:
                return -1, 0, 0
            at = _skip_blanks(data, at + 1)
            if at >= len(data):
                return -1, 0, 0
            if _is_key(data, key, key_end, text_key):
                if data[at] != _QUOTE or text_end >= 0:
                    return -1, 0, 0
                at, text_end = _string(data, at + 1, texts, text_offsets[n])
            elif _is_key(data, key, key_end, label_key):
                if has_labels:
                    return -1, 0, 0
                has_labels = True
                at, kind, n_labels = _labels(data, at, kind, integers, strings, string_offsets, n_labels)
            elif _is_key(data, key, key_end, weight_key):
                if has_weight:
                    return -1, 0, 0
                has_weight, weighted = True, 1
                value, at = _decimal(data, at)
                if not value >= 0.0:
                    return -1, 0, 0
                weights[n] = value
            elif _is_key(data, key, key_end, features_key):
                return -1, 0, 0
            else:
                at = _other(data, at, texts, text_offsets[n] if text_end < 0 else text_end)
            if at < 0:
                return -1, 0, 0
            at = _skip_blanks(data, at)
            if at < len(data) and data[at] == _COMMA:
                at = _skip_blanks(data, at + 1)
                continue
            break
        if at >= len(data) or data[at] != 125 or text_end < 0:
            return -1, 0, 0
        if (needs_labels and not has_labels) or (needs_weight and not has_weight):
            return -1, 0, 0
        at = _skip_blanks(data, at + 1)
        if at < len(data) and data[at] != 10:
            return -1, 0, 0
        at += 1
        lines[n] = line
        n += 1
        text_offsets[n], label_indptr[n] = text_end, n_labels
    return n, kind, weighted
