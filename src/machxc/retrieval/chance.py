"""How full the cells of the sieve are by chance: the compound Poisson distribution of the gains that fall into one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from machxc.compiled import fast_kernel

Float64 = npt.NDArray[np.float64]

_NEGLIGIBLE = 1e-12  # probability


@fast_kernel
def reached(counts: Float64, rate: float, chance: Float64) -> float:
    """How many of counts[x] gains of x come to a cell where smaller ones add up to what they lack of the last.

    ``rate`` * counts[x] of them come to a cell on average, as a Poisson process; ``chance``: scratch. Of gains alike,
    half of the others come before.
    """
    top = len(counts) - 1
    spare = np.empty(top, np.float64)
    chance[:] = 0.0
    chance[0] = 1.0
    total = 0.0
    for gain in range(1, top + 1):
        if counts[gain] > 0:
            lacks, before, after = top - gain, 0.0, 0.0
            for x in range(lacks):
                before += chance[x]
            _add_gains(chance, gain, counts[gain] * rate, spare)
            for x in range(lacks):
                after += chance[x]
            total += counts[gain] * max(0.0, 1.0 - (before + after) / 2)
    return total


@fast_kernel
def _add_gains(chance: Float64, gain: int, mean: float, spare: Float64) -> None:
    """chance[x], the probability of a sum of x, becomes that with a Poisson number of gains more, ``mean`` on average.

    Of sums as long as ``spare``, which is scratch.
    """
    weight, top = np.exp(-mean), len(spare)
    for x in range(top):
        spare[x] = weight * chance[x]
    for times in range(1, (top - 1) // gain + 1):
        weight *= mean / times
        if weight < _NEGLIGIBLE and times > mean:
            break
        start = times * gain
        for x in range(top - start):
            spare[start + x] += weight * chance[x]
    for x in range(top):
        chance[x] = spare[x]
