"""Omikuji: Parabel and Bonsai label trees. It trains from a text file, and predicts one sample a call."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from context import WARMING, Context, padded

_BLOCK = 64  # samples that a thread answers in one go


def train(ctx: Context) -> None:
    import omikuji

    settings = omikuji.Model.default_hyper_param()
    for name, value in ctx.options.items():
        setattr(settings, name, value)
    model = omikuji.Model.train_on_data(str(ctx.xmc("train")), settings, n_threads=ctx.threads)
    model.save(str(ctx.model))


def predict(ctx: Context) -> Any:
    import omikuji

    with ctx.timed("load_s"):
        model = omikuji.Model.load(str(ctx.model))
    model.init_prediction_thread_pool(ctx.threads)
    rows = pairs(ctx.features("test"))
    blocks = [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
    for row in rows[:WARMING]:
        model.predict(row, beam_size=10, top_k=ctx.top)
    with ctx.timed("predict_s"), ThreadPoolExecutor(ctx.threads) as pool:
        answers = list(
            pool.map(lambda block: [model.predict(row, beam_size=10, top_k=ctx.top) for row in block], blocks)
        )
    ctx.time_single(lambda row: model.predict(row, beam_size=10, top_k=10), rows)
    return padded(([label for label, _ in row] for block in answers for row in block), ctx.top)


def pairs(features: Any) -> list[list[tuple[int, float]]]:
    """The rows of a CSR matrix as lists of (feature, value)."""
    indices, data, ends = features.indices.tolist(), features.data.tolist(), features.indptr.tolist()
    return [list(zip(indices[a:b], data[a:b], strict=True)) for a, b in itertools.pairwise(ends)]
