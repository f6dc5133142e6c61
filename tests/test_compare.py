"""The scoreboard of benchmarks/compare: its metrics, its files, its limits, its tables; two methods from end to end."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cli_tools import write_jsonl
from machxc.evaluation import evaluate
from machxc.model import Model

COMPARE = Path(__file__).resolve().parents[1] / "benchmarks" / "compare"
sys.path[:0] = [str(COMPARE), str(COMPARE.parent)]

import context  # noqa: E402
import export  # noqa: E402
import metrics  # noqa: E402
import ours  # noqa: E402
import report  # noqa: E402


def matrix(rows: list[list[int]], width: int) -> Any:
    return export.csr([sorted(row) for row in rows], None, width)


def oracle(ids: list[list[int]], truth: list[list[int]], counts: list[int], n_samples: int, k: int) -> dict[str, float]:
    """P@k, PSP@k and R@k, sample by sample, as they are defined."""
    c = (math.log(n_samples) - 1) * (1.5 + 1) ** 0.55
    gain = [1 + c * (count + 1.5) ** -0.55 for count in counts]
    found = [set(ranked[:k]) & set(true) for ranked, true in zip(ids, truth, strict=True)]
    best = sum(sum(sorted((gain[label] for label in true), reverse=True)[:k]) for true in truth)
    recalls = [len(hit) / len(true) for hit, true in zip(found, truth, strict=True) if true]
    return {
        f"P@{k}": sum(map(len, found)) / (k * len(ids)),
        f"PSP@{k}": sum(gain[label] for hit in found for label in hit) / best if best else 0.0,
        f"R@{k}": sum(recalls) / len(recalls) if recalls else 0.0,
    }


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int], int]:
    """Ranked ids, true labels, training counts of the labels, and how many labels the training set has."""
    n_labels = draw(st.integers(2, 12))
    n_known = draw(st.integers(1, n_labels))
    n = draw(st.integers(1, 5))
    ids = [draw(st.permutations(range(n_known))) for _ in range(n)]
    truth = [sorted(draw(st.sets(st.integers(0, n_labels - 1), max_size=4))) for _ in range(n)]
    counts = draw(st.lists(st.integers(0, 50), min_size=n_known, max_size=n_known))
    return ids, truth, counts, n_labels


@given(rankings())
def test_metrics_are_those_of_the_definition(drawn: tuple[list[list[int]], list[list[int]], list[int], int]) -> None:
    ids, truth, counts, n_labels = drawn
    found = metrics.metrics(np.array(ids, np.int32), matrix(truth, n_labels), np.array(counts), 1000)
    padded = counts + [0] * (n_labels - len(counts))
    expected: dict[str, float] = {}
    for k in (1, 3, 5, 10, 100):
        expected |= oracle(ids, truth, padded, 1000, k)
    assert found == pytest.approx({name: expected[name] for name in metrics.METRICS})


def test_metrics_deeper_than_the_ranking_are_none() -> None:
    found = metrics.metrics(np.array([[1]], np.int32), matrix([[1]], 3), np.array([1, 1, 1]), 1000, depth=1)
    assert (found["P@1"], found["PSP@1"], found["P@3"], found["R@10"]) == (1.0, 1.0, None, None)


TRAIN: list[dict[str, Any]] = [
    {"text": "red apple", "labels": ["fruit", 7]},
    {"text": "?", "labels": ["fruit"]},  # no feature
    {"text": "green tree", "labels": []},
    {"text": "green apple tree", "labels": [7, "plant"]},
]
TEST: list[dict[str, Any]] = [{"text": "red tree", "labels": ["plant", "new"]}, {"text": "unheard of", "labels": []}]


def test_texts_are_exported_with_label_ids_and_without_samples_that_say_nothing(tmp_path: Path) -> None:
    train, test = write_jsonl(tmp_path / "train.jsonl", TRAIN), write_jsonl(tmp_path / "test.jsonl", TEST)
    export.export(train, test, tmp_path / "data")
    ctx = context.Context(tmp_path / "data", tmp_path, {}, 2, 900)
    assert json.loads((ctx.data / "labels.json").read_text()) == ["fruit", "7", "plant"]
    assert ctx.labels("train").toarray().tolist() == [[1, 1, 0], [0, 1, 1]]
    assert sp.load_npz(ctx.data / "test_labels.npz").toarray().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert np.load(ctx.data / "label_counts.npy").tolist() == [2, 2, 1]
    assert ctx.texts("train") == ["red apple", "green apple tree"]
    assert np.diff(ctx.features("test").indptr).tolist() == [2, 0]
    expected = {"kind": "texts", "n_samples": 4, "n_train": 2, "n_test": 2, "n_labels": 3, "n_train_labels": 4}
    assert ctx.facts == {**expected, "n_features": 4, "one_label": False}


def test_names_are_exported_as_their_characters(tmp_path: Path) -> None:
    train, test = write_jsonl(tmp_path / "train.jsonl", TRAIN), write_jsonl(tmp_path / "test.jsonl", TEST)
    export.export(train, test, tmp_path / "data", names=True)
    ctx = context.Context(tmp_path / "data", tmp_path, {}, 2, 900)
    assert ctx.facts["kind"] == "names"
    assert ctx.features("train").shape == (3, ctx.facts["n_features"])  # "?" is a character
    assert ctx.facts["n_features"] > 20


@given(st.lists(st.lists(st.integers(0, 7), unique=True, max_size=4), max_size=6), st.data())
def test_xmc_files_come_back_as_they_were(labels: list[list[int]], data: st.DataObject) -> None:
    value = st.floats(2**-10, 2**10, width=16)
    rows = [data.draw(st.dictionaries(st.integers(0, 9), value, max_size=5)) for _ in labels]
    columns = [sorted(row) for row in rows]
    values = [[row[i] for i in own] for row, own in zip(rows, columns, strict=True)]
    part = export.Part(export.csr(columns, values, 10), matrix(labels, 8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.txt")
        export.write_xmc(path, part)
        back = export.read_xmc(path)
    assert np.allclose(back.features.toarray(), part.features.toarray(), rtol=1e-5)
    assert (back.labels.toarray() == part.labels.toarray()).all()


# A process of its own: pytest holds more memory than what it would measure, which the runner refuses.
RUN = """
import json, sys
from pathlib import Path
import runner
limits = runner.Limits(*map(float, sys.argv[3:]))
print(json.dumps(vars(runner.run([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]), limits))))
"""
HOLD = "held = bytearray(b'x') * 60_000_000\n"  # more than the runner itself


def run(
    program: str, folder: Path, seconds: float = 60, memory: float = 1e9, cpu_seconds: float = math.inf
) -> dict[str, Any]:
    command = [sys.executable, "-c", RUN, HOLD + program, str(folder / "log")]
    command += map(str, (seconds, memory, cpu_seconds))
    done = subprocess.run(command, cwd=COMPARE, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_a_process_took_is_told(tmp_path: Path) -> None:
    found = run("print(sum(range(10_000_000)))", tmp_path)
    assert found["status"] == "ok"
    assert 60e6 < found["peak_bytes"] < 200e6
    assert 0 < found["cpu_seconds"] < 60
    assert (tmp_path / "log").read_text() == "49999995000000\n"


def test_a_process_that_fails_tells_why(tmp_path: Path) -> None:
    found = run("raise ValueError('no such thing')", tmp_path)
    assert (found["status"], found["why"]) == ("failed", "exit code 1: ValueError: no such thing")


def test_a_process_is_killed_at_its_time_limit_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = f"""
import pathlib, subprocess, sys, time
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(child)!r}).write_text(str(started.pid))
time.sleep(600)
"""
    found = run(program, tmp_path, seconds=2)
    assert (found["status"], found["why"]) == ("out of time", "limit of 2 s")
    assert 2 <= found["wall_seconds"] < 30
    assert found["peak_bytes"] > 60e6
    assert ended(int(child.read_text()))


def ended(pid: int) -> bool:
    try:
        psutil.wait_procs([psutil.Process(pid)], timeout=10)
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)  # nobody is there to ask for how it ended
    except psutil.NoSuchProcess:
        return True


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell what is resident")
def test_a_process_is_killed_at_its_memory_limit(tmp_path: Path) -> None:
    found = run("import time\nmore = bytearray(b'x') * 200_000_000\ntime.sleep(600)", tmp_path, memory=150e6)
    assert (found["status"], found["why"]) == ("out of memory", "limit of 0.15 GB")
    assert found["peak_bytes"] > 150e6


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell what processes took")
def test_a_process_is_killed_at_its_limit_of_processor_time(tmp_path: Path) -> None:
    found = run("while True: pass", tmp_path, seconds=100, cpu_seconds=1)
    assert (found["status"], found["why"]) == ("out of CPU time", "limit of 1 CPU s")
    assert 1 <= found["cpu_seconds"] < 50
    idle = run("import time\ntime.sleep(2)", tmp_path, cpu_seconds=1)
    assert idle["status"] == "ok"


def exported(files: Path, kind: str, folder: Path) -> Path:
    suffix = ".jsonl"
    if kind == "numbers":
        suffix = ".txt"
        for part in ("train", "test"):
            shutil.copy(files / f"{part}.xmc", folder / f"{part}.txt")
    source = files if kind == "texts" else folder
    export.export(source / f"train{suffix}", source / f"test{suffix}", folder / "data")
    return source / f"test{suffix}"


@pytest.mark.parametrize("kind", ["texts", "numbers"])
def test_our_answers_score_as_machxc_itself_says(files: Path, tmp_path: Path, kind: str) -> None:
    test = exported(files, kind, tmp_path)
    shutil.copytree(files / kind, tmp_path / "model")
    ctx = context.Context(tmp_path / "data", tmp_path, {"test": str(test)}, 2, 900)
    ids = ours.predict(ctx)
    truth, counts = sp.load_npz(ctx.data / "test_labels.npz"), np.load(ctx.data / "label_counts.npy")
    found = metrics.metrics(ids, truth, counts, ctx.facts["n_samples"])
    expected = evaluate(Model.load(files / kind), test)
    assert found == pytest.approx({name: expected[name] for name in metrics.METRICS})
    assert set(ctx.notes) == {"load_s", "predict_s", "single_ms"}


def test_a_peer_learns_and_answers_in_processes_of_its_own(files: Path, tmp_path: Path) -> None:
    exported(files, "texts", tmp_path)
    for phase in ("train", "predict"):
        places = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--packages", "numpy"]
        subprocess.run([sys.executable, str(COMPARE / "worker.py"), phase, "peers.centroid", *places], check=True)
    truth = sp.load_npz(tmp_path / "data" / "test_labels.npz")
    found = metrics.metrics(np.load(tmp_path / "work" / "ids.npy"), truth, np.ones(truth.shape[1]), 400)
    assert found["P@1"] is not None
    assert found["P@1"] > 0.9
    noted = json.loads((tmp_path / "work" / "predict.json").read_text())
    assert noted["status"] == "ok"
    assert noted["versions"] == {"numpy": np.__version__}
    assert noted["single_ms"] > 0


FACTS = {
    "kind": "texts", "n_samples": 12_404, "n_train": 12_404, "n_test": 3_000, "n_features": 7_819, "n_labels": 735,
    "n_train_labels": 28_604,
}  # fmt: skip
COMMON = {
    "facts": FACTS, "threads": 2, "when": "2026-01-02 03:04", "machine": "a machine", "load_before": 0.5,
    "limits": {"seconds": 900, "memory_bytes": 16e9}, "prepare_cpu_s": 2.0,
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {
        **COMMON, "method": "machxc", "family": "machxc", "status": "ok", "why": "", "versions": {"machxc": "0.1.0"},
        "train_cpu_s": 1.5, "train_wall_s": 1.0, "train_peak_bytes": 191e6, "model_bytes": 8.2e6, "load_s": 0.012,
        "predict_s_per_1000": 0.024, "predict_peak_bytes": 2e8, "single_ms": 0.35,
        **dict.fromkeys(report.METRICS, 0.7143),
    },
    {
        **COMMON, "method": "torch-ova", "family": "torch-ova", "status": "out of time",
        "why": "2% of an epoch in 900 s",
        "train_cpu_s": 1700.0, "train_wall_s": 900.0, "train_peak_bytes": 5e9, "train_cpu_s_computed": 85_000.0,
        "versions": {"torch": "2.13.0"},
    },
    {**COMMON, "method": "torch-moe", "family": "torch-moe", "status": "skipped", "why": "cannot be installed"},
]  # fmt: skip


def write_rows(folder: Path) -> Path:
    (folder / "cooking_se").mkdir(parents=True)
    for row in ROWS:
        (folder / "cooking_se" / f"{row['method']}.json").write_text(json.dumps(row))
    return folder


def test_the_report_shows_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    text = report.report(report.read_rows(write_rows(tmp_path / "results")))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["machxc", *["71.43"] * 8] in cells
    assert ["machxc", "1.5", "1.0", "2.0", "191", "8.2", "12", "0.024", "200", "0.35", "0.5"] in cells
    assert ["torch-ova", "1,700.0", "900.0", "2.0", "5,000", "-", "-", "-", "-", "-", "0.5"] in cells
    assert "- torch-ova: out of time: 2% of an epoch in 900 s; training would take 85,000 CPU s (computed)" in text
    assert "- torch-moe: skipped: cannot be installed" in text
    assert "12,404 training and 3,000 test samples (texts), 735 labels (2.31 a sample)" in text
    assert "2026-01-02 on a machine; 2 threads. Limits are named" in text


def test_the_report_is_written_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- begin results -->\nold\n<!-- end results -->\nafter\n")
    report.write(document, "new \\1")
    assert document.read_text() == "before\n<!-- begin results -->\nnew \\1\n<!-- end results -->\nafter\n"
    document.write_text("no marks")
    with pytest.raises(RuntimeError, match="has no place for results"):
        report.write(document, "new")


def test_a_line_of_a_plot_goes_from_the_cheapest_setting_on() -> None:
    rows = [
        {"family": "a", "train_cpu_s": 3.0, "P@1": 0.5},
        {"family": "b", "train_cpu_s": 2.0, "P@1": 0.4},
        {"family": "a", "train_cpu_s": 1.0, "P@1": 0.25},
    ]
    assert report.curves(rows, "train_cpu_s", 1.0) == {"a": ([1.0, 3.0], [25.0, 50.0]), "b": ([2.0], [40.0])}
