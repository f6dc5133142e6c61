"""The model folder: R repetitions, label names and the configuration on disk, and what keeps them honest.

::

    config.json               {"format": "machxc", "version": 4, "config": {...}, "n_samples": N, "label_kind": ...}
    labels.safetensors        the arrays of `LabelNames`, and of `LabelCounts`: training samples of each label
    partition.safetensors     only with a table of buckets: assignment uint32 [R, K], below B
    repetition-00000.safetensors, ...   one a repetition; layouts.py lists what is in them
    manifest.json             written last: {"format", "version", "files": {name: {"size", "sha256", "tensors"}}}

A folder is built aside and renamed into place when all of it is on the disk (see files.py). Loading runs no code and
writes nothing, and believes nothing either: sizes, checksums, tensor names, types, shapes and values are checked, and
only then are the files mapped into memory. A repetition that the manifest does not list is one that the model does not
have; one of the names above that is there but not listed, or listed but not there, is an error, and so is a link.
Files of other names (a README, say) are never opened; a folder that has such files is never overwritten.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from machxc.config import LEVELS, Config
from machxc.errors import ModelError, OutputError
from machxc.files import (
    check_target,
    find_folder,
    is_temporary,
    output_errors,
    replace_folder,
    staging_folder,
    write_file,
)
from machxc.formats import (
    DTYPE_NAMES,
    Tensors,
    check_tensors,
    json_fields,
    json_value,
    map_file,
    parse_json,
    parse_tensors,
    write_tensors,
)
from machxc.label_counts import LabelCounts
from machxc.labels import LabelNames
from machxc.layouts import TENSORS, sizes_of, specs_of
from machxc.repetition.lengths import most_slots
from machxc.samples import Array, UInt32, starts_of
from machxc.threads import share_out

log = logging.getLogger("machxc.folder")

FORMAT, VERSION = "machxc", 4
CONFIG, LABELS, PARTITION, MANIFEST = "config.json", "labels.safetensors", "partition.safetensors", "manifest.json"

_REPETITION = re.compile(r"repetition-([0-9]{5})\.safetensors")
_MAX_JSON = 5 << 19  # bytes: the manifest of 4096 repetitions takes less; parsed, the worst text takes 80 MB
_BLOCK = 1 << 17  # entries checked in one step, or a row of more
_ATTEMPTS = 10  # how often loading begins again when the folder is replaced meanwhile

_T = TypeVar("_T")
Layout = dict[str, tuple[str, tuple[int, ...]]]  # tensor name -> dtype (a safetensors name), shape


@dataclass(frozen=True)
class ModelData:
    """All that a model folder holds; after `load_model` the arrays are read-only maps of its files.

    ``label_counts``: training samples of each label. ``n_samples`` N. ``repetitions``: number -> tensors,
    as in `TENSORS`; some of ``config.repetitions`` may be missing. ``assignment`` uint32 [R, K]: the bucket of each
    label, or None when buckets are hashed.
    """

    config: Config
    names: LabelNames
    label_counts: LabelCounts
    n_samples: int
    repetitions: dict[int, Tensors]
    assignment: UInt32 | None = None


def check_repetition(config: Config, tensors: Mapping[str, Array]) -> None:
    """Raise ModelError unless ``tensors`` are those of one repetition of ``config``: names, dtypes, shapes, values."""
    _check_tensors("repetition", _kind(config, tensors), config, tensors)


def check_destination(path: Path | str, *, overwrite: bool = False) -> None:
    """Raise OutputError when `save_model` would refuse to write at ``path``: ask before training, not after.

    It refuses what exists, unless ``overwrite``, and then still what holds anything but a model.
    """
    check_target(path, overwrite=overwrite)
    folder = find_folder(path)
    with output_errors(path):
        names = [] if folder is None else os.listdir(folder)
    foreign = [name for name in names if not (_is_ours(name) or is_temporary(name))]
    if foreign:
        raise OutputError(
            f"cannot overwrite {path}: it holds {min(foreign)!r}, which is no part of a model; choose another path, "
            "or move that away"
        )


def save_model(path: Path | str, data: ModelData, overwrite: bool = False) -> None:
    """Write the model folder ``path``, as a whole or not at all.

    Raises OutputError when it cannot be written, or exists and ``overwrite`` is False; ModelError when ``data`` is
    inconsistent. Then, and after a crash, what was there is still there.
    """
    check_destination(path, overwrite=overwrite)
    with staging_folder(path) as staged:
        for r, tensors in data.repetitions.items():
            write_repetition(staged, r, tensors)
        finish_model(staged, data.config, data.names, data.label_counts, data.n_samples, assignment=data.assignment)
        replace_folder(staged, path, overwrite=overwrite)


def write_repetition(folder: Path | str, r: int, tensors: Mapping[str, Array]) -> None:
    """Write the file of repetition ``r``: wholly and on the disk, or not at all. Raises OutputError."""
    write_tensors(Path(folder) / repetition_file(r), tensors)


def read_repetition(folder: Path | str, r: int, config: Config) -> Tensors:
    """The tensors of repetition ``r``, mapped read-only, from a folder that may lack a manifest.

    Raises ModelError when its file is missing, damaged, or not one of ``config``.
    """
    name = repetition_file(r)
    with _reading(folder):
        tensors = parse_tensors(name, map_file(Path(folder) / name))
        _check_tensors(name, _kind(config, tensors), config, tensors)
        return tensors


def repetition_file(r: int) -> str:
    """The name of the file of repetition ``r``."""
    if not 0 <= r < 100_000:
        raise ModelError(f"expected the number of a repetition in [0, 100000), got {r}")
    return f"repetition-{r:05d}.safetensors"


def finish_model(
    folder: Path | str,
    config: Config,
    names: LabelNames,
    label_counts: LabelCounts,
    n_samples: int,
    *,
    assignment: UInt32 | None = None,
) -> None:
    """Complete a folder that holds the repetition files: configuration, labels, and the manifest last.

    Raises ModelError when a repetition or an argument does not fit ``config``, OutputError when it cannot write.
    """
    folder = Path(folder)
    for what, given in (("label names", names), ("label counts", label_counts)):
        if len(given) != config.n_labels:
            raise ModelError(f"expected as many {what} as labels ({config.n_labels}), got {len(given)}")
    facts = {"config": config.to_dict(), "n_samples": int(n_samples), "label_kind": names.kind}
    _write_json(folder / CONFIG, facts)
    write_tensors(folder / LABELS, {**names.arrays(), **label_counts.arrays()})
    if assignment is not None:
        write_tensors(folder / PARTITION, {"assignment": assignment})
    with output_errors(folder):
        found = sorted(_files_of(folder))
        entries = _on_threads(lambda name: _Entry.of_file(name, map_file(folder / name)), found)
        _assemble(folder, entries, verify=False)
    _write_json(folder / MANIFEST, {"files": {name: entry.to_dict() for name, entry in entries.items()}})


def load_model(path: Path | str, verify: bool = True, *, partial: bool = False) -> ModelData:
    """Map a model folder into memory, read-only, after checking it; ModelError says what is wrong with it.

    ``verify`` False leaves out the checksums, and only those. ``partial``: repetitions whose files are missing or
    damaged are left out, each with a warning in the log, as long as one is whole. A folder that is replaced while it
    is being loaded is loaded again: the result is the older model or the newer, never some of both.
    """
    for _ in range(_ATTEMPTS):
        folder = find_folder(path)
        if folder is None:
            raise ModelError(f"{path}: expected a model folder, found none; check the path, or train a model first")
        before = _identity(folder)
        try:
            with _reading(folder):
                data = _assemble(folder, _read_manifest(folder, partial=partial), verify=verify, partial=partial)
        except ModelError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return data
    raise ModelError(f"{path}: the folder was replaced {_ATTEMPTS} times while it was being read; try again")


@dataclass(frozen=True)
class _Entry:
    """What the manifest says of one file."""

    size: int
    sha256: str
    layout: Layout

    def to_dict(self) -> dict[str, Any]:
        tensors = {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in self.layout.items()}
        return {"size": self.size, "sha256": self.sha256, "tensors": tensors}

    @classmethod
    def of_file(cls, name: str, content: mmap.mmap) -> _Entry:
        tensors = {} if name == CONFIG else parse_tensors(name, content)
        return cls(len(content), sha256(content).hexdigest(), _layout_of(tensors))

    @classmethod
    def from_dict(cls, where: str, data: Any) -> _Entry:
        size, digest, tensors = json_fields(where, data, {"size": int, "sha256": str, "tensors": dict})
        layout = {}
        for name, value in tensors.items():
            dtype, shape = json_fields(f"{where}: {name!r}", value, {"dtype": str, "shape": list})
            layout[name] = dtype, tuple(shape)
        return cls(size, digest, layout)

    def check(self, name: str, content: mmap.mmap, *, verify: bool) -> None:
        if len(content) != self.size:
            raise ModelError(f"{name}: expected {self.size} bytes, got {len(content)}; the file is damaged")
        if verify and sha256(content).hexdigest() != self.sha256:
            raise ModelError(f"{name}: its checksum is not the one in {MANIFEST}; the file is damaged")


def _read_manifest(folder: Path, *, partial: bool) -> dict[str, _Entry]:
    (files,) = _read_json(MANIFEST, _map_json(folder, MANIFEST), {"files": dict})
    for name in files:
        if not _is_ours(name) or name == MANIFEST:
            raise ModelError(f"{MANIFEST}: {name!r} is not the name of a file of a model")
    present = _files_of(folder)
    for name in sorted(files.keys() ^ present):
        if partial and name in files and _REPETITION.fullmatch(name):
            continue  # loading it will fail
        state = f"is not listed in {MANIFEST}" if name in present else "is missing"
        raise ModelError(f"{name} {state}: the model is not complete")
    return {name: _Entry.from_dict(f"{MANIFEST}: {name}", data) for name, data in files.items()}


def _assemble(folder: Path, entries: dict[str, _Entry], *, verify: bool, partial: bool = False) -> ModelData:
    """Map, check and put together the files listed."""
    for required in (CONFIG, LABELS):
        if required not in entries:
            raise ModelError(f"{required} is missing: the model is not complete")
    config, n_samples, label_kind = _read_config(folder, entries[CONFIG], verify=verify)
    numbers = _numbers(config, entries)

    def load(name: str) -> Tensors | None:
        try:
            return _load_tensors(folder, name, entries[name], config, verify=verify)
        except (ModelError, OSError) as error:
            if not (partial and _REPETITION.fullmatch(name)):
                raise
            log.warning("%s: left out a repetition: %s", folder, error)
            return None

    found = _on_threads(load, [name for name in entries if name != CONFIG])
    loaded = {name: tensors for name, tensors in found.items() if tensors is not None}
    labels, partition = loaded[LABELS], loaded.get(PARTITION, {})
    counted = {name: labels.pop(name) for name in _counts_among(labels)}
    names = LabelNames.from_arrays(label_kind, config.n_labels, labels)
    counts = LabelCounts.from_arrays(config.n_labels, counted)
    repetitions = {r: loaded[repetition_file(r)] for r in numbers if repetition_file(r) in loaded}
    if not repetitions:
        raise ModelError(f"none of its {len(numbers)} repetitions is whole; train the model again, or copy it again")
    return ModelData(config, names, counts, n_samples, repetitions, partition.get("assignment"))


def _read_config(folder: Path, entry: _Entry, *, verify: bool) -> tuple[Config, int, str]:
    content = _map_json(folder, CONFIG)
    entry.check(CONFIG, content, verify=verify)
    types = {"config": dict, "n_samples": int, "label_kind": str}
    config, n_samples, label_kind = _read_json(CONFIG, content, types)
    if not 0 <= n_samples < 2**63:
        raise ModelError(f"{CONFIG}: expected a number of samples in [0, 2**63), got {n_samples}")
    return Config.from_dict(config), n_samples, label_kind


def _numbers(config: Config, names: Iterable[str]) -> list[int]:
    """The numbers of the repetitions among ``names``, increasing."""
    numbers = sorted(int(match[1]) for match in map(_REPETITION.fullmatch, names) if match)
    if not numbers or numbers[-1] >= config.repetitions:
        got = f"number {numbers[-1]}" if numbers else "none"
        raise ModelError(f"expected files of repetitions with numbers in [0, {config.repetitions}), got {got}")
    return numbers


def _load_tensors(folder: Path, name: str, entry: _Entry, config: Config, *, verify: bool) -> Tensors:
    content = map_file(folder / name)
    entry.check(name, content, verify=verify)
    tensors = parse_tensors(name, content)
    if _layout_of(tensors) != entry.layout:
        raise ModelError(f"{name}: its tensors are not those listed in {MANIFEST}; the file is damaged")
    kind = {LABELS: _kind_of_counts(tensors), PARTITION: "partition"}.get(name, _kind(config, tensors))
    known = {key: tensors[key] for key in _counts_among(tensors)} if name == LABELS else tensors
    _check_tensors(name, kind, config, known)
    return tensors


def _check_tensors(where: str, kind: str, config: Config, tensors: Mapping[str, Array]) -> None:
    sizes = sizes_of(config)
    check_tensors(where, specs_of(config, kind, tensors), tensors, sizes)
    if "row_slots" in tensors and sizes["F"] > most_slots(n_rows := len(tensors["row_slots"])):
        raise ModelError(f"{where}: expected the rows of {sizes['F']} slots ('slots'), got the slots of {n_rows} rows")
    if kind == "dense":
        _check_dense(where, config.buckets, tensors["present"], len(tensors["codes"]))
    if kind not in ("linear", "wide"):
        return
    if (highest := _highest_bucket(tensors["lengths"], tensors["entries"])) >= config.buckets:
        raise ModelError(f"{where}: 'entries': expected buckets below {config.buckets}, got {highest}")


def _check_dense(where: str, n_buckets: int, present: Array, n_entries: int) -> None:
    """ModelError unless the bits are of buckets below B, which narrow entries have room for, and as many as entries."""
    blocks = (present[start : start + _BLOCK] for start in range(0, len(present), _BLOCK))
    found = sum(int(np.bitwise_count(block).sum(dtype=np.int64)) for block in blocks)
    beyond = present[:, -1] >> (n_buckets - 8 * (present.shape[1] - 1))
    if n_buckets > LEVELS or beyond.any() or found != n_entries:
        raise ModelError(
            f"{where}: 'present': expected {n_entries} bits of buckets below {n_buckets}, at most {LEVELS}, got {found}"
        )


def _highest_bucket(lengths: Array, entries: Array) -> int:
    """The highest bucket of an entry, -1 when there is none; in steps of some rows: 8 bytes a row, and a few MB."""
    if entries.dtype == np.uint32:
        return int(entries.max()) >> 8 if len(entries) else -1
    highest, row, starts = -1, 0, starts_of(lengths)
    while row < len(starts) - 1:
        stop = max(row + 1, int(np.searchsorted(starts, starts[row] + _BLOCK, "right")) - 1)
        firsts = starts[row:stop][starts[row:stop] < starts[row + 1 : stop + 1]]  # of the rows that are not empty
        if len(firsts):
            steps = entries[firsts[0] : starts[stop]] >> 8
            highest = max(highest, int(np.add.reduceat(steps, firsts - firsts[0], dtype=np.int64).max()))
        row = stop
    return highest


def _kind_of_counts(tensors: Tensors) -> str:
    return "few labels" if "seen" in tensors else "labels"


def _counts_among(tensors: Tensors) -> set[str]:
    """Which of the tensors of labels are counts, the others being names."""
    return tensors.keys() & TENSORS[_kind_of_counts(tensors)].keys()


def _layout_of(tensors: Tensors) -> Layout:
    return {name: (DTYPE_NAMES[array.dtype], array.shape) for name, array in tensors.items()}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    style: dict[str, Any] = {"indent": 1} if path.name == CONFIG else {"separators": (",", ":")}
    write_file(path, json.dumps({"format": FORMAT, "version": VERSION, **data}, **style).encode() + b"\n")


def _map_json(folder: Path, name: str) -> mmap.mmap:
    content = map_file(folder / name)
    if len(content) > _MAX_JSON:
        raise ModelError(f"{name}: expected at most {_MAX_JSON} bytes, got {len(content)}")
    return content


def _read_json(name: str, content: mmap.mmap, types: dict[str, type]) -> list[Any]:
    """The values of the fields ``types`` of one of our JSON files, once it is known to be one."""
    data = json_value(name, parse_json(name, content[:]), dict)
    kind, version = data.pop("format", None), data.pop("version", None)
    if kind != FORMAT or type(version) is not int:
        raise ModelError(f"{name}: expected the format {FORMAT!r} and a version: this is not a model of machxc")
    if version != VERSION:
        do = "a newer machxc may read it" if version > VERSION else "train the model again"
        raise ModelError(f"{name}: expected version {VERSION}, got {version}; {do}")
    return json_fields(name, data, types)


@contextlib.contextmanager
def _reading(folder: Path | str) -> Iterator[None]:
    """Turn what reading a folder may raise into a ModelError that names the folder."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{folder}: {str(error)[:1000]}") from error
    except OSError as error:
        raise ModelError(f"{folder}: cannot read the model: {error.strerror or error}") from error
    except RecursionError:
        raise ModelError(f"{folder}: a file is nested too deeply; the model is damaged") from None


def _on_threads(function: Callable[[str], _T], names: Iterable[str]) -> dict[str, _T]:
    """The result of ``function`` for each name; hashing and checking release the GIL."""
    names = list(names)
    return dict(zip(names, share_out(function, names, min(8, os.cpu_count() or 1)), strict=True))


def _files_of(folder: Path) -> set[str]:
    """The names in a folder that are those of a model's files, without the manifest."""
    return {name for name in os.listdir(folder) if _is_ours(name)} - {MANIFEST}


def _is_ours(name: str) -> bool:
    return name in (CONFIG, LABELS, PARTITION, MANIFEST) or _REPETITION.fullmatch(name) is not None


def _kind(config: Config, tensors: Mapping[str, Array]) -> str:
    """The kind of a repetition; a linear one's entries are dense, narrow or wide, whichever took less room."""
    if config.hidden:
        return "hidden"
    if "present" in tensors:
        return "dense"
    return "wide" if "entries" in tensors and tensors["entries"].dtype == np.uint32 else "linear"


def _identity(folder: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
