"""Model folders cut short or damaged at random: each ends in an error, or in a model that is what it says."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folder_tools import (
    MODELS,
    REPETITION,
    assert_same_model,
    seal,
    split_header,
    tiny,
    write_header,
)
from machxc.errors import ModelError
from machxc.folder import ModelData, load_model, save_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", tiny(partition=True))
    return tmp_path / "model"


# Files cut short.


def cuts(path: Path) -> list[int]:
    """Every byte of the header, and the boundaries of the tensors, one more and one less."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return list(range(len(content)))
    (length,) = struct.unpack_from("<Q", content)
    edges = {8 + length + edge for tensor in split_header(path)[0].values() for edge in tensor["data_offsets"]}
    near = {edge + step for edge in edges for step in (-1, 0, 1)}
    return sorted(cut for cut in near | set(range(8 + length)) if cut < len(content))


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "labels.safetensors", REPETITION])
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_truncation(name: str, sealed: bool, model: Path) -> None:
    content, manifest = (model / name).read_bytes(), (model / "manifest.json").read_text()
    whole = load_model(model)
    for cut in cuts(model / name):
        (model / name).write_bytes(content[:cut])
        if sealed and name != "manifest.json":
            (model / "manifest.json").write_text(manifest)
            seal(model)
        if content[cut:].isspace() and name.endswith(".json"):
            continue  # what is cut off is white space
        with pytest.raises(ModelError):
            load_model(model)
    (model / name).write_bytes(content)
    (model / "manifest.json").write_text(manifest)
    assert_same_model(load_model(model), whole)


# Random damage.

ODD: list[Any] = [
    None, True, False, [], {}, "", "x", "\ud800", -1, 0, 1, 0.5, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**19, 1e308,
    float("nan"), float("inf"), 10**400, [[]], {"a": {}}, [0] * 100, "F64", "float32", "../x", "a\0b",
]  # fmt: skip
WORDS = [
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x7f" * 8,
    struct.pack("<Q", 2**63),
    struct.pack("<e", np.nan),
    b"\x00\x7c",
    b"\x80",
]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip a bit, cut, repeat, swap, overwrite or insert at a random place."""
    here, there = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    word = rng.choice(WORDS)
    kind = rng.randrange(7)
    if kind == 0:
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    return [
        content[:here],
        content[:here] + content[there:],
        content[:there] + content[here:],
        content[:here] + content[there : there + 16] + content[here + 16 :],
        content[:here] + word + content[here + len(word) :],
        content[:here] + word + content[here:],
    ][kind - 1]


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree of lists and dictionaries, as container and key."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from nodes(tree[key])


def damage_json(tree: Any, rng: random.Random) -> Any:
    """Replace, remove, rename or copy a random node."""
    container, key = rng.choice(list(nodes(tree)))
    kind = rng.randrange(4)
    if kind == 1 and container:
        del container[key]
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice(["", "x", str(key) + " ", "__metadata__", "../x", "text"])] = container[key]
    elif kind == 3:
        other, name = rng.choice(list(nodes(tree)))
        container[key] = json.loads(json.dumps(other[name]))
    else:
        container[key] = rng.choice(ODD)
    return tree


def dump(tree: Any, rng: random.Random) -> bytes:
    """As JSON; sometimes a key comes twice, or an integer is written as a float."""
    text = json.dumps(tree)
    if rng.randrange(8) == 0 and '": ' in text:
        text = text.replace("{", '{"size": 0, ', 1) if rng.randrange(2) else text.replace(": 1", ": 1.0", 1)
    return text.encode()


def damage(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    if rng.randrange(3) == 0:
        path.write_bytes(damage_bytes(content, rng))
    elif path.suffix == ".json":
        path.write_bytes(dump(damage_json(json.loads(content), rng), rng))
    elif rng.randrange(2) == 0:
        header, data = split_header(path)
        write_header(path, dump(damage_json(header, rng), rng), data)
    else:
        (length,) = struct.unpack_from("<Q", content)
        path.write_bytes(content[: 8 + length] + damage_bytes(content[8 + length :], rng))


def assert_valid_entries(tensors: dict[str, Any], rows: int, buckets: int) -> None:
    lengths, entries = tensors["lengths"].tolist(), tensors["entries"].tolist()
    narrow = tensors["entries"].dtype == np.uint16
    assert len(lengths) == rows
    assert all(0 <= length <= buckets for length in lengths)
    assert sum(lengths) == len(entries)
    starts = [sum(lengths[:row]) for row in range(rows + 1)]
    assert len(tensors["levels"]) == 256
    assert narrow or all(entry >> 8 < buckets for entry in entries)
    assert not narrow or all(sum(e >> 8 for e in entries[a:b]) < buckets for a, b in pairwise(starts))


def assert_valid(model: ModelData) -> None:
    """What scoring relies on, checked without a line of the library."""
    config = model.config
    assert len(model.names) == config.n_labels == len(model.label_counts)
    names = model.names.names(np.arange(config.n_labels)).tolist()
    assert len(set(names)) == len(names)
    assert model.names.ids_of(names).tolist() == list(range(config.n_labels))
    assert 0 < len(model.repetitions) <= config.repetitions > max(model.repetitions)
    for tensors in model.repetitions.values():
        rows, slots = int(tensors["repeats"].sum()), min(config.n_features, 2**config.feature_bits)
        assert tensors["row_weights"].shape == tensors["repeats"].shape
        if "slots" in tensors:
            assert tensors["slots"].shape == (slots,)
            assert ((tensors["slots"] >= -1) & (tensors["slots"] < rows)).all()
        else:
            assert tensors["row_slots"].shape == (rows,)
            assert (tensors["row_slots"] < slots).all()
        if config.hidden:
            assert tensors["table"].shape == (rows, config.layers[0])
            assert tensors["output"].shape == (config.buckets, config.layers[-1])
            assert tensors["hidden_bias"].shape == (config.layers[0],)
            for i, (before, after) in enumerate(pairwise(config.layers), 1):
                assert tensors[f"layer_{i}"].shape == (after, before)
                assert tensors[f"layer_{i}_bias"].shape == (after,)
        elif "present" in tensors:
            bits = np.unpackbits(tensors["present"], axis=1, bitorder="little")
            assert tensors["present"].shape == (rows, -(-config.buckets // 8))
            assert not bits[:, config.buckets :].any()
            assert tensors["codes"].shape == (bits.sum(),)
            assert tensors["levels"].shape == (256,)
        else:
            assert_valid_entries(tensors, rows, config.buckets)
        assert tensors["bias"].shape == (config.buckets,)
        assert all(np.isfinite(array).all() for array in tensors.values())
    if model.assignment is not None:
        assert model.assignment.shape == (config.repetitions, config.n_labels)
        assert (model.assignment < config.buckets).all()


def outcome(folder: Path, verify: bool = True) -> ModelData | None:
    start = time.process_time()
    try:
        return load_model(folder, verify)
    except ModelError:
        return None
    finally:
        assert time.process_time() - start < 1


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("kind", ["a table of buckets", "dense", "hidden", "deep"])
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_mutations(kind: str, sealed: bool, tmp_path: Path) -> None:
    """1,250 damaged folders each: unsealed, an error or the very same model; sealed, an error or a valid model."""
    rng = random.Random(f"{kind} {sealed}")
    folder, data = tmp_path / "model", MODELS[kind]
    save_model(folder, data)
    originals = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    names = sorted(originals)
    before, loaded = peak_memory(), 0
    for _ in range(1250):
        name = rng.choice(names)
        damage(folder / name, rng)
        if sealed and name != "manifest.json":
            seal(folder)
        model = outcome(folder, verify=not sealed or rng.randrange(2) == 0)
        if model is not None:
            loaded += 1
            if sealed and name != "manifest.json":
                assert_valid(model)
            else:
                assert_same_model(model, data)
        for changed in {name, "manifest.json"}:
            (folder / changed).write_bytes(originals[changed])
    assert_same_model(load_model(folder), data)
    assert peak_memory() - before < 64e6
    assert loaded > 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads peak memory from /proc")
def test_bombs_take_little_memory(model: Path) -> None:
    """JSON that grows when it is read: each takes at most twice its size and 64 MB."""
    limit = 2 * 2**20 - 30
    for i, unit in enumerate(["[],", "{},", '"a",', "0,", "1.5,", "999,", '"\\u00e9",']):
        folder = model.parent / f"bomb{i}"
        folder.mkdir()
        (folder / "manifest.json").write_text('{"a":[' + unit * (limit // len(unit)) + "0]}")
    keys = ",".join(f'"{i:06x}":{{}}' for i in range(2**16 // 13))
    write_header(model / REPETITION, f"{{{keys}}}".encode(), b"")
    seal(model)
    code = """
        import sys
        from machxc.errors import ModelError
        from machxc.folder import load_model
        def peak():
            return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
        before = peak()
        for folder in sys.argv[1:]:
            try:
                load_model(folder)
            except ModelError:
                print(peak() - before)
        """
    folders = [str(model.parent / f"bomb{i}") for i in range(7)] + [str(model)]
    command = [sys.executable, "-c", textwrap.dedent(code), *folders]
    peaks = [int(line) for line in subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()]
    assert len(peaks) == len(folders)
    assert max(peaks) < 2 * limit + 64 * 2**20
