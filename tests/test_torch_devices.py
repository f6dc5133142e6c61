"""Models that answer on a device: by `Model.to`, the estimator, command line and server; and short of memory."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_tools import torch

from machxc import MACHClassifier
from machxc.cli import main
from machxc.config import ESTIMATORS, Settings
from machxc.errors import DataError, MemoryBudgetError, SettingError
from machxc.evaluation import evaluate
from machxc.labels import LabelNames
from machxc.model import Model
from machxc.partition import HashPartition
from machxc.retrieval import top_k as plain
from machxc.samples import Array, Features
from machxc.server.engine import Engine, Options
from machxc.server.settings import ServerSettings
from machxc.testing import make_samples, make_texts, word
from machxc.torch import scorer
from machxc.torch.memory import in_parts
from machxc.torch.scorer import DeviceModel, GroupScorer
from machxc.torch.top_k import top_k
from machxc.training import train
from run_tools import write_jsonl

TEXT = " ".join(word(i) for i in range(4))
SAMPLES = make_samples(300, 40, labels_per_sample=2)
QUERIES = make_samples(90, 40, seed=5).features
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"repetitions": 4, "buckets": 24, "epochs": 4},
    "single": {"repetitions": 1, "buckets": 64, "epochs": 4},
    "network": {"repetitions": 3, "buckets": 24, "hidden": 16, "epochs": 4},
    "counts": {"learner": "counts"},
}


@lru_cache
def model(kind: str) -> Model:
    return train(SAMPLES, LabelNames.ids(SAMPLES.labels.n_labels), Settings(**KINDS[kind]))


def assert_alike(found: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    """Scores are close, and labels are the same but where scores are closer than the backends' rounding."""
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-6)
    differ = found[0] != expected[0]
    assert differ.mean() < 0.05
    np.testing.assert_allclose(found[1][differ], expected[1][differ], rtol=1e-4, atol=1e-6)


# ---- one model, two backends


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_estimator_ranks_alike(kind: str, estimator: str) -> None:
    here = model(kind)
    there = here.to("torch-cpu")
    if estimator in ("min", "median") or kind in ("single", "counts"):  # many labels share these scores, or a bucket
        found, expected = (each.top_k(QUERIES, 10, estimator=estimator)[1] for each in (there, here))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    else:
        assert_alike(there.top_k(QUERIES, 10, estimator=estimator), here.top_k(QUERIES, 10, estimator=estimator))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["scan", "search", "sieve"])
def test_the_ways_of_the_kernels_start_from_the_sketches_of_the_device(kind: str, method: str) -> None:
    here = model(kind)
    found, expected = (each.top_k(QUERIES, 5, method=method)[1] for each in (here.to("torch-cpu"), here))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bounded_time_candidates_and_given_labels(kind: str) -> None:
    here = model(kind)
    there = here.to("torch-cpu")
    found, expected = (each.top_k_within(QUERIES, 5, budget=10**6) for each in (there, here))
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-6)
    assert found[2].all() == expected[2].all()
    chosen = np.array([3, 39, 7, 8])
    found_among, expected_among = (each.top_k(QUERIES, 5, candidates=chosen) for each in (there, here))
    np.testing.assert_allclose(found_among[1], expected_among[1], rtol=1e-3, atol=1e-6)
    assert set(found_among[0].ravel().tolist()) <= {-1, *chosen.tolist()}
    some = (there.label_scores(QUERIES, chosen), here.label_scores(QUERIES, chosen))
    np.testing.assert_allclose(*some, rtol=1e-3, atol=1e-6)


def test_the_only_repetition_ranks_by_logits_where_probabilities_are_all_the_same() -> None:
    logits = torch.tensor([[[50.0, 40.0, 45.0, -1e30, 60.0, 55.0, 0.0, 1.0]]])
    partition = HashPartition(8, 8, 1, 0)
    for loss, estimator in (("bce", "mean"), ("softmax", "mean"), ("bce", "unbiased"), ("softmax", "logit")):
        found = top_k(logits, partition, 8, loss=loss, estimator=estimator)
        expected = plain(logits.numpy(), partition, 8, loss=loss, estimator=estimator)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_a_model_goes_where_it_is_sent(tmp_path: Path) -> None:
    here = model("linear")
    assert here.to("cpu") is here
    if not torch.cuda.is_available():
        assert here.to("auto") is here
        with pytest.raises(SettingError, match=r"PyTorch sees 0 GPUs .*Got device='cuda'"):
            here.to("cuda")
    here.save(tmp_path / "model")
    there = Model.load(tmp_path / "model", device="torch-cpu")
    assert isinstance(there, DeviceModel)
    assert there.to("torch-cpu") is there
    assert not isinstance(there.to("cpu"), DeviceModel)
    assert there.numbers == here.numbers
    assert there.config == here.config
    assert_alike(there.top_k(QUERIES, 5), here.top_k(QUERIES, 5))
    there.save(tmp_path / "again")  # what is saved is what was loaded
    assert Model.load(tmp_path / "again").config == here.config
    with pytest.raises(SettingError, match="'device' must be"):
        Model.load(tmp_path / "not-there", device="gpu")


def test_some_of_the_repetitions_answer_on_the_device_too() -> None:
    here = model("linear")
    found = here.to("torch-cpu").subset([0, 2])
    assert isinstance(found, DeviceModel)
    assert_alike(found.top_k(QUERIES, 5), here.subset([0, 2]).top_k(QUERIES, 5))


def test_arguments_are_checked_as_by_the_kernels() -> None:
    there = model("linear").to("torch-cpu")
    for some in (QUERIES, QUERIES.rows(0, 0)):
        with pytest.raises(SettingError, match="'k'"):
            there.top_k(some, 0)
        with pytest.raises(SettingError, match="'estimator'"):
            there.top_k(some, 3, estimator="best")
        with pytest.raises(DataError, match="out of range"):
            there.top_k(some, 3, candidates=np.array([10**6]))
    wrong = Features(QUERIES.indptr, QUERIES.indices + np.uint32(2**20), QUERIES.values, 2**32)
    with pytest.raises(DataError, match="trained on"):
        there.top_k(wrong, 3)


# ---- faces


def test_the_estimator_answers_on_its_device() -> None:
    X, labels = make_texts(200, 20, seed=1)
    y = [names[0] for names in labels]
    settings: dict[str, Any] = {"repetitions": 4, "buckets": 16, "epochs": 4}
    here = MACHClassifier(**settings).fit(X, y)
    there = MACHClassifier(**settings)
    there.fit(X, y)
    there.set_params(device="torch-cpu")
    copied = there._answering()
    assert isinstance(copied, DeviceModel)
    assert_alike(there.top_k(X, 5, return_ids=True), here.top_k(X, 5, return_ids=True))
    assert (there.predict(X) == here.predict(X)).mean() > 0.97
    np.testing.assert_allclose(there.predict_proba(X), here.predict_proba(X), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(there.top_k_within(X, 3, budget=10**6)[1], here.top_k(X, 3)[1], rtol=1e-3)
    assert there._answering() is copied  # once
    again = pickle.loads(pickle.dumps(there))
    assert "_there" not in vars(again.model_)
    assert_alike(again.top_k(X, 5, return_ids=True), here.top_k(X, 5, return_ids=True))
    assert not isinstance(there.set_params(device="cpu")._answering(), DeviceModel)


def test_a_fitted_estimator_forgets_the_model_that_it_had_on_the_device() -> None:
    X, y = make_texts(100, 10, seed=1)
    found = MACHClassifier(repetitions=2, epochs=2, device="torch-cpu").fit(X, y)
    before = found._answering()
    assert found.fit(X, y)._answering() is not before


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    data = write_jsonl(tmp_path / "data.jsonl")
    settings = ["--repetitions", "3", "--buckets", "16", "--epochs", "3"]
    assert main(["train", str(data), "--output", str(tmp_path / "model"), *settings]) == 0
    return tmp_path


def test_every_verb_that_answers_has_the_option(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = str(trained / "model"), str(trained / "data.jsonl")
    answers: dict[str, list[str]] = {}
    for device in ("cpu", "torch-cpu"):
        on = ["--device", device, "--json"]
        capsys.readouterr()
        assert main(["evaluate", folder, data, *on]) == 0
        assert main(["query", folder, TEXT, *on]) == 0
        output = trained / f"{device}.jsonl"
        assert main(["predict", folder, data, "--output", str(output), *on]) == 0
        answers[device] = capsys.readouterr().out.splitlines()[:2] + output.read_text().splitlines()
    for here, there in zip(answers["cpu"], answers["torch-cpu"], strict=True):
        of_here, of_there = json.loads(here), json.loads(there)
        if "scores" in of_here:
            np.testing.assert_allclose(of_there["scores"], of_here["scores"], rtol=1e-3)
        else:
            assert of_there == pytest.approx(of_here, abs=0.02)


def test_what_was_trained_on_a_device_is_tested_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    whole = Model.to

    def to(model: Model, device: str) -> Model:
        sent.append(device)
        return whole(model, device)

    monkeypatch.setattr(Model, "to", to)
    data = str(write_jsonl(tmp_path / "data.jsonl"))
    command = [
        "train",
        data,
        "--output",
        str(tmp_path / "model"),
        "--repetitions",
        "2",
        "--epochs",
        "2",
        "--test",
        data,
    ]
    assert main([*command, "--device", "torch-cpu", "--json"]) == 0
    assert sent[-1] == "torch-cpu"
    assert json.loads(capsys.readouterr().out)["test"]["P@1"] > 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", [["evaluate", "DATA"], ["query", TEXT], ["predict", "DATA", "--output", "x.npz"]])
def test_a_gpu_that_is_not_there_is_one_line(verb: list[str], trained: Path, capsys: Any) -> None:
    verb = [str(trained / "data.jsonl") if word == "DATA" else word for word in verb]
    assert main([verb[0], str(trained / "model"), *verb[1:], "--device", "cuda"]) != 0
    error = capsys.readouterr().err
    assert "PyTorch sees 0 GPUs on this machine" in error
    assert "Traceback" not in error


def test_the_server_answers_on_its_device(trained: Path) -> None:
    here, there = (Engine.load(trained / "model", device=device) for device in ("cpu", "torch-cpu"))
    assert isinstance(there.model, DeviceModel)
    for options in (Options(), Options(explain=True), Options(budget=1000)):
        found, expected = (json.loads(each.answer([TEXT], [options])[0][0]) for each in (there, here))
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-3)
    with pytest.raises(SettingError, match="'device' must be"):
        ServerSettings(device="gpu")


def test_metrics_are_those_of_the_kernels(trained: Path) -> None:
    found, expected = (
        evaluate(Model.load(trained / "model", device=device), trained / "data.jsonl")
        for device in ("torch-cpu", "cpu")
    )
    assert found == pytest.approx(expected, abs=0.02)


# ---- short of memory


def short_of_memory(most: int) -> Callable[[Any, Features], Any]:
    """`GroupScorer.sketch` on a device that has memory for so many queries."""
    whole = GroupScorer.sketch

    def sketch(self: Any, features: Features) -> Any:
        if len(features) > most:
            raise torch.OutOfMemoryError
        return whole(self, features)

    return sketch


@pytest.mark.parametrize("call", ["top_k", "sketch"])
def test_short_of_memory_a_model_answers_fewer_at_a_time(
    call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = DeviceModel(model("network"), "cpu")
    ask = getattr(there, call)
    expected = ask(QUERIES)
    monkeypatch.setattr(GroupScorer, "sketch", short_of_memory(30))
    with caplog.at_level(logging.WARNING, "machxc"):
        found = ask(QUERIES)
        again = ask(QUERIES)
    assert caplog.messages == [
        "cpu has no memory for 90 queries at once: it takes 45 at a time from here on",
        "cpu has no memory for 45 queries at once: it takes 22 at a time from here on",
    ]
    for some in (found, again):
        np.testing.assert_allclose(some[-1], expected[-1], rtol=1e-5)
    monkeypatch.setattr(GroupScorer, "sketch", short_of_memory(0))
    with pytest.raises(MemoryBudgetError, match="cpu has no memory for a single query; free some, or answer with"):
        ask(QUERIES)


def test_a_model_that_the_device_has_no_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(scorer, "GroupScorer", full)
    with pytest.raises(MemoryBudgetError, match="cpu has no memory for the model; free some, or answer with"):
        DeviceModel(model("linear"), "cpu")


@pytest.mark.parametrize("most", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("room", [1, 2, 5, 100])
def test_parts_cover_all_once_whatever_the_memory(most: int, room: int) -> None:
    done: list[int] = []

    def run(start: int, stop: int) -> None:
        assert stop - start <= most
        if stop - start > room:
            raise torch.OutOfMemoryError
        done.extend(range(start, stop))

    assert in_parts(64, most, run, "cpu", "things") <= max(1, most)
    assert done == list(range(64))


@pytest.mark.parametrize("free", [1 << 12, 1 << 20, 1 << 40])
def test_blocks_follow_from_the_memory_that_is_free(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    there = DeviceModel(model("network"), "cpu")
    sizes: list[int] = []
    whole = GroupScorer.sketch

    def sketch(self: Any, features: Features) -> Any:
        sizes.append(len(features))
        return whole(self, features)

    monkeypatch.setattr(scorer, "free_bytes", lambda device: free)
    monkeypatch.setattr(GroupScorer, "sketch", sketch)
    there.top_k(QUERIES, 5)
    assert sum(sizes) == len(QUERIES)
    assert max(sizes) == {1 << 12: 1, 1 << 40: 90}.get(free, max(sizes))
