"""Which repetitions train together on which device. Without torch, until there is a device that needs it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from machxc.config import Config
from machxc.torch.device import devices_of

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
    devices = devices_of(device)
    if devices and config.learner == "counts":
        log.warning("learner='counts' takes no steps: counted on the processor, not on %s", device)
        return {}
    groups = dealt(numbers, len(devices)) if devices else ()
    return {group[0]: GroupTask(name, group) for name, group in zip(devices, groups, strict=False)}


def dealt(numbers: Sequence[int], n: int) -> tuple[tuple[int, ...], ...]:
    """The numbers dealt out to at most n groups, none of them empty."""
    return tuple(tuple(numbers[i::n]) for i in range(min(n, len(numbers))))
