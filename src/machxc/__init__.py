"""machxc: extreme classification with MACH: the right few labels out of very many.

The public names. Each is imported when it is first used, so that ``import machxc`` costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machxc.config import Settings, TextConfig
    from machxc.data import ReadOptions, convert
    from machxc.errors import (
        ClusterError,
        DataError,
        MachxcError,
        MemoryBudgetError,
        MissingExtraError,
        ModelError,
        OutputError,
        SettingError,
    )
    from machxc.estimator import MACHClassifier
    from machxc.evaluation import evaluate
    from machxc.metrics import precision_at_k_scorer
    from machxc.model import Model
    from machxc.prediction import answer, predict
    from machxc.run import plan_run, train_run

__version__ = "0.1.0"

__all__ = [
    "ClusterError",
    "DataError",
    "MACHClassifier",
    "MachxcError",
    "MemoryBudgetError",
    "MissingExtraError",
    "Model",
    "ModelError",
    "OutputError",
    "ReadOptions",
    "SettingError",
    "Settings",
    "TextConfig",
    "answer",
    "convert",
    "evaluate",
    "plan_run",
    "precision_at_k_scorer",
    "predict",
    "train_run",
]

_MODULES = {
    "config": ("Settings", "TextConfig"),
    "data": ("ReadOptions", "convert"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "estimator": ("MACHClassifier",),
    "evaluation": ("evaluate",),
    "metrics": ("precision_at_k_scorer",),
    "model": ("Model",),
    "prediction": ("answer", "predict"),
    "run": ("plan_run", "train_run"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
