"""Evaluation from a file: what one pass in batches finds is what all rankings at once give."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from machxc import prediction
from machxc.config import Settings
from machxc.data import ReadOptions, convert
from machxc.errors import DataError, OutputError, SettingError
from machxc.evaluation import check_samples, evaluate
from machxc.labels import LabelNames
from machxc.metrics import Evaluation
from machxc.model import Model
from machxc.samples import Samples
from machxc.testing import make_samples
from machxc.training import train

K = 20
KS = (1, 3, 7)


@pytest.fixture(scope="module")
def model() -> Model:
    samples = make_samples(n_labels=K, labels_per_sample=2)
    return train(samples, LabelNames.ids(K), Settings(repetitions=2, buckets=10, epochs=2))


def write(path: Path, samples: Samples) -> Path:
    """The samples as svmlight."""
    rows = []
    for i in range(len(samples)):
        features, labels = samples.features.rows(i, i + 1), samples.labels.rows(i, i + 1)
        values = zip(features.indices, features.values, strict=True)
        rows.append(",".join(map(str, labels.indices)) + " " + " ".join(f"{j}:{value:g}" for j, value in values))
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def samples() -> Samples:
    return make_samples(60, K, labels_per_sample=2, seed=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, samples: Samples) -> Path:
    return write(tmp_path_factory.mktemp("data") / "data.svm", samples)


def test_in_batches_as_at_once(
    model: Model, samples: Samples, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, _ = model.top_k(samples.features, max(KS))
    whole = Evaluation(KS, model.label_counts, model.n_samples, 0.6, 2.6)
    whole.add(ids, samples.labels)
    for ranked in (1 << 21, 50, 1):  # batches of all, of 7 samples, of 1
        monkeypatch.setattr(prediction, "_RANKED", ranked)
        output = tmp_path / f"{ranked}.npz"
        found = evaluate(model, data, ks=KS, a=0.6, b=2.6, predictions=output)
        assert found == pytest.approx({**whole.result(), "unknown_labels": 0})
        assert np.load(output)["idx"].tolist() == ids.tolist()
    assert 0.3 < found["P@1"] < 1


def test_a_store_is_as_good_as_its_file(model: Model, data: Path, tmp_path: Path) -> None:
    convert(data, tmp_path / "store")
    assert evaluate(model, tmp_path / "store", ks=KS) == evaluate(model, data, ks=KS)


def test_jobs_and_estimators(model: Model, data: Path) -> None:
    assert evaluate(model, data, ks=KS, jobs=3) == evaluate(model, data, ks=KS)
    assert evaluate(model, data, ks=KS, estimator="min") != evaluate(model, data, ks=KS)
    with pytest.raises(SettingError, match="estimator"):
        evaluate(model, data, estimator="best")


def test_unknown_labels(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_text("0,77,88 0:1 1:1 2:1\n1 4:1 5:1 6:1\n")
    with pytest.raises(DataError, match="line 1: the label 77 is unknown"):
        evaluate(model, tmp_path / "a.svm", unknown_labels="error")
    found = evaluate(model, tmp_path / "a.svm", ks=(1, 20))
    assert (found["unknown_labels"], found["n_samples"]) == (2, 2)
    assert found["R@20"] == pytest.approx((1 / 3 + 1) / 2)
    with pytest.raises(SettingError, match="'unknown_labels'"):
        evaluate(model, tmp_path / "a.svm", unknown_labels="ignore")


def test_parameters_out_of_bounds(model: Model, data: Path, tmp_path: Path) -> None:
    for wrong in ({"ks": ()}, {"ks": (0,)}, {"a": -1.0}, {"b": 0.0}):
        with pytest.raises(SettingError):
            evaluate(model, data, predictions=tmp_path / "p.npz", **wrong)
    assert os.listdir(tmp_path) == []


def test_predictions_that_exist_are_refused_before_anything_is_read(model: Model, tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        evaluate(model, tmp_path / "no such data", predictions=tmp_path / "p.npz")
    assert (tmp_path / "p.npz").read_bytes() == b"precious"


def test_no_predictions_of_a_failed_evaluation(model: Model, data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_text(data.read_text() + "0 1:nan\n")
    with pytest.raises(DataError, match="line 61"):
        evaluate(model, tmp_path / "a.svm", predictions=tmp_path / "p.npz")
    assert os.listdir(tmp_path) == ["a.svm"]


def test_samples_are_checked_to_the_end(data: Path, tmp_path: Path) -> None:
    check_samples(data)
    (tmp_path / "a.svm").write_text(data.read_text() + "0 1:nan\n")
    with pytest.raises(DataError, match="line 61"):
        check_samples(tmp_path / "a.svm")
    with pytest.raises(DataError, match="no such file"):
        check_samples(tmp_path / "none")
    (tmp_path / "a.csv").write_text("text,labels\na,b\n")
    check_samples(tmp_path / "a.csv")
    with pytest.raises(DataError, match="'tags'"):
        check_samples(tmp_path / "a.csv", ReadOptions(label_column="tags"))
    convert(data, tmp_path / "store")
    check_samples(tmp_path / "store")
    (tmp_path / "store" / "features.values.bin").write_bytes(b"")
    with pytest.raises(DataError, match="not a complete converted store"):
        check_samples(tmp_path / "store")
