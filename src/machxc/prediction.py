"""Answers in bulk: samples in, ranked labels out, a batch at a time; and answers to a few texts.

A file of predictions is one of three (`FORMATS`), by its name. Every sample has one place in it, in the order of the
data; labels come best first, and are fewer than k only where the model saw fewer.

======== =======================================================================================================
.jsonl   a line a sample: {"labels": [name, ...], "scores": [score, ...]}
.parquet a row a sample, columns labels (list of string or int64) and scores (list of float)
.npz     ``idx`` int64 [n, k], label ids, -1 where there is none; ``scores`` float32 [n, k], -inf there; and, unless
         label i is simply named i, ``label_ids`` int64 [m], those that occur, rising, and their ``label_names`` [m]
======== =======================================================================================================

Answers in bounded time (a budget or a deadline) have one thing more a sample, ``proven``: whether no label is better.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from machxc.data import Dataset, ReadOptions, batches, is_store, open_store
from machxc.data.options import Progress
from machxc.data.raw import BATCH
from machxc.data.source import packed_lines
from machxc.errors import DataError, MissingExtraError, OutputError, SettingError
from machxc.files import fsync_folder, output_errors, staging_folder
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.samples import MAX_LABELS, Array, Float32, Int64

FORMATS = (".jsonl", ".npz", ".parquet")

_RANKED = 1 << 21  # ranked labels of a batch at most: bounds memory for a large k
_NAMES = 1 << 16  # label names written in one step
_NO_COLUMN = "\0"  # a column that no file has


def predict(
    model: Model,
    data: Path | str,
    output: Path | str,
    *,
    k: int = 10,
    options: ReadOptions | None = None,
    candidates: Array | None = None,
    estimator: str | None = None,
    budget: int | None = None,
    deadline: float | None = None,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Rank the labels of every sample of ``data`` and write them to ``output``; returns the number of samples.

    Labels in the data are not looked at. ``output`` appears when it is complete, or not at all. ``candidates``,
    ``estimator``, ``jobs``: see `Model.top_k`; ``budget``, ``deadline``: answer in bounded time, see
    `Model.top_k_within`; not together with candidates, which are scored in any case. DataError for what is wrong with
    the data; OutputError when ``output`` exists (without ``overwrite``) or cannot be written; SettingError when its
    name is of no known format.
    """
    bounded = budget is not None or deadline is not None
    if bounded and candidates is not None:
        raise SettingError("expected either candidates or a bound on the time, not both: candidates are all scored")
    n_samples = 0
    with prediction_file(output, model.names, k, bounded=bounded, overwrite=overwrite) as file:
        for batch in _without_labels(model, data, options or ReadOptions(), batch_size(k), progress):
            features = batch.samples.features
            if bounded:
                how: dict[str, Any] = {"budget": budget, "deadline": deadline, "estimator": estimator, "jobs": jobs}
                file.add(*model.top_k_within(features, k, **how))
            else:
                file.add(*model.top_k(features, k, candidates=candidates, estimator=estimator, jobs=jobs))
            n_samples += len(batch)
    return n_samples


def answer(
    model: Model,
    texts: Sequence[str],
    *,
    k: int = 10,
    candidates: Array | None = None,
    estimator: str | None = None,
    jobs: int = 1,
) -> tuple[Int64, Float32]:
    """Rank the labels of a few texts: as `Model.top_k`. DataError when the model was trained on numeric features."""
    from machxc.features.text import token_features

    check_takes_texts(model)
    assert model.config.text is not None
    features = token_features(texts, model.config.text)
    return model.top_k(features, k, candidates=candidates, estimator=estimator, jobs=jobs)


def check_takes_texts(model: Model) -> None:
    """Raise DataError when the model was not trained on texts."""
    if model.config.text is None:
        raise DataError(
            "the model was trained on numeric features, so it cannot answer texts; "
            "write the features to a file and use predict"
        )


def named(names: LabelNames, ids: Int64, scores: Float32) -> Iterator[tuple[list[Any], list[float]]]:
    """For each ranking, ids and scores [n, k], the label names and the scores of the labels that are there.

    A score has the digits that tell its float32, and no more.
    """
    shortest = scores.astype(np.str_).astype(np.float64).tolist()
    lengths = np.count_nonzero(ids >= 0, axis=1).tolist()
    for row, values, length in zip(names.names(ids).tolist(), shortest, lengths, strict=True):
        yield row[:length], values[:length]


def candidate_ids(names: LabelNames, path: Path | str) -> Int64:
    """The label ids of a file of label names, one a line; DataError, with the line, for a name that is no label."""
    lines = packed_lines(path).tolist()
    listed = lines if names.kind == "strings" else [_integer(line) for line in lines]
    ids = names.ids_of(listed)
    if not len(ids):
        raise DataError("has no label names; expected one a line", path=str(path))
    if (ids < 0).any():
        place = int(np.argmax(ids < 0))
        raise DataError(
            f"the model has no label {lines[place][:60]!r}; expected names of its labels, one a line",
            path=str(path),
            line=place + 1,
        )
    return ids


def batch_size(k: int) -> int:
    """How many samples to rank at a time."""
    return max(1, min(BATCH, _RANKED // max(1, k)))


def known_features(model: Model) -> dict[str, Any]:
    """What a reader must know of a model to make its features: arguments of `machxc.data.batches`."""
    text = model.config.text
    return {"text": text, "n_features": model.config.n_features if text is None else None}


def _without_labels(
    model: Model, data: Path | str, options: ReadOptions, size: int, progress: Progress | None
) -> Iterator[Dataset]:
    """Batches of samples whatever their labels are: names that all labels have stand in for those of the model."""
    names = open_store(data, verify=False).names if is_store(data) else LabelNames.ids(MAX_LABELS)
    options = replace(options, labels_required=False, label_column=_NO_COLUMN, label_names=None)
    known = known_features(model)
    return batches(data, options, names=names, unknown_labels="count", size=size, progress=progress, **known)


def _integer(line: str) -> int:
    try:
        return int(line)
    except ValueError:
        return -1 - MAX_LABELS**2  # no label has this name


class Writer(ABC):
    """Writes one kind of predictions into ``folder``, rankings as they come; ``complete`` is the file then."""

    def __init__(self, folder: Path, target: Path, names: LabelNames, k: int, bounded: bool) -> None:
        self.complete = folder / "complete"
        self._folder, self._target, self._names, self._k, self._bounded = folder, target, names, k, bounded
        with output_errors(target), contextlib.ExitStack() as self._files:
            self._open()
            self._files = self._files.pop_all()  # left open unless one of them could not be opened

    def add(self, ids: Int64, scores: Float32, proven: Array | None = None) -> None:
        """Take in rankings: label ids [n, k] and their scores; in bounded time, which are ``proven``: bool [n]."""
        with output_errors(self._target):
            self._add(ids, scores, proven)

    def finish(self) -> None:
        """Write what is left; the file is complete then."""
        with output_errors(self._target):
            self.close()
            self._finish()

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def _new(self, path: Path) -> IO[bytes]:
        return self._files.enter_context(open(path, "xb"))

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _add(self, ids: Int64, scores: Float32, proven: Array | None) -> None: ...

    def _finish(self) -> None:  # noqa: B027 (most have nothing left to do)
        pass


class JsonLines(Writer):
    """A JSON object a line."""

    def _open(self) -> None:
        self._file = self._new(self.complete)

    def _add(self, ids: Int64, scores: Float32, proven: Array | None) -> None:
        known = [{}] * len(ids) if proven is None else [{"proven": bool(one)} for one in proven]
        lines = (
            json.dumps({"labels": labels, "scores": values} | more, ensure_ascii=False) + "\n"
            for (labels, values), more in zip(named(self._names, ids, scores), known, strict=True)
        )
        self._file.write("".join(lines).encode())


class Parquet(Writer):
    """Columns of lists."""

    def _open(self) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingExtraError("Parquet files", "parquet") from None
        name = pyarrow.string() if self._names.kind == "strings" else pyarrow.int64()
        columns = [("labels", pyarrow.list_(name)), ("scores", pyarrow.list_(pyarrow.float32()))]
        if self._bounded:
            columns.append(("proven", pyarrow.bool_()))
        self._schema = pyarrow.schema(columns)
        self._file = self._files.enter_context(parquet.ParquetWriter(self._new(self.complete), self._schema))

    def _add(self, ids: Int64, scores: Float32, proven: Array | None) -> None:
        import pyarrow

        there = ids >= 0
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(there.sum(axis=1), dtype=np.int32)])
        values = (self._names.names(ids[there]), scores[there])
        lists = [
            pyarrow.ListArray.from_arrays(offsets, pyarrow.array(column, field.type.value_type))
            for column, field in zip(values, list(self._schema)[:2], strict=True)
        ]
        if proven is not None:
            lists.append(pyarrow.array(proven))
        self._file.write_table(pyarrow.Table.from_arrays(lists, schema=self._schema))


class Npz(Writer):
    """NumPy arrays. Their length is known at the end only, so they are collected in files of raw numbers."""

    def _open(self) -> None:
        self._columns = {"idx": "<i8", "scores": "<f4"} | ({"proven": "|b1"} if self._bounded else {})
        self._raw = {name: self._new(self._folder / name) for name in self._columns}
        self._n = 0
        self._occurs = np.zeros(len(self._names), bool)

    def _add(self, ids: Int64, scores: Float32, proven: Array | None) -> None:
        self._n += len(ids)
        self._occurs[ids[ids >= 0]] = True
        arrays = [ids.astype("<i8"), scores.astype("<f4")] + ([] if proven is None else [proven])
        for file, array in zip(self._raw.values(), arrays, strict=True):
            file.write(array.tobytes())

    def _finish(self) -> None:
        with zipfile.ZipFile(self.complete, "x") as archive:
            for name, dtype in self._columns.items():
                shape = (self._n,) if name == "proven" else (self._n, self._k)
                with open(self._folder / name, "rb") as raw, _member(archive, name, dtype, shape) as file:
                    shutil.copyfileobj(raw, file, 1 << 20)
                os.unlink(self._folder / name)
            if self._names.kind != "ids":
                self._write_names(archive)

    def _write_names(self, archive: zipfile.ZipFile) -> None:
        ids = np.flatnonzero(self._occurs).astype("<i8")
        blocks = [ids[start : start + _NAMES] for start in range(0, len(ids), _NAMES)]
        dtype = "<i8"
        if self._names.kind == "strings":
            dtype = f"<U{max((len(name) for block in blocks for name in self._names.names(block)), default=1)}"
        with _member(archive, "label_ids", "<i8", ids.shape) as file:
            file.write(ids.tobytes())
        with _member(archive, "label_names", dtype, ids.shape, zipfile.ZIP_DEFLATED) as file:
            for block in blocks:
                file.write(self._names.names(block).astype(dtype).tobytes())


@contextlib.contextmanager
def _member(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], compression: int = zipfile.ZIP_STORED
) -> Iterator[IO[bytes]]:
    """One array of an npz file, its header written."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = compression
    with archive.open(info, "w", force_zip64=True) as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


_WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLines, ".npz": Npz, ".parquet": Parquet}


@contextlib.contextmanager
def prediction_file(
    output: Path | str, names: LabelNames, k: int, *, bounded: bool = False, overwrite: bool = False
) -> Iterator[Writer]:
    """A file of predictions to be filled by `Writer.add`; it is put in place when the body ends without an error.

    ``bounded``: rankings come with whether they are proven.
    """
    target = Path(os.path.realpath(output))  # what a link points to is replaced, not the link
    kind = _WRITERS.get(target.suffix)
    if kind is None:
        raise SettingError(f"{output}: expected a name that ends in one of {FORMATS}, got {Path(output).suffix!r}")
    _check_output(target, overwrite=overwrite)
    with staging_folder(target) as folder, contextlib.closing(kind(folder, target, names, k, bounded)) as writer:
        yield writer
        writer.finish()
        with output_errors(target):
            _check_output(target, overwrite=overwrite)
            _fsync(writer.complete)
            os.replace(writer.complete, target)
            fsync_folder(target.parent)


def _check_output(target: Path, *, overwrite: bool) -> None:
    if os.path.lexists(target) and not target.is_file():
        raise OutputError(f"cannot write {target}: it exists and is not an ordinary file; choose another path")
    if target.exists() and not overwrite:
        raise OutputError(f"cannot write {target}: it exists already; choose another path, or ask to overwrite it")


def _fsync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
