"""One repetition: the order of the labels is that of their buckets' logits, and no other score need be computed.

Whatever the estimator, the score of a label is then a rising function of its bucket's logit. So logits are ranked as
they are, and only the k best become probabilities. Where no two labels share a bucket either, the k best buckets are
the k best labels: best_buckets.py finds them, and rows.py where logits are sums of rows of weights.
"""

from __future__ import annotations

import numpy as np

from machxc.compiled import fast_part, kernel
from machxc.partition import HashPartition, Partition
from machxc.repetition.arithmetic import copy, exp_below
from machxc.retrieval.estimators import finish, sigmoid
from machxc.samples import Float32

LANES = 128  # terms that are added up side by side
SPAN = 16 * LANES  # terms that are added up in float32: 8 KB, which stay in the first cache


def is_single(partition: Partition) -> bool:
    """Whether there is one repetition, and every label has a bucket of its own."""
    if not isinstance(partition, HashPartition) or partition.n_repetitions > 1:
        return False
    return partition.n_buckets == 1 << partition.bits


def probabilities(logits: Float32, values: Float32, loss: str, estimator: str) -> Float32:
    """The scores of labels whose buckets have the logits ``values`` [n, m], of the sketches ``logits`` [n, 1, B].

    -inf stays -inf.
    """
    tops, sums = np.zeros(len(logits), np.float32), np.zeros(len(logits), np.float32)
    if loss == "softmax":
        tops = logits[:, 0].max(axis=1)
        _log_sums(logits[:, 0], tops, sums)
    return probabilities_of(values, tops, sums, loss, estimator, logits.shape[-1])


def probabilities_of(
    values: Float32, tops: Float32, sums: Float32, loss: str, estimator: str, n_buckets: int
) -> Float32:
    """`probabilities`, given of each query the largest logit, and the logarithm of the sum of exp(logit - largest).

    The largest is taken off first, or large ones lose digits.
    """
    if loss == "softmax":
        found: Float32 = np.exp((values - tops[:, None]) - sums[:, None])
    else:
        found = sigmoid(values)
    found[values == -np.inf] = -np.inf
    return finish(found, "unbiased" if estimator == "unbiased" else "mean", 1, n_buckets)


@kernel
def _log_sums(logits: Float32, tops: Float32, out: Float32) -> None:
    lanes, some, others = np.empty(LANES, np.float32), np.empty(SPAN, np.float32), np.zeros(SPAN, np.float32)
    for i in range(len(logits)):
        total = 0.0
        for first in range(0, logits.shape[1], SPAN):
            n = min(SPAN, logits.shape[1] - first)
            copy(some[:n], logits[i, first : first + n])
            total += take_sum_of_exp(some[:n], tops[i], others[:n], lanes)
        out[i] = np.log(total)


@fast_part
def take_sum_of_exp(logits: Float32, top: np.float32, others: Float32, lanes: Float32) -> float:
    """The sum of exp(logit - top) of up to `SPAN` logits, at most top, which become the ``others`` on the way.

    It is added up lane by lane, then half the lanes to the other half, and so on: an order that no kernel changes into
    which this is compiled, so that sums are the same to the last bit wherever they are made. ``lanes`` float32 [LANES]:
    scratch.
    """
    for lane in range(LANES):
        lanes[lane] = np.float32(0.0)
    for first in range(0, len(logits), LANES):
        some, other = logits[first : first + LANES], others[first : first + LANES]
        for lane in range(len(some)):
            lanes[lane] += exp_below(some[lane] - top)
            some[lane] = other[lane]
    half = LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[half + lane]
        half //= 2
    return float(lanes[0])
