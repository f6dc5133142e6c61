"""The benchmark of devices runs to its end on a processor, whatever the numbers are, and whatever goes wrong."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from torch_tools import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
PARTS = ["ceilings", "stages", "steps", "epoch", "retrieval"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module, whose measurements take hardly any time."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "LEAST", {"cpu": 0.0})
    return module


def measured(gpu: Any, folder: Path, *, seconds: float = 300.0, run: Any = None) -> dict[str, Any]:
    """All parts, in this process, or as ``run`` says."""

    def here(name: str, device: str, budget: float, output: Path) -> str:
        gpu.measure_part(name, device, budget, output)
        return ""

    found: dict[str, Any] = gpu.measure("cpu", seconds, folder / "gpu.json", run or here)
    assert json.loads((folder / "gpu.json").read_text()) == found
    assert [path.name for path in folder.iterdir()] == ["gpu.json"]
    return found


def test_it_measures_every_part_and_writes_it_down(gpu: Any, tmp_path: Path) -> None:
    result = measured(gpu, tmp_path)
    assert result["missing"] == []
    assert result["torch"] == torch.__version__
    assert result["kernels"] == "plain PyTorch"
    stages = {stage["stage"]: stage["ms"] for stage in result["stages"]}
    assert len(stages) == 9
    assert all(ms > 0 for ms in stages.values())
    assert all(row["samples/s"] > 0 for row in [*result["steps"], *result["epoch"]])
    assert all(row["ms"] > 0 for row in result["retrieval"])


def test_without_time_it_says_what_is_missing(gpu: Any, tmp_path: Path) -> None:
    result = measured(gpu, tmp_path, seconds=0.0)
    assert "product: no time" in result["missing"]
    assert len(result["missing"]) > 20
    assert all(name in result for name in PARTS)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "no memory"),
        (RuntimeError("CUDA error: illegal access\nMore of it."), "RuntimeError: CUDA error: illegal access"),
        (KeyError(), "KeyError: no reason given"),
    ],
)  # fmt: skip
def test_a_stage_that_fails_is_noted_and_the_others_go_on(
    error: Exception, said: str, gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(gpu, "gradient_", fail)
    result = measured(gpu, tmp_path)
    assert result["missing"] == [f"loss: {said}"]
    stages = {stage["stage"]: stage["ms"] for stage in result["stages"]}
    assert stages.pop("loss") is None
    assert all(ms > 0 for ms in stages.values())


@pytest.mark.parametrize("owner", ["group", "made", "partition_of", "matrix_dtype", "batches", "top_k"])
def test_whatever_fails_the_other_parts_are_measured(
    owner: str, gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("it does not work")

    monkeypatch.setattr(gpu, owner, fail)
    result = measured(gpu, tmp_path)
    assert result["missing"]
    assert all(missing.endswith("RuntimeError: it does not work") for missing in result["missing"])
    assert any(row.get("ms") or row.get("memory GB/s") for name in PARTS for row in result[name])


def test_a_process_that_dies_leaves_what_it_had_found(gpu: Any, tmp_path: Path) -> None:
    def run(name: str, device: str, budget: float, output: Path) -> str:
        if name == "steps":
            known = json.loads(output.read_text())
            gpu.write(output, {**known, "steps": [{"n": 64}]})
            return "ended with exit code -11"
        gpu.measure_part(name, device, budget, output)
        return ""

    result = measured(gpu, tmp_path, run=run)
    assert result["missing"] == ["steps: ended with exit code -11"]
    assert result["steps"] == [{"n": 64}]
    assert len(result["retrieval"]) == 4


def test_parts_are_processes_that_are_ended_when_they_hang(gpu: Any, tmp_path: Path, capfd: Any) -> None:
    output = tmp_path / "gpu.json"
    gpu.write(output, {"missing": []})
    assert gpu.in_a_process("ceilings", "cpu", 60.0, output) == ""
    assert json.loads(output.read_text())["ceilings"][0]["TFLOP/s"] > 0
    assert gpu.in_a_process("ceilings", "cpu", 0.01 - gpu.GRACE, output) == "ended after 0 s"
    output.write_text("nothing")
    assert gpu.in_a_process("ceilings", "cpu", 60.0, output) == "ended with exit code 1"


def test_the_parts_share_the_time_and_what_one_leaves(gpu: Any, tmp_path: Path) -> None:
    given: dict[str, float] = {}

    def run(name: str, device: str, budget: float, output: Path) -> str:
        given[name] = budget
        return ""

    measured(gpu, tmp_path, seconds=480.0, run=run)
    assert given["ceilings"] == pytest.approx(48, abs=2)
    assert given["retrieval"] == pytest.approx(480, abs=5)
    assert list(given) == PARTS
