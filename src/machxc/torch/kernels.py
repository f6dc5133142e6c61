"""What the device spends its time on beside matrix products, as Triton kernels: each reads and writes its data once.

Every one of them has a twin in plain PyTorch, where it is called (loss.py, layers.py, top_k.py): that runs where Triton
does not, and is what the tests hold these against. Importing this module imports triton; `kernels_for` does so where
there is a use for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

WIDEST = 8192  # numbers of a row that one program holds


def softmax_(z: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """z [m, B] = weight * softmax(z) in place; returns the logarithm of what it divides by: float32 [m].

    ``bias`` float32 [G, B]: added to z first, each row to m / G rows of it.
    """
    normalisers = torch.empty(len(z), dtype=torch.float32, device=z.device)
    if len(z):
        block = _block(z.shape[1])
        of_bias, each = _bias(bias, weights, len(z))
        _softmax[(len(z),)](
            z, of_bias, weights, normalisers, each, z.shape[1], BIAS=bias is not None, BLOCK=block,
            num_warps=_warps(block),
        )  # fmt: skip
    return normalisers


def sigmoid_(z: Tensor, weights: Tensor, bias: Tensor | None = None) -> None:
    """z [m, B] = weight * sigmoid(z) in place; ``bias`` as in `softmax_`."""
    if len(z):
        block = _block(z.shape[1])
        of_bias, each = _bias(bias, weights, len(z))
        _sigmoid[(len(z),)](
            z, of_bias, weights, each, z.shape[1], BIAS=bias is not None, BLOCK=block, num_warps=_warps(block)
        )


def step_rows(
    weights: Tensor, squares: Tensor, used: Tensor, ends: Tensor, bags: Tensor, shares: Tensor, gradient: Tensor,
    rate: float,
) -> None:  # fmt: skip
    """A step of the rows ``used``: row i by the gradients of the bags from ends[i - 1] to ends[i], times their shares.

    ``weights`` float32 [rows, W], ``squares`` float32 [rows], ``used`` and ``ends`` int64 [u], ``bags`` int64 [e],
    ``shares`` float32 [e], ``gradient`` [bags, W].
    """
    if len(used):
        width = weights.shape[1]
        block = triton.next_power_of_2(width)
        of_bags = max(1, min(8, WIDEST // block))
        _step_rows[(len(used),)](
            weights, squares, used, ends, bags, shares, gradient, rate, width, BLOCK=block, BAGS=of_bags,
            num_warps=_warps(block * of_bags // 2),
        )  # fmt: skip


def step_outputs(weights: Tensor, squares: Tensor, gradient: Tensor, copy: Tensor, rate: float) -> None:
    """A step of the rows of ``weights`` float32 [m, H] by ``gradient`` [m, H], taken over into ``copy`` [m, H]."""
    if len(weights):
        width = weights.shape[1]
        block = triton.next_power_of_2(width)
        _step_outputs[(len(weights),)](
            weights, squares, gradient, copy, rate, width, BLOCK=block, num_warps=_warps(block)
        )


def sift(
    values: Tensor, parameters: Tensor, bits: int, start: int, stop: int, seen: Tensor | None, thresholds: Tensor,
    counts: Tensor, found: Tensor, *, least: bool,
) -> None:  # fmt: skip
    """The ranks of labels from ``start`` to ``stop`` with a score of a query's threshold or more, into ``found``.

    ``values`` float32 [R, B, n]: what buckets contribute, which is added up (``least``: of which the least counts);
    ``parameters`` int64 [R, 6] and ``bits``: of the partition's hash; ``seen``: packed into uint8; ``thresholds``
    float32 [n]. ``counts`` int32 [n]: how many each query has, also where ``found`` int64 [n, c] has no room for all.
    """
    n_repetitions, n_buckets, n = values.shape
    of_queries = min(32, triton.next_power_of_2(n))
    of_labels = min(512, 2048 // of_queries)  # as many scores a program, or what hashes leave of its registers
    grid = (triton.cdiv(stop - start, of_labels), triton.cdiv(n, of_queries))
    _sift[grid](
        values, parameters, thresholds, counts, found, counts if seen is None else seen, start, stop, n, found.shape[1],
        n_buckets, n_repetitions, BITS=bits, SHIFT=(bits + 1) // 2, SEEN=seen is not None, LEAST=least,
        LABELS=of_labels, QUERIES=of_queries,
    )  # fmt: skip


def _bias(bias: Tensor | None, instead: Tensor, m: int) -> tuple[Tensor, int]:
    """Biases, or something in their place, and how many rows of m each of them is for."""
    return (instead, m) if bias is None else (bias, m // len(bias))


def _block(n: int) -> int:
    return min(4096, int(triton.next_power_of_2(n)))


def _warps(block: int) -> int:
    """Warps of a program, so that a thread has 16 numbers: with more, fewer programs have registers at a time."""
    return max(4, min(16, block // 512))


def _jit(function: Callable[..., None]) -> Any:
    return triton.jit(function)


@_jit
def _softmax(
    z: tl.tensor,
    bias: tl.tensor,
    weights: tl.tensor,
    normalisers: tl.tensor,
    n: tl.tensor,
    n_buckets: tl.tensor,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    start = z + row * n_buckets
    added = bias + (row // n) * n_buckets
    columns = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, n_buckets, BLOCK):  # each lane has its own largest logit, and sum of what is below it
        mask = first + columns < n_buckets
        x = tl.load(start + first + columns, mask=mask, other=-3.0e38).to(tl.float32)
        if BIAS:
            x += tl.load(added + first + columns, mask=mask, other=0.0)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.where(mask, tl.exp(x - higher), 0.0)
        top = higher
    highest = tl.max(top, 0)
    normaliser = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    tl.store(normalisers + row, normaliser)
    weight = tl.load(weights + row)
    for first in range(0, n_buckets, BLOCK):
        mask = first + columns < n_buckets
        x = tl.load(start + first + columns, mask=mask, other=0.0).to(tl.float32)
        if BIAS:
            x += tl.load(added + first + columns, mask=mask, other=0.0)
        tl.store(start + first + columns, (weight * tl.exp(x - normaliser)).to(z.dtype.element_ty), mask=mask)


@_jit
def _sigmoid(
    z: tl.tensor,
    bias: tl.tensor,
    weights: tl.tensor,
    n: tl.tensor,
    n_buckets: tl.tensor,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    start = z + row * n_buckets
    added = bias + (row // n) * n_buckets
    columns = tl.arange(0, BLOCK)
    weight = tl.load(weights + row)
    for first in range(0, n_buckets, BLOCK):
        mask = first + columns < n_buckets
        x = tl.load(start + first + columns, mask=mask, other=0.0).to(tl.float32)
        if BIAS:
            x += tl.load(added + first + columns, mask=mask, other=0.0)
        odds = tl.exp(-tl.abs(x))
        share = tl.where(x >= 0.0, 1.0, odds) / (1.0 + odds)
        tl.store(start + first + columns, (weight * share).to(z.dtype.element_ty), mask=mask)


@_jit
def _step_rows(
    weights: tl.tensor,
    squares: tl.tensor,
    used: tl.tensor,
    ends: tl.tensor,
    bags: tl.tensor,
    shares: tl.tensor,
    gradient: tl.tensor,
    rate: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
    BAGS: tl.constexpr,
) -> None:
    i = tl.program_id(0)
    row = tl.load(used + i)
    first = tl.load(ends + i - 1, mask=i > 0, other=0)
    last = tl.load(ends + i)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(first, last, BAGS):  # some at a time: a row that all samples have would wait for each in turn
        j = start + tl.arange(0, BAGS)
        there = j < last
        places = tl.load(bags + j, mask=there, other=0)[:, None] * width + columns[None, :]
        part = tl.load(gradient + places, mask=there[:, None] & mask[None, :], other=0.0).to(tl.float32)
        total += tl.sum(tl.load(shares + j, mask=there, other=0.0)[:, None] * part, 0)
    square = tl.load(squares + row) + tl.sum(total * total, 0)
    tl.store(squares + row, square)
    scale = tl.where(square > 0.0, rate / tl.sqrt(tl.where(square > 0.0, square, 1.0)), 0.0)
    place = weights + row * width + columns
    tl.store(place, tl.load(place, mask=mask, other=0.0) - scale * total, mask=mask)


@_jit
def _step_outputs(
    weights: tl.tensor,
    squares: tl.tensor,
    gradient: tl.tensor,
    copy: tl.tensor,
    rate: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    place = row * width + columns
    g = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
    square = tl.load(squares + row) + tl.sum(g * g, 0)
    tl.store(squares + row, square)
    scale = tl.where(square > 0.0, rate / tl.sqrt(tl.where(square > 0.0, square, 1.0)), 0.0)
    moved = tl.load(weights + place, mask=mask, other=0.0) - scale * g
    tl.store(weights + place, moved, mask=mask)
    tl.store(copy + place, moved.to(copy.dtype.element_ty), mask=mask)


@_jit
def _sift(
    values: tl.tensor,
    parameters: tl.tensor,
    thresholds: tl.tensor,
    counts: tl.tensor,
    found: tl.tensor,
    seen: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    n: tl.tensor,
    room: tl.tensor,
    n_buckets: tl.tensor,
    n_repetitions: tl.tensor,
    BITS: tl.constexpr,
    SHIFT: tl.constexpr,
    SEEN: tl.constexpr,
    LEAST: tl.constexpr,
    LABELS: tl.constexpr,
    QUERIES: tl.constexpr,
) -> None:
    labels = start + tl.program_id(0).to(tl.int64) * LABELS + tl.arange(0, LABELS)
    queries = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    there = labels < stop
    if SEEN:
        byte = tl.load(seen + (labels >> 3), mask=there, other=0).to(tl.int64)
        there = there & (((byte >> (labels & 7)) & 1) == 1)
    asked = queries < n
    last: tl.constexpr = (1 << BITS) - 1
    merged = tl.zeros((LABELS, QUERIES), tl.float32)
    if LEAST:
        merged = merged + float("inf")
    for r in range(n_repetitions):
        of_r = parameters + r * 6  # permute of partition.py, and then the bucket
        y = (labels * tl.load(of_r) + tl.load(of_r + 1)) & last
        y = y ^ (y >> SHIFT)
        y = (y * tl.load(of_r + 2) + tl.load(of_r + 3)) & last
        y = y ^ (y >> SHIFT)
        y = (y * tl.load(of_r + 4) + tl.load(of_r + 5)) & last
        buckets = ((y * n_buckets) >> BITS) & ((1 << (64 - BITS)) - 1)
        row = (r * n_buckets + buckets) * n
        given = tl.load(values + row[:, None] + queries[None, :], mask=there[:, None] & asked[None, :], other=0.0)
        merged = tl.minimum(merged, given) if LEAST else merged + given
    limits = tl.load(thresholds + queries, mask=asked, other=float("inf"))
    kept = (merged >= limits[None, :]) & there[:, None] & asked[None, :]
    score = merged.to(tl.int32, bitcast=True).to(tl.int64)
    ranks = (tl.where(score < 0, score ^ 0x7FFFFFFF, score) << 32) | (4294967295 - labels)[:, None]
    columns = tl.broadcast_to(queries[None, :], (LABELS, QUERIES))
    places = tl.atomic_add(counts + columns, tl.full((LABELS, QUERIES), 1, tl.int32), mask=kept)
    tl.store(found + columns.to(tl.int64) * room + places, ranks, mask=kept & (places < room))
