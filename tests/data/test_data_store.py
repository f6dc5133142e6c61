"""The converted store: equal to what `read` makes, complete or absent, and never taken for whole when it is not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_writers import Sample, assert_same, assert_valid, features_of, jsonl, labels_of, saved, svmlight, table, xmc

from machxc.config import TextConfig
from machxc.data import ReadOptions, SourceFacts, batches, collect, columns, convert, is_store, open_store, read, store
from machxc.errors import DataError, MachxcError, OutputError
from machxc.labels import LabelNames
from machxc.packed import Strings

ROWS = [Sample([i % 5, 5 + i % 3], {i % 9: i / 4, 12: 1.0}, f"text {i} of some", i % 4) for i in range(40)]
NAMED = [Sample([f"name {label}" for label in row.labels], row.features, row.text) for row in ROWS]
FILES: dict[str, tuple[str, bytes]] = {
    "ids": ("data.xmc", xmc(ROWS, 20, 9)),
    "integers": ("data.svm", svmlight([Sample([-5 * label for label in row.labels], row.features) for row in ROWS])),
    "strings": ("data.jsonl", jsonl(NAMED, "text")),
    "features": ("data.jsonl", jsonl(ROWS, "pairs")),
    "table": ("data.csv", table(NAMED, ",", "|")),
}
OPTIONS = ReadOptions(label_separator="|")


@pytest.fixture(params=FILES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(tmp_path, *FILES[request.param])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    convert(saved(tmp_path, *FILES["strings"]), tmp_path / "store")
    return tmp_path / "store"


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_store_equals_what_read_makes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_ROWS", 7)
    folder = path.parent / "store"
    dataset = read(path, OPTIONS)
    assert_same(convert(path, folder, OPTIONS), dataset)
    assert is_store(folder)
    assert not is_store(path)
    assert names_in(path.parent) == sorted([path.name, "store"])
    for opened in (open_store(folder), open_store(folder, verify=False), read(folder)):
        assert_same(opened, dataset)
        assert_valid(opened)
        assert isinstance(opened.samples.features.indices, np.memmap)
    assert not [name for name in names_in(folder) if "codes" in name]


def test_the_manifest_tells_what_was_read(path: Path) -> None:
    dataset = convert(path, path.parent / "store", OPTIONS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    format = path.suffix[1:].replace("svm", "svmlight")
    assert dataset.source == SourceFacts(path.name, format, path.stat().st_size, digest)
    facts = json.loads((path.parent / "store" / "store.json").read_text())
    assert (facts["n_samples"], facts["n_labels"]) == (len(dataset), len(dataset.names))
    for name, told in facts["arrays"].items():
        data = (path.parent / "store" / f"{name}.bin").read_bytes()
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
        assert len(np.frombuffer(data, told["dtype"])) == told["length"]


def test_the_bytes_of_a_store_depend_on_the_data_only(path: Path) -> None:
    for name in ("one", "two"):
        convert(path, path.parent / name, OPTIONS)
    one, two = (path.parent / name for name in ("one", "two"))
    assert names_in(one) == names_in(two)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names_in(one))


def test_a_store_is_read_for_a_model(path: Path) -> None:
    folder = path.parent / "store"
    convert(path, folder, OPTIONS)
    trained = read(path, OPTIONS)
    facts: dict[str, Any] = {"text": trained.text, "n_features": trained.samples.features.n_features}
    same = read(folder, names=trained.names, **facts)
    assert isinstance(same.samples.features.indices, np.memmap)
    assert_same(same, trained)
    n = len(trained.names)
    fewer = trained.names.names(np.arange(0, n, 2))
    names = LabelNames.strings(fewer) if trained.names.kind == "strings" else LabelNames.integers(fewer)
    expected = read(path, OPTIONS, names=names, unknown_labels="count", **facts)
    given = read(folder, names=names, unknown_labels="count", **facts)
    assert expected.unknown_labels > 0
    assert_same(given, expected)
    parts = list(batches(folder, names=names, unknown_labels="count", size=7, **facts))
    assert [row for part in parts for row in labels_of(part)] == labels_of(expected)
    assert [row for part in parts for row in features_of(part)] == features_of(expected)
    assert np.concatenate([part.unknown for part in parts]).tolist() == expected.unknown.tolist()


def test_a_store_with_other_text_settings_is_refused(stored: Path) -> None:
    for facts in ({"text": TextConfig(words=5)}, {"n_features": 100}):
        with pytest.raises(DataError, match="made with other text settings"):
            read(stored, names=open_store(stored).names, **facts)


def test_a_file_names_the_labels_of_a_store(tmp_path: Path) -> None:
    convert(saved(tmp_path, *FILES["ids"]), tmp_path / "store")
    names = saved(tmp_path, "names.txt", "".join(f"name {i}\n" for i in range(9)))
    dataset = read(tmp_path / "store", ReadOptions(label_names=names))
    assert labels_of(dataset) == [[f"name {label}" for label in row.labels] for row in ROWS]


def test_an_existing_store_is_kept_unless_overwritten(tmp_path: Path, stored: Path) -> None:
    before = open_store(stored)
    other = saved(tmp_path, *FILES["ids"])
    with pytest.raises(OutputError, match=r"exists already.*overwrite"):
        convert(other, stored)
    assert_same(open_store(stored), before)
    convert(other, stored, overwrite=True)
    assert open_store(stored).names.kind == "ids"
    with pytest.raises(DataError, match="is a converted store already"):
        convert(stored, tmp_path / "copy")
    with pytest.raises(OutputError, match="not a folder"):
        convert(other, saved(tmp_path, "file", "x"), overwrite=True)


def test_bad_data_leaves_an_older_store(tmp_path: Path, stored: Path) -> None:
    before = open_store(stored)
    bad = saved(tmp_path, "bad.jsonl", FILES["strings"][1] + b"{")
    with pytest.raises(DataError, match="line 41"):
        convert(bad, stored, overwrite=True)
    assert_same(open_store(stored), before)
    assert names_in(tmp_path) == ["bad.jsonl", "data.jsonl", "store"]


class FailingDisk:
    """The n-th write, fsync or rename fails, by the file system's own functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.left, self._error = -1, error
        disk, real_open = self, open

        class File:
            def __init__(self, *args: Any, **settings: Any) -> None:
                self._file = real_open(*args, **settings)

            def write(self, view: memoryview) -> int:
                disk.tick()
                return int(self._file.write(view[: 1 + len(view) // 2]))  # a short write

            def __enter__(self) -> File:
                return self

            def __exit__(self, *error: object) -> None:
                self._file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

        monkeypatch.setattr(columns, "open", File, raising=False)
        for name in ("write", "fsync", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **settings: Any) -> Any:
            self.tick()
            return function(*args, **settings)

        return counted

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self._error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = saved(tmp_path, *FILES["strings"])
    disk = FailingDisk(monkeypatch, OSError(code, os.strerror(code)))
    for n in range(1, 1000):
        disk.left = n
        try:
            convert(path, tmp_path / "store")
        except OutputError as error:
            assert os.strerror(code) in str(error)  # noqa: PT017
            assert names_in(tmp_path) == [path.name]
            continue
        assert_same(open_store(tmp_path / "store"), read(path))
        if disk.left > 0:
            break
        shutil.rmtree(tmp_path / "store")  # the failure did no harm
    assert n > 20


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, *FILES["strings"])
    disk = FailingDisk(monkeypatch, KeyboardInterrupt())
    for disk.left in (1, 5, 12):
        with pytest.raises(KeyboardInterrupt):
            convert(path, tmp_path / "store")
        assert names_in(tmp_path) == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    path = saved(tmp_path, *FILES["strings"])
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="no permission"):
        convert(path, tmp_path / "closed" / "store")


def test_files_that_are_missing_or_cut_are_told_without_verifying(stored: Path) -> None:
    for name in names_in(stored):
        path, data = stored / name, (stored / name).read_bytes()
        for cut in (None, data[:-2], data[: len(data) // 2], data + b"\0", b""):
            path.unlink() if cut is None else path.write_bytes(cut)
            with pytest.raises(DataError, match="not a complete converted store") as caught:
                open_store(stored, verify=False)
            assert caught.value.path == str(stored)
        path.write_bytes(data)
    open_store(stored)


def test_altered_files_are_told_when_verifying(stored: Path) -> None:
    dice = random.Random(0)
    for _ in range(200):
        path = stored / dice.choice(names_in(stored))
        data = path.read_bytes()
        at = dice.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :])
        with pytest.raises(DataError, match=r"not a complete converted store|store of version"):
            open_store(stored)
        path.write_bytes(data)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a store's manifest, with the digest of itself that fits."""
    facts = json.loads((folder / store.MANIFEST).read_text())
    del facts["sha256"]
    change(facts)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (folder / store.MANIFEST).write_text(json.dumps({**facts, "sha256": digest}))


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "more samples": lambda facts: facts.update(n_samples=41),
    "negative samples": lambda facts: facts.update(n_samples=-1),
    "samples as text": lambda facts: facts.update(n_samples="40"),
    "fewer labels": lambda facts: facts.update(n_labels=2),
    "labels beyond bounds": lambda facts: facts.update(n_labels=2**32),
    "no features": lambda facts: facts.update(n_features=0),
    "another kind of label": lambda facts: facts.update(label_kind="integers"),
    "an unknown kind of label": lambda facts: facts.update(label_kind="objects"),
    "bad text settings": lambda facts: facts.update(text={"words": -1}),
    "unknown text settings": lambda facts: facts.update(text={"stem": True}),
    "an unknown array": lambda facts: facts["arrays"].update({"../../x": {}}),
    "an array gone": lambda facts: facts["arrays"].pop("features.values"),
    "an array of another type": lambda facts: facts["arrays"]["features.values"].update(dtype="<f8"),
    "a huge array": lambda facts: facts["arrays"]["features.values"].update(length=2**62),
    "arrays as a list": lambda facts: facts.update(arrays=[]),
    "an array as a list": lambda facts: facts["arrays"].update(weights=[]),
    "no source": lambda facts: facts.pop("source"),
    "a version to come": lambda facts: facts.update(version=3),
    "another kind of folder": lambda facts: facts.update(kind="model"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_manifests(stored: Path, what: str) -> None:
    rewritten(stored, HOSTILE[what])
    with pytest.raises(DataError, match=r"not a complete converted store|store of version 3"):
        open_store(stored)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, '{"kind": "machxc store", "version": 1}'])
def test_manifests_that_are_none(stored: Path, text: str) -> None:
    (stored / store.MANIFEST).write_text(text)
    with pytest.raises(DataError, match="not a complete converted store"):
        open_store(stored, verify=False)


def test_a_store_of_version_1_is_opened(stored: Path) -> None:
    """Where names were not in blocks, but one after the other, with offsets."""
    names = open_store(stored).names
    packed = Strings.of(names.names(np.arange(len(names))).tolist())
    older = {"names.bytes": packed.bytes, "names.offsets": packed.offsets.astype("<u8")}

    def as_before(facts: dict[str, Any]) -> None:
        for name in ("names.coded", "names.blocks"):
            del facts["arrays"][name]
        for name, array in older.items():
            array.tofile(stored / f"{name}.bin")
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            facts["arrays"][name] = {"dtype": array.dtype.str, "length": len(array), "sha256": digest}
        facts["version"] = 1

    rewritten(stored, as_before)
    opened = open_store(stored)
    assert set(opened.names.arrays()) == {"bytes", "offsets"}
    assert opened.names == names


@pytest.mark.parametrize("name", ["features.indptr", "labels.indices", "labels.indptr", "features.values"])
def test_ids_and_offsets_out_of_range_are_told_although_the_digest_fits(stored: Path, name: str) -> None:
    dtype = store._DTYPES[name]
    array = np.fromfile(stored / f"{name}.bin", dtype)
    array[1] = np.nan if "values" in name else 10**6
    array.tofile(stored / f"{name}.bin")
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    rewritten(stored, lambda facts: facts["arrays"][name].update(sha256=digest))
    with pytest.raises(MachxcError, match="not a complete converted store"):
        open_store(stored)


def test_samples_without_features_or_labels(tmp_path: Path) -> None:
    path = saved(tmp_path, "data.svm", "3\n4\n0:1\n")
    assert features_of(convert(path, tmp_path / "store")) == [{}, {}, {0: 1.0}]
    options = ReadOptions(labels_required=False)
    unlabelled = convert(saved(tmp_path, "b.jsonl", '{"text": "a"}\n'), tmp_path / "none", options)
    assert (len(unlabelled), len(unlabelled.names)) == (1, 0)
    assert_same(open_store(tmp_path / "none"), unlabelled)
