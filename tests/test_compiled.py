"""Kernels that were compiled before are loaded without what only compiling needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

KERNELS = """
import json, sys
import numpy as np
from machxc.compiled import fast_kernel, inline, kernel, part

@part
def twice(value):
    return 2 * value

@inline
def and_one(value):
    return value + 1

@kernel
def doubled(values):
    out = np.zeros(len(values))
    for i in range(len(values)):
        out[i] = twice(values[i])
    return out

@fast_kernel
def all_in_all(values):
    total = 0.0
    for value in doubled(values):
        total += and_one(value)
    return total, np.sort(values)

values = np.array([3, 1, 2], sys.argv[1])
for name in sys.argv[2:]:
    found = globals()[name](values)
    print(json.dumps([part.tolist() for part in map(np.asarray, found)]))
print(json.dumps("numba.typed.typedlist" in sys.modules))  # one of those that Numba imports before it compiles
"""
DOUBLED, ALL = [6.0, 2.0, 4.0], [15.0, [1.0, 2.0, 3.0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of kernels, none of them compiled."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    return tmp_path


def run(folder: Path, *names: str, kind: str = "float64") -> list[Any]:
    """What kernels give, in a process of its own, and whether it got ready to compile."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(folder / "kernels.py"), kind, *names]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_are_loaded_without_getting_ready_to_compile(folder: Path) -> None:
    assert run(folder, "doubled") == [DOUBLED, True]
    assert run(folder, "doubled", "doubled") == [DOUBLED, DOUBLED, False]


def test_processes_that_compile_for_other_types_at_once_keep_apart_what_they_compile(folder: Path) -> None:
    kinds = ("float64", "float32", "int64", "int32")
    with ThreadPoolExecutor(len(kinds)) as pool:
        assert list(pool.map(lambda kind: run(folder, "doubled", kind=kind), kinds)) == [[DOUBLED, True]] * len(kinds)
    assert [run(folder, "doubled", kind=kind) for kind in kinds] == [[DOUBLED, False]] * len(kinds)


def test_a_kernel_is_compiled_after_others_were_loaded(folder: Path) -> None:
    run(folder, "doubled")
    assert run(folder, "doubled", "all_in_all") == [DOUBLED, ALL, True]
    assert run(folder, "all_in_all", "doubled") == [ALL, DOUBLED, False]
