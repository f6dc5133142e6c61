"""A trained model on a device: sketches of queries, and their best labels. The twin of linear.py's and network.py's
scorers, of all repetitions at once, from the same stored tensors.

Sums are float32, of the weights that are stored, as the kernels': scores agree to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from machxc.config import Config
from machxc.model import Model
from machxc.repetition.chunks import chunk_size
from machxc.repetition.encode import encoder_of
from machxc.repetition.stored import unpack
from machxc.samples import Array, Features, Float32, Int64, Labels, Samples
from machxc.torch.batches import batch_of
from machxc.torch.device import on
from machxc.torch.encode import GroupEncoder, Rows
from machxc.torch.top_k import top_k

if TYPE_CHECKING:
    from torch import Tensor

_ENTRIES = 1 << 24  # stored weights that are gathered at a time: 0.3 GB
_SKETCH_BYTES = 1 << 28  # sketches of a block of queries

Tensors = Mapping[str, Array]


class DeviceModel:
    """A model that answers on a device of PyTorch ("cuda:0", or "cpu"), with weights that are copied there once."""

    def __init__(self, model: Model, device: str) -> None:
        self._model, self._device = model, device
        tensors = [model.data.repetitions[r] for r in model.numbers]
        self._scorer = GroupScorer(model.config, tensors, model.numbers, device)

    def top_k(self, features: Features, k: int = 10, *, estimator: str | None = None) -> tuple[Int64, Float32]:
        """The k best labels of each query, as `machxc.model.Model.top_k`: ids int64 [n, k] and scores float32 [n, k].

        Scores are within 1e-3 relative of the model's, and labels are the same but where scores are as near.
        """
        model, config = self._model, self._model.config
        ids, scores = np.full((len(features), k), -1, np.int64), np.full((len(features), k), -np.inf, np.float32)
        for start, stop in self._blocks(features):
            sketch = self._scorer.sketch(features.rows(start, stop))
            chosen = estimator or config.estimator
            with on(self._device):
                found = top_k(sketch, model.partition, k, loss=config.loss, estimator=chosen, seen=model.seen)
            ids[start:stop], scores[start:stop] = found
        return ids, scores

    def sketch(self, features: Features) -> Float32:
        """The bucket scores of each query, before softmax or sigmoid: float32 [n, R, B]."""
        config, n_repetitions = self._model.config, self._model.n_repetitions
        out = np.empty((len(features), n_repetitions, config.buckets), np.float32)
        for start, stop in self._blocks(features):
            out[start:stop] = self._scorer.sketch(features.rows(start, stop)).cpu().numpy()
        return out

    def _blocks(self, features: Features) -> Iterator[tuple[int, int]]:
        sketches = _SKETCH_BYTES // (4 * self._model.n_repetitions * self._model.config.buckets)
        size = max(1, min(chunk_size(features), sketches))
        for start in range(0, len(features), size):
            yield start, min(start + size, len(features))


class _Scorer(Protocol):
    def logits(self, rows: Rows, n: int) -> Tensor:
        """Bucket scores float32 [G, n, B] of n samples."""


class GroupScorer:
    """Trained repetitions ``numbers`` on a device, from their stored tensors."""

    def __init__(self, config: Config, tensors: Sequence[Tensors], numbers: Sequence[int], device: str) -> None:
        self._device = device
        encoders = [encoder_of(config, r, dict(each)) for r, each in zip(numbers, tensors, strict=True)]
        self._encoder = GroupEncoder(config, encoders, numbers, device)
        kind = _NetworkScorer if config.hidden else _LinearScorer
        self._scorer: _Scorer = kind(config, tensors, device)

    def sketch(self, features: Features) -> Tensor:
        """The bucket scores of each query: float32 [n, G, B], on the device."""
        batch = batch_of(Samples(features, _no_labels(len(features))), self._device)
        with torch.no_grad(), on(self._device):
            rows = self._encoder(batch, slice(0, len(self._encoder)))
            return self._scorer.logits(rows, len(batch)).transpose(0, 1).contiguous()


class _LinearScorer:
    """Rows of entries: what is left of a linear repetition's table."""

    def __init__(self, config: Config, tensors: Sequence[Tensors], device: str) -> None:
        self._n_buckets = config.buckets
        starts, buckets, weights = zip(*map(unpack, tensors), strict=True)
        before = np.cumsum([0, *map(len, weights)])
        firsts = [each[:-1] + at for each, at in zip(starts, before[:-1], strict=True)]
        self._firsts = _on(np.concatenate(firsts), device)
        self._lengths = _on(np.concatenate([np.diff(each) for each in starts]), device)
        self._buckets = _on(np.concatenate([each.astype(np.int32) for each in buckets]), device)
        self._weights = _on(np.concatenate(weights), device)
        self._bias = _on(np.stack([each["bias"] for each in tensors]), device)

    def logits(self, rows: Rows, n: int) -> Tensor:
        """Bucket scores: the entries of all rows of a sample, added up."""
        groups, n_buckets = self._bias.shape
        out = self._bias[:, None].expand(groups, n, n_buckets).reshape(-1)
        lengths = self._lengths[rows.rows]
        ends = torch.cumsum(lengths, 0)
        for some, last in _within(ends, _ENTRIES):
            first = int(ends[some.start - 1]) if some.start else 0
            self._add(out, rows, some, lengths[some], ends[some] - lengths[some] - first, last - first)
        return out.view(groups, n, n_buckets)

    def _add(self, out: Tensor, rows: Rows, some: slice, lengths: Tensor, before: Tensor, total: int) -> None:
        """Add the entries of some of the rows to the scores."""
        which = torch.repeat_interleave(torch.arange(len(lengths), device=out.device), lengths, output_size=total)
        places = torch.arange(total, device=out.device) - before[which] + self._firsts[rows.rows[some]][which]
        values = self._weights[places] * rows.weights[some][which]
        out.index_add_(0, rows.bags[some][which] * self._n_buckets + self._buckets[places], values)


class _NetworkScorer:
    """A table of rows, and output layers, in 8 bits, with a scale for each row."""

    def __init__(self, config: Config, tensors: Sequence[Tensors], device: str) -> None:
        self._width = config.hidden
        self._table = _on(np.concatenate([each["table"] for each in tensors]), device)
        self._scales = _on(np.concatenate([each["table_scales"] for each in tensors]), device)
        self._hidden_bias = _on(np.stack([each["hidden_bias"] for each in tensors]), device)
        self._output = [_on(each["output"], device) for each in tensors]
        self._output_scales = [_on(each["output_scales"], device) for each in tensors]
        self._bias = _on(np.stack([each["bias"] for each in tensors]), device)

    def logits(self, rows: Rows, n: int) -> Tensor:
        """Bucket scores: hidden units from the rows that the batch has, as float32, then each output layer."""
        groups, n_buckets = self._bias.shape
        used, places = torch.unique(rows.rows, return_inverse=True)
        hidden = self._hidden_bias[:, None].expand(groups, n, self._width)
        if len(used):
            table = self._table[used] * self._scales[used, None]
            sums = embedding_bag(places, table, rows.offsets, mode="sum", per_sample_weights=rows.weights)
            hidden = hidden + sums.view(groups, n, self._width)
        hidden = hidden.relu()
        out = torch.empty((groups, n, n_buckets), device=hidden.device)
        for i, (output, scales) in enumerate(zip(self._output, self._output_scales, strict=True)):
            torch.addmm(self._bias[i], hidden[i], (output * scales[:, None]).T, out=out[i])
        return out


def _within(ends: Tensor, most: int) -> Iterator[tuple[slice, int]]:
    """Rows by chunks of at most so many entries (or one row), and where their entries end."""
    known = ends.cpu().numpy()
    start = 0
    while start < len(known):
        before = known[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(known, before + most, side="right")))
        yield slice(start, stop), int(known[stop - 1])
        start = stop


def _on(array: Array, device: str) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device)


def _no_labels(n: int) -> Labels:
    return Labels(np.zeros(n + 1, np.int64), np.empty(0, np.uint32), 1)
