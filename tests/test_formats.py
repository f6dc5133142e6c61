from __future__ import annotations

import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from machxc.errors import ModelError
from machxc.formats import DTYPES, TensorSpec, check_tensors, map_file, parse_json, parse_tensors, write_tensors


def test_map_file_takes_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert map_file(tmp_path / "file")[:] == b"content"
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("missing")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "link": "link",
        "dangling": "link",
        "empty": "empty",
        "folder": "file",
        "pipe": "file",
    }.items():
        with pytest.raises(ModelError, match=message):
            map_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', "a key comes twice"),
        (b"[NaN]", "a number is NaN or infinite"),
        (b"[-Infinity]", "a number is NaN or infinite"),
        (b"[1e999]", "a number is NaN or infinite"),
        (b"9" * 21, "a number is too long"),
        (b"9" * 100_000, "a number is too long"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b"\xff", "utf-8"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
    ],
)
def test_parse_json_refuses(text: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_json("file.json", text)


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
trees = st.recursive(
    plain | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


@given(trees)
@settings(deadline=None)
def test_parse_json_reads_what_json_writes(tree: Any) -> None:
    assert parse_json("", json.dumps(tree).encode()) == tree


dtypes = st.sampled_from([np.dtype(code) for code in DTYPES.values()])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5))
)
tensor_names = st.text("abcdef_", min_size=1, max_size=8)


def assert_same_tensors(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape)
        assert array.tobytes() == other[name].tobytes()


@given(tensors=st.dictionaries(tensor_names, arrays, min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_tensors_are_those_of_the_safetensors_library(
    tensors: dict[str, np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    write_tensors(path, tensors)
    assert_same_tensors(safetensors.numpy.load(path.read_bytes()), tensors)
    mine = parse_tensors("", map_file(path))
    assert_same_tensors(mine, tensors)
    assert all(array.flags.aligned and not array.flags.writeable for array in mine.values())
    path.write_bytes(safetensors.numpy.save(tensors))
    assert_same_tensors(parse_tensors("", map_file(path)), tensors)


def test_tensors_of_a_transposed_array_are_stored_in_its_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_tensors(tmp_path / "file", {"a": array})
    np.testing.assert_array_equal(parse_tensors("", map_file(tmp_path / "file"))["a"], array)


def test_write_tensors_refuses_objects(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'a' is object; expected one of"):
        write_tensors(tmp_path / "file", {"a": np.array([None])})
    assert os.listdir(tmp_path) == []


def file_of(header: Any, data: bytes = b"", pad: int = 8) -> mmap.mmap:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % pad)
    content = struct.pack("<Q", len(text)) + text + data
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


def tensor(first: int, last: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [last - first] if shape is None else shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": tensor(0, 4), "b": tensor(2, 6)}, 6, "'b' is not where it should be"),
        ({"a": tensor(0, 4), "b": tensor(5, 6)}, 6, "'b' is not where it should be"),
        ({"a": tensor(0, 4), "b": tensor(0, 4)}, 4, "'b' is not where it should be"),
        ({"a": tensor(4, 8)}, 8, "'a' is not where it should be"),
        ({"a": tensor(0, 9)}, 8, "'a' is not where it should be"),
        ({"a": tensor(0, 8, "F32")}, 8, "'a' is not where it should be"),
        ({"a": tensor(0, 8, "U8", [2**40, 2**40])}, 8, "'a' is not where it should be"),
        ({"a": tensor(4, 0, "U8", [0])}, 4, "'a' is not where it should be"),
        ({"a": tensor(0, 1), "b": tensor(1, 5, "F32", [1])}, 5, "'b' is not where it should be"),
        ({"a": tensor(0, 4)}, 8, "expected .* bytes"),
        ({"a": tensor(0, 4)}, 3, "not where"),
        ({"a": tensor(-4, 4)}, 8, "a span of bytes"),
        ({"a": tensor(0, 8, "F64", [1])}, 8, "expected one of"),
        ({"a": tensor(0, 8, "U8", [2, 2, 2])}, 8, "at most 2 dimensions"),
        ({"a": tensor(0, 0, "U8", [0, 2**62])}, 0, "at most 2 dimensions"),
        ({"a": {**tensor(0, 4), "shape": [4.0]}}, 4, "type int, got float"),
        ({"a": {**tensor(0, 4), "shape": [True]}}, 4, "type int, got bool"),
        ({"a": {**tensor(0, 4), "more": 1}}, 4, "expected the fields"),
        ({"__metadata__": {"a": "b"}}, 0, "expected the fields"),
        ({"a": 5}, 0, "type dict, got int"),
        ([], 0, "type dict, got list"),
        (b'{"a": 1, "a": 2}', 0, "twice"),
    ],
)
def test_parse_tensors_refuses(header: Any, data: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_tensors("file", file_of(header, bytes(data)))


def test_parse_tensors_refuses_what_is_not_aligned() -> None:
    header = {"a": tensor(0, 4, "F32", [1])}
    assert len(parse_tensors("", file_of(header, bytes(4)))) == 1
    with pytest.raises(ModelError, match="not where"):
        parse_tensors(
            "", file_of(json.dumps(header).encode() + b" " * (-(len(json.dumps(header)) % 8) + 1), bytes(4), 1)
        )


@pytest.mark.parametrize("length", [1, 2**16 + 1, 2**63, 2**64 - 1])
def test_parse_tensors_refuses_a_long_header_before_reading_it(length: int) -> None:
    memory = mmap.mmap(-1, 8)
    memory[:] = struct.pack("<Q", length)
    with pytest.raises(ModelError, match="expected a header of at most"):
        parse_tensors("", memory)


# Values.

ADDING = {
    "items": TensorSpec("U8", ("items",)),
    "lengths": TensorSpec("U8|U16|U32", ("n",), adds=("items", "most")),
}
extremes = st.sampled_from([2**8 - 1, 2**16 - 1, 2**32 - 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.uint64])
@given(
    lengths=st.lists(st.integers(0, 3), max_size=20),
    place=st.integers(0, 20),
    odd=st.none() | st.integers(0, 30) | extremes,
    most=st.integers(0, 4),
)
@settings(deadline=None, max_examples=100)
def test_lengths_add_up(
    dtype: type[np.integer[Any]], lengths: list[int], place: int, odd: int | None, most: int
) -> None:
    given, n = list(lengths), sum(lengths)
    if odd is not None and given:
        given[place % len(given)] = min(odd, int(np.iinfo(dtype).max))
    tensors = {"items": np.zeros(n, np.uint8), "lengths": np.array(given, dtype)}
    if dtype in (np.int32, np.uint64):
        message = "'lengths' to be uint8 or uint16 or uint32"
    elif sum(given) == n and max(given, default=0) <= most:
        check_tensors("file", ADDING, tensors, {"most": most})
        return
    else:
        message = rf"file: 'lengths': expected lengths of at most {most} that add up to {n}, got"
    with pytest.raises(ModelError, match=message):
        check_tensors("file", ADDING, tensors, {"most": most})


@given(values=st.lists(st.integers(0, 9), max_size=12), low=st.integers(0, 3), below=st.integers(0, 10))
@settings(deadline=None)
def test_ids_have_a_range(values: list[int], low: int, below: int) -> None:
    specs, tensors = {"ids": TensorSpec("U16", ("n",), low=low, below="below")}, {"ids": np.array(values, np.uint16)}
    if all(low <= value < below for value in values):
        check_tensors("file", specs, tensors, {"below": below})
    else:
        with pytest.raises(ModelError, match=rf"expected values in \[{low}, {below}\)"):
            check_tensors("file", specs, tensors, {"below": below})


def test_sizes_that_are_free_are_those_of_the_first_tensor() -> None:
    specs = {"a": TensorSpec("U8", ("n",)), "b": TensorSpec("U8", ("m", "n"))}
    tensors = {"a": np.zeros(2, np.uint8), "b": np.zeros((3, 2), np.uint8)}
    check_tensors("file", specs, tensors, {"m": 3})
    for shape in ((2, 2), (3, 3), (4, 2), (3,), (3, 2, 1), ()):
        with pytest.raises(ModelError, match=r"file: expected 'b' to be uint8 \[3, 2\], got uint8"):
            check_tensors("file", specs, {**tensors, "b": np.zeros(shape, np.uint8)}, {"m": 3})
