"""Runs on a device: by `train_run`, the command line and the estimator; stopped and gone on with; on two devices."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_tools import torch

from machxc import MACHClassifier
from machxc.cli import main
from machxc.config import Settings
from machxc.errors import MissingExtraError, SettingError
from machxc.folder import repetition_file
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.run import Execution, run_folder, train_run
from machxc.runs.work import RunTask
from machxc.testing import make_samples, make_texts
from machxc.torch import device as devices
from machxc.torch import groups
from machxc.torch.device import devices_of
from machxc.torch.groups import GroupTask, dealt, group_tasks
from machxc.training import train
from run_tools import SETTINGS, StopNowError, digests, stop_after, write_jsonl

ON_TORCH = Execution(device="torch-cpu", checkpoint_interval=0.0)
TWO = ("cpu", "cpu:0")  # two devices of a machine that has one


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl")


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "devices_of", lambda name: TWO)


# ---- names of devices


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "CPU", "mps", None, 0])
def test_what_is_no_device_is_refused(name: Any) -> None:
    with pytest.raises(SettingError, match=r"'device' must be cpu \(the kernels\), auto .*Got"):
        devices_of(name)


@pytest.mark.parametrize(
    ("name", "there", "found"),
    [
        ("cpu", 2, ()), ("torch-cpu", 2, ("cpu",)), ("auto", 0, ()), ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 2, ("cuda:0", "cuda:1")), ("cuda:1", 2, ("cuda:1",)),
    ],
)  # fmt: skip
def test_a_name_stands_for_devices(name: str, there: int, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert devices_of(name) == found


@pytest.mark.parametrize(("name", "there"), [("cuda", 0), ("cuda:1", 1), ("cuda:7", 2)])
def test_a_gpu_that_is_not_there_is_refused(name: str, there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(SettingError, match=rf"PyTorch sees {there} GPUs? on this machine.*Got device='{name}'"):
        devices_of(name)


def test_without_pytorch_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise MissingExtraError("training or scoring on a GPU", "torch")

    monkeypatch.setattr(devices, "import_torch", missing)
    assert devices_of("auto") == ()
    for name in ("cuda", "torch-cpu"):
        with pytest.raises(MissingExtraError, match=r"pip install 'machxc\[torch\]'"):
            devices_of(name)


# ---- groups


def test_devices_share_the_repetitions_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_of("cpu").config
    monkeypatch.setattr(groups, "devices_of", lambda name: ("cuda:0", "cuda:1", "cuda:2"))
    assert group_tasks(config, [0, 1, 4, 5, 9], "cuda") == {
        0: GroupTask("cuda:0", (0, 5)), 1: GroupTask("cuda:1", (1, 9)), 4: GroupTask("cuda:2", (4,)),
    }  # fmt: skip
    assert group_tasks(config, [3], "cuda") == {3: GroupTask("cuda:0", (3,))}


def test_what_is_counted_is_counted_by_the_kernels(caplog: pytest.LogCaptureFixture) -> None:
    samples, names = make_samples(200, 20), LabelNames.ids(20)
    settings = Settings(learner="counts")
    with caplog.at_level(logging.WARNING, "machxc"):
        counted = train(samples, names, settings, device="torch-cpu")
    assert caplog.messages == ["learner='counts' takes no steps: counted on the processor, not on torch-cpu"]
    plain = train(samples, names, settings).data.repetitions[0]
    assert all(plain[name].tobytes() == array.tobytes() for name, array in counted.data.repetitions[0].items())


# ---- training in memory


def model_of(device: str, **changed: Any) -> Model:
    settings = dataclasses.replace(Settings(repetitions=5, buckets=16, epochs=3), **changed)
    return train(make_samples(200, 20), LabelNames.ids(20), settings, device=device)


def same(a: Model, b: Model) -> bool:
    return a.numbers == b.numbers and all(
        array.tobytes() == b.data.repetitions[r][name].tobytes()
        for r in a.numbers
        for name, array in a.data.repetitions[r].items()
    )


def test_on_two_devices_the_same_comes_out_as_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model_of("torch-cpu")
    monkeypatch.setattr(groups, "devices_of", lambda name: TWO)
    assert same(model_of("cuda"), one)


def test_progress_counts_all_of_it() -> None:
    seen: list[tuple[int, int]] = []
    samples = make_samples(200, 20)
    settings = Settings(repetitions=3, buckets=16, epochs=2, validation_fraction=0.1, patience=50)
    train(samples, LabelNames.ids(20), settings, device="torch-cpu", progress=lambda *call: seen.append(call))
    assert seen[-1] == (3 * 2 * 180, 3 * 2 * 180)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_error_on_one_device_ends_the_other(two_devices: None) -> None:
    def progress(done: int, total: int) -> None:
        raise StopNowError

    with pytest.raises(StopNowError):
        train(make_samples(200, 20), LabelNames.ids(20), Settings(buckets=16), device="cuda", progress=progress)


# ---- runs


def test_a_run_gives_what_training_in_memory_gives(data: Path, tmp_path: Path) -> None:
    model = train_run(data, tmp_path / "model", SETTINGS, execution=ON_TORCH)
    assert model.numbers == [0, 1, 2, 3]
    assert not run_folder(tmp_path / "model").exists()
    again = train_run(data, tmp_path / "again", SETTINGS, execution=ON_TORCH)
    assert digests(tmp_path / "model") == digests(tmp_path / "again")
    assert same(model, again)


@pytest.mark.parametrize("after", [1, 5, 20])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(data: Path, tmp_path: Path, after: int) -> None:
    with pytest.raises(StopNowError):
        train_run(data, tmp_path / "model", SETTINGS, execution=ON_TORCH, progress=stop_after(after))
    train_run(data, tmp_path / "model", SETTINGS, execution=ON_TORCH)
    train_run(data, tmp_path / "whole", SETTINGS, execution=ON_TORCH)
    assert digests(tmp_path / "model") == digests(tmp_path / "whole")


def test_a_run_may_go_on_with_another_device(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StopNowError):
        train_run(data, tmp_path / "model", SETTINGS, jobs=1, progress=stop_after(5))
    done = [path.name for path in run_folder(tmp_path / "model").glob("repetition-*")]
    model = train_run(data, tmp_path / "model", SETTINGS, execution=ON_TORCH)
    train_run(data, tmp_path / "kernels", SETTINGS)
    train_run(data, tmp_path / "torch", SETTINGS, execution=ON_TORCH)
    by_kernels, by_torch, mixed = (digests(tmp_path / name) for name in ("kernels", "torch", "model"))
    assert 0 < len(done) < 4
    assert all(mixed[name] == (by_kernels if name in done else by_torch)[name] for name in mixed if "repet" in name)
    assert model.top_k(make_queries(model), 3)[0].shape == (2, 3)


def make_queries(model: Model) -> Any:
    from machxc.data.arrays import features_of

    return features_of(make_texts(2, 20)[0], text=model.config.text, n_features=model.config.n_features)[0]


def test_a_shard_trains_its_own_on_its_device(data: Path, tmp_path: Path) -> None:
    from machxc.run import train_shard

    for i in range(2):
        execution = Execution(device="torch-cpu", shard=(i, 2))
        model = train_shard(data, tmp_path / "model", execution, SETTINGS)
    assert model is not None
    train_run(data, tmp_path / "whole", SETTINGS, execution=ON_TORCH)
    assert digests(tmp_path / "model") == digests(tmp_path / "whole")


def test_on_a_cluster_a_gpu_has_to_be_asked_for() -> None:
    with pytest.raises(SettingError, match="device='cuda' on a cluster needs 'gpus'"):
        Execution("ray", address="auto", device="cuda")
    assert Execution("ray", address="auto", device="cuda", gpus=0.5).gpus == 0.5


def test_the_task_of_a_cluster_trains_the_group_that_begins_with_its_number(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StopNowError):
        train_run(data, tmp_path / "model", SETTINGS, execution=ON_TORCH, progress=stop_after(0))
    folder = run_folder(tmp_path / "model")
    task = RunTask(str(folder), device="torch-cpu", groups=dealt(range(4), 2))
    task(1)
    assert sorted(path.name for path in folder.glob("repetition-*")) == [repetition_file(1), repetition_file(3)]
    task(0)
    train_run(data, tmp_path / "model", SETTINGS, execution=ON_TORCH)
    train_run(data, tmp_path / "whole", SETTINGS, execution=ON_TORCH)
    assert digests(tmp_path / "model") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_a_cluster_trains_a_group_for_each_share_of_its_devices(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray_tools import cluster_of

    with cluster_of(2) as cluster:
        execution = Execution("ray", address=cluster.address, device="torch-cpu", checkpoint_interval=0.5)
        train_run(data, tmp_path / "model", SETTINGS, execution=execution)
    train_run(data, tmp_path / "whole", SETTINGS, execution=ON_TORCH)
    assert digests(tmp_path / "model") == digests(tmp_path / "whole")


# ---- faces


def test_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "model")
    arguments = ["train", str(data), "--output", output, "--repetitions", "2", "--epochs", "2", "--quiet"]
    assert main([*arguments, "--device", "torch-cpu"]) == 0
    assert Model.load(output).numbers == [0, 1]
    assert main([*arguments, "--overwrite", "--device", "gpu"]) == 2
    assert "'device' must be cpu (the kernels), auto" in capsys.readouterr().err


def test_the_estimator() -> None:
    texts, labels = make_texts(200, 20)
    first = [names[0] for names in labels]
    trained = MACHClassifier(device="torch-cpu", buckets=16, repetitions=3).fit(texts, first)
    assert trained.score(texts, first) > 0.9
    kernels = MACHClassifier(buckets=16, repetitions=3).fit(texts, first)
    assert np.mean(trained.predict(texts) == kernels.predict(texts)) > 0.9
    with pytest.raises(SettingError, match="'device'"):
        MACHClassifier(device="gpu").fit(texts, first)
