"""The loss and its gradient, in the place of the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from machxc.torch.encode import Wanted
from machxc.torch.fused import kernels_for

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 24  # logits computed with at a time, in float32: 64 MB


def gradient_(z: Tensor, wanted: Wanted, *, softmax: bool, bias: Tensor | None = None) -> Tensor:
    """Replace the logits ``z`` [G, n, B] by the loss's gradient, and return the loss of each repetition: float32 [G].

    ``bias`` float32 [G, B]: what is to be added to the logits before, if they lack it. Needs kernels.

    The loss is that of the kernels (arithmetic.py): with a softmax the weighted cross-entropy in nats, else the target
    buckets' part of it.
    """
    flat = z.view(-1)
    at_targets = flat[wanted.places].float()
    if bias is not None:
        at_targets += bias.gather(1, wanted.places % z.shape[2])
    weights = wanted.weights.reshape(-1).contiguous()  # of one sample it is one number, G times: kernels read G
    if softmax:
        normaliser = _softmax_(z.view(-1, z.shape[2]), weights, bias)
        losses = normaliser[torch.div(wanted.places, z.shape[2], rounding_mode="floor")] - at_targets
    else:
        _sigmoid_(z.view(-1, z.shape[2]), weights, bias)
        losses = torch.nn.functional.softplus(-at_targets)
    # a bucket that comes a second time has share 0, so that no place gets two numbers: in any order the same sum
    flat.index_add_(0, wanted.places.view(-1), -wanted.shares.to(z.dtype).view(-1))
    return (losses * wanted.shares).sum(dim=1)


def _softmax_(z: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """z [m, B] = weight * softmax(z) in place; returns the logarithm of what it divides by: float32 [m]."""
    kernels = kernels_for(z)
    if kernels is not None:
        fused: Tensor = kernels.softmax_(z, weights, bias)
        return fused
    assert bias is None
    normalisers = torch.empty(len(z), dtype=torch.float32, device=z.device)
    for rows in _chunks(z):
        logits = z[rows].float()
        normalisers[rows] = torch.logsumexp(logits, dim=1)
        z[rows] = logits.sub_(normalisers[rows, None]).exp_().mul_(weights[rows, None])
    return normalisers


def _sigmoid_(z: Tensor, weights: Tensor, bias: Tensor | None) -> None:
    """z [m, B] = weight * sigmoid(z) in place.

    Not by torch.sigmoid: on a processor its last bit depends on where in the tensor a number stands.
    """
    kernels = kernels_for(z)
    if kernels is not None:
        kernels.sigmoid_(z, weights, bias)
        return
    assert bias is None
    for rows in _chunks(z):
        odds = z[rows].float().neg_().exp_().add_(1.0)
        z[rows] = torch.div(weights[rows, None], odds)


def _chunks(z: Tensor) -> list[slice]:
    step = max(1, _CHUNK // max(1, z.shape[1]))
    return [slice(start, start + step) for start in range(0, len(z), step)]


def held_out_losses(z: Tensor, wanted: Wanted, *, softmax: bool) -> Tensor:
    """The summed loss of each repetition, all buckets counted, from logits [G, n, B]: float64 [G], in nats."""
    exact = z.double()
    at_targets = exact.view(-1)[wanted.places]
    if softmax:
        normalisers = torch.logsumexp(exact, dim=2).view(-1)
        bags = torch.div(wanted.places, z.shape[2], rounding_mode="floor")
        return ((normalisers[bags] - at_targets) * wanted.shares).sum(dim=1)
    everywhere = torch.nn.functional.softplus(exact).sum(dim=2)
    return (everywhere * wanted.weights).sum(dim=1) - (at_targets * wanted.shares).sum(dim=1)
