"""What benchmarks/head_to_head.py computes of what it measured."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
head_to_head = importlib.import_module("head_to_head")


def row(*points: tuple[float, float, float, float], n_samples: int = 1000) -> dict[str, Any]:
    facts = {"parameters": 10, "peak_bytes": 10**9, "device_bytes": 0, "answer_seconds": 0.5}
    return {"status": "ok", "why": "", "points": points, "n_samples": n_samples, **facts}


MEASURED = {
    10: {"ova": row((1, 2, 100, 0.1), (2, 4, 200, 0.35))},
    100: {"ova": row((1, 2, 300, 0.1), (4, 8, 800, 0.31))},
    1000: {"ova": row((10, 20, 50, 0.1)), "moe": row((10, 20, 10_000, 0.1))},
}


def test_a_level_is_measured_or_computed_or_neither() -> None:
    def cell(level: float, k: int, method: str = "ova", clock: int = 1) -> str:
        return str(head_to_head.to_level(level, k, method, MEASURED, clock))

    assert cell(0.2, 10) == "4.0"
    assert cell(0.2, 10, clock=0) == "2.0"
    assert cell(0.35, 100) == ">8"  # one smaller size says nothing of how it grows
    assert cell(0.3, 1000) == "~1,280"  # 200, 800, and so 3200 samples, at 50 in 20 s
    assert cell(0.3, 1000, "moe") == "-"  # after all epochs


def test_the_table_of_a_size() -> None:
    text = head_to_head.size(1000, MEASURED, on_gpu=False)
    assert text.startswith("**K = 1,000**, 30,000 training samples")
    assert "| ova " in text
    too_large = {10: {"mach": {"status": "too large", "why": "12 GB"}}}
    assert "too large: 12 GB" in head_to_head.size(10, too_large, on_gpu=False)


@pytest.mark.parametrize("method", head_to_head.METHODS)
def test_counts_weights(method: str) -> None:
    assert (
        head_to_head.parameters(10_000, method)
        == {
            "ova": 65_537 * 128 + 10_000 * 129,
            "moe": 65_537 * 128 + 10_000 * 129,
            "mach": 8 * 65_537 * 128 + 6400 * 129,
            "mach-shared": 65_537 * 128 + 6400 * 129,
            "mach-shared-16x4": 65_537 * 128 + 6400 * 129,
            "mach-shared-8x2": 65_537 * 128 + 1600 * 129,
            "mach-shared-4x4": 65_537 * 128 + 1600 * 129,
        }[method]
    )


def test_a_device_without_memory_is_a_row_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "exit code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 488.00 GiB."
    ended = head_to_head.runner.Ended("failed", why, 1.0, 1.0, 1)
    monkeypatch.setattr(head_to_head, "FOLDER", tmp_path)
    monkeypatch.setattr(head_to_head, "data", lambda n_labels: tmp_path)
    monkeypatch.setattr(head_to_head.runner, "run", lambda *given: ended)
    monkeypatch.setattr(
        sys, "argv", ["head_to_head.py", "--labels", "1000000", "--device", "cuda", "--methods", "ova", "mach"]
    )
    head_to_head.main()
    assert (tmp_path / "cuda" / "1000000" / "mach.json").exists()
    shown = head_to_head.shown("cuda")
    assert shown.startswith("nothing was trained to its end\n\n**K = 1,000,000**")
    assert "| out of device memory: exit code 1: torch.OutOfMemoryError" in shown
