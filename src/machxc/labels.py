"""Label names: what a user calls a label, for the label ids 0 .. K - 1 that the library computes with.

The names of a model stay in its (memory-mapped) file. Those in increasing byte order, as those found in data are, are
front-coded in blocks (see front_coding.py). Others, and those of older files, are UTF-8 bytes one after the other,
K + 1 offsets and, where they are not in that order, the order that sorts them. A lookup is a binary search on those
bytes: no table of K Python strings is ever built.
"""

from __future__ import annotations

import codecs
import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from machxc.errors import DataError, ModelError
from machxc.samples import MAX_LABELS, Array, Int64, UInt32

if TYPE_CHECKING:
    from machxc.packed import Strings

Kind = Literal["ids", "integers", "strings"]
UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]

# kind -> the arrays that it may have, in one of these ways
_ARRAYS: dict[Kind, tuple[dict[str, type[np.generic]], ...]] = {
    "ids": ({},),
    "integers": ({"integers": np.int64},),
    "strings": (
        {"coded": np.uint8, "blocks": np.uint64},
        {"bytes": np.uint8, "offsets": np.uint64},
        {"bytes": np.uint8, "offsets": np.uint64, "order": np.uint32},
    ),
}
_BLOCK = 1 << 17  # names, or bytes, that a check looks at in one step: it needs a few MB


class LabelNames:
    """The names of K labels, read-only. Make them with `ids`, `integers`, `strings`, or `from_arrays`.

    ``kind``: "ids" (label i is named i, nothing is stored), "integers" (distinct, increasing int64), or "strings"
    (distinct, not empty, in any order). ``len()`` is K.
    """

    def __init__(self, kind: Kind, n: int, arrays: dict[str, Array]) -> None:
        self.kind: Kind = kind
        self._n = n
        self._arrays = arrays

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"<LabelNames: {self._n} {self.kind}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelNames):
            return NotImplemented
        mine, others = self._arrays, other._arrays
        if (self.kind, len(self)) != (other.kind, len(other)):
            return False
        if mine.keys() != others.keys():
            return all(one == another for one, another in zip(self._in_chunks(), other._in_chunks(), strict=True))
        return all(np.array_equal(mine[name], others[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def ids(cls, n: int) -> LabelNames:
        """``n`` labels named 0 .. n - 1."""
        return cls("ids", _checked_n(n), {})

    @classmethod
    def integers(cls, names: npt.ArrayLike) -> LabelNames:
        """Labels named by integers [K], strictly increasing; DataError otherwise."""
        given = np.asarray(names)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise DataError(f"expected one-dimensional integer label names, got {given.dtype} of shape {given.shape}")
        if given.dtype.kind == "u" and given.size and int(given.max()) > np.iinfo(np.int64).max:
            raise DataError(f"label name {given.max()} is out of range: expected integers below 2**63")
        values = given.astype(np.int64)
        wrong = np.flatnonzero(values[1:] <= values[:-1])
        if len(wrong):
            pair = int(values[wrong[0]]), int(values[wrong[0] + 1])
            raise DataError(
                f"expected distinct integer label names in increasing order, got {pair[0]} before {pair[1]}"
            )
        return cls("integers", _checked_n(len(values)), {"integers": values})

    @classmethod
    def strings(cls, names: Iterable[str]) -> LabelNames:
        """Labels named by strings, in the order given; DataError when one is empty or comes twice."""
        encoded = [_encoded(name, i) for i, name in enumerate(names)]
        offsets = np.zeros(_checked_n(len(encoded)) + 1, np.uint64)
        np.cumsum(np.fromiter(map(len, encoded), np.uint64, len(encoded)), out=offsets[1:])
        text = np.frombuffer(b"".join(encoded), np.uint8)
        if all(map(operator.lt, encoded, encoded[1:])):
            return cls._front_coded(text, offsets.astype(np.int64))
        return cls("strings", len(encoded), {"bytes": text, "offsets": offsets, "order": _order(encoded)})

    @classmethod
    def packed(cls, names: Strings) -> LabelNames:
        """`strings`, of names in two arrays: no Python object a name, so that there may be many millions."""
        from machxc.packed import sorted_order

        if not (names.offsets[1:] > names.offsets[:-1]).all():
            empty = int(np.argmin(np.diff(names.offsets)))
            raise DataError(f"label {empty}: expected a name that is a string and not empty, got ''")
        order, offsets = sorted_order(names, np.arange(_checked_n(len(names)))), names.offsets.astype(np.uint64)
        for start in range(0, len(names) - 1, _BLOCK):
            ids = order[start : start + _BLOCK + 1]  # blocks share one name
            if not _is_increasing(names.bytes, offsets, ids):
                _order([bytes(names.bytes[offsets[i] : offsets[i + 1]]) for i in ids], ids)
        if (order[1:] > order[:-1]).all():
            return cls._front_coded(names.bytes, names.offsets)
        return cls("strings", len(names), {"bytes": names.bytes, "offsets": offsets, "order": order.astype(np.uint32)})

    @classmethod
    def _front_coded(cls, text: UInt8, offsets: Int64) -> LabelNames:
        from machxc.front_coding import encode
        from machxc.packed import Strings

        coded, blocks = encode(Strings(text, offsets))
        return cls("strings", len(offsets) - 1, {"coded": coded, "blocks": blocks})

    @classmethod
    def from_arrays(cls, kind: str, n: int, arrays: Mapping[str, Array], *, verify: bool = True) -> LabelNames:
        """The inverse of `arrays`, without copying them; ModelError when they are not the names of ``n`` labels.

        ``verify``: look at every name; else only at what there is, dtypes and shapes.
        """
        if kind not in get_args(Kind) or not isinstance(n, int) or not 0 <= n <= MAX_LABELS:
            raise ModelError(
                f"label names: expected a kind of {get_args(Kind)} and a number of labels, got {kind!r}, {n!r}"
            )
        names = cls(cast(Kind, kind), n, dict(arrays))
        names._check_shapes()
        if not verify:
            return names
        if kind == "integers":
            _check_increasing(names._arrays["integers"])
        elif "coded" in names._arrays:
            names._check_front_coded()
        elif kind == "strings":
            _check_strings(names._bytes, names._offsets, names._order)
        return names

    def arrays(self) -> dict[str, Array]:
        """What is stored: {}, {"integers"}, or for strings {"coded", "blocks"}, if sorted, or {"bytes", "offsets"} and,
        if not, "order".
        """
        return dict(self._arrays)

    def names(self, ids: npt.ArrayLike) -> Array:
        """The names of label ids (int, any shape), in the same shape: int64, or objects for strings.

        Where an id is -1 (no label) the name is -1, or None. DataError when an id is not in [-1, K).
        """
        given = np.asarray(ids, np.int64)
        if given.size and not -1 <= int(given.min()) <= int(given.max()) < len(self):
            raise DataError(f"expected label ids in [-1, {len(self)}), got ids in [{given.min()}, {given.max()}]")
        if self.kind == "strings":
            return self._strings_of(given)
        return self._integers_of(given)

    def ids_of(self, names: Sequence[str | int] | Array) -> Int64:
        """The label ids of ``names``: int64 [n], -1 where no label has that name."""
        if self.kind == "strings":
            return self._ids_of_strings(names)
        values, valid = _int64s(names)
        if self.kind == "ids":
            return np.where(valid & (values >= 0) & (values < len(self)), values, -1)
        stored = self._arrays["integers"]
        places = np.searchsorted(stored, values)
        found = valid & (places < len(stored))
        found[found] = stored[places[found]] == values[found]
        return np.where(found, places, -1)

    def ids_of_packed(self, names: Strings) -> Int64:
        """`ids_of` for strings in two arrays: no Python object a name, where the model's are in blocks."""
        if "coded" not in self._arrays:
            return self.ids_of(names.tolist())
        from machxc.front_coding import places_of

        return places_of(self._arrays["coded"], self._arrays["blocks"], len(self), names)

    @property
    def _bytes(self) -> UInt8:
        return self._arrays["bytes"]

    @property
    def _offsets(self) -> UInt64:
        return self._arrays["offsets"]

    @property
    def _order(self) -> UInt32 | None:
        return self._arrays.get("order")

    def _integers_of(self, ids: Int64) -> Int64:
        if self.kind == "ids" or not len(self):
            return ids.copy()
        return np.where(ids < 0, -1, self._arrays["integers"][np.maximum(ids, 0)])

    def _strings_of(self, ids: Int64) -> Array:
        result = np.full(ids.size, None, object)
        (places,) = np.nonzero(ids.ravel() >= 0)
        chosen = ids.ravel()[places]
        if "coded" in self._arrays:
            result[places] = np.fromiter(self._spelt(chosen).tolist(), object, len(chosen))
            return result.reshape(ids.shape)
        text = self._bytes.data
        spans = zip(self._offsets[chosen].tolist(), self._offsets[chosen + 1].tolist(), strict=True)
        result[places] = np.fromiter((str(text[start:stop], "utf-8") for start, stop in spans), object, len(chosen))
        return result.reshape(ids.shape)

    def _spelt(self, ids: Int64) -> Strings:
        from machxc.front_coding import names_at

        return names_at(self._arrays["coded"], self._arrays["blocks"], ids)

    def _in_chunks(self) -> Iterator[list[str]]:
        for start in range(0, len(self), _BLOCK):
            yield self.names(np.arange(start, min(start + _BLOCK, len(self)))).tolist()

    def _ids_of_strings(self, names: Sequence[str | int] | Array) -> Int64:
        listed = names.tolist() if isinstance(names, np.ndarray) else names
        found = {name: self._find(name) for name in set(listed)}
        return np.fromiter((found[name] for name in listed), np.int64, len(listed))

    def _find(self, name: object) -> int:
        if not isinstance(name, str):
            return -1
        sought = name.encode("utf-8", "surrogatepass")  # a lone surrogate: no name has it
        if "coded" in self._arrays:
            from machxc.front_coding import place_of

            return place_of(self._arrays["coded"], self._arrays["blocks"], len(self), sought)
        text, offsets, order = self._bytes.data, self._offsets.data, self._order
        ids: Any = range(len(self)) if order is None else order.data
        place = bisect_left(ids, sought, key=lambda i: bytes(text[offsets[i] : offsets[i + 1]]))
        if place == len(self):
            return -1
        found: int = ids[place]
        return found if text[offsets[found] : offsets[found + 1]] == sought else -1

    def _check_shapes(self) -> None:
        ways = {frozenset(way): way for way in _ARRAYS[self.kind]}
        way = ways.get(frozenset(self._arrays))
        if way is None:
            expected = " or ".join(str(sorted(names)) for names in ways)
            raise ModelError(f"label names: expected the arrays {expected}, got {sorted(self._arrays)}")
        free = {"bytes", "coded", "blocks"}  # as long as they are: what is in them tells whether that is right
        for name, array in self._arrays.items():
            dtype = np.dtype(way[name])
            length = array.size if name in free else len(self) + (name == "offsets")
            if array.dtype != dtype or array.shape != (length,):
                raise ModelError(
                    f"label names: expected {name!r} to be {dtype} of shape ({length},), "
                    f"got {array.dtype} of shape {array.shape}"
                )

    def _check_front_coded(self) -> None:
        from machxc.front_coding import is_whole

        if not is_whole(self._arrays["coded"], self._arrays["blocks"], len(self)):
            raise ModelError(f"label names: expected blocks of {len(self)} names; the model is damaged")
        for start in range(0, len(self), _BLOCK):
            some = self._spelt(np.arange(max(0, start - 1), min(start + _BLOCK, len(self))))  # chunks share one name
            _check_strings(some.bytes, some.offsets.astype(np.uint64), None)


def _checked_n(n: int) -> int:
    if not 0 <= n <= MAX_LABELS:
        raise DataError(f"expected between 0 and {MAX_LABELS} labels, got {n}")
    return n


def _encoded(name: object, i: int) -> bytes:
    if not isinstance(name, str) or not name:
        raise DataError(f"label {i}: expected a name that is a string and not empty, got {name!r}")
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise DataError(f"label {i}: the name {name!r} is not valid Unicode text (it has half a character)") from None


def _order(encoded: list[bytes], ids: Int64 | None = None) -> UInt32:
    """The ids (default: 0, 1, ...) in the order of their names; DataError when a name comes twice."""
    order = sorted(range(len(encoded)), key=encoded.__getitem__)
    for one, other in pairwise(order):
        if encoded[one] == encoded[other]:
            first, second = (one, other) if ids is None else sorted((int(ids[one]), int(ids[other])))
            raise DataError(
                f"labels {first} and {second} have the same name {encoded[one].decode()!r}; expected distinct names"
            )
    return np.array(order, np.uint32)


def _int64s(names: Sequence[str | int] | Array) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Names as int64, and which of them are such integers (the others are 0)."""
    array = np.asarray(names) if len(names) else np.empty(0, np.int64)
    if array.dtype.kind == "i":
        return array.astype(np.int64), np.ones(len(array), bool)
    limits = np.iinfo(np.int64)
    listed = [
        int(name) if _is_integer(name) and limits.min <= int(name) <= limits.max else None
        for name in (array.tolist() if isinstance(names, np.ndarray) else names)
    ]
    valid = np.array([name is not None for name in listed], bool)
    return np.array([name or 0 for name in listed], np.int64), valid


def _is_integer(name: object) -> bool:
    return isinstance(name, int | np.integer) and not isinstance(name, bool)


def _check_increasing(values: Int64) -> None:
    if (values[1:] <= values[:-1]).any():
        raise ModelError("label names: expected distinct integers in increasing order; the model is damaged")


def _check_strings(text: UInt8, offsets: UInt64, order: UInt32 | None) -> None:
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(text) or not (offsets[1:] > offsets[:-1]).all():
        raise ModelError(f"label names: expected offsets that rise from 0 to {len(text)}; the model is damaged")
    _check_utf8(text, offsets)
    if order is not None and len(order) and int(order.max()) >= len(order):
        raise ModelError(f"label names: expected the order to hold ids below {len(order)}; the model is damaged")
    for start in range(0, len(offsets) - 2, _BLOCK):
        stop = min(start + _BLOCK + 1, len(offsets) - 1)  # blocks share one name
        ids = np.arange(start, stop) if order is None else np.asarray(order[start:stop], np.int64)
        if not _is_increasing(text, offsets, ids):
            raise ModelError("label names: expected distinct names, sorted by the stored order; the model is damaged")


def _check_utf8(text: UInt8, offsets: UInt64) -> None:
    """The whole is UTF-8 and no name begins inside a character: so every name is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), _BLOCK):
            decoder.decode(text[start : start + _BLOCK].tobytes(), final=start + _BLOCK >= len(text))
    except UnicodeDecodeError:
        raise ModelError("label names: expected UTF-8 text; the model is damaged") from None
    if ((text[offsets[:-1]] & 0xC0) == 0x80).any():
        raise ModelError("label names: a name begins inside a character; the model is damaged")


def _is_increasing(text: UInt8, offsets: UInt64, ids: Int64) -> bool:
    """Whether each of the names ``ids`` is smaller, byte by byte, than the next.

    Most pairs differ in the first bytes, and are compared eight bytes at a time for all pairs at once.
    """
    starts, stops = offsets[ids].astype(np.int64), offsets[ids + 1].astype(np.int64)
    pairs = np.arange(len(ids) - 1)
    for depth in range(0, 64, 8):
        one = _eight_bytes(text, starts[pairs] + depth, stops[pairs])
        other = _eight_bytes(text, starts[pairs + 1] + depth, stops[pairs + 1])
        if (one > other).any():
            return False
        pairs = pairs[one == other]
        if not len(pairs):
            return True
    view = text.data
    return all(bytes(view[starts[i] : stops[i]]) < bytes(view[starts[i + 1] : stops[i + 1]]) for i in pairs.tolist())


def _eight_bytes(text: UInt8, starts: Int64, stops: Int64) -> UInt64:
    """The eight bytes from each start, as one number that compares as they do; zeros beyond the stop."""
    key = np.zeros(len(starts), np.uint64)
    for places in (starts + i for i in range(8)):
        byte = np.where(places < stops, text[np.minimum(places, len(text) - 1)], 0)
        key = (key << np.uint64(8)) | byte.astype(np.uint64)
    return key
