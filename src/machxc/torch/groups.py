"""Which repetitions train together on which device. Without torch, until there is a device that needs it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from machxc.config import Config
from machxc.errors import SettingError
from machxc.repetition.deep import NEEDS_TORCH
from machxc.torch.device import KERNELS, TORCH_CPU, devices_of

log = logging.getLogger("machxc.torch")


@dataclass(frozen=True)
class GroupTask:
    """Repetitions that train in step on one device of PyTorch. An executor knows a group by its first repetition."""

    device: str
    numbers: tuple[int, ...]


def group_tasks(config: Config, numbers: Sequence[int], device: str) -> dict[int, GroupTask]:
    """A group for each device that ``device`` stands for, by its first repetition; none: the kernels train them.

    Weights that are counted are counted by the kernels whatever the device: a GPU would have nothing to compute.
    """
    devices = training_devices(config, device)
    if devices and config.learner == "counts":
        log.warning("learner='counts' takes no steps: counted on the processor, not on %s", device)
        return {}
    groups = dealt(numbers, len(devices)) if devices else ()
    return {group[0]: GroupTask(name, group) for name, group in zip(devices, groups, strict=False)}


def check_trainable(config: Config, device: str) -> None:
    """Raise SettingError when ``device`` names the kernels, and they do not train such a config."""
    if config.deep and device == KERNELS:
        raise SettingError(f"{NEEDS_TORCH} Got device={device!r}.")


def training_devices(config: Config, device: str) -> tuple[str, ...]:
    """The devices of PyTorch that train repetitions of a config, none: the kernels do. As `devices_of`, but for what
    PyTorch alone trains: ``auto`` is PyTorch on the processor, where there is no GPU, and ``cpu`` a SettingError.
    """
    check_trainable(config, device)
    return devices_of(device) or (devices_of(TORCH_CPU) if config.deep else ())


def dealt(numbers: Sequence[int], n: int) -> tuple[tuple[int, ...], ...]:
    """The numbers dealt out to at most n groups, none of them empty."""
    return tuple(tuple(numbers[i::n]) for i in range(min(n, len(numbers))))
