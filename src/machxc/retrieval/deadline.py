"""From milliseconds to the budget of `machxc.retrieval.top_k_within`, by how fast this machine is."""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np

from machxc.errors import SettingError
from machxc.partition import HashPartition, Partition
from machxc.retrieval.retrieve import top_k_within
from machxc.samples import Float32

_BUDGETS = (500_000, 2_000_000)
_RUNS = 5


def budget_within(deadline: float, partition: Partition) -> int:
    """A budget that a query takes about ``deadline`` milliseconds for, of processor time, with sketches at hand.

    How fast this machine is, is measured once (some tens of milliseconds, and compiling): so the answers found within
    a deadline differ between machines, and between runs. It is an aim, not a promise: a machine that is busy with
    other work takes longer. At least 1. SettingError for a deadline that is not above 0.
    """
    if not 0 < deadline < np.inf:
        raise SettingError(
            f"The 'deadline' parameter must be a number of milliseconds above 0. Got {deadline!r} instead."
        )
    of_a_value, of_a_member = _pace()
    left = deadline / 1e3 - of_a_value * partition.n_repetitions * partition.n_buckets
    return max(1, int(left / of_a_member))


@lru_cache(maxsize=1)
def _pace() -> tuple[float, float]:
    """Seconds that a query takes for each value of its sketch, and for each member of a bucket."""
    partition = HashPartition(20_000_000, 4_000, 16, 0)
    logits = np.random.default_rng(0).standard_normal((1, 16, 4_000)).astype(np.float32)
    few, many = (_seconds(logits, partition, budget) for budget in _BUDGETS)
    of_a_member = max(many - few, 1e-9) / (_BUDGETS[1] - _BUDGETS[0])
    return max(0.0, few - of_a_member * _BUDGETS[0]) / logits.size, of_a_member


def _seconds(logits: Float32, partition: Partition, budget: int) -> float:
    taken = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        top_k_within(logits, partition, 10, budget, loss="softmax", estimator="mean")
        taken.append(time.perf_counter() - start)
    return min(taken)  # the first one compiles
