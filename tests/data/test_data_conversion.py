"""Conversions in parts: killed at any point, they go on to the same bytes; what changed meanwhile is noticed."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_writers import Sample, assert_same, compressed, jsonl, saved, svmlight, table, xmc

from machxc.config import TextConfig
from machxc.data import ReadOptions, collect, columns, convert, open_store, read, source
from machxc.data.conversion import WORK_SUFFIX
from machxc.data.raw import RawBatch
from machxc.errors import DataError, OutputError
from machxc.samples import Features

TEXT = TextConfig(words=1)  # else all of these few texts are looked at before the first part begins
ROWS = [Sample([i % 5, 5 + i % 3], {i % 9: i / 4, 12: 1.0}, f'text {i} "of" söme', i % 4) for i in range(60)]
NAMED = [Sample([f"name {label}" for label in row.labels], row.features, row.text) for row in ROWS]
MIXED = [Sample([9 - i % 5, "x" if i == 40 else 10 * (i % 7)], {}, "text") for i in range(60)]
FILES: dict[str, tuple[str, bytes]] = {
    "ids": ("data.xmc", xmc(ROWS, 20, 9)),
    "integers": ("data.svm", svmlight([Sample([-5 * label for label in row.labels], row.features) for row in ROWS])),
    "strings": ("data.jsonl", jsonl(NAMED, "text")),
    "features": ("data.jsonl", jsonl(ROWS, "pairs")),
    "table": ("data.csv", table(NAMED, ",", "|")),
    "table of integers, but one": ("data.tsv", table(MIXED, "\t", "|")),
    "compressed": ("data.jsonl.zst", compressed(jsonl(NAMED, "text"), ".zst")),
}
OPTIONS = ReadOptions(label_separator="|")
TEXTLESS = ("ids", "integers", "features")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 300)
    monkeypatch.setattr(collect, "PART", 200)


@pytest.fixture(params=FILES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(tmp_path, *FILES[request.param])


def settings_for(path: Path) -> dict[str, Any]:
    textless = path.suffix in (".xmc", ".svm") or b"features" in path.read_bytes()
    return {"options": OPTIONS, "text": None if textless else TEXT}


def content(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


class Snapshots:
    """Copies of a conversion's folder, as a kill at that write, sync or rename would leave it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
        self.folders: list[Path] = []
        self._work = work
        real_open, snapshots = open, self

        class File:
            def __init__(self, *args: Any, **settings: Any) -> None:
                self._file = real_open(*args, **settings)

            def write(self, view: memoryview) -> int:
                written = int(self._file.write(view[: 1 + len(view) // 2]))  # a short write
                snapshots.take()
                return written

            def __enter__(self) -> File:
                return self

            def __exit__(self, *error: object) -> None:
                self._file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

        monkeypatch.setattr(columns, "open", File, raising=False)
        for name in ("fsync", "rename", "replace", "link", "unlink"):
            monkeypatch.setattr(os, name, self._noted(getattr(os, name)))

    def _noted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **settings: Any) -> Any:
            result = function(*args, **settings)
            self.take()
            return result

        return noted

    def take(self) -> None:
        if self._work.is_dir():
            copy = self._work.parent / "snapshots" / str(len(self.folders))
            shutil.copytree(self._work, copy)
            self.folders.append(copy)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_conversion_killed_anywhere_goes_on_to_the_same_bytes(path: Path, tmp_path: Path, jobs: int) -> None:
    whole = tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patched:
        snapshots = Snapshots(patched, tmp_path / ("whole" + WORK_SUFFIX))
        dataset = convert(path, whole, jobs=jobs, **settings_for(path))
    assert_same(dataset, read(path, **settings_for(path)))
    expected, went_on = content(whole), 0
    assert "store.json" in expected
    assert not (tmp_path / ("whole" + WORK_SUFFIX)).exists()
    for folder in snapshots.folders[::5]:
        went_on += (folder / "state.json").exists()
        shutil.move(folder, tmp_path / ("other" + WORK_SUFFIX))
        convert(path, tmp_path / "other", jobs=jobs, **settings_for(path))
        assert content(tmp_path / "other") == expected
        shutil.rmtree(tmp_path / "other")
    assert went_on > 5 or path.suffix == ".zst"  # which is one block here


def test_parts_and_jobs_change_no_byte(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(path, tmp_path / "parts", jobs=3, **settings_for(path))
    monkeypatch.setattr(source, "BLOCK", 1 << 20)
    monkeypatch.setattr(collect, "PART", 1 << 20)
    convert(path, tmp_path / "whole", **settings_for(path))
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_what_is_wrong_is_the_same_with_a_thread_that_reads(tmp_path: Path) -> None:
    lines = jsonl(NAMED, "text").splitlines(keepends=True)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"".join([*lines[:41], b'{"text": 7, "labels": []}\n', *lines[42:]]))
    told = []
    for jobs in (1, 2):
        with pytest.raises(DataError) as error:
            convert(path, tmp_path / f"store-{jobs}", OPTIONS, text=TEXT, jobs=jobs)
        told.append((str(error.value), error.value.line))
    assert told[0] == told[1]
    assert told[0][1] == 42


def test_what_progress_raises_ends_the_thread_that_reads(strings: Path, tmp_path: Path) -> None:
    def stop(done: int, size: int | None) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        convert(strings, tmp_path / "store", OPTIONS, text=TEXT, jobs=2, progress=stop)
    assert threading.active_count() == before


def test_parquet_goes_on_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    from machxc.data import parquet as reader

    monkeypatch.setattr(reader, "_ROWS", 7)
    labels = [[f"n{i % 5}", f"m{i % 3}"] for i in range(100)]
    parquet.write_table(
        pa.table({"text": [f"a {i}" for i in range(100)], "labels": labels}), tmp_path / "a.parquet", 30
    )
    convert(tmp_path / "a.parquet", tmp_path / "whole", text=TEXT)
    stop_at(tmp_path / "a.parquet", tmp_path / "other", monkeypatch, 2)
    convert(tmp_path / "a.parquet", tmp_path / "other", text=TEXT)
    assert content(tmp_path / "other") == content(tmp_path / "whole")


class Stopped(BaseException):
    """Ends a conversion, as an interrupt does."""


def stop_at(path: Path | str, store: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Convert until a part is complete."""
    done, end_part = 0, collect.Collector.end_part

    def counted(collector: collect.Collector) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done > part:
            raise Stopped
        return end_part(collector)

    with monkeypatch.context() as patched:
        patched.setattr(collect.Collector, "end_part", counted)
        with pytest.raises(Stopped):
            convert(path, store, OPTIONS, text=TEXT)
    assert store.with_name(store.name + WORK_SUFFIX).exists()


@pytest.fixture
def strings(tmp_path: Path) -> Path:
    return saved(tmp_path, *FILES["strings"])


def test_what_was_converted_is_not_parsed_again(strings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(strings, tmp_path / "store", monkeypatch, 5)
    added, add = list[int](), collect.Collector.add

    def noted(collector: collect.Collector, batch: RawBatch, features: Features) -> None:
        added.append(len(batch))
        add(collector, batch, features)

    monkeypatch.setattr(collect.Collector, "add", noted)
    assert len(convert(strings, tmp_path / "store", OPTIONS, text=TEXT)) == 60
    assert 0 < sum(added) < 45


def test_data_mended_after_the_last_part_go_on_and_before_it_begin_anew(
    strings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = strings.read_bytes()
    stop_at(strings, tmp_path / "store", monkeypatch, 5)
    for old, warnings in ((b"text 59", 0), (b"text 0 ", 1)):
        strings.write_bytes(data.replace(old, b"other 1"))
        copy = shutil.copytree(tmp_path / ("store" + WORK_SUFFIX), tmp_path / "copy")
        caplog.clear()
        dataset = convert(strings, tmp_path / "store", OPTIONS, text=TEXT)
        assert_same(dataset, read(strings, OPTIONS, text=TEXT))
        assert sum("was changed since" in record.message for record in caplog.records) == warnings
        shutil.rmtree(tmp_path / "store")
        shutil.move(copy, tmp_path / ("store" + WORK_SUFFIX))


def test_another_question_begins_anew(strings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(strings, tmp_path / "store", monkeypatch, 5)
    dataset = convert(strings, tmp_path / "store", OPTIONS, text=TextConfig(words=2))
    assert dataset.text == TextConfig(words=2)


@pytest.mark.parametrize("damage", ["state", "short", "gone"])
def test_a_damaged_beginning_is_not_gone_on_with(
    strings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    stop_at(strings, tmp_path / "store", monkeypatch, 5)
    work = tmp_path / ("store" + WORK_SUFFIX)
    column = work / "features.values.bin"
    if damage == "state":
        (work / "state.json").write_bytes((work / "state.json").read_bytes()[:-9])
    elif damage == "short":
        column.write_bytes(column.read_bytes()[:40])
    else:
        column.unlink()
    assert_same(convert(strings, tmp_path / "store", OPTIONS, text=TEXT), read(strings, OPTIONS, text=TEXT))


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input_is_piped_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES["strings"][1]
    options = ReadOptions(format="jsonl", label_separator="|")
    monkeypatch.setattr(sys.modules[__name__], "OPTIONS", options)
    piped(monkeypatch, data)
    stop_at("-", tmp_path / "store", monkeypatch, 4)
    piped(monkeypatch, data.replace(b"text 0 ", b"other "))
    with pytest.raises(DataError, match="standard input: is not the data that was read before"):
        convert("-", tmp_path / "store", options, text=TEXT)
    piped(monkeypatch, data)
    assert len(convert("-", tmp_path / "store", options, text=TEXT)) == 60


def test_a_disk_that_fills_up_keeps_the_parts(strings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(strings, tmp_path / "whole", OPTIONS, text=TEXT)
    real, left = os.fsync, 40

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"the disk is full: free some space.*kept in .*: ask again to go on"):
            convert(strings, tmp_path / "store", OPTIONS, text=TEXT)
    assert not (tmp_path / "store").exists()
    convert(strings, tmp_path / "store", OPTIONS, text=TEXT)
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_room_for_scratch_is_taken_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with columns.FileColumns(tmp_path) as made, pytest.raises(OSError, match="No space"):
        made.scratch("part.ids", np.uint32, 1000)


def test_two_conversions_into_one_store(strings: Path, tmp_path: Path) -> None:
    work = tmp_path / ("store" + WORK_SUFFIX)
    work.mkdir()
    lock = os.open(work / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(OutputError, match="another process is converting"):
            convert(strings, tmp_path / "store", OPTIONS)
    finally:
        os.close(lock)
    convert(strings, tmp_path / "store", OPTIONS)


@pytest.mark.parametrize("change", ["longer", "other bytes"])
@pytest.mark.parametrize("what", ["strings", "ids", "table", "compressed"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, what: str, change: str) -> None:
    path = saved(tmp_path, *FILES[what])
    before = path.stat()

    def write(done: int, total: int | None) -> None:
        if path.stat().st_mtime_ns == before.st_mtime_ns:
            with open(path, "r+b") as file:
                file.seek(0, os.SEEK_END if change == "longer" else os.SEEK_SET)
                file.write(b"\n" if change == "longer" else path.read_bytes()[:1])
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))

    with pytest.raises(DataError, match=r"was changed while it was read|is damaged zstd data"):
        convert(path, tmp_path / "store", OPTIONS, text=TEXT if what in ("strings", "table") else None, progress=write)
    assert not (tmp_path / "store").exists()


def test_label_ids_beyond_32_bits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"says 4294967296 labels; expected a number in \[1, 2\*\*32\)"):
        convert(saved(tmp_path, "a.xmc", f"1 1 {2**32}\n0 0:1\n"), tmp_path / "store")
    with pytest.raises(DataError, match="the label is out of range"):
        convert(saved(tmp_path, "b.xmc", f"1 1 {2**32 - 1}\n{2**32 - 1} 0:1\n"), tmp_path / "store")
    largest = convert(saved(tmp_path, "c.xmc", f"1 1 {2**32 - 1}\n{2**32 - 2} 0:1\n"), tmp_path / "store")
    assert largest.samples.labels.indices.tolist() == [2**32 - 2]
    names = convert(
        saved(tmp_path, "d.jsonl", json.dumps({"text": "a", "labels": [2**32, 2**40]}) + "\n"), tmp_path / "d"
    )
    assert names.names.names([0, 1]).tolist() == [2**32, 2**40]  # integers of any size are names, ids are their ranks


def test_a_store_cut_or_altered_tells_what_to_do(strings: Path, tmp_path: Path) -> None:
    convert(strings, tmp_path / "store", OPTIONS)
    path = tmp_path / "store" / "features.values.bin"
    data = path.read_bytes()
    for bad in (data[:-4], data[:8] + b"\1" + data[9:]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"not a complete converted store.*convert the data again"):
            open_store(tmp_path / "store")
