"""Whether there are Triton kernels for a tensor."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("machxc.torch")


def kernels_for(tensor: Tensor) -> Any:
    """The module kernels.py for what is on a GPU, where Triton is installed and works; else None: plain PyTorch."""
    return _kernels() if tensor.is_cuda else None


@cache
def _kernels() -> Any:
    try:
        module = importlib.import_module("machxc.torch.kernels")
    except ImportError:
        return None
    return module if _works(module) else None


def _works(module: Any) -> bool:
    """Whether a kernel can be compiled and started: Triton needs a C compiler, say, which not every machine has."""
    import torch

    try:
        z = torch.zeros((1, 2), device="cuda")
        module.sigmoid_(z, torch.ones(1, device="cuda"))
        return bool(z.tolist() == [[0.5, 0.5]])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("Triton is installed, but does not work here: plain PyTorch computes instead, slower (%s)", reason)
        return False
