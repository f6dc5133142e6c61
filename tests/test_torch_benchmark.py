"""The benchmark of devices runs to its end on a processor, whatever the numbers are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from torch_tools import torch

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def test_it_measures_every_part_and_writes_it_down(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--device", "cpu", "--output", str(tmp_path / "gpu.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command], env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["missing"] == []
    assert result["torch"] == torch.__version__
    stages = {stage["stage"]: stage["ms"] for stage in result["stages"]}
    assert len(stages) == 9
    assert all(ms > 0 for ms in stages.values())
    assert all(row["samples/s"] > 0 for row in [*result["steps"], *result["epoch"]])
    assert all(row["ms"] > 0 for row in result["retrieval"])


def test_without_time_it_says_what_is_missing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARK),
        "--device",
        "cpu",
        "--seconds",
        "0",
        "--output",
        str(tmp_path / "x.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "product: no time" in json.loads((tmp_path / "x.json").read_text())["missing"]
