"""Small models for the tests of model folders, and what an attacker needs to change them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from machxc.config import Config, TextConfig
from machxc.folder import ModelData
from machxc.formats import write_tensors
from machxc.label_counts import LabelCounts
from machxc.labels import LabelNames
from machxc.repetition.bfloat import to_bfloat
from machxc.repetition.stored import pack

REPETITION = "repetition-00000.safetensors"

FACTS: dict[str, Any] = {
    "n_labels": 5, "n_features": 2**32, "learner": "gradient", "repetitions": 2, "buckets": 3, "hidden": 0,
    "negatives": 0, "loss": "softmax", "epochs": 1, "learning_rate": 0.1, "dropout": 0.0, "smoothing": 1.0,
    "left_out": 0, "associations": 0,
    "prune": 0.0, "feature_bits": 3, "min_count": 1, "sublinear_tf": False, "idf": True, "l2": True,
    "estimator": "mean", "validation_fraction": 0.0, "patience": 1, "seed": 0, "text": TextConfig(),
}  # fmt: skip
NAMES = LabelNames.strings(["naïve", "b", "café", "a", "京都"])


def config_of(**changed: Any) -> Config:
    return Config(**{**FACTS, **changed})


def tensors_of(config: Config, r: int = 0, rows: int = 4, *, dense: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Random tensors of one repetition, of the shapes that `machxc.folder` documents."""
    random = np.random.default_rng([config.seed, r])
    slots = min(config.n_features, 2**config.feature_bits)
    return {
        "row_slots": random.permutation(slots)[:rows].astype(np.min_scalar_type(slots)),
        "row_weights": random.random(rows, np.float32),
        "repeats": np.ones(rows, np.uint8),
        "bias": random.random(config.buckets, np.float32),
        **(hidden_tensors(config, rows, random) if config.hidden else linear_tensors(config, rows, random, dense)),
    }


def int8_tensors(name: str, shape: tuple[int, int], random: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    scales = random.random(shape[0], np.float32) / np.float32(40)
    return {name: random.integers(-127, 128, shape, dtype=np.int8), f"{name}_scales": scales}


def hidden_tensors(config: Config, rows: int, random: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    tensors = int8_tensors("table", (rows, config.layers[0]), random)
    tensors |= int8_tensors("output", (config.buckets, config.layers[-1]), random)
    tensors["hidden_bias"] = random.random(config.layers[0], np.float32)
    for i, (before, after) in enumerate(pairwise(config.layers), 1):
        tensors |= int8_tensors(f"layer_{i}", (after, before), random)
        tensors[f"layer_{i}_bias"] = random.random(after, np.float32)
    return tensors


def linear_tensors(
    config: Config, rows: int, random: np.random.Generator, dense: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """Each row has other buckets, about half of them, or a few of many; the second is empty, the third has the most."""
    share = 0.5 if config.buckets < 1000 else 9 / config.buckets
    kept = random.random((rows, config.buckets)) < share
    kept[1:2], kept[2:3] = False, random.random(config.buckets) < 2 * share
    starts = np.zeros(rows + 1, np.int64)
    np.cumsum(kept.sum(axis=1), out=starts[1:])
    weights = random.standard_normal(int(starts[-1])).astype(np.float32)
    n_buckets = config.buckets if dense else None
    return pack(starts, np.nonzero(kept)[1].astype(np.uint32), to_bfloat(weights), n_buckets)


def tiny(
    names: LabelNames = NAMES, *, partition: bool = False, rows: int = 4, dense: bool = False, **changed: Any
) -> ModelData:
    """A model of a few kilobytes; ``seed`` changes its numbers; ``dense``: its weights are stored so."""
    config = config_of(n_labels=len(names), **changed)
    random = np.random.default_rng(config.seed)
    counts = random.integers(0, 9, len(names), dtype=np.uint32)
    shape = config.repetitions, len(names)
    return ModelData(
        config=config,
        names=names,
        label_counts=LabelCounts.dense(counts),
        n_samples=17 + config.seed,
        repetitions={r: tensors_of(config, r, rows, dense=dense) for r in range(config.repetitions)},
        assignment=random.integers(0, config.buckets, shape, dtype=np.uint32) if partition else None,
    )


def assert_same_arrays(one: dict[str, npt.NDArray[Any]], other: dict[str, npt.NDArray[Any]]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


def assert_same_model(one: ModelData, other: ModelData) -> None:
    assert (one.config, one.names, one.n_samples) == (other.config, other.names, other.n_samples)
    assert_same_arrays(one.label_counts.arrays(), other.label_counts.arrays())
    assert one.repetitions.keys() == other.repetitions.keys()
    for r, tensors in one.repetitions.items():
        assert_same_arrays(tensors, other.repetitions[r])
    assert (one.assignment is None) == (other.assignment is None)
    if one.assignment is not None and other.assignment is not None:
        assert_same_arrays({"": one.assignment}, {"": other.assignment})


def fingerprint(path: Path) -> dict[str, str]:
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sorted(os.listdir(path))}


MODELS = {
    "dense": tiny(dense=True, buckets=11),
    "linear": tiny(),
    "wide": tiny(buckets=65_537, repetitions=1, rows=3),
    "hidden": tiny(hidden=6, seed=1),
    "deep": tiny(hidden=[6, 5, 4], normalisation="layer", seed=2),
    "normalised": tiny(hidden=4, normalisation="layer", seed=3),
    "ids": tiny(LabelNames.ids(7)),
    "integers": tiny(LabelNames.integers([-3, 0, 12])),
    "sorted strings": tiny(LabelNames.strings(["a", "b"])),
    "one label": tiny(LabelNames.ids(1), buckets=1),
    "a table of buckets": tiny(partition=True),
    "no rows": tiny(rows=0),
    "no rows, hidden": tiny(rows=0, hidden=2),
    "numeric features": tiny(n_features=6, text=None),
    "few labels seen": dataclasses.replace(tiny(), label_counts=LabelCounts.dense([0, 2, 0, 0, 1])),
}


# Tools of an attacker.


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of an honest file, to be changed."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    names = ("U8", "U16", "U32", "U64", "I8", "I32", "I64", "F16", "F32")
    types = {name: f"{name[0].lower()}{int(name[1:]) // 8}" for name in names}
    return {
        name: np.frombuffer(content[8 + length :][slice(*tensor["data_offsets"])], types[tensor["dtype"]])
        .reshape(tensor["shape"])
        .copy()
        for name, tensor in json.loads(content[8 : 8 + length]).items()
    }


def write_header(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def split_header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def seal(folder: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Make the manifest true again: sizes, checksums and tensors of what is there now; then change it."""
    manifest = read_json(folder / "manifest.json")
    for name, entry in manifest["files"].items():
        if (folder / name).is_file() and (folder / name).stat().st_size < 10**9:
            content = (folder / name).read_bytes()
            entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            entry["tensors"] = layout_of(folder / name, entry["tensors"])
        elif (folder / name).is_file():
            entry.update(size=(folder / name).stat().st_size)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def layout_of(path: Path, otherwise: Any) -> Any:
    try:
        header, _ = split_header(path)
        return {name: {"dtype": tensor["dtype"], "shape": tensor["shape"]} for name, tensor in header.items()}
    except (ValueError, struct.error, KeyError, TypeError, AttributeError):
        return otherwise


def change_config(folder: Path, **changed: Any) -> None:
    facts = read_json(folder / "config.json")
    for name, value in changed.items():
        (facts["config"] if name in facts["config"] else facts)[name] = value
    (folder / "config.json").write_text(json.dumps(facts))
    seal(folder)


def change_tensor(folder: Path, file: str, name: str, place: Any, value: Any) -> None:
    tensors = read_tensors(folder / file)
    tensors[name][place] = value
    write_tensors(folder / file, tensors)
    seal(folder)


def change_header(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = REPETITION) -> None:
    header, data = split_header(folder / file)
    write_header(folder / file, change(header) or header, data)
    seal(folder)


def list_as(folder: Path, name: str) -> None:
    seal(folder, lambda manifest: manifest["files"].update({name: manifest["files"][REPETITION]}))


def rewrite(folder: Path, file: str, **arrays: Any) -> None:
    write_tensors(folder / file, {**read_tensors(folder / file), **arrays})
    seal(folder)
