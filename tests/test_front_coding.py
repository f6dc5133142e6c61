"""Sorted names in blocks: they come back, are found, and blocks that are no names are refused before they are read."""

from __future__ import annotations

import bisect
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.errors import ModelError
from machxc.front_coding import BLOCK, Coder, encode, is_whole, names_at, place_of
from machxc.labels import LabelNames
from machxc.packed import Strings

quick = settings(deadline=None, max_examples=60)
pieces = st.sampled_from(["a", "ab", "b", "é", "京都", "x" * 254, "y" * 300, " "])
names = st.sets(st.lists(pieces, min_size=1, max_size=4).map("".join), max_size=60).map(
    lambda some: sorted(some, key=str.encode)
)


def sorted_by_bytes(some: Any) -> list[str]:
    return sorted(some, key=str.encode)


@given(names, st.lists(st.lists(pieces, max_size=4).map("".join), max_size=10))
@quick
def test_names_come_back_and_are_found(listed: list[str], others: list[str]) -> None:
    coded, blocks = encode(Strings.of(listed))
    assert is_whole(coded, blocks, len(listed))
    assert names_at(coded, blocks, np.arange(len(listed))).tolist() == listed
    backwards = np.arange(len(listed))[::-1].copy()
    assert names_at(coded, blocks, backwards).tolist() == listed[::-1]
    mixed = np.concatenate(
        (np.repeat(np.arange(len(listed)), 2), np.arange(len(listed))[::3], np.arange(len(listed))[5:])
    )
    assert names_at(coded, blocks, mixed).tolist() == [listed[i] for i in mixed]
    places = {name: place for place, name in enumerate(listed)}
    for name in (*listed, *others, *(name[:-1] for name in listed), *(name + "a" for name in listed)):
        assert place_of(coded, blocks, len(listed), name.encode()) == places.get(name, -1)


@given(names, st.lists(st.integers(0, 60), max_size=4))
@quick
def test_parts_change_no_byte(listed: list[str], cuts: list[int]) -> None:
    coder, written = Coder(), []
    edges = [0, *sorted(min(cut, len(listed)) for cut in cuts), len(listed)]
    for start, stop in itertools.pairwise(edges):
        written.append(coder.add(Strings.of(listed[start:stop])))
    written.append(coder.finish())
    coded, blocks = encode(Strings.of(listed))
    assert np.concatenate([part for part, _ in written]).tobytes() == coded.tobytes()
    assert np.concatenate([part for _, part in written]).tobytes() == blocks.tobytes()


@given(names.filter(len), st.data())
@quick
def test_damage_is_refused_or_leaves_sorted_names(listed: list[str], data: st.DataObject) -> None:
    coded, blocks = encode(Strings.of(listed))
    if data.draw(st.booleans()):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        blocks[data.draw(st.integers(0, len(blocks) - 1))] ^= np.uint64(1 << data.draw(st.integers(0, 63)))
    try:
        loaded = LabelNames.from_arrays("strings", len(listed), {"coded": coded, "blocks": blocks})
    except ModelError:
        return
    found = loaded.names(np.arange(len(listed))).tolist()
    assert found == sorted_by_bytes(set(found))
    assert loaded.ids_of(found).tolist() == list(range(len(listed)))


def test_what_shares_less_than_it_says_is_found_too() -> None:
    """Coding shares all that it can; a file that does not is read all the same."""
    coded = np.frombuffer(b"\0\2ab" + b"\0\3abc" + b"\1\1c", np.uint8)
    loaded = LabelNames.from_arrays("strings", 3, {"coded": coded, "blocks": np.array([0, 12], np.uint64)})
    assert loaded.ids_of(["ab", "abc", "ac", "abd", "a"]).tolist() == [0, 1, 2, -1, -1]


def test_the_older_form_of_the_same_names_is_equal() -> None:
    listed = [f"name {i:04d}" for i in range(5 * BLOCK + 3)]
    packed = Strings.of(listed)
    older: dict[str, Any] = {"bytes": packed.bytes, "offsets": packed.offsets.astype(np.uint64)}
    loaded = LabelNames.from_arrays("strings", len(listed), older)
    assert loaded == LabelNames.strings(listed) == loaded
    assert loaded != LabelNames.strings([*listed[:-1], "other"])
    assert loaded.ids_of(listed[::7]).tolist() == list(range(len(listed)))[::7]


def test_names_that_begin_alike_take_few_bytes() -> None:
    listed = [f"a brand of the shop, a model of the brand {i:06d}" for i in range(10_000)]
    coded, blocks = encode(Strings.of(listed))
    assert len(coded) + blocks.nbytes < 8 * len(listed)
    assert bisect.bisect_left(listed, listed[777]) == place_of(coded, blocks, len(listed), listed[777].encode())


@pytest.mark.parametrize(
    ("coded", "blocks", "n", "message"),
    [
        (b"\0\1a", [0, 2], 1, "expected blocks of 1 names"),  # does not end at its end
        (b"\0\1a", [0, 3], 2, "expected blocks of 2 names"),
        (b"\0\1a", [0, 3], 17, "expected blocks of 17 names"),
        (b"\1\1a", [0, 3], 1, "expected blocks of 1 names"),  # shares with nothing
        (b"\0\0", [0, 2], 1, "expected blocks of 1 names"),  # empty
        (b"\0\2a", [0, 3], 1, "expected blocks of 1 names"),  # longer than the block
        (b"\0\xff\1\0", [0, 4], 1, "expected blocks of 1 names"),  # a number that is cut
        (b"\0\xff\xff\xff\xff\xffa", [0, 7], 1, "expected blocks of 1 names"),
        (b"\0\1a\2\1b", [0, 6], 2, "expected blocks of 2 names"),  # shares more than there is
        (b"\0\1b\0\1a", [0, 6], 2, "expected distinct names"),
        (b"\0\1a\0\1a", [0, 6], 2, "expected distinct names"),
        (b"\0\1\xff", [0, 3], 1, "expected UTF-8"),
        (b"\0\2\xc3\xa9\1\1\xff", [0, 7], 2, "expected UTF-8"),
    ],
)
def test_blocks_that_are_no_names(coded: bytes, blocks: list[int], n: int, message: str) -> None:
    arrays: dict[str, Any] = {"coded": np.frombuffer(coded, np.uint8), "blocks": np.array(blocks, np.uint64)}
    with pytest.raises(ModelError, match=message):
        LabelNames.from_arrays("strings", n, arrays)


def test_names_rise_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from machxc import labels

    monkeypatch.setattr(labels, "_BLOCK", 5)
    listed = [f"{i:02d}" for i in range(40)]
    for wrong in range(40):
        given = [*listed[:wrong], "00", *listed[wrong + 1 :]]
        coded, blocks = encode(Strings.of(given))
        if wrong:
            with pytest.raises(ModelError, match=r"expected (distinct names|blocks)"):
                LabelNames.from_arrays("strings", 40, {"coded": coded, "blocks": blocks})
        else:
            assert len(LabelNames.from_arrays("strings", 40, {"coded": coded, "blocks": blocks})) == 40


@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_few_names(n: int) -> None:
    listed = sorted_by_bytes({chr(0x4E00 + i) for i in range(n)})
    coded, blocks = encode(Strings.of(listed))
    assert is_whole(coded, blocks, n)
    assert names_at(coded, blocks, np.arange(n)).tolist() == listed
    assert place_of(coded, blocks, n, b"") == -1
