"""Whether kernels are about to be compiled: a first run on a machine waits for that, and wants to know why."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from machxc.cli.console import Console

TRAINING, ANSWERING = "machxc.repetition.targets", "machxc.retrieval.scoring"  # whenever we do so, these are compiled


def tell_of_compiling(console: Console, module: str) -> None:
    """Say so if nothing of ``module`` has ever been compiled on this machine."""
    if not is_compiled(module):
        console.note("compiling kernels, once on this machine: some seconds")


def is_compiled(module: str) -> bool:
    """Whether Numba's cache has something of ``module``. A look at the folder: what is there may be outdated."""
    kernels = [value for value in vars(import_module(module)).values() if hasattr(value, "py_func")]
    folders = {kernel.stats.cache_path for kernel in kernels if kernel.py_func.__module__ == module}
    stem = module.rpartition(".")[2]
    return any(next(Path(folder).glob(f"{stem}.*.nbi"), None) for folder in folders if folder)
