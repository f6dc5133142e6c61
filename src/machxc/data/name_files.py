"""Files of label names, one a line: into the arrays of label names, in memory that does not grow with their number.

Names in rising order become front-coded blocks. Others stay in the order of their lines, as label ids are line numbers,
and are sorted outside of memory: parts of them, each written as a sorted list, and these lists merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from machxc.data.columns import Columns, Offsets, release
from machxc.data.source import lines_of
from machxc.errors import DataError
from machxc.front_coding import Coder
from machxc.labels import LabelNames
from machxc.packed import Strings, is_rising, joined, merge_sorted, sorted_order, take
from machxc.samples import MAX_LABELS, Array, Int64, UInt32

_PART = 1 << 20  # names that are sorted, or merged, or coded at a time


def names_of_file(path: Path | str, columns: Columns) -> LabelNames:
    """The names of labels 0, 1, ... in the lines of a file (.gz and .zst too), as arrays in ``columns``.

    DataError when there are none, or one is empty or comes twice, and as for any source.
    """
    text, offsets = columns.new("names.bytes", np.uint8), Offsets(columns.new("names.offsets", np.uint64))
    n, last, rising = 0, Strings.of([]), True
    for lines in lines_of(path):
        _check_lines(lines, n, path)
        rising = rising and is_rising(joined([last, lines]))
        text.append(lines.bytes)
        offsets.append(lines.offsets)
        n, last = n + len(lines), lines.rows(len(lines) - 1, len(lines))
    if not n:
        raise DataError("has no label names; expected one a line", path=str(path))
    names = Strings(text.finish(), offsets.finish())
    arrays = _coded(names, columns) if rising else _with_order(names, columns, path)
    return LabelNames.from_arrays("strings", n, arrays, verify=False)


def ids_of_file(path: Path | str, names: LabelNames) -> Int64:
    """The label ids of the names in the lines of a file, -1 for those that are none: int64 [lines]."""
    ids = [names.ids_of_packed(lines) for lines in lines_of(path)]
    if not ids:
        raise DataError("has no label names; expected one a line", path=str(path))
    return np.concatenate(ids)


def _check_lines(lines: Strings, n: int, path: Path | str) -> None:
    """DataError when a line, of which the first names label n, is empty, or there are too many."""
    empty = np.flatnonzero(lines.offsets[1:] <= lines.offsets[:-1])
    if len(empty):
        raise _error(path, f"label {n + int(empty[0])}: expected a name that is a string and not empty, got ''")
    if n + len(lines) > MAX_LABELS:
        raise _error(path, f"expected at most {MAX_LABELS} labels, got more")


def _error(path: Path | str, what: str) -> DataError:
    return DataError(f"expected one label name a line, each once: {what} (label i is on line i + 1)", path=str(path))


def _parts(names: Strings) -> Iterator[Strings]:
    """Some names at a time, in memory."""
    for start in range(0, len(names), _PART):
        part = names.rows(start, min(start + _PART, len(names)))
        yield Strings(np.array(part.bytes), part.offsets.astype(np.int64))
        release(names.bytes, names.offsets)


def _coded(names: Strings, columns: Columns) -> dict[str, Array]:
    """Rising names as blocks."""
    coded, blocks, coder = columns.new("names.coded", np.uint8), columns.new("names.blocks", np.uint64), Coder()
    for part in _parts(names):
        written, begins = coder.add(part)
        coded.append(written)
        blocks.append(begins)
    written, begins = coder.finish()
    coded.append(written)
    blocks.append(begins)
    columns.drop("names.bytes")
    columns.drop("names.offsets")
    return {"coded": coded.finish(), "blocks": blocks.finish()}


def _with_order(names: Strings, columns: Columns, path: Path | str) -> dict[str, Array]:
    """Names in the order of their lines, and the order that sorts them."""
    lists, lines = _sorted_lists(names, columns)
    bounds = np.minimum(np.arange(0, len(names) + _PART, _PART), len(names))
    ranks, order = columns.scratch("part.ids", np.uint32, len(names)), columns.new("names.order", np.uint32)
    for firsts in merge_sorted(lists, bounds, ranks, _PART):
        order.append(lines[firsts])
        release(lists.bytes, lists.offsets, ranks)
    if len(order) < len(names):
        raise _error(path, _twice(lists, lines, ranks))
    return {"bytes": names.bytes, "offsets": names.offsets, "order": order.finish()}


def _sorted_lists(names: Strings, columns: Columns) -> tuple[Strings, UInt32]:
    """Each part of the names sorted, one after the other, and the line of each name."""
    text, ends = columns.new("part.bytes", np.uint8), Offsets(columns.new("part.ends", np.int64))
    lines = columns.new("part.lines", np.uint32)
    for number, part in enumerate(_parts(names)):
        order = sorted_order(part, np.arange(len(part)))
        listed = take(part, order)
        text.append(listed.bytes)
        ends.append(listed.offsets)
        lines.append((number * _PART + order).astype(np.uint32))
    return Strings(text.finish(), ends.finish()), lines.finish()


def _twice(lists: Strings, lines: UInt32, ranks: UInt32) -> str:
    """Which labels have the same name, the first in the order of names."""
    rank = int(np.argmax(np.bincount(ranks) > 1))
    places = np.flatnonzero(ranks == rank)
    first, second = np.sort(lines[places])[:2].tolist()
    return f"labels {first} and {second} have the same name {lists[int(places[0])]!r}; expected distinct names"
