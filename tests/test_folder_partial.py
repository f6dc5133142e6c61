"""A model of which repetitions are missing or damaged: loaded with what is whole, if that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from folder_tools import tiny
from machxc.errors import ModelError
from machxc.folder import load_model, repetition_file, save_model
from machxc.model import Model


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, empty, turn_into_a_folder, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_repetition_is_left_out_when_asked(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(tmp_path / "model", tiny())
    damage(tmp_path / "model" / repetition_file(0))
    with pytest.raises(ModelError, match=repetition_file(0)):
        load_model(tmp_path / "model")
    with caplog.at_level(logging.WARNING, "machxc"):
        model = Model.load(tmp_path / "model", partial=True)
    assert (model.numbers, model.n_repetitions, model.config.repetitions) == ([1], 1, 2)
    assert repetition_file(0) in caplog.text
    assert "answering from 1 of 2 repetitions" in caplog.text


def test_a_whole_model_is_loaded_whole(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny())
    assert Model.load(tmp_path / "model", partial=True).numbers == [0, 1]


def test_without_any_whole_repetition_there_is_no_model(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny())
    for r in range(2):
        flip(tmp_path / "model" / repetition_file(r))
    with pytest.raises(ModelError, match="none of its 2 repetitions is whole"):
        load_model(tmp_path / "model", partial=True)


@pytest.mark.parametrize("name", ["config.json", "labels.safetensors", "manifest.json"])
def test_other_files_must_be_whole(name: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny())
    truncate(tmp_path / "model" / name)
    with pytest.raises(ModelError, match=name):
        load_model(tmp_path / "model", partial=True)
