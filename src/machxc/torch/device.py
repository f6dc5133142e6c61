"""What ``device`` names, without importing torch until one is asked for that needs it."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from machxc.errors import MissingExtraError, SettingError

KERNELS = "cpu"  # the kernels of machxc.repetition
TORCH_CPU = "torch-cpu"  # PyTorch without an accelerator: slower than the kernels, for tests
EXPECTED = "cpu (the kernels), auto (GPUs if there are any), cuda (all of them), cuda:1 (that one) or torch-cpu"

_NAME = re.compile(r"cpu|torch-cpu|auto|cuda(:\d{1,3})?")


def check_device(name: object) -> str:
    """The name of a device; SettingError when it is none."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SettingError(f"'device' must be {EXPECTED}. Got {name!r} instead.")
    return name


def import_torch() -> Any:
    """The module torch; MissingExtraError, with the command that installs it, when it is not there."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("training or scoring on a GPU", "torch") from None
    return torch


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """A device of PyTorch as the one of this thread, on which kernels are launched, for a while."""
    current: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if device.startswith("cuda"):
        current = import_torch().cuda.device(device)
    return current


def devices_of(name: str) -> tuple[str, ...]:
    """The devices of PyTorch that ``name`` stands for; none: the kernels.

    ``auto`` is every GPU that PyTorch sees, and the kernels where it sees none, or is not installed. SettingError for
    a name that is no device, or a GPU that is not there; MissingExtraError when torch is asked for, and is missing.
    """
    check_device(name)
    if name == KERNELS:
        return ()
    if name == TORCH_CPU:
        import_torch()
        return ("cpu",)
    try:
        torch = import_torch()
    except MissingExtraError:
        if name == "auto":
            return ()
        raise
    return _gpus(name, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def answering_device(name: str) -> str | None:
    """The device of PyTorch that answers where ``name`` is asked for: the first that it stands for; None: the kernels.

    Errors as `devices_of`.
    """
    return next(iter(devices_of(name)), None)


def _gpus(name: str, there: int) -> tuple[str, ...]:
    if name == "auto" or (name == "cuda" and there):
        return tuple(f"cuda:{i}" for i in range(there))
    number = int(name.partition(":")[2] or 0)
    if number >= there:
        raise SettingError(
            f"PyTorch sees {there} GPU{'' if there == 1 else 's'} on this machine, numbered from 0. "
            f"Got device={name!r}; expected one of these, or auto or cpu to compute on the processor"
        )
    return (name,)
