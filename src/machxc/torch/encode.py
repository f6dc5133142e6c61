"""What differs between the repetitions of a group, on the device: features to weighted rows, labels to buckets.

The same arithmetic as encode.py and targets.py of `machxc.repetition`, of all repetitions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from machxc.config import Config
from machxc.partition import HashPartition, Partition, permute
from machxc.repetition import random
from machxc.repetition.arithmetic import LARGEST_WEIGHT
from machxc.repetition.encode import Encoder
from machxc.torch.batches import Batch
from machxc.torch.bits import draws, shifted, signed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The weighted rows of G x n samples, those of the first repetition first: a bag of rows each.

    ``offsets`` int64 [G n] (where each bag starts), ``rows`` int64 [e] (in the table of all repetitions), ``weights``
    float32 [e], ``bags`` int64 [e] (the bag of each).
    """

    offsets: Tensor
    rows: Tensor
    weights: Tensor
    bags: Tensor


@dataclass(frozen=True)
class Matrix:
    """The weighted rows of g x n samples that have most of them: ``values`` float32 [g, n, D].

    ``rows``: which rows of the table of all repetitions these are, D of each.
    """

    values: Tensor
    rows: slice


@dataclass(frozen=True)
class Wanted:
    """The target buckets of G x n samples.

    ``places`` int64 [G, l]: bag x B + bucket; ``shares`` float32 [G, l]: 1 (softmax: 1 / number of its buckets) times
    the sample's weight, 0 for a bucket that comes a second time; ``weights`` float32 [G, n]: of the samples (softmax: 0
    for one without labels).
    """

    places: Tensor
    shares: Tensor
    weights: Tensor


class GroupEncoder:
    """The encoders of the G repetitions ``numbers``, whose rows stand in one table one after the other."""

    def __init__(self, config: Config, encoders: Sequence[Encoder], numbers: Sequence[int], device: str) -> None:
        self._config, self._numbers = config, list(numbers)
        self._shift = int(encoders[0].shift)
        self.starts = np.cumsum([0, *(len(encoder.row_weights) for encoder in encoders)]).tolist()
        self._first = torch.tensor(self.starts[:-1], device=device)[:, None]
        self._multiplier, self._addend = (
            torch.tensor([signed(getattr(encoder, name)) for encoder in encoders], device=device)[:, None]
            for name in ("multiplier", "addend")
        )
        self._slots = torch.stack([torch.from_numpy(np.array(encoder.slots)) for encoder in encoders]).to(device)
        self._row_weights = torch.from_numpy(np.concatenate([encoder.row_weights for encoder in encoders])).to(device)
        self._alike = all(_same(encoders[0], encoder) for encoder in encoders)

    def __len__(self) -> int:
        return len(self._numbers)

    def rows_of(self, i: int) -> slice:
        """The rows of the i-th repetition."""
        return slice(self.starts[i], self.starts[i + 1])

    def inputs(self, batch: Batch, part: slice, epoch: int | None = None) -> Rows | Matrix:
        """As when called, but a matrix where samples have most features, and each feature has a row of its own."""
        n, width = len(batch), self.starts[1]
        if not self._alike or not width or 2 * len(batch.ids) < n * width:
            return self(batch, part, epoch)
        dropped = epoch is not None and self._config.dropout > 0
        rows = self(batch, part if dropped else slice(part.start, part.start + 1), epoch)
        first = self.starts[part.start]
        places = rows.bags * width + (rows.rows - first) % width
        count = part.stop - part.start if dropped else 1
        values = torch.zeros(count * n * width, device=rows.rows.device)
        values.index_add_(0, places, rows.weights)
        matrices = values.view(count, n, width).expand(part.stop - part.start, -1, -1)
        return Matrix(matrices, slice(first, self.starts[part.stop]))

    def __call__(self, batch: Batch, part: slice, epoch: int | None = None) -> Rows:
        """The rows of a batch in the repetitions ``part`` of the group; ``epoch``: of training, with its dropout.

        The same whether or not the batch is cut, which it is for a single repetition only.
        """
        if not batch.is_cut:
            return self._encode(batch, part, epoch)
        return _one_after_the_other([self._encode(piece, part, epoch) for _, piece in batch.parts()])

    def _encode(self, batch: Batch, part: slice, epoch: int | None) -> Rows:
        slots = self._slots_of(batch.ids, part)
        rows = torch.gather(self._slots[part], 1, slots).to(torch.int64)
        kept = rows >= 0
        rows = torch.where(kept, rows + self._first[part], 0)
        weights = batch.values.expand_as(rows)
        if self._config.sublinear_tf:
            weights = torch.where(weights > 0, 1 + torch.log(weights), weights)
        weights = torch.where(kept, weights * self._row_weights[rows] if len(self._row_weights) else weights, 0)
        scales = self._scales(batch, weights)
        if epoch is not None and self._config.dropout:
            kept &= ~self._dropped(batch, part, epoch)
            scales = scales / (1.0 - self._config.dropout) ** 0.5
        return self._bags(batch, rows, weights, scales, kept)

    def _slots_of(self, ids: Tensor, part: slice) -> Tensor:
        if not self._shift:
            return ids.expand(len(self._slots[part]), -1)
        return shifted(ids * self._multiplier[part] + self._addend[part], self._shift)

    def _scales(self, batch: Batch, weights: Tensor) -> Tensor:
        """What brings each sample to length 1 (where the config says so): float64 [G, n], of the whole sample."""
        groups, n = len(weights), len(batch)
        if not self._config.l2:
            return torch.ones((groups, n), dtype=torch.float64, device=weights.device)
        squares = (weights.double() ** 2).reshape(-1)
        offsets = _all_offsets(batch.offsets, groups, weights.shape[1])
        norms = torch.segment_reduce(squares, "sum", offsets=offsets, initial=0.0, unsafe=True)
        return torch.where(norms > 0, norms.rsqrt(), 1.0).view(groups, n)

    def _dropped(self, batch: Batch, part: slice, epoch: int) -> Tensor:
        seed = self._config.seed
        states = [signed(random.stream(seed, random.DROPOUT, r, epoch)) for r in self._numbers[part]]
        positions = torch.arange(batch.first, batch.first + len(batch.ids), device=batch.ids.device)
        drawn = draws(torch.tensor(states, device=batch.ids.device)[:, None], positions)
        return shifted(drawn, 32) < int(self._config.dropout * 2**32)

    def _bags(self, batch: Batch, rows: Tensor, weights: Tensor, scales: Tensor, kept: Tensor) -> Rows:
        """What is kept, bag by bag."""
        groups, n, m = len(rows), len(batch), rows.shape[1]
        lengths = batch.offsets.diff()
        samples = torch.repeat_interleave(torch.arange(n, device=rows.device), lengths, output_size=m)
        scaled = (weights * torch.gather(scales, 1, samples.expand(groups, -1))).float()
        scaled = scaled.clamp(-float(LARGEST_WEIGHT), float(LARGEST_WEIGHT))
        bags = (samples + n * torch.arange(groups, device=rows.device)[:, None])[kept]
        before = torch.zeros(groups * m + 1, dtype=torch.int64, device=rows.device)
        torch.cumsum(kept.reshape(-1), 0, out=before[1:])
        offsets = before[_all_offsets(batch.offsets, groups, m)[:-1]]
        return Rows(offsets, rows[kept], scaled[kept], bags)


def _one_after_the_other(parts: list[Rows]) -> Rows:
    """The rows of a batch from those of its parts."""
    n_rows, n_bags = (np.cumsum([0, *(len(getattr(each, name)) for each in parts)]) for name in ("rows", "offsets"))
    return Rows(
        torch.cat([each.offsets + int(n) for each, n in zip(parts, n_rows, strict=False)]),
        torch.cat([each.rows for each in parts]),
        torch.cat([each.weights for each in parts]),
        torch.cat([each.bags + int(n) for each, n in zip(parts, n_bags, strict=False)]),
    )


class GroupTargets:
    """The partition of the repetitions ``numbers``, on a device."""

    def __init__(self, config: Config, partition: Partition, numbers: Sequence[int], device: str) -> None:
        self._softmax, self._n_buckets = config.loss == "softmax", config.buckets
        self._partition, self._numbers, self._device = partition, list(numbers), device
        if isinstance(partition, HashPartition):
            columns = zip(*(partition.parameters(r) for r in numbers), strict=True)
            self._parameters = [torch.tensor(column, device=device)[:, None] for column in columns]

    def __call__(self, batch: Batch, part: slice) -> Wanted:
        """The target buckets of a batch in the repetitions ``part``."""
        n, count = len(batch), len(batch.labels)
        buckets = self._buckets(batch.labels, part)
        groups = len(buckets)
        lengths = batch.label_offsets.diff()
        samples = torch.repeat_interleave(torch.arange(n, device=buckets.device), lengths, output_size=count)
        bags = samples + n * torch.arange(groups, device=buckets.device)[:, None]
        places = torch.sort(bags * self._n_buckets + buckets, dim=1).values  # bag by bag as before, buckets rising
        new = torch.ones_like(places, dtype=torch.bool)
        new[:, 1:] = places[:, 1:] != places[:, :-1]
        shares, weights = new * batch.weights[samples], batch.weights.expand(groups, -1)
        if self._softmax:
            sizes = torch.zeros((groups, n), dtype=torch.int64, device=buckets.device)
            sizes.scatter_add_(1, samples.expand(groups, -1), new.to(torch.int64))
            shares = shares / torch.gather(sizes, 1, samples.expand(groups, -1))
            weights = weights * (lengths > 0)
        return Wanted(places, shares, weights)

    def _buckets(self, labels: Tensor, part: slice) -> Tensor:
        """Each label's bucket in each repetition: int64 [G, l]."""
        partition = self._partition
        if isinstance(partition, HashPartition):
            numbers, mask = (p[part] for p in self._parameters), (1 << partition.bits) - 1
            y: Tensor = permute(labels, *numbers, partition.shift, mask)  # type: ignore[call-arg]
            return shifted(y * partition.n_buckets, partition.bits)
        ids = labels.cpu().numpy()
        rows = [partition.buckets(ids, r).astype(np.int64) for r in self._numbers[part]]
        return torch.from_numpy(np.stack(rows)).to(self._device)


def _same(one: Encoder, other: Encoder) -> bool:
    """Whether both give a feature a row, the same one, that it has for itself, and the same weight."""
    if one.shift or other.shift:
        return False
    return np.array_equal(one.slots, other.slots) and np.array_equal(one.row_weights, other.row_weights)


def _all_offsets(offsets: Tensor, groups: int, m: int) -> Tensor:
    """The offsets of n samples of m values as those of G times as many: int64 [G n + 1]."""
    firsts = m * torch.arange(groups, device=offsets.device)[:, None]
    return torch.cat([(firsts + offsets[:-1]).reshape(-1), firsts[-1] + offsets[-1:]])
