from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from folder_tools import (
    MODELS,
    REPETITION,
    assert_same_arrays,
    assert_same_model,
    change_tensor,
    config_of,
    fingerprint,
    tensors_of,
    tiny,
)
from machxc import files, folder
from machxc.errors import ModelError, OutputError
from machxc.folder import (
    ModelData,
    check_destination,
    check_repetition,
    finish_model,
    load_model,
    read_repetition,
    repetition_file,
    save_model,
    write_repetition,
)
from machxc.label_counts import LabelCounts
from machxc.labels import LabelNames


@pytest.mark.parametrize("data", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_saved_is_loaded(data: ModelData, verify: bool, tmp_path: Path) -> None:
    save_model(tmp_path / "model", data)
    loaded = load_model(tmp_path / "model", verify)
    assert_same_model(loaded, data)
    save_model(tmp_path / "again", loaded)
    assert fingerprint(tmp_path / "again") == fingerprint(tmp_path / "model")
    assert sorted(os.listdir(tmp_path)) == ["again", "model"]


def test_loaded_arrays_are_read_only_aligned_maps_of_the_files(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny(hidden=6, partition=True))
    loaded = load_model(tmp_path / "model")
    assert loaded.assignment is not None
    for array in [*loaded.label_counts.arrays().values(), loaded.assignment, *loaded.repetitions[1].values()]:
        assert not array.flags.writeable
        assert array.flags.aligned
        assert array.flags.c_contiguous


def test_the_folder_is_what_its_documentation_says(tmp_path: Path) -> None:
    data = tiny(partition=True)
    save_model(tmp_path / "model", data)
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("machxc", 4)
    assert set(manifest["files"]) | {"manifest.json"} == set(os.listdir(tmp_path / "model"))
    for name, entry in manifest["files"].items():
        content = (tmp_path / "model" / name).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        tensors = safetensors.numpy.load(content) if name.endswith(".safetensors") else {}
        assert {key: tensor["shape"] for key, tensor in entry["tensors"].items()} == {
            key: list(array.shape) for key, array in tensors.items()
        }
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["config"] == data.config.to_dict()
    assert (config["n_samples"], config["label_kind"]) == (17, "strings")


def test_a_model_may_lack_repetitions(tmp_path: Path) -> None:
    data = tiny(repetitions=4)
    some = dataclasses.replace(data, repetitions={r: data.repetitions[r] for r in (3, 1)})
    save_model(tmp_path / "model", some)
    assert list(load_model(tmp_path / "model").repetitions) == [1, 3]
    with pytest.raises(ModelError, match=r"numbers in \[0, 4\), got none"):
        save_model(tmp_path / "none", dataclasses.replace(data, repetitions={}))
    with pytest.raises(ModelError, match=r"numbers in \[0, 4\), got number 4"):
        save_model(tmp_path / "five", dataclasses.replace(data, repetitions={4: data.repetitions[0]}))
    assert os.listdir(tmp_path) == ["model"]


def test_the_manifest_of_the_most_repetitions_can_be_read(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny(hidden=2))
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    entry = manifest["files"][repetition_file(0)]
    entry["size"] = 2**40
    for tensor in entry["tensors"].values():
        tensor["shape"] = [2**31 for _ in tensor["shape"]]
    assert 4096 * len(json.dumps(entry, separators=(",", ":")) + repetition_file(0)) < 0.95 * folder._MAX_JSON


def test_repetitions_survive_in_a_run_folder(tmp_path: Path) -> None:
    data = tiny(hidden=2)
    run, target = tmp_path / "run", tmp_path / "model"
    run.mkdir()
    with pytest.raises(ModelError, match=r"run: cannot read the model: No such file"):
        read_repetition(run, 0, data.config)
    for r in (1, 0, 1):
        write_repetition(run, r, data.repetitions[r])
        assert_same_arrays(read_repetition(run, r, data.config), data.repetitions[r])
    assert sorted(os.listdir(run)) == [repetition_file(0), repetition_file(1)]
    with pytest.raises(ModelError, match=r"expected the tensors"):
        read_repetition(run, 0, dataclasses.replace(data.config, hidden=0))
    with pytest.raises(ModelError, match=r"run: cannot read the model"):
        load_model(run)
    finish_model(run, data.config, data.names, data.label_counts, data.n_samples)
    files.replace_folder(run, target, overwrite=False)
    assert_same_model(load_model(target), data)


@pytest.mark.parametrize("r", [-1, 100_000])
def test_repetition_numbers_are_bounded(r: int) -> None:
    with pytest.raises(ModelError, match="expected the number of a repetition"):
        repetition_file(r)


def changed(
    name: str, array: npt.ArrayLike | None, dtype: Any = np.float32, hidden: int = 2
) -> dict[str, npt.NDArray[Any]]:
    tensors = tensors_of(config_of(hidden=hidden))
    tensors.pop(name, None)
    return tensors if array is None else {**tensors, name: np.asarray(array, dtype)}


def sparse(
    lengths: list[int],
    entries: int,
    *,
    given: list[int] | None = None,
    level: float = 1.0,
    levels: int = 256,
) -> dict[str, npt.NDArray[Any]]:
    """A linear repetition of four rows and three buckets, with so many entries, or those given."""
    return {
        **tensors_of(config_of()),
        "lengths": np.array(lengths, np.uint8),
        "entries": np.zeros(entries, np.uint16) + 1 if given is None else np.array(given, np.uint16),
        "levels": np.full(levels, level, np.float32),
    }


WRONG: dict[str, tuple[dict[str, npt.NDArray[Any]], str]] = {
    "a tensor less": (changed("bias", None), "expected the tensors"),
    "a tensor more": (changed("more", [1]), "expected the tensors"),
    "another dtype": (changed("bias", np.zeros(3), np.float64), r"'bias' to be float32 \[3\], got float64 \[3\]"),
    "big-endian": (changed("bias", np.zeros(3), ">f4"), "'bias' to be float32"),
    "objects": (changed("bias", np.zeros(3), object), "'bias' to be float32"),
    "another length": (changed("bias", np.zeros(4)), r"got float32 \[4\]"),
    "more dimensions": (changed("bias", np.zeros((3, 1))), r"got float32 \[3, 1\]"),
    "no dimension": (changed("bias", 0.0), r"got float32 \[\]"),
    "rows that differ": (changed("table_scales", np.zeros(5), np.float32), r"'table_scales' to be float32 \[4\]"),
    "slots of fewer rows": (
        changed("row_slots", np.zeros(3), np.uint8),
        r"'row_slots' to be uint8 .* \[4\], got uint8 \[3\]",
    ),
    "slots, 64 bits": (changed("row_slots", np.zeros(4), np.uint64), "'row_slots' to be uint8 or uint16 or uint32"),
    "slots, signed": (changed("row_slots", np.zeros(4), np.int32), "'row_slots' to be uint8 or uint16 or uint32"),
    "slots either way": (changed("slots", np.zeros(8), np.int32), "expected the tensors"),
    "rows without a weight": (changed("repeats", [1, 1, 1, 0], np.uint8), "at most 4 that add up to 4, got 1 and 3"),
    "more rows with a weight": (changed("repeats", [1, 1, 1, 9], np.uint8), "at most 4 that add up to 4, got 9 and 12"),
    "NaN, 32 bits": (changed("row_weights", [1, 2, np.nan, 3]), "'row_weights' has values that are NaN or infinite"),
    "infinite, 32 bits": (changed("bias", [1, -np.inf, 3]), "'bias' has values that are NaN or infinite"),
    "a scale of NaN": (changed("table_scales", [np.nan] * 4, np.float32), "'table_scales' has values that are NaN"),
    "infinite scales": (changed("output_scales", [np.inf] * 3, np.float32), "'output_scales' has values that are NaN"),
    "a table of 16 bits": (changed("table", np.zeros((4, 2)), np.float16), r"'table' to be int8 \[4, 2\], got float16"),
    "a slot beyond": (changed("row_slots", [0, 1, 2, 8], np.uint8), r"values in \[0, 8\), got \[0, 8\]"),
}
DEEP = {"hidden": [4, 3, 2], "normalisation": "layer"}


def deep(name: str, array: npt.ArrayLike | None, dtype: Any = np.int8) -> dict[str, npt.NDArray[Any]]:
    tensors = tensors_of(config_of(**DEEP))
    tensors.pop(name, None)
    return tensors if array is None else {**tensors, name: np.asarray(array, dtype)}


WRONG_DEEP: dict[str, tuple[dict[str, npt.NDArray[Any]], str]] = {
    "a layer less": (deep("layer_2", None), "expected the tensors"),
    "a layer more": (deep("layer_3", np.zeros((2, 2))), "expected the tensors"),
    "a layer without its bias": (deep("layer_1_bias", None), "expected the tensors"),
    "a layer the other way round": (deep("layer_1", np.zeros((4, 3))), r"'layer_1' to be int8 \[3, 4\]"),
    "a layer of other units": (deep("layer_2", np.zeros((2, 4))), r"'layer_2' to be int8 \[2, 3\]"),
    "a layer, 32 bits": (deep("layer_1", np.zeros((3, 4)), np.float32), "'layer_1' to be int8"),
    "an output of the first layer": (deep("output", np.zeros((3, 4))), r"'output' to be int8 \[3, 2\]"),
    "a table of the last layer": (deep("table", np.zeros((4, 2))), r"'table' to be int8 \[4, 4\]"),
    "NaN": (deep("layer_1_scales", [1, np.nan, 1], np.float32), "'layer_1_scales' has values that are NaN or infinite"),
    "infinite": (deep("layer_2_bias", [0, np.inf], np.float32), "'layer_2_bias' has values that are NaN or infinite"),
}
ADD = "'lengths': expected lengths of at most 3 that add up to 6, got "
WRONG_LINEAR: dict[str, tuple[dict[str, npt.NDArray[Any]], str]] = {
    "a dense table": (changed("table", np.zeros((4, 3)), np.int8, hidden=0), "expected the tensors"),
    "no lengths": (changed("lengths", None, hidden=0), "expected the tensors"),
    "a length less": (sparse([2, 2, 2], 6), r"'row_slots' to be uint8 .* \[3\], got uint8 \[4\]"),
    "a length too many": (sparse([2, 2, 1, 1, 0], 6), r"'row_slots' to be uint8 .* \[5\], got uint8 \[4\]"),
    "lengths, 64 bits": (changed("lengths", [0] * 4, np.uint64, hidden=0), "'lengths' to be uint8 or uint16 or uint32"),
    "lengths, signed": (changed("lengths", [0] * 4, np.int8, hidden=0), "'lengths' to be uint8 or uint16 or uint32"),
    "more than there are": (sparse([2, 2, 1, 2], 6), ADD + "2 and 7"),
    "fewer than there are": (sparse([2, 2, 1, 0], 6), ADD + "2 and 5"),
    "far more than there are": (sparse([2, 2, 1, 255], 6), ADD + "255 and 260"),
    "more entries than buckets": (sparse([4, 0, 1, 1], 6), ADD + "4 and 6"),
    "no entries but lengths": (sparse([1, 0, 0, 0], 0), "add up to 0, got 1 and 1"),
    "entries but no lengths": (sparse([0] * 4, 6), ADD + "0 and 0"),
    "a bucket beyond": (sparse([1, 0, 0, 2], 3, given=[0, 2 << 8, 3 << 8]), "expected buckets below 3, got 5"),
    "a first bucket beyond": (sparse([1, 0, 0, 0], 1, given=[3 << 8]), "'entries': expected buckets below 3, got 3"),
    "the furthest bucket": (sparse([1, 0, 0, 0], 1, given=[65535]), "expected buckets below 3, got 255"),
    "fewer levels": (sparse([2, 2, 1, 1], 6, levels=255), r"'levels' to be float32 \[256\], got float32 \[255\]"),
    "more levels": (sparse([2, 2, 1, 1], 6, levels=257), r"'levels' to be float32 \[256\], got float32 \[257\]"),
    "NaN": (sparse([2, 2, 1, 1], 6, level=np.nan), "'levels' has values that are NaN or infinite"),
    "infinite": (sparse([2, 2, 1, 1], 6, level=-np.inf), "'levels' has values that are NaN or infinite"),
    "entries, 64 bits": (changed("entries", np.zeros(6), np.uint64, hidden=0), "'entries' to be uint16"),
    "entries, signed": (changed("entries", np.zeros(6), np.int16, hidden=0), "'entries' to be uint16"),
}


@pytest.mark.parametrize(("tensors", "message"), WRONG.values(), ids=WRONG.keys())
def test_check_repetition_refuses(tensors: dict[str, npt.NDArray[Any]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_repetition(config_of(hidden=2), tensors)


@pytest.mark.parametrize(("tensors", "message"), WRONG_DEEP.values(), ids=WRONG_DEEP.keys())
def test_check_repetition_refuses_a_deep_one(tensors: dict[str, npt.NDArray[Any]], message: str) -> None:
    check_repetition(config_of(**DEEP), tensors_of(config_of(**DEEP)))
    with pytest.raises(ModelError, match=message):
        check_repetition(config_of(**DEEP), tensors)


@pytest.mark.parametrize(("tensors", "message"), WRONG_LINEAR.values(), ids=WRONG_LINEAR.keys())
def test_check_repetition_refuses_a_linear_one(tensors: dict[str, npt.NDArray[Any]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_repetition(config_of(), tensors)


@pytest.mark.parametrize("lengths", [[2, 2, 1, 1], [3, 3, 0, 0], [0, 0, 3, 3], [0, 0, 0, 0]])
def test_check_repetition_accepts_rows_that_are_empty_or_full(lengths: list[int]) -> None:
    check_repetition(config_of(), sparse(lengths, sum(lengths)))


def test_dense_rows_have_a_bit_for_each_of_their_entries() -> None:
    """Of a bucket below B, which is at most 256."""
    config, tensors = config_of(buckets=250), tensors_of(config_of(buckets=250))
    for name in ("lengths", "entries"):
        del tensors[name]
    present = np.zeros((4, 32), np.uint8)
    present[1, [0, 31]] = 0b1000_0001, 0b0000_0010
    tensors |= {"present": present, "codes": np.array([1, 0, 255], np.uint8)}
    check_repetition(config, tensors)
    for changed, message in (
        ({"codes": np.zeros(2, np.uint8)}, "expected 2 bits of buckets below 250, at most 256, got 3"),
        ({"present": present[:, :31]}, r"'present' to be uint8 \[4, 32\], got uint8 \[4, 31\]"),
        ({"present": present << 1}, "'present': expected 3 bits of buckets below 250"),
        ({"present": np.roll(present, 6) << 2}, "'present': expected 3 bits of buckets below 250"),
        ({"lengths": np.zeros(4, np.uint8)}, "expected the tensors"),
    ):
        with pytest.raises(ModelError, match=message):
            check_repetition(config, {**tensors, **changed})
    many = {**tensors, "bias": np.zeros(264, np.float32), "present": np.pad(present, [(0, 0), (0, 1)])}
    with pytest.raises(ModelError, match="expected 3 bits of buckets below 264, at most 256, got 3"):
        check_repetition(config_of(buckets=264), many)


def test_many_slots_of_few_rows_are_stored_one_by_one() -> None:
    """Or a file of some bytes would ask for 16 GB."""
    config = config_of(feature_bits=13)
    tensors = tensors_of(config)
    with pytest.raises(ModelError, match=r"expected the rows of 8192 slots \('slots'\), got the slots of 4 rows"):
        check_repetition(config, tensors)
    slots = np.full(8192, -1, np.int32)
    slots[[3, 5, 7, 8191]] = [2, 0, 3, 1]
    del tensors["row_slots"]
    check_repetition(config, {**tensors, "slots": slots})
    for beyond in (-2, 4):
        slots[0] = beyond
        with pytest.raises(ModelError, match=r"'slots': expected values in \[-1, 4\)"):
            check_repetition(config, {**tensors, "slots": slots})


@pytest.mark.parametrize("buckets", [3, 255, 65537, 2**24])
def test_entries_are_narrow_or_wide_and_their_buckets_below_b(buckets: int) -> None:
    config, bias = config_of(buckets=buckets), np.zeros(buckets, np.float32)
    tensors = {**sparse([1, 0, 0, 0], 1), "bias": bias}
    check_repetition(config, {**tensors, "entries": np.array([(buckets - 1) << 8 | 255], np.uint32)})
    check_repetition(config, {**tensors, "entries": np.array([min(255, buckets - 1) << 8], np.uint16)})
    for beyond in {buckets, 2**24 - 1} - {2**24 - 1 if buckets == 2**24 else 0, 2**24}:
        with pytest.raises(ModelError, match=f"'entries': expected buckets below {buckets}, got {beyond}"):
            check_repetition(config, {**tensors, "entries": np.array([beyond << 8], np.uint32)})


def test_the_steps_of_narrow_entries_add_up() -> None:
    config, steps = config_of(buckets=1000), np.array([255 << 8, 255 << 8, 255 << 8, 234 << 8 | 1], np.uint16)
    tensors = {**sparse([4, 0, 0, 0], 4), "bias": np.zeros(1000, np.float32)}
    check_repetition(config, {**tensors, "entries": steps})
    with pytest.raises(ModelError, match="'entries': expected buckets below 1000, got 1000"):
        check_repetition(config, {**tensors, "entries": steps + np.uint16(64) * np.array([0, 0, 0, 4], np.uint16)})


def test_a_damaged_bucket_of_a_wide_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", MODELS["wide"])
    assert load_model(tmp_path / "model").repetitions[0]["entries"].dtype == np.uint32
    change_tensor(tmp_path / "model", REPETITION, "entries", 0, 65537 << 8)
    with pytest.raises(ModelError, match="'entries': expected buckets below 65537, got 65537"):
        load_model(tmp_path / "model")


def test_a_model_of_an_older_version_has_to_be_trained_again(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny())
    manifest = tmp_path / "model" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version":4', '"version":3'))
    with pytest.raises(ModelError, match="expected version 4, got 3; train the model again"):
        load_model(tmp_path / "model")


def test_check_repetition_accepts_the_largest_numbers_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machxc.formats._BLOCK", 3)
    config = config_of(buckets=7)
    for place in range(7):
        for value, finite in ((3.4e38, True), (-3.4e38, True), (np.inf, False), (-np.nan, False)):
            tensors = tensors_of(config)
            tensors["bias"][place] = value
            if finite:
                check_repetition(config, tensors)
            else:
                with pytest.raises(ModelError, match="'bias' has values"):
                    check_repetition(config, tensors)


def test_save_refuses_what_does_not_fit_together(tmp_path: Path) -> None:
    data = tiny()
    counts, few = np.asarray(data.label_counts), {"seen": np.zeros(1, np.uint32)}
    for replaced, message in (
        ({"names": LabelNames.ids(4)}, r"as many label names as labels \(5\), got 4"),
        ({"label_counts": LabelCounts.dense(counts[:4])}, r"as many label counts as labels \(5\), got 4"),
        ({"label_counts": LabelCounts(5, {"counts": counts[:4]})}, "'counts' to be uint32"),
        ({"label_counts": LabelCounts(5, {"counts": counts.astype(np.int64)})}, "'counts' to be uint32"),
        ({"label_counts": LabelCounts(5, few)}, r"expected the tensors \['seen', 'seen_counts'\], got \['seen'\]"),
        ({"n_samples": -1}, "number of samples"),
        ({"assignment": np.full((2, 5), 3, np.uint32)}, r"'assignment': expected values in \[0, 3\)"),
        ({"assignment": np.zeros((1, 5), np.uint32)}, r"'assignment' to be uint32 \[2, 5\]"),
    ):
        with pytest.raises(ModelError, match=message):
            save_model(tmp_path / "model", dataclasses.replace(data, **replaced))
    assert os.listdir(tmp_path) == []


def test_save_refuses_what_exists(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_model(path, tiny())
    before = fingerprint(path)
    with pytest.raises(OutputError, match="it exists already"):
        save_model(path, tiny(seed=1))
    assert fingerprint(path) == before
    save_model(path, tiny(seed=1), overwrite=True)
    assert_same_model(load_model(path), tiny(seed=1))


def test_save_never_overwrites_what_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"it holds 'thesis.tex', which is no part of a model"):
        check_destination(tmp_path / "home", overwrite=True)
    with pytest.raises(OutputError, match=r"it holds 'thesis.tex', which is no part of a model"):
        save_model(tmp_path / "home", tiny(), overwrite=True)
    assert os.listdir(tmp_path / "home") == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "empty", tiny(), overwrite=True)
    load_model(tmp_path / "empty")


def test_files_of_others_beside_the_model_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_model(path, tiny())
    (path / "README.md").write_text("about this model")
    (path / ".git").mkdir()
    (path / f".config.json.machxc-{files._HOST}-1-{'0' * 16}").touch()
    assert_same_model(load_model(path), tiny())


def test_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing: expected a model folder, found none; check the path"):
        load_model(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="found none"):
        load_model(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty: cannot read the model: No such file"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_reader_sees_the_old_model_or_the_new_while_another_saves(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path, models = tmp_path / "model", [tiny(), tiny(seed=1, hidden=2)]
    save_model(path, models[0])
    stop, saved = threading.Event(), 0

    def save_again_and_again() -> None:
        nonlocal saved
        while not stop.is_set():
            save_model(path, models[saved % 2], overwrite=True)
            saved += 1

    saver = threading.Thread(target=save_again_and_again)
    saver.start()
    try:
        seen: set[int] = set()
        deadline = time.monotonic() + 20
        while (len(seen) < 2 or saved < 20) and time.monotonic() < deadline:
            loaded = load_model(path, verify=False)
            assert_same_model(loaded, models[loaded.config.seed])
            seen.add(loaded.config.seed)
    finally:
        stop.set()
        saver.join()
    assert seen == {0, 1}
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_is_always_replaced_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model", tiny())
    identities = iter(range(100))
    monkeypatch.setattr("machxc.folder._identity", lambda folder: next(identities))
    with pytest.raises(ModelError, match="was replaced 10 times while it was being read"):
        load_model(tmp_path / "model")


def run(code: str, *arguments: object) -> dict[str, Any]:
    """Run ``code`` in a fresh interpreter; what it prints as JSON."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    output: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return output


def test_loading_runs_no_code_and_writes_nothing(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny(partition=True))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("[")
    before = [os.stat(path) for path in (tmp_path, tmp_path / "model", *sorted((tmp_path / "model").iterdir()))]
    events = run(
        """
        import json, os, sys
        from machxc.errors import ModelError
        from machxc.folder import load_model
        load_model(sys.argv[1])  # whatever is imported on first use is imported now
        events, on = [], True
        def hook(name, arguments):
            if on and (name != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)):
                events.append(name)
        sys.addaudithook(hook)
        load_model(sys.argv[1])
        try:
            load_model(sys.argv[2])
        except ModelError:
            events.append("ModelError")
        on = False
        print(json.dumps({"events": events}))
        """,
        tmp_path / "model",
        tmp_path / "broken",
    )["events"]
    harmless = {
        "os.listdir",
        "os.scandir",
        "mmap.__new__",
        "_thread.start_new_thread",
        "sys._getframe",
        "object.__getattr__",
    }
    assert set(events) - harmless == {"ModelError"}
    after = [os.stat(path) for path in (tmp_path, tmp_path / "model", *sorted((tmp_path / "model").iterdir()))]
    assert [(status.st_mtime_ns, status.st_size) for status in after] == [
        (status.st_mtime_ns, status.st_size) for status in before
    ]


def test_loading_imports_nothing_heavy() -> None:
    code = "import json, sys, machxc.folder; print(json.dumps({'modules': list(sys.modules)}))"
    assert not {"numba", "sklearn", "scipy", "torch", "ray", "pickle5"} & set(run(code)["modules"])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads peak memory from /proc")
def test_loading_is_quick_and_takes_little_memory(tmp_path: Path) -> None:
    config = config_of(n_labels=235_000, feature_bits=16, buckets=500, repetitions=2)
    names = LabelNames.strings([f"{i * 7919 % 1_000_003} name {i}" for i in range(235_000)])
    tensors = tensors_of(config, rows=60_000)
    counts = LabelCounts.dense(np.ones(235_000))
    save_model(tmp_path / "model", ModelData(config, names, counts, 1, {0: tensors, 1: tensors}))
    size = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    assert size > 60e6
    measured = run(
        """
        import json, sys, time
        from machxc.folder import load_model
        def peak():
            return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
        before, start = peak(), time.process_time()
        model = load_model(sys.argv[1])
        print(json.dumps({"seconds": time.process_time() - start, "bytes": peak() - before}))
        """,
        tmp_path / "model",
    )
    assert measured["seconds"] < 1.0
    assert measured["bytes"] < 1.2 * size + 32e6  # the promise is twice the size and 64 MB
