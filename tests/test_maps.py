"""Files that are cut, or written to, while they are mapped: an error that names them, never the end of the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli_tools import text_samples, write_jsonl
from machxc.data import convert, open_store
from machxc.errors import DataError, ModelError
from machxc.folder import load_model
from machxc.maps import check, guarded, map_array
from machxc.model import Model
from machxc.run import train_run
from machxc.samples import Features
from machxc.testing import make_samples, tiny_model

linux = pytest.mark.skipif(sys.platform != "linux", reason="the signal is handled on Linux")
PAGES = 16 * os.sysconf("SC_PAGE_SIZE")


def numbers(path: Path) -> Path:
    np.arange(PAGES // 8, dtype=np.int64).tofile(path)
    return path


def spawned(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own: if it ends by a signal, it does not take the tests along."""
    command = [sys.executable, "-X", "faulthandler=0", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@linux
def test_what_is_cut_reads_as_zeros_and_ends_in_an_error(tmp_path: Path) -> None:
    path = numbers(tmp_path / "numbers")
    array = map_array(path, np.int64, DataError)
    read: list[list[int]] = []

    def read_cut() -> None:
        with guarded():
            os.truncate(path, PAGES // 2)
            read.append(array.tolist())
            with pytest.raises(DataError, match="numbers: was cut"):
                check(array)

    with pytest.raises(DataError, match="numbers: was cut"):
        read_cut()
    n = len(array) // 2
    assert read == [[*range(n), *n * [0]]]
    other = map_array(numbers(tmp_path / "others"), np.int64, DataError)
    check(other)


@linux
def test_an_error_that_zeros_led_to_is_replaced(tmp_path: Path) -> None:
    array = map_array(numbers(tmp_path / "numbers"), np.int64, ModelError)
    os.truncate(tmp_path / "numbers", 0)
    with pytest.raises(ModelError, match="was cut") as raised, guarded(), guarded():
        raise ValueError(f"{array[-1]} is no offset")
    assert raised.value.__cause__ is not None


@linux
def test_without_a_guard_and_outside_of_our_files_the_signal_ends_the_process(tmp_path: Path) -> None:
    """The test of the tests, too: it is this that the others outlive."""
    unguarded = "import os, sys, numpy as np\na = np.memmap(sys.argv[1], np.int64, 'r'); os.truncate(sys.argv[1], 0)\n"
    for guard in ("", "from machxc.maps import guarded; g = guarded(); g.__enter__()\n"):
        done = spawned(unguarded + guard + "a.sum()", numbers(tmp_path / "numbers"))
        assert done.returncode == -7, done.stderr


def test_what_is_written_to_is_noticed(tmp_path: Path) -> None:
    path = numbers(tmp_path / "numbers")
    array = map_array(path, np.int64, DataError)
    check(array, array[3:], np.zeros(3))
    with open(path, "r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))  # whatever the clock of the file system says
    with pytest.raises(DataError, match="numbers: was written to"):
        check(np.zeros(3), array[5:9])


def test_a_file_that_another_takes_the_place_of_stays_as_it_was(tmp_path: Path) -> None:
    array = map_array(numbers(tmp_path / "numbers"), np.int64, DataError)
    (tmp_path / "new").write_bytes(b"")
    os.replace(tmp_path / "new", tmp_path / "numbers")
    check(array)
    (tmp_path / "numbers").unlink()
    check(array)
    assert array[-1] == len(array) - 1


STORE = ["features.indptr", "features.indices", "features.values", "labels.indptr", "labels.indices"]

CUT_WHILE_TRAINING = """
import os, sys
from machxc.cli import main
from machxc.repetition import loop, counting

def cut(function):
    def instead(*arguments, **known):
        os.truncate(sys.argv[2], int(sys.argv[3]))
        return function(*arguments, **known)
    return instead

loop.fit_encoder, counting.fit_encoder = cut(loop.fit_encoder), cut(counting.fit_encoder)
store, _, _, output, learner = sys.argv[1:]
options = ["--repetitions", "2", "--learner", learner, "--jobs", "2", "--quiet"]
sys.exit(main(["train", store, "--output", output, *options]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    convert(write_jsonl(folder / "data.jsonl", text_samples(3000, 1)), folder / "store")
    return folder / "store"


@linux
@pytest.mark.parametrize("learner", ["counts", "gradient"])
@pytest.mark.parametrize("name", STORE)
def test_a_store_that_is_cut_while_it_is_trained_on(store: Path, tmp_path: Path, name: str, learner: str) -> None:
    for path in store.iterdir():
        (tmp_path / "store").mkdir(exist_ok=True)
        (tmp_path / "store" / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "store" / f"{name}.bin"
    left = file.stat().st_size // 2 + 100  # in the midst of a page: zeros first, then nothing
    done = spawned(CUT_WHILE_TRAINING, tmp_path / "store", file, left, tmp_path / "model", learner)
    assert done.returncode == 2, done.stderr
    assert f"{name}.bin: was " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_store_that_is_written_to_while_it_is_trained_on(store: Path, tmp_path: Path) -> None:
    data = tmp_path / "copy"
    data.mkdir()
    for path in store.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    values = data / "features.values.bin"

    def progress(done: int, total: int) -> None:
        with open(values, "r+b") as file:
            file.write(bytes(8))
        os.utime(values, ns=(1, 1))

    with pytest.raises(DataError, match=r"features\.values\.bin: was written to while it was in use"):
        train_run(data, tmp_path / "model", progress=progress)
    assert not (tmp_path / "model").exists()


@linux
def test_a_store_that_is_cut_while_it_is_opened(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in store.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    check_features = Features.check

    def cut(features: Features) -> None:
        os.truncate(tmp_path / "features.values.bin", 0)
        check_features(features)

    monkeypatch.setattr(Features, "check", cut)
    with pytest.raises(DataError, match=r"features\.values\.bin: was cut"):
        open_store(tmp_path)


@linux
@pytest.mark.parametrize("hidden", [0, 16])
def test_a_model_that_is_cut_while_it_answers(tmp_path: Path, hidden: int) -> None:
    """A small linear one is in memory as soon as it has answered: it is cut before."""
    model, samples = tiny_model(hidden=hidden), make_samples(20)
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    expected = model.top_k(samples.features, 3)
    if hidden:
        with guarded():
            assert loaded.top_k(samples.features, 3)[0].tolist() == expected[0].tolist()
    for path in (tmp_path / "model").glob("repetition-*"):
        os.truncate(path, 0)
    with pytest.raises(ModelError, match=r"repetition-.*was cut"), guarded():
        loaded.top_k(samples.features, 3)
    del loaded
    model.save(tmp_path / "model", overwrite=True)
    whole = Model.load(tmp_path / "model")
    assert whole.top_k(samples.features, 3)[0].tolist() == expected[0].tolist()
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert load_model(tmp_path / "model").n_samples == model.n_samples
