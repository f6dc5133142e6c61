"""Kernels that were compiled before are loaded without what only compiling needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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

values = np.array([3.0, 1.0, 2.0])
for name in sys.argv[1:]:
    found = globals()[name](values)
    print(json.dumps([part.tolist() for part in map(np.asarray, found)]))
print(json.dumps("numba.typed.typedlist" in sys.modules))  # one of those that Numba imports before it compiles
"""
DOUBLED, ALL = [6.0, 2.0, 4.0], [15.0, [1.0, 2.0, 3.0]]


def run(folder: Path, *names: str) -> list[Any]:
    """What kernels give, in a process of its own, and whether it got ready to compile."""
    (folder / "kernels.py").write_text(KERNELS)
    os.utime(folder / "kernels.py", (0, 0))  # else what is cached would be outdated
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(folder / "kernels.py"), *names]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_are_loaded_without_getting_ready_to_compile(tmp_path: Path) -> None:
    assert run(tmp_path, "doubled") == [DOUBLED, True]
    assert run(tmp_path, "doubled", "doubled") == [DOUBLED, DOUBLED, False]


def test_a_kernel_is_compiled_after_others_were_loaded(tmp_path: Path) -> None:
    run(tmp_path, "doubled")
    assert run(tmp_path, "doubled", "all_in_all") == [DOUBLED, ALL, True]
    assert run(tmp_path, "all_in_all", "doubled") == [ALL, DOUBLED, False]
