"""Hostile model folders, each with a manifest that agrees with it: each ends in an error that names what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folder_tools import (
    REPETITION,
    assert_same_model,
    change_config,
    change_header,
    change_tensor,
    list_as,
    read_tensors,
    rewrite,
    seal,
    split_header,
    tiny,
    write_header,
)
from machxc.errors import ModelError
from machxc.folder import load_model, save_model
from machxc.formats import write_tensors

LABELS = "labels.safetensors"
TENSOR_FILES = (LABELS, "partition.safetensors", REPETITION, "repetition-00001.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", tiny(partition=True))
    return tmp_path / "model"


# Attacks, each with a manifest that agrees with it, and the error that names it.

ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {}


def attack(message: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(function: Callable[[Path], None]) -> Callable[[Path], None]:
        ATTACKS[function.__name__] = function, message
        return function

    return register


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@attack("expected a header of at most")
def pickle_in_disguise(folder: Path) -> None:
    (folder / REPETITION).write_bytes(pickle.dumps(Bomb()) * 9)
    seal(folder)


@attack("expected plain JSON")
def pickle_as_configuration(folder: Path) -> None:
    (folder / "config.json").write_bytes(pickle.dumps(Bomb()))
    seal(folder)


@attack(r"'\.\./repetition-00000.safetensors' is not the name of a file of a model")
def name_that_climbs(folder: Path) -> None:
    shutil.copy(folder / REPETITION, folder.parent / REPETITION)
    list_as(folder, f"../{REPETITION}")


@attack("'/etc/passwd' is not the name of a file of a model")
def absolute_name(folder: Path) -> None:
    list_as(folder, "/etc/passwd")


@attack("is not the name of a file of a model")
def name_of_other_digits(folder: Path) -> None:
    shutil.copy(folder / REPETITION, folder / "repetition-٠٠٠٠٢.safetensors")
    list_as(folder, "repetition-٠٠٠٠٢.safetensors")


@attack("'manifest.json' is not the name")
def manifest_in_itself(folder: Path) -> None:
    list_as(folder, "manifest.json")


@attack("repetition-00000.safetensors is a link")
def link_to_a_valid_file(folder: Path) -> None:
    (folder / REPETITION).rename(folder.parent / "outside")
    (folder / REPETITION).symlink_to(folder.parent / "outside")
    seal(folder)


@attack("manifest.json is a link")
def link_as_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "outside")
    (folder / "manifest.json").symlink_to(folder.parent / "outside")


@attack("expected a file that is not empty")
def pipe_that_never_answers(folder: Path) -> None:
    (folder / REPETITION).unlink()
    os.mkfifo(folder / REPETITION)
    seal(folder)


@attack("expected a file that is not empty")
def folder_as_a_file(folder: Path) -> None:
    (folder / REPETITION).unlink()
    (folder / REPETITION).mkdir()
    seal(folder)


@attack("a key comes twice")
def duplicate_key_in_configuration(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"buckets": 3', '"buckets": 3, "buckets": 3'))
    seal(folder)


@attack("a key comes twice")
def duplicate_key_in_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"version":4', '"version":4,"version":4'))


@attack("a key comes twice")
def duplicate_tensor(folder: Path) -> None:
    header, data = split_header(folder / REPETITION)
    text = json.dumps(header)
    write_header(folder / REPETITION, (text[:-1] + ", " + text[1:]).encode(), data)
    seal(folder)


@attack("is not where it should be")
def overlapping_offsets(folder: Path) -> None:
    change_header(folder, lambda header: header["row_weights"].update(data_offsets=header["bias"]["data_offsets"]))


@attack("is not where it should be")
def hidden_bytes_between_tensors(folder: Path) -> None:
    header, data = split_header(folder / REPETITION)
    for tensor in header.values():
        tensor["data_offsets"] = [offset + 8 for offset in tensor["data_offsets"]]
    write_header(folder / REPETITION, header, b"contract" + data)
    seal(folder)


@attack("expected [0-9]+ bytes, got")
def hidden_bytes_at_the_end(folder: Path) -> None:
    with open(folder / REPETITION, "ab") as file:
        file.write(b"PK\x03\x04 another archive")
    seal(folder)


@attack("is not where it should be")
def offsets_beyond_the_file(folder: Path) -> None:
    change_header(folder, lambda header: header["lengths"].update(data_offsets=[0, 2**40], shape=[2**40]))


@attack("at most 2 dimensions")
def negative_offsets(folder: Path) -> None:
    change_header(folder, lambda header: header["entries"].update(data_offsets=[-24, 0]))


@attack("expected one of")
def unknown_dtype(folder: Path) -> None:
    change_header(folder, lambda header: header["bias"].update(dtype="O"))


@attack("expected the tensors")
def tensor_of_another_name(folder: Path) -> None:
    change_header(folder, lambda header: {"../../x" if name == "bias" else name: header[name] for name in header})


@attack(r"'assignment' to be uint32 \[2, 5\], got uint32 \[5, 2\]")
def table_of_another_shape(folder: Path) -> None:
    change_header(folder, lambda header: header["assignment"].update(shape=[5, 2]), "partition.safetensors")


@attack(r"'assignment': expected values in \[0, 3\), got \[0, 3\]")
def bucket_beyond_the_last(folder: Path) -> None:
    change_tensor(folder, "partition.safetensors", "assignment", (1, 4), 3)


@attack(r"'row_slots': expected values in \[0, 8\), got \[[0-7], 255\]")
def slot_beyond_the_last(folder: Path) -> None:
    change_tensor(folder, REPETITION, "row_slots", 0, 255)


def change_lengths(place: int, *values: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        lengths = read_tensors(folder / REPETITION)["lengths"].astype(np.uint32)
        lengths[place : place + len(values)] = values
        rewrite(folder, REPETITION, lengths=lengths)

    return change


LENGTHS = tiny(partition=True).repetitions[0]["lengths"].tolist()
for name, change in {
    "row_beyond_the_entries": change_lengths(3, LENGTHS[3] + 1),
    "row_far_beyond_the_entries": change_lengths(1, 2**32 - 1),
    "rows_whose_sum_overflows": change_lengths(0, 2**31, 2**31),
    "rows_that_leave_entries_out": change_lengths(2, LENGTHS[2] - 1),
}.items():
    ATTACKS[name] = change, f"'lengths': expected lengths of at most 3 that add up to {sum(LENGTHS)}, got"


@attack("'lengths': expected lengths of at most 3 that add up to 4, got 4 and 4")
def row_of_more_entries_than_buckets(folder: Path) -> None:
    rewrite(folder, REPETITION, lengths=np.array([4, 0, 0, 0], np.uint8), entries=np.zeros(4, np.uint16))


@attack(r"'row_slots' to be uint8 or uint16 or uint32 \[3\], got uint8 \[4\]")
def row_without_a_length(folder: Path) -> None:
    rewrite(folder, REPETITION, lengths=read_tensors(folder / REPETITION)["lengths"][1:])


@attack("'repeats': expected lengths of at most 4 that add up to 4, got 4294967295 and 4294967298")
def weight_of_four_billion_rows(folder: Path) -> None:
    repeats = read_tensors(folder / REPETITION)["repeats"].astype(np.uint32)
    repeats[2] = 2**32 - 1
    rewrite(folder, REPETITION, repeats=repeats)


@attack(r"'levels' to be float32 \[256\], got float32 \[255\]")
def entries_without_a_level(folder: Path) -> None:
    rewrite(folder, REPETITION, levels=read_tensors(folder / REPETITION)["levels"][:-1])


@attack("'entries': expected buckets below 3, got [3-5]")
def entry_of_a_bucket_beyond_the_last(folder: Path) -> None:
    change_tensor(folder, REPETITION, "entries", 0, 3 << 8)


@attack("'entries': expected buckets below 3, got 25[5-7]")
def entry_of_the_furthest_bucket(folder: Path) -> None:
    change_tensor(folder, REPETITION, "entries", -1, 65535)


@attack("'entries': expected buckets below 3, got 16777215")
def entry_of_the_last_bucket_of_24_bits(folder: Path) -> None:
    entries = read_tensors(folder / REPETITION)["entries"].astype(np.uint32)
    entries[-1] = 2**32 - 1
    rewrite(folder, REPETITION, entries=entries & (2**32 - 1))


@attack("'levels' has values that are NaN or infinite")
def nan_level(folder: Path) -> None:
    change_tensor(folder, REPETITION, "levels", -1, np.nan)


@attack("'levels' has values that are NaN or infinite")
def infinite_level(folder: Path) -> None:
    change_tensor(folder, REPETITION, "levels", 0, np.inf)


@attack("'bias' has values that are NaN or infinite")
def infinite_bias(folder: Path) -> None:
    change_tensor(folder, REPETITION, "bias", 0, -np.inf)


@attack("'repetitions' parameter of Config must be an int in .* Got 1000000000 instead")
def a_billion_repetitions(folder: Path) -> None:
    change_config(folder, repetitions=10**9)


@attack("'counts' to be uint32")
def four_billion_labels(folder: Path) -> None:
    change_config(folder, n_labels=2**32 - 1)


@attack(r"expected the rows of 4294967296 slots \('slots'\), got the slots of 4 rows")
def four_billion_slots(folder: Path) -> None:
    change_config(folder, feature_bits=32)


@attack("expected the tensors")
def layers_that_are_not_there(folder: Path) -> None:
    change_config(folder, hidden=65536)


@attack("'hidden' parameter of Config must be a list of 1 to 16 ints in .*, or one number")
def layers_without_end(folder: Path) -> None:
    change_config(folder, hidden=[1] * 100_000)


@attack("'hidden' parameter of Config must be a list of 1 to 16 ints in .*, or one number")
def layers_within_layers(folder: Path) -> None:
    change_config(folder, hidden=[4, [3, 2]])


@attack("'learning_rate' parameter of Config must be a number")
def learning_rate_of_another_type(folder: Path) -> None:
    change_config(folder, learning_rate=[0.1])


@attack("a number is too long")
def endless_number(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"seed": 0', f'"seed": {"9" * 100_000}'))
    seal(folder)


@attack("a number is NaN or infinite")
def nan_setting(folder: Path) -> None:
    change_config(folder, learning_rate=float("nan"))


@attack("type int, got bool")
def samples_of_another_type(folder: Path) -> None:
    change_config(folder, n_samples=True)


@attack("expected plain JSON: .*recursion")
def json_without_a_bottom(folder: Path) -> None:
    (folder / "config.json").write_text('{"config":' * 100_000)
    seal(folder)


@attack("config.json: expected at most 2621440 bytes")
def configuration_of_a_gigabyte(folder: Path) -> None:
    os.truncate(folder / "config.json", 10**9)
    seal(folder)


@attack("repetition-00000.safetensors: expected a header of at most 65536 bytes")
def header_of_100_megabytes(folder: Path) -> None:
    with open(folder / REPETITION, "wb") as file:
        file.write(struct.pack("<Q", 100 * 2**20))
        file.truncate(101 * 2**20)
    seal(folder)


@attack("expected distinct names, sorted by the stored order")
def duplicate_label_names(folder: Path) -> None:
    text = np.frombuffer(b"ababc", np.uint8)
    rewrite(
        folder, LABELS, bytes=text, offsets=np.arange(6, dtype=np.uint64), order=np.array([0, 2, 1, 3, 4], np.uint32)
    )


@attack("expected distinct names, sorted by the stored order")
def order_that_repeats(folder: Path) -> None:
    rewrite(folder, LABELS, order=np.array([3, 3, 3, 3, 3], np.uint32))


@attack("expected the order to hold ids below 5")
def order_beyond_the_last(folder: Path) -> None:
    rewrite(folder, LABELS, order=np.array([3, 1, 2, 0, 2**32 - 1], np.uint32))


@attack("expected offsets that rise from 0")
def names_that_overlap(folder: Path) -> None:
    rewrite(folder, LABELS, offsets=np.array([0, 6, 2, 12, 13, 19], np.uint64))


@attack("expected UTF-8 text")
def name_that_is_not_text(folder: Path) -> None:
    change_tensor(folder, "labels.safetensors", "bytes", 0, 0xFF)


@attack("expected a kind of")
def names_of_another_kind(folder: Path) -> None:
    change_config(folder, label_kind="pickle")


@attack("expected the arrays")
def names_with_other_arrays(folder: Path) -> None:
    rewrite(folder, LABELS, more=np.zeros(5, np.uint8))


@attack("expected rising label ids below 5")
def labels_seen_twice(folder: Path) -> None:
    names = {name: array for name, array in read_tensors(folder / LABELS).items() if name != "counts"}
    seen, counts = np.array([3, 3], np.uint32), np.ones(2, np.uint32)
    write_tensors(folder / LABELS, {**names, "seen": seen, "seen_counts": counts})
    seal(folder)


@attack(r"expected the tensors \['seen', 'seen_counts'\]")
def labels_seen_without_counts(folder: Path) -> None:
    rewrite(folder, LABELS, seen=np.array([3], np.uint32))


@attack("repetition-00000.safetensors is missing: the model is not complete")
def repetition_that_is_not_there(folder: Path) -> None:
    (folder / REPETITION).unlink()


@attack("repetition-00000.safetensors is not listed in manifest.json")
def repetition_that_is_not_listed(folder: Path) -> None:
    seal(folder, lambda manifest: manifest["files"].pop(REPETITION))


@attack(r"numbers in \[0, 2\), got number 2")
def repetition_too_many(folder: Path) -> None:
    shutil.copy(folder / REPETITION, folder / "repetition-00002.safetensors")
    list_as(folder, "repetition-00002.safetensors")


@attack("labels.safetensors is missing")
def no_labels(folder: Path) -> None:
    (folder / "labels.safetensors").unlink()
    seal(folder, lambda manifest: manifest["files"].pop("labels.safetensors"))


@attack("its tensors are not those listed")
def tensors_of_another_manifest(folder: Path) -> None:
    seal(folder, lambda manifest: manifest["files"][REPETITION]["tensors"]["bias"].update(shape=[4]))


@attack("checksum is not the one in manifest.json")
def checksum_of_another_file(folder: Path) -> None:
    seal(folder, lambda manifest: manifest["files"][REPETITION].update(sha256="0" * 64))


@attack("expected version 4, got 5; a newer machxc may read it")
def version_to_come(folder: Path) -> None:
    seal(folder, lambda manifest: manifest.update(version=5))


@attack("expected version 4, got 3; train the model again")
def version_that_was(folder: Path) -> None:
    seal(folder, lambda manifest: manifest.update(version=3))


@attack("this is not a model of machxc")
def model_of_another_program(folder: Path) -> None:
    seal(folder, lambda manifest: manifest.update(format="another"))


@attack("expected the fields")
def manifest_with_more(folder: Path) -> None:
    seal(folder, lambda manifest: manifest.update(more=1))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    prepare, message = ATTACKS[name]
    prepare(model)
    before = sorted(os.listdir(model.parent))
    start = time.perf_counter()
    with pytest.raises(ModelError, match=message) as caught:
        load_model(model)
    assert time.perf_counter() - start < 1
    assert str(caught.value).startswith(f"{model}: ")
    assert len(str(caught.value)) < 2000
    assert sorted(os.listdir(model.parent)) == before  # nothing was written, so no bomb went off


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 12


def test_sealing_alone_harms_nothing(model: Path) -> None:
    for file in TENSOR_FILES:
        write_tensors(model / file, read_tensors(model / file))
    seal(model)
    assert_same_model(load_model(model), tiny(partition=True))
