"""The k best of all K labels on a device, exactly: labels in blocks, each hashed, scored and sifted.

The scan of `machxc.retrieval`, for a batch of queries: no scores are held but those of a block and the k best so far.
A label's rank is one integer, its score's bits above the complement of its id: the order is total, and what
comes out does not depend on how threads run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from machxc.errors import DataError
from machxc.partition import HashPartition, Partition, permute
from machxc.retrieval import check_settings
from machxc.retrieval.estimators import MEDIAN, MIN, SUM, TINY, check_names, merge_of
from machxc.retrieval.retrieve import LARGEST_LOGIT, seen_candidates
from machxc.samples import Array, Float32, Int64
from machxc.torch.bits import shifted
from machxc.torch.fused import kernels_for

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 25  # scores of a block: 128 MB, and twice that in ranks
_FIRST = 1 << 16  # labels that are looked at before any is sifted out
_ROOM_TIMES = 32  # times k: room for labels of a query that are better than the best so far
_NONE = -(2**63)  # the rank of no label


def top_k(
    logits: Tensor,
    partition: Partition,
    k: int,
    *,
    loss: str,
    estimator: str,
    seen: Array | Tensor | None = None,
    candidates: Array | None = None,
) -> tuple[Int64, Float32]:
    """The k best labels of n queries: ids int64 [n, k] and scores float32 [n, k], best first.

    ``logits`` float32 [n, R, B], on any device; the other parameters, order of equal scores and errors as in
    `machxc.retrieval.top_k`, but that ``seen`` is packed (uint8 [ceil(K / 8)], here or on the device), and larger
    logits count as 1e30.
    """
    check_names(loss, estimator)
    check_settings(k, "scan", 1)
    n_repetitions, n_buckets = logits.shape[1:]
    if (n_repetitions, n_buckets) != (partition.n_repetitions, partition.n_buckets):
        raise DataError(
            f"expected logits [n, {partition.n_repetitions}, {partition.n_buckets}] for this partition, "
            f"got {list(logits.shape)}"
        )
    with torch.no_grad():
        logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        values = logits if n_repetitions == 1 else contributions(logits, loss, estimator)
        ranks = _Scan(values, partition, merge_of(estimator), seen, candidates).best(k)
        ids, merged = _unpacked(ranks)
        if n_repetitions == 1:
            scores = _probabilities(logits[:, 0], merged, loss, estimator)
        else:
            scores = finish(merged, estimator, n_repetitions, n_buckets)
    return ids.cpu().numpy(), scores.cpu().numpy()


class _Scan:
    """All labels, or the candidates, block by block."""

    def __init__(
        self, values: Tensor, partition: Partition, merge: int, seen: Array | Tensor | None, candidates: Array | None
    ) -> None:
        self._values, self._merge, self._device, self._partition = values, merge, values.device, partition
        self._buckets = _hash_on(partition, self._device)
        self._n_labels = partition.n_labels
        self._seen = None if seen is None else _there(seen, self._device)
        self._candidates = None
        if candidates is not None:
            chosen = seen_candidates(candidates, np.empty(0, np.uint8), self._n_labels).astype(np.int64)
            self._candidates = torch.from_numpy(chosen).to(self._device)

    def best(self, k: int) -> Tensor:
        """The ranks of the k best labels of each query, the best first: int64 [n, k]."""
        best = torch.full((len(self._values), k), _NONE, dtype=torch.int64, device=self._device)
        total = self._n_labels if self._candidates is None else len(self._candidates)
        kernels = kernels_for(self._values)
        if kernels is None or self._merge == MEDIAN or not isinstance(self._partition, HashPartition):
            return self._among(0, total, best)
        if self._candidates is not None or not len(self._values):
            return self._among(0, total, best)
        first = min(total, max(_FIRST, 4 * k))
        return self._sifted(kernels, self._partition, first, total, self._among(0, first, best))

    def _among(self, start: int, stop: int, best: Tensor) -> Tensor:
        """The best of those found so far, and of labels from ``start`` to ``stop``, block by block."""
        n, n_repetitions, _ = self._values.shape
        step = max(1, _BLOCK // (max(1, n) * (n_repetitions if self._merge == MEDIAN else 1)))
        for first in range(start, stop, step):
            labels = self._labels(first, min(first + step, stop))
            ranks = _packed(self._scores(labels), labels)
            if self._seen is not None:
                unseen = (self._seen[labels >> 3].to(torch.int64) >> (labels & 7)) & 1 == 0
                ranks.masked_fill_(unseen, _NONE)
            best = _best_of(best, ranks)
        return best

    def _sifted(self, kernels: Any, partition: HashPartition, start: int, stop: int, best: Tensor) -> Tensor:
        """`_among` by a kernel that hashes, scores and sifts in one go: only what is good enough is written down.

        Of ``start`` labels, k are the best so far: of three times as many more, about three times k are better.
        """
        values = self._values.permute(1, 2, 0).contiguous()
        parameters = torch.from_numpy(partition.forward.astype(np.int64)).to(self._device)
        n, room = len(best), _ROOM_TIMES * best.shape[1]
        more = 3 * start
        while start < stop:
            end = min(stop, start + more)
            counts = torch.zeros(n, dtype=torch.int32, device=self._device)
            found = torch.full((n, room), _NONE, dtype=torch.int64, device=self._device)
            thresholds, least = _unpacked(best[:, -1].contiguous())[1], self._merge == MIN
            kernels.sift(
                values, parameters, partition.bits, start, end, self._seen, thresholds, counts, found, least=least
            )
            if int(counts.max()) <= room:
                best, start, more = _best_of(best, found), end, 3 * end
            elif end - start <= _FIRST:  # hardly a score that differs from the others
                best, start, more = self._among(start, end, best), end, _FIRST
            else:
                more = max(_FIRST, (end - start) // 8)
        return best

    def _labels(self, start: int, stop: int) -> Tensor:
        if self._candidates is not None:
            return self._candidates[start:stop]
        return torch.arange(start, stop, device=self._device)

    def _scores(self, labels: Tensor) -> Tensor:
        """The merged contributions of labels: float32 [n, m]; added up in the order of the repetitions."""
        parts = (self._values[:, r].index_select(1, self._buckets(labels, r)) for r in range(self._values.shape[1]))
        if self._merge == MEDIAN:
            middle = torch.stack(list(parts)).sort(dim=0).values
            high = len(middle) // 2
            return 0.5 * (middle[high - 1] + middle[high]) if len(middle) % 2 == 0 else middle[high]
        merged = next(parts)
        for part in parts:
            merged = torch.minimum(merged, part) if self._merge == MIN else merged.add_(part)
        return merged


def _there(array: Array | Tensor, device: Any) -> Tensor:
    """An array as a tensor on the device, if it is not that already."""
    return (array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))).to(device)


def _best_of(best: Tensor, ranks: Tensor) -> Tensor:
    """As many as the best so far, of these and of others."""
    chosen: Tensor = torch.cat([best, ranks], dim=1).topk(best.shape[1], dim=1).values
    return chosen


def _hash_on(partition: Partition, device: Any) -> Callable[[Tensor, int], Tensor]:
    """What gives labels their buckets in a repetition, int64, on the device."""
    if isinstance(partition, HashPartition):
        bits, n_buckets, mask = partition.bits, partition.n_buckets, (1 << partition.bits) - 1

        def hashed(labels: Tensor, r: int) -> Tensor:
            y: Tensor = permute(labels, *partition.parameters(r), partition.shift, mask)  # type: ignore[call-arg,arg-type]
            return shifted(y * n_buckets, bits)

        return hashed

    def looked_up(labels: Tensor, r: int) -> Tensor:
        return torch.from_numpy(partition.buckets(labels.cpu().numpy(), r).astype(np.int64)).to(device)

    return looked_up


def _packed(scores: Tensor, labels: Tensor) -> Tensor:
    """Ranks: of two, the greater is the better score, and of equal scores the smaller label."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: there is one zero
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (0xFFFFFFFF - labels)


def _unpacked(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Labels int64 and scores float32 of ranks; -1 and -inf for no label."""
    none = ranks == _NONE
    ordered = ranks >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(torch.int32)
    labels = 0xFFFFFFFF - (ranks & 0xFFFFFFFF)
    return labels.masked_fill(none, -1), bits.view(torch.float32).masked_fill(none, -torch.inf)


def contributions(logits: Tensor, loss: str, estimator: str) -> Tensor:
    """What each bucket contributes to its labels, as in retrieval/estimators.py: float32, a new tensor."""
    if estimator == "log-probability":
        return logits.log_softmax(dim=-1) if loss == "softmax" else torch.nn.functional.logsigmoid(logits)
    if estimator == "logit":
        return _softmax_logit(logits) if loss == "softmax" else logits.clone()
    return logits.softmax(dim=-1) if loss == "softmax" else logits.sigmoid()


def _softmax_logit(logits: Tensor) -> Tensor:
    """log(P / (1 - P)), where 1 - P is the sum of the other buckets: for the best one it is summed without it."""
    best = logits.argmax(dim=-1, keepdim=True)
    shifted_logits = logits - logits.gather(-1, best)
    exp = shifted_logits.exp()
    others = exp.sum(dim=-1, keepdim=True) - exp
    without_best = exp.scatter(-1, best, 0.0).sum(dim=-1, keepdim=True)
    others.scatter_(-1, best, without_best)
    return shifted_logits - others.clamp_min(float(TINY)).log()


def _probabilities(logits: Tensor, values: Tensor, loss: str, estimator: str) -> Tensor:
    """The scores of labels of one repetition, as in retrieval/single.py, from their buckets' logits ``values`` [n, k].

    ``logits`` [n, B]: the sketches. Logits rank labels also where their probabilities are all 0 or 1. -inf stays -inf.
    """
    if loss == "softmax":
        tops = logits.amax(dim=1, keepdim=True)
        shares = (values - tops - (logits - tops).logsumexp(dim=1, keepdim=True)).exp()
    else:
        shares = values.sigmoid()
    scores = finish(shares, "unbiased" if estimator == "unbiased" else "mean", 1, logits.shape[1])
    return scores.masked_fill(values == -torch.inf, -torch.inf)


def finish(merged: Tensor, estimator: str, n_repetitions: int, n_buckets: int) -> Tensor:
    """The scores of merged contributions, as in retrieval/estimators.py; -inf stays -inf."""
    if merge_of(estimator) != SUM:
        return merged
    mean = merged / n_repetitions
    if estimator == "log-probability":
        scores = mean.exp()
    elif estimator == "logit":
        scores = mean.sigmoid()
    elif estimator == "unbiased" and n_buckets > 1:
        scores = (mean - 1 / n_buckets) * (n_buckets / (n_buckets - 1))
    else:
        scores = mean
    return torch.where(merged == -torch.inf, merged, scores)
