"""The road of a new user, from train to convert; numbers are checked against plain Python."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from cli_tools import Program, spawn, text_samples, write_jsonl
from machxc.model import Model


def of_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_train_prints_settings_with_reasons_and_the_next_command(machxc: Program, files: Path, tmp_path: Path) -> None:
    done = machxc("train", files / "train.jsonl", "--output", tmp_path / "m", "--seed", 3, "--epochs", 4)
    assert (done.code, done.out) == (0, "")
    assert "epochs" in done.err
    assert "as asked" in done.err
    assert "samples have up to 2 labels" in done.err
    assert "400 samples" in done.err
    assert f"next   machxc query {tmp_path / 'm'} " in done.err
    model = Model.load(tmp_path / "m")
    assert (model.config.seed, model.config.epochs) == (3, 4)


def test_train_with_json_and_test(machxc: Program, files: Path, tmp_path: Path) -> None:
    output, test = tmp_path / "m", files / "test.jsonl"
    done = machxc("train", files / "train.jsonl", "--output", output, "--test", test, "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.json["model"] == str(output)
    assert done.json["bytes"] == sum(file.stat().st_size for file in output.iterdir())
    assert done.json["plan"]["config"] == json.loads(json.dumps(Model.load(output).config.to_dict()))
    assert done.json["test"] == machxc("evaluate", output, test, "--json").json
    assert done.json["test"]["P@1"] > 0.9


def test_train_with_test_prints_the_table_of_evaluate(machxc: Program, files: Path, tmp_path: Path) -> None:
    output, test = tmp_path / "m", files / "test.jsonl"
    done = machxc("train", files / "train.jsonl", "--output", output, "--test", test)
    assert done.out == machxc("evaluate", output, test).out != ""


def test_same_seed_same_bytes_for_any_jobs(machxc: Program, files: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        assert machxc("train", files / "train.xmc", "--output", tmp_path / str(jobs), "--jobs", jobs).code == 0
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()


def test_weights_may_be_counted(machxc: Program, files: Path, tmp_path: Path) -> None:
    test = files / "test.jsonl"
    counted = (files / "train.jsonl", "--learner", "counts", "--smoothing", 2, "--words", 1, "--chars", "2-3", "--fold")
    for jobs in (1, 2):
        done = machxc("train", *counted, "--output", tmp_path / str(jobs), "--test", test, "--jobs", jobs, "--json")
        assert done.code == 0, done.err
        config = done.json["plan"]["config"]
        assert (config["learner"], config["smoothing"], config["repetitions"]) == ("counts", 2.0, 1)
        assert done.json["test"]["P@1"] > 0.8
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()
    assert machxc("info", tmp_path / "1", "--json").json["config"]["learner"] == "counts"
    assert machxc("query", tmp_path / "1", "w3a W3b wé3c", "--json").json["labels"][0] == "topic 03"
    assert machxc("evaluate", tmp_path / "1", test, "--json").json == done.json["test"]
    assert machxc("predict", tmp_path / "1", test, "--output", tmp_path / "p.jsonl").code == 0
    refused = machxc("train", *counted, "--output", tmp_path / "no", "--epochs", 3)
    assert refused.code != 0
    assert "'epochs' needs learner='gradient'" in refused.err


def test_settings_of_a_file_are_overridden_by_options(machxc: Program, files: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('epochs = 2\nloss = "softmax"\nseed = 5\nidf = false\n')
    options = ("--config", tmp_path / "settings.toml", "--epochs", 3, "--loss", "auto", "--words", 1, "--chars", "2-3")
    assert machxc("train", files / "train.jsonl", "--output", tmp_path / "m", *options).code == 0
    config = Model.load(tmp_path / "m").config
    assert (config.epochs, config.loss, config.seed, config.idf) == (3, "bce", 5, False)
    assert config.text is not None
    assert (config.text.words, config.text.chars_min, config.text.chars_max) == (1, 2, 3)


def test_evaluate_agrees_with_plain_python(machxc: Program, files: Path, tmp_path: Path) -> None:
    rankings = tmp_path / "p.npz"
    done = machxc("evaluate", files / "texts", files / "test.jsonl", "--k", "1,3", "--json", "--predictions", rankings)
    model = Model.load(files / "texts")
    truth = [set(model.names.ids_of(sample["labels"]).tolist()) for sample in of_jsonl(files / "test.jsonl")]
    idx = np.load(rankings)["idx"]
    assert idx.shape == (80, 3)
    for k in (1, 3):
        hits = [[label in labels for label in row[:k]] for row, labels in zip(idx.tolist(), truth, strict=True)]
        ideal = [sum(1 / math.log2(j + 2) for j in range(min(k, len(labels)))) for labels in truth]
        gain = [sum(hit / math.log2(j + 2) for j, hit in enumerate(row)) for row in hits]
        assert done.json[f"P@{k}"] == pytest.approx(np.mean([sum(row) / k for row in hits]))
        assert done.json[f"R@{k}"] == pytest.approx(
            np.mean([sum(row) / len(labels) for row, labels in zip(hits, truth, strict=True)])
        )
        assert done.json[f"nDCG@{k}"] == pytest.approx(np.mean(np.array(gain) / np.array(ideal)))
    assert done.json["n_samples"] == 80


def test_evaluate_prints_percent(machxc: Program, files: Path) -> None:
    found = machxc("evaluate", files / "numbers", files / "test.xmc", "--k", "1,5", "--json").json
    shown = machxc("evaluate", files / "numbers", files / "test.xmc", "--k", "5,1").out.splitlines()
    assert shown[0].split() == ["k", "P@k", "R@k", "nDCG@k", "PSP@k"]
    assert shown[1].split() == ["1", *(f"{100 * found[f'{metric}@1']:.2f}" for metric in ("P", "R", "nDCG", "PSP"))]
    assert shown[2].split() == ["5", *(f"{100 * found[f'{metric}@5']:.2f}" for metric in ("P", "R", "nDCG", "PSP"))]
    assert "50 samples" in shown[-1]


def test_propensities_change_psp_only(machxc: Program, files: Path) -> None:
    default = machxc("evaluate", files / "texts", files / "test.jsonl", "--json", "--k", 1).json
    other = machxc("evaluate", files / "texts", files / "test.jsonl", "--json", "--k", 1, "--propensity-a", 2).json
    assert {name for name in default if default[name] != other[name]} == {"PSP@1"}


def test_predictions_are_the_same_in_all_formats(machxc: Program, files: Path, tmp_path: Path) -> None:
    for ending in ("jsonl", "npz", "parquet"):
        done = machxc(
            "predict",
            files / "texts",
            files / "test.jsonl",
            "--output",
            tmp_path / f"p.{ending}",
            "--top-k",
            4,
            "--json",
        )
        assert (done.code, done.json["n_samples"]) == (0, 80)
    rows = of_jsonl(tmp_path / "p.jsonl")
    assert parquet.read_table(tmp_path / "p.parquet").to_pydict()["labels"] == [row["labels"] for row in rows]
    arrays = np.load(tmp_path / "p.npz")
    names = dict(zip(arrays["label_ids"].tolist(), arrays["label_names"].tolist(), strict=True))
    assert [[names[i] for i in row] for row in arrays["idx"].tolist()] == [row["labels"] for row in rows]
    assert arrays["scores"].tolist() == np.array([row["scores"] for row in rows], np.float32).tolist()


@pytest.mark.parametrize("bound", [("--budget", 10**9), ("--deadline", 1000)])
def test_predictions_in_bounded_time(machxc: Program, files: Path, tmp_path: Path, bound: tuple[str, float]) -> None:
    output = tmp_path / "p.jsonl"
    assert machxc("predict", files / "texts", files / "test.jsonl", "--output", output, *bound).code == 0
    assert all(isinstance(json.loads(line)["proven"], bool) for line in output.read_text().splitlines())


def test_query_gives_what_predict_gives(machxc: Program, files: Path, tmp_path: Path) -> None:
    texts = [sample["text"] for sample in of_jsonl(files / "test.jsonl")]
    machxc("predict", files / "texts", files / "test.jsonl", "--output", tmp_path / "p.jsonl", "--top-k", 3)
    bulk = of_jsonl(tmp_path / "p.jsonl")
    asked = machxc("query", files / "texts", *texts, "--json", "--top-k", 3)
    piped = machxc("query", files / "texts", "-", "--json", "--top-k", 3, stdin="\n".join(texts).encode())
    implied = machxc("query", files / "texts", "--json", "--top-k", 3, stdin="\r\n".join(texts).encode() + b"\n")
    assert asked.lines == [{"text": text, **answer} for text, answer in zip(texts, bulk, strict=True)]
    assert asked.out == piped.out == implied.out


def test_query_for_people(machxc: Program, files: Path) -> None:
    one = machxc("query", files / "texts", "w3a w3b", "--top-k", 2)
    score, label = one.out.splitlines()[0].split(maxsplit=1)
    assert label == "topic 03"
    assert 0.5 < float(score) <= 1
    assert len(one.out.splitlines()) == 2
    two = machxc("query", files / "texts", "w3a w3b", "w\x1b[31m5a", "--top-k", 1).out.splitlines()
    assert two[:2] == ["w3a w3b", one.out.splitlines()[0]]
    assert two[2:4] == ["", r"w\x1b[31m5a"]


def test_candidates_restrict_the_answer(machxc: Program, files: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("topic 07\ntopic 05\n")
    options = ("--candidates", tmp_path / "few.txt", "--json")
    assert machxc("query", files / "texts", "w3a w7a", *options).json["labels"] == ["topic 07", "topic 05"]
    output = tmp_path / "p.jsonl"
    assert machxc("predict", files / "texts", files / "test.jsonl", "--output", output, *options).code == 0
    assert all(sorted(row["labels"]) == ["topic 05", "topic 07"] for row in of_jsonl(output))


def test_estimator_can_be_chosen_at_query_time(machxc: Program, files: Path) -> None:
    default = machxc("query", files / "texts", "w3a", "--json").json
    other = machxc("query", files / "texts", "w3a", "--json", "--estimator", "logit").json
    assert default["labels"][0] == other["labels"][0] == "topic 03"
    assert default["scores"] != other["scores"]


def test_info(machxc: Program, files: Path) -> None:
    found = machxc("info", files / "texts", "--json").json
    assert (found["n_samples"], found["n_labels"], found["label_names"]) == (400, 30, "strings")
    assert found["n_repetitions"] == found["config"]["repetitions"]
    shown = machxc("info", files / "texts").out
    assert "400" in shown
    assert "30 (strings), 30 of them seen" in shown
    assert "40, numeric" in machxc("info", files / "numbers").out


def test_plan_is_what_train_does_and_writes_nothing(machxc: Program, files: Path, tmp_path: Path) -> None:
    before = sorted(files.rglob("*"))
    planned = machxc("plan", files / "train.jsonl", "--epochs", 2, "--json").json
    assert sorted(files.rglob("*")) == before
    trained = machxc("train", files / "train.jsonl", "--output", tmp_path / "m", "--epochs", 2, "--json").json["plan"]
    assert planned == trained
    shown = machxc("plan", files / "train.jsonl", "--epochs", 2).out
    assert all(reason in shown for reason in planned["reasons"].values())


def test_a_store_gives_the_model_that_its_file_gives(machxc: Program, files: Path, tmp_path: Path) -> None:
    done = machxc("convert", files / "train.jsonl", tmp_path / "store", "--json")
    assert (done.json["n_samples"], done.json["n_labels"]) == (400, 30)
    assert f"next     machxc train {tmp_path / 'two'}" in machxc("convert", files / "train.jsonl", tmp_path / "two").err
    assert machxc("train", tmp_path / "store", "--output", tmp_path / "m").code == 0
    for file in (files / "texts").iterdir():
        assert file.read_bytes() == (tmp_path / "m" / file.name).read_bytes()
    found = machxc("evaluate", tmp_path / "m", tmp_path / "store", "--json").json
    assert found == machxc("evaluate", tmp_path / "m", files / "train.jsonl", "--json").json


def test_standard_input_is_a_file_like_others(files: Path, tmp_path: Path) -> None:
    data, test = (files / "train.jsonl").read_bytes(), (files / "test.jsonl").read_bytes()
    assert spawn("train", "-", "--output", tmp_path / "m", "--quiet", stdin=data).code == 0
    for file in (files / "texts").iterdir():
        assert file.read_bytes() == (tmp_path / "m" / file.name).read_bytes()
    found = spawn("evaluate", tmp_path / "m", "-", "--json", stdin=test)
    assert found.out == spawn("evaluate", tmp_path / "m", files / "test.jsonl", "--json").out
    assert spawn("predict", tmp_path / "m", "-", "--output", tmp_path / "p.jsonl", stdin=test).code == 0
    assert len(of_jsonl(tmp_path / "p.jsonl")) == 80


def test_named_integer_labels(machxc: Program, tmp_path: Path) -> None:
    samples = text_samples(200, 7)
    names = sorted({label for sample in samples for label in sample["labels"]})
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    numbered = [{**sample, "labels": [names.index(label) for label in sample["labels"]]} for sample in samples]
    data = write_jsonl(tmp_path / "numbered.jsonl", numbered)
    named = ("--label-names", tmp_path / "names.txt")
    assert machxc("train", data, "--output", tmp_path / "m", *named).code == 0
    assert machxc("query", tmp_path / "m", "w3a w3b", "--json").json["labels"][0] == "topic 03"
    assert machxc("evaluate", tmp_path / "m", data, *named, "--json").json["P@1"] > 0.9
    assert machxc("predict", tmp_path / "m", data, "--output", tmp_path / "p.npz").code == 0


def test_tables_with_named_columns(machxc: Program, tmp_path: Path) -> None:
    samples = text_samples(200, 8)
    rows = [f"{s['text']},x,{'|'.join(s['labels'])}" for s in samples]
    (tmp_path / "a.csv").write_text("\n".join(["title,body,tags", *rows]) + "\n")
    columns = ("--text-column", "title", "--text-column", "body")
    labels = ("--label-column", "tags", "--label-separator", "|")
    assert machxc("train", tmp_path / "a.csv", "--output", tmp_path / "m", *columns, *labels).code == 0
    assert machxc("evaluate", tmp_path / "m", tmp_path / "a.csv", *columns, *labels, "--json").json["P@1"] > 0.9
    assert machxc("predict", tmp_path / "m", tmp_path / "a.csv", "--output", tmp_path / "p.npz", *columns).code == 0
