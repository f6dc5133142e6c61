"""Deep networks in front of a model: any torch.nn.Module turns samples into dense features, a model learns from these.

    module = layers(6144, [512, 256], dropout=0.1)       # or any module of your own
    train_encoder(module, X, y, device="cuda")            # as far as it is not trained already
    model = MACHClassifier().fit(encode(module, X), y)
    model.top_k(encode(module, queries))

The module learns under R output layers over B buckets each, which share it and are thrown away. It is then frozen: each
repetition of the model learns from its outputs on its own, by either backend, and the model folder is as it always is.
The module's weights are kept beside it (`save_weights`, safetensors): a module itself is code, and its owner's.

Inputs are read by slices and rows, never as a whole: an array on the disk (numpy.memmap) takes no memory of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from machxc.data.arrays import parsed_labels
from machxc.errors import DataError, ModelError, SettingError
from machxc.formats import map_file, parse_tensors, write_tensors
from machxc.partition import HashPartition
from machxc.repetition.windows import gather_rows
from machxc.samples import Array, Float32, Labels

if TYPE_CHECKING:
    from torch import Tensor

Prepare = Callable[[Any], Any]
"""Makes what the module takes of some inputs; tensors in it go to the device."""


def layers(n_inputs: int, hidden: Sequence[int], *, dropout: float = 0.0, norm: bool = True) -> nn.Sequential:
    """A network for dense inputs: for each size of ``hidden`` a linear layer, LayerNorm (``norm``), ReLU and dropout.

    SettingError when a size is below 1, or ``dropout`` is not in [0, 1).
    """
    sizes = [n_inputs, *hidden]
    if not hidden or min(sizes) < 1 or not 0 <= dropout < 1:
        raise SettingError(
            "expected n_inputs and one or more hidden sizes of at least 1, and a dropout in [0, 1). "
            f"Got {n_inputs}, {list(hidden)} and {dropout} instead."
        )
    parts: list[nn.Module] = []
    for before, after in zip(sizes, hidden, strict=False):
        parts += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), nn.ReLU()]
        parts += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*parts)


def encode(
    module: nn.Module, inputs: Any, *, batch: int = 256, device: str = "cpu", prepare: Prepare | None = None
) -> Float32:
    """What the module makes of each input, nothing dropped: float32 [n, width].

    ``inputs``: n of them, in what can be sliced: an array [n, d] of numbers, or with ``prepare`` anything (texts, say).
    The module is moved to the ``device`` of PyTorch, and its mode (training or not) is as before. DataError when an
    output is not one row of finite numbers an input.
    """
    training = module.training
    module.to(device).eval()
    try:
        with torch.inference_mode():
            parts = [
                _outputs(module, inputs[start : start + batch], device, prepare).float().cpu().numpy()
                for start in range(0, len(inputs), batch)
            ]
    finally:
        module.train(training)
    encoded: Float32 = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    if not np.isfinite(encoded).all():
        raise DataError("the module's outputs have NaN or infinity; expected finite numbers: lower its learning rate")
    return encoded


def train_encoder(
    module: nn.Module,
    inputs: Any,
    y: Any,
    *,
    repetitions: int = 8,
    buckets: int | None = None,
    epochs: int = 10,
    batch: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    prepare: Prepare | None = None,
) -> list[float]:
    """Train the module in place, with AdamW; returns the mean loss of each epoch, in nats a repetition.

    ``inputs`` as in `encode`, but that ``prepare`` must take rows in any order too (arrays and lists are picked from);
    ``y`` as `MACHClassifier.fit` takes it. R ``repetitions`` output layers over ``buckets`` (default 3 sqrt(K), at most
    8192) learn along: softmax cross-entropy, shared evenly by the labels of a sample (one without labels says nothing).
    The rate falls linearly to 0. The same seed gives the same result on the same processor where the module's own
    operations do; the module's weights at the start are its maker's. DataError when the loss is no number.
    """
    labels, names, _ = parsed_labels(y)
    if len(labels) != len(inputs):
        raise DataError(f"expected as many label sets as inputs ({len(inputs)}), got {len(labels)}")
    n_buckets = buckets or min(8192, max(2, round(3 * math.sqrt(len(names)))))
    partition = HashPartition(len(names), n_buckets, repetitions, seed)
    gpus = [torch.device(device)] if device.startswith("cuda") else []
    training = module.training
    module.to(device)
    try:
        with torch.random.fork_rng(gpus):
            torch.manual_seed(seed)
            width = _width(module, inputs, device, prepare)
            module.train()
            heads = _Heads(partition, width).to(device)
            optimiser = torch.optim.AdamW([*module.parameters(), *heads.parameters()], learning_rate)
            return list(_epochs(module, heads, optimiser, inputs, labels, epochs, batch, seed, device, prepare))
    finally:
        module.train(training)


def save_weights(module: nn.Module, path: Path | str) -> None:
    """Write the module's weights as a safetensors file, wholly or not at all; OutputError when it cannot be written."""
    write_tensors(Path(path), {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()})


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Take weights over that `save_weights` wrote of a module like this; no code is run. ModelError when they differ.

    Names, shapes, types and that numbers are finite are checked before any is taken.
    """
    path = Path(path)
    try:
        tensors = parse_tensors(path.name, map_file(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot read it: {error}") from None
    state = {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}
    if tensors.keys() != state.keys():
        raise ModelError(f"{path.name}: expected the weights {sorted(state)}, got {sorted(tensors)}")
    for name, own in state.items():
        _check_weight(f"{path.name}: {name!r}", tensors[name], own)
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()})


class _Heads(nn.Module):  # type: ignore[misc]  # torch is not looked into
    """R linear layers over B buckets each, 0 at the start."""

    def __init__(self, partition: HashPartition, width: int) -> None:
        super().__init__()
        self._partition, self._numbers = partition, range(partition.n_repetitions)
        self.weights = nn.Parameter(torch.zeros(partition.n_repetitions, partition.n_buckets, width))
        self.biases = nn.Parameter(torch.zeros(partition.n_repetitions, partition.n_buckets))

    def forward(self, features: Tensor, labels: Labels) -> Tensor:
        """The mean loss over samples and repetitions."""
        logits = torch.einsum("nh,rbh->rnb", features, self.weights) + self.biases[:, None]
        counts = np.diff(labels.indptr)
        rows, shares = np.repeat(np.arange(len(counts)), counts), np.repeat(1 / np.maximum(1, counts), counts)
        buckets = np.stack([self._partition.buckets(labels.indices, r).astype(np.int64) for r in self._numbers])
        at, of, share = (torch.from_numpy(a).to(features.device) for a in (rows, buckets, shares.astype(np.float32)))
        wanted = logits.log_softmax(2)[torch.arange(len(logits), device=at.device)[:, None], at, of]
        return -(wanted * share).sum() / (len(logits) * len(features))


def _epochs(
    module: nn.Module, heads: _Heads, optimiser: Any, inputs: Any, labels: Labels,
    epochs: int, batch: int, seed: int, device: str, prepare: Prepare | None,
) -> Iterator[float]:  # fmt: skip
    """Train for some epochs; the mean loss of each."""
    source, n = np.random.default_rng(seed), len(inputs)
    rates = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, epochs * math.ceil(n / batch))
    for epoch in range(epochs):
        total, order = 0.0, source.permutation(n)
        for start in range(0, n, batch):
            rows = np.sort(order[start : start + batch])
            optimiser.zero_grad()
            loss = heads(_outputs(module, _picked(inputs, rows), device, prepare), _rows(labels, rows))
            loss.backward()
            optimiser.step()
            rates.step()
            total += float(loss.detach()) * len(rows)
        if not math.isfinite(total):
            raise DataError(
                f"the encoder diverged in epoch {epoch + 1}: its loss is {total / n}. Lower 'learning_rate'."
            )
        yield total / n


def _outputs(module: nn.Module, inputs: Any, device: str, prepare: Prepare | None) -> Tensor:
    """The module's output [n, width] of some inputs."""
    given = torch.from_numpy(np.array(inputs, np.float32)) if prepare is None else prepare(inputs)
    outputs = module(_moved(given, device))
    if not isinstance(outputs, torch.Tensor) or outputs.shape[:1] != (len(inputs),) or outputs.ndim != 2:
        shown = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise DataError(f"expected an output of shape ({len(inputs)}, width) of {len(inputs)} inputs, got {shown}")
    return outputs


def _moved(given: Any, device: str) -> Any:
    """Tensors on the device, also those in dicts, lists and tuples."""
    if isinstance(given, dict):
        return {name: _moved(value, device) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return type(given)(_moved(value, device) for value in given)
    return given.to(device) if isinstance(given, torch.Tensor) else given


def _width(module: nn.Module, inputs: Any, device: str, prepare: Prepare | None) -> int:
    if not len(inputs):
        raise DataError("there is nothing to learn: expected one input or more, got none")
    with torch.no_grad():
        return int(_outputs(module.eval(), inputs[:1], device, prepare).shape[1])


def _picked(inputs: Any, rows: Array) -> Any:
    return [inputs[i] for i in rows.tolist()] if isinstance(inputs, list | tuple) else inputs[rows]


def _rows(labels: Labels, rows: Array) -> Labels:
    """The labels of some samples."""
    return Labels(*gather_rows(labels.indptr, labels.indices, rows.astype(np.uint32)), labels.n_labels)


def _check_weight(where: str, given: Array, own: Array) -> None:
    if (given.shape, given.dtype) != (own.shape, own.dtype):
        raise ModelError(f"{where} is {given.dtype} {given.shape}; expected {own.dtype} {own.shape}, as the module has")
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise ModelError(f"{where} has values that are NaN or infinite; expected finite numbers")
