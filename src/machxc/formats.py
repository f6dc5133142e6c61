"""Strict parsers of the two file formats of a model, JSON and safetensors: reading that believes nothing.

Every error is a ModelError. What has been read is data: nothing here runs code, or allocates by a number in a file.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from machxc.errors import ModelError
from machxc.files import write_file
from machxc.maps import watch
from machxc.samples import Array

Tensors = dict[str, Array]

# the number types that a file may hold, by their safetensors names
DTYPES = {
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "|i1", "I32": "<i4", "I64": "<i8", "F16": "<f2",
    "F32": "<f4",
}  # fmt: skip
DTYPE_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
_MAX_HEADER = 1 << 16  # bytes of a safetensors header: ours take a few hundred
_BLOCK = 1 << 17  # values checked in one step

# the bits of the exponent: all ones in a number that is infinite or NaN
_EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
}


@dataclass(frozen=True)
class TensorSpec:
    """What one tensor must be: dtype ("A|B": A or B), shape, and the range of its values, if they are ids or lengths.

    Sizes are symbols. One that is not known beforehand is what it is in the first tensor that has it, and must be the
    same in the others. Ids lie in [low, below). Lengths: ``adds`` (sum, most) says that they are integers from 0 on
    that add up to ``sum``, and none is above ``most``. Floating-point values are always finite.
    """

    dtype: str
    shape: tuple[str, ...]
    low: int = 0
    below: str | None = None
    adds: tuple[str, str] | None = None


def map_file(path: Path | str) -> mmap.mmap:
    """A file as read-only memory. Raises ModelError for a link, a pipe, a device or an empty file, and OSError."""
    path = Path(path)
    if path.is_symlink():
        raise ModelError(f"{path.name} is a link; expected a file: a model folder has no links")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise ModelError(f"{path.name}: expected a file that is not empty; the model is damaged")
        if sys.version_info >= (3, 13):
            content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, trackfd=False)
        else:  # keeps a descriptor: a thousand files at most
            content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        watch(content, path, status, ModelError)
        return content
    finally:
        os.close(descriptor)


def parse_json(where: str, raw: bytes) -> Any:
    """The value of strict JSON: no key twice, no NaN, no infinity, no number that is too long. Raises ModelError."""
    try:
        return json.loads(
            raw.decode(),
            object_pairs_hook=_unique,
            parse_int=_small_int,
            parse_float=_finite_float,
            parse_constant=_finite_float,
        )
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: expected plain JSON: {error}; the file is damaged") from None


def json_fields(where: str, data: Any, types: Mapping[str, type]) -> list[Any]:
    """The values of a JSON object that has exactly these fields, of these types."""
    if json_value(where, data, dict).keys() != types.keys():
        raise ModelError(f"{where}: expected the fields {sorted(types)}, got others; the file is damaged")
    return [json_value(f"{where}: {name}", data[name], kind) for name, kind in types.items()]


def json_value(where: str, value: Any, kind: type) -> Any:
    """``value``, when it is of exactly this type; ModelError otherwise."""
    if type(value) is not kind:
        raise ModelError(f"{where}: expected a JSON value of type {kind.__name__}, got {type(value).__name__}")
    return value


def parse_tensors(name: str, content: mmap.mmap) -> Tensors:
    """The tensors of a safetensors file, as views of ``content``. No value is looked at.

    Raises ModelError unless they are aligned, and fill the file without a gap or an overlap.
    """
    length = struct.unpack_from("<Q", content)[0] if len(content) >= 8 else len(content)
    if length > min(_MAX_HEADER, len(content) - 8):
        raise ModelError(f"{name}: expected a header of at most {_MAX_HEADER} bytes, got {length}; the file is damaged")
    start = end = 8 + length
    tensors = {}
    for (first, last), key, dtype, shape in sorted(_spans(name, content[8:start])):
        size = math.prod(shape) * dtype.itemsize
        if start + first != end or last - first != size or end % dtype.itemsize or last > len(content) - start:
            raise ModelError(f"{name}: {key!r} is not where it should be; the file is damaged")
        tensors[key] = np.ndarray(shape, dtype, content, end)
        end = start + last
    if end != len(content):
        raise ModelError(f"{name}: expected {end} bytes, got {len(content)}; the file is damaged")
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a safetensors file (8 bytes of header length, a JSON header, the arrays), durably, like `write_file`.

    Nothing is copied. Larger items come first, so that all of them are aligned. Raises OutputError, and ModelError for
    a dtype that is not in `DTYPES`.
    """
    header: dict[str, Any] = {}
    parts, end = [], 0
    for name, given in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        array = np.ascontiguousarray(given)
        if array.dtype not in DTYPE_NAMES:
            raise ModelError(f"{path.name}: {name!r} is {array.dtype}; expected one of {[str(d) for d in DTYPE_NAMES]}")
        span = [end, end := end + array.nbytes]
        header[name] = {"dtype": DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": span}
        parts.append(array.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_file(path, struct.pack("<Q", len(text)) + text, *parts)


def check_tensors(
    where: str, specs: Mapping[str, TensorSpec], tensors: Mapping[str, Array], sizes: Mapping[str, int]
) -> None:
    """Raise ModelError unless ``tensors`` are those of ``specs``: names, dtypes, shapes, and every value.

    ``sizes``: the numbers behind the symbols that are known. Takes a few MB, however large the tensors are.
    """
    if tensors.keys() != specs.keys():
        raise ModelError(f"{where}: expected the tensors {sorted(specs)}, got {sorted(tensors)}")
    known = dict(sizes)
    for name, spec in specs.items():
        given = tensors[name]
        known |= {s: size for s, size in zip(spec.shape, given.shape, strict=False) if s not in known}
        shape = [known.get(symbol, symbol) for symbol in spec.shape]
        dtypes = spec.dtype.split("|")
        if DTYPE_NAMES.get(given.dtype) not in dtypes or list(given.shape) != shape:
            expected = f"{' or '.join(str(np.dtype(DTYPES[dtype])) for dtype in dtypes)} {shape}"
            raise ModelError(f"{where}: expected {name!r} to be {expected}, got {given.dtype} {list(given.shape)}")
    for name, spec in specs.items():
        _check_values(f"{where}: {name!r}", tensors[name], spec, known)


def _check_values(where: str, array: Array, spec: TensorSpec, sizes: Mapping[str, int]) -> None:
    if spec.dtype in _EXPONENT and not _is_finite(array, *_EXPONENT[spec.dtype]):
        raise ModelError(f"{where} has values that are NaN or infinite; expected finite numbers")
    if spec.below is not None:
        below = sizes[spec.below]
        if "|" in spec.dtype:  # of those that have room for all values, the narrowest
            below = min(below, int(np.iinfo(array.dtype).max) + 1)
        _check_range(where, array, spec.low, below)
    if spec.adds is not None:
        total, most = (sizes[symbol] for symbol in spec.adds)
        found, largest = int(array.sum(dtype=np.uint64)), int(array.max(initial=0))
        if found != total or largest > most:
            raise ModelError(
                f"{where}: expected lengths of at most {most} that add up to {total}, got {largest} and {found}"
            )


def _check_range(where: str, array: Array, low: int, below: int) -> None:
    if below - 1 > np.iinfo(array.dtype).max:
        raise ModelError(f"{where}: expected ids that fit into {array.dtype}, got a range of [{low}, {below})")
    if not array.size:
        return
    lowest, highest = int(array.min()), int(array.max())
    if lowest < low or highest >= below:
        raise ModelError(f"{where}: expected values in [{low}, {below}), got [{lowest}, {highest}]")


def _is_finite(array: Array, unsigned: type[np.unsignedinteger[Any]], exponent: int) -> bool:
    """Whether no exponent is all ones; block by block, so that it takes a few MB."""
    bits = array.reshape(-1).view(unsigned)
    masked = np.empty(min(_BLOCK, len(bits)), unsigned)
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        if np.bitwise_and(block, exponent, out=masked[: len(block)]).max() == exponent:
            return False
    return True


def _spans(name: str, header: bytes) -> Iterator[tuple[tuple[int, int], str, np.dtype[Any], tuple[int, ...]]]:
    tensors = parse_json(name, header)
    types = {"dtype": str, "shape": list, "data_offsets": list}
    for key, value in json_value(name, tensors, dict).items():
        where = f"{name}: {key!r}"
        dtype, shape, span = json_fields(where, value, types)
        sizes = [json_value(where, size, int) for size in (*shape, *span)]
        if dtype not in DTYPES or len(shape) > 2 or len(span) != 2 or not all(0 <= size < 2**48 for size in sizes):
            raise ModelError(f"{where}: expected one of {list(DTYPES)}, at most 2 dimensions and a span of bytes")
        yield (span[0], span[1]), key, np.dtype(DTYPES[dtype]), tuple(shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key comes twice")
    return data


def _small_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number is too long")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is NaN or infinite")
    return value
