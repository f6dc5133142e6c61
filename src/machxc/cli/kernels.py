"""Whether kernels are about to be compiled: a first run on a machine waits for that, and wants to know why."""

from __future__ import annotations

import gc
from importlib import import_module
from pathlib import Path

from machxc.cli.console import Console

TRAINING, ANSWERING = "machxc.repetition.targets", "machxc.retrieval.scoring"  # whenever we do so, these are compiled
_ALLOCATED = 50_000  # objects more than were freed, after which Python looks for garbage


def tell_of_compiling(console: Console, module: str) -> bool:
    """Say so, and return True, if nothing of ``module`` has ever been compiled on this machine."""
    if is_compiled(module):
        return False
    console.note("compiling kernels, once on this machine: some seconds")
    collect_seldom()
    return True


def is_compiled(module: str) -> bool:
    """Whether Numba's cache has something of ``module``. A look at the folder: what is there may be outdated."""
    stem = module.rpartition(".")[2]
    return next(Path(cache_folder(module)).glob(f"{stem}.*.nbi"), None) is not None


def cache_folder(module: str) -> str:
    """The folder, which need not exist, in which Numba keeps what it compiles of ``module``."""
    kernels = [value for value in vars(import_module(module)).values() if hasattr(value, "py_func")]
    return next(str(kernel.stats.cache_path) for kernel in kernels if kernel.py_func.__module__ == module)


def collect_seldom() -> None:
    """Let Python look for garbage more seldom: that takes an eighth of the time of compiling, and finds little."""
    gc.set_threshold(_ALLOCATED)
