"""A trained model on a device: sketches of queries, and their best labels. The twin of linear.py's and network.py's
scorers, of all repetitions at once, from the same stored tensors.

Sums are float32, of the weights that are stored, as the kernels': scores agree to the rounding of float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from machxc.config import Config
from machxc.errors import MemoryBudgetError
from machxc.model import Model
from machxc.repetition.chunks import chunk_size
from machxc.repetition.encode import encoder_of
from machxc.repetition.stored import unpack
from machxc.retrieval import check_settings
from machxc.samples import MAX_LABELS, Array, Features, Float32, Int64, Labels, Samples
from machxc.torch.batches import batch_of
from machxc.torch.device import on
from machxc.torch.encode import GroupEncoder, Rows
from machxc.torch.memory import free_bytes, in_parts
from machxc.torch.top_k import top_k
from machxc.torch.trunk import StoredUnits

if TYPE_CHECKING:
    from torch import Tensor

_ENTRIES = 1 << 24  # stored weights that are gathered at a time: 0.3 GB
_HERE = 1 << 28  # bytes that a block of queries may take on a processor
_SHARE = 4  # of a GPU's free memory, a block of queries may take one
_ROOM = 1 << 10  # bytes that the search takes for each label of an answer

Tensors = Mapping[str, Array]


class DeviceModel(Model):
    """A model that answers on a device of PyTorch ("cuda:0", or "cpu"), with weights that are copied there once.

    Sketches and `top_k` are computed on the device; from its sketches the kernels find answers in bounded time, and the
    scores of given labels. Scores are within 1e-3 relative of the model's, and labels are the same but where scores are
    as near. Queries are answered in blocks that the device has memory for; ``jobs`` make no difference to `top_k`.
    MemoryBudgetError when the device has no memory for the model.
    """

    def __init__(self, model: Model, device: str) -> None:
        self._data, self._numbers = model.data, model.numbers  # which are missing was said when the model was made
        self._model, self._device = model, device
        tensors = [model.data.repetitions[r] for r in model.numbers]
        with self._memory("the model"), on(device):
            self._scorer = GroupScorer(model.config, tensors, model.numbers, device)
            self._seen_there = _on(self.seen, device)
        self._most = MAX_LABELS  # queries at a time: fewer once the device had no memory for as many

    def sketch(self, features: Features, jobs: int = 1) -> Float32:
        """As `Model.sketch`."""
        self._check(features)
        out = np.empty((len(features), self.n_repetitions, self.config.buckets), np.float32)

        def run(start: int, stop: int) -> None:
            out[start:stop] = self._scorer.sketch(features.rows(start, stop)).cpu().numpy()

        self._run(features, 0, run)
        return out

    def top_k(
        self,
        features: Features,
        k: int = 10,
        *,
        candidates: Array | None = None,
        estimator: str | None = None,
        method: str = "auto",
        jobs: int = 1,
    ) -> tuple[Int64, Float32]:
        """As `Model.top_k`. A ``method`` other than "auto" is one of the kernels: they search, from the sketches."""
        if method != "auto":
            given: dict[str, Any] = {"candidates": candidates, "estimator": estimator, "method": method, "jobs": jobs}
            return super().top_k(features, k, **given)
        check_settings(k, method, jobs)
        self._check(features)
        ids, scores = np.full((len(features), k), -1, np.int64), np.full((len(features), k), -np.inf, np.float32)
        search = self._search(k, candidates, estimator or self.config.estimator)

        def run(start: int, stop: int) -> None:
            ids[start:stop], scores[start:stop] = search(features.rows(start, stop))

        self._run(features, k, run)
        return ids, scores

    def to(self, device: str) -> Model:
        """As `Model.to`; on "cpu" it is the model that was copied."""
        return self._model.to(device)

    def subset(self, numbers: list[int]) -> Model:
        """As `Model.subset`, on the same device."""
        return DeviceModel(super().subset(numbers), self._device)

    def _search(self, k: int, candidates: Array | None, estimator: str) -> Callable[[Features], tuple[Int64, Float32]]:
        """What answers a block of queries."""
        allowed: dict[str, Any] = self._allowed(candidates, "auto")
        if "seen" in allowed:
            allowed["seen"] = self._seen_there

        def search(features: Features) -> tuple[Int64, Float32]:
            with on(self._device):
                sketch = self._scorer.sketch(features)
                return top_k(sketch, self.partition, k, loss=self.config.loss, estimator=estimator, **allowed)

        return search

    def _run(self, features: Features, k: int, run: Callable[[int, int], None]) -> None:
        """Answer in blocks, smaller ones from where the device has no memory."""
        if not len(features):  # arguments are checked
            run(0, 0)
            return
        most = min(self._most, self._fitting(features, k))
        with self._memory("a single query"):
            found = in_parts(len(features), most, run, self._device, "queries")
        if found < most:
            self._most = found

    def _fitting(self, features: Features, k: int) -> int:
        """How many queries there should be memory for."""
        n_features, n_repetitions, config = len(features.indices) / len(features), self.n_repetitions, self.config
        numbers: float = 4 * config.buckets + 3 * sum(config.layers)
        numbers += sum(config.layers[:1]) * n_features  # at most: samples share rows of the table
        each = n_repetitions * (4 * numbers + 100 * n_features) + _ROOM * k
        free = free_bytes(self._device)
        room = _HERE if free is None else free // _SHARE
        return max(1, min(chunk_size(features), int(room / each)))

    @contextlib.contextmanager
    def _memory(self, what: str) -> Iterator[None]:
        """MemoryBudgetError where the device has no memory for something."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise MemoryBudgetError(
                f"{self._device} has no memory for {what}; free some, or answer with device='cpu'"
            ) from None


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
        columns: list[list[Tensor]] = [[], [], [], []]
        before = 0
        for each in tensors:  # on this machine there are the unpacked weights of one repetition at a time
            starts, buckets, weights = unpack(each)
            arrays: tuple[Array, ...] = (starts[:-1] + before, np.diff(starts), buckets.astype(np.int32), weights)
            for column, array in zip(columns, arrays, strict=True):
                column.append(_on(array, device))
            before += len(weights)
        self._firsts, self._lengths, self._buckets, self._weights = map(_joined, columns)
        self._bias = _on(np.stack([each["bias"] for each in tensors]), device)

    def logits(self, rows: Rows, n: int) -> Tensor:
        """Bucket scores: the entries of all rows of a sample, added up."""
        groups, n_buckets = self._bias.shape
        out = self._bias[:, None].repeat(1, n, 1).view(-1)  # a copy, whatever n
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
        self._width, self._units = config.layers[0], StoredUnits(config, tensors, device)
        self._table = _joined([_on(each["table"], device) for each in tensors])
        self._scales = _joined([_on(each["table_scales"], device) for each in tensors])
        self._output = [_on(each["output"], device) for each in tensors]
        self._output_scales = [_on(each["output_scales"], device) for each in tensors]
        self._bias = _on(np.stack([each["bias"] for each in tensors]), device)

    def logits(self, rows: Rows, n: int) -> Tensor:
        """Bucket scores: hidden units from the rows that the batch has, as float32, then each output layer."""
        groups, n_buckets = self._bias.shape
        used, places = torch.unique(rows.rows, return_inverse=True)
        hidden = torch.zeros((groups, n, self._width), device=self._bias.device)
        if len(used):
            table = self._table[used] * self._scales[used, None]
            sums = embedding_bag(places, table, rows.offsets, mode="sum", per_sample_weights=rows.weights)
            hidden = hidden + sums.view(groups, n, self._width)
        hidden = self._units(hidden)
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


def _joined(parts: list[Tensor]) -> Tensor:
    """Tensors one after the other; the parts are let go."""
    whole = torch.cat(parts)
    parts.clear()
    return whole


def _no_labels(n: int) -> Labels:
    return Labels(np.zeros(n + 1, np.int64), np.empty(0, np.uint32), 1)
