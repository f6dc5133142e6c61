"""Whether there are Triton kernels for a tensor."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def kernels_for(tensor: Tensor) -> Any:
    """The module kernels.py for what is on a GPU, where Triton is installed; else None: plain PyTorch has to do."""
    return _kernels() if tensor.is_cuda else None


@cache
def _kernels() -> Any:
    try:
        return importlib.import_module("machxc.torch.kernels")
    except ImportError:
        return None
