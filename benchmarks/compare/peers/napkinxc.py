"""napkinXC: a probabilistic label tree (PLT), searched by beam."""

from __future__ import annotations

from typing import Any

from context import WARMING, Context, padded, single_rows


def train(ctx: Context) -> None:
    _model(ctx).fit(ctx.features("train"), ctx.labels("train"))


def predict(ctx: Context) -> Any:
    model = _model(ctx)
    with ctx.timed("load_s"):
        model.load()
    features = ctx.features("test")
    model.predict(features[:WARMING], top_k=ctx.top)
    with ctx.timed("predict_s"):
        found = model.predict(features, top_k=ctx.top)
    ctx.time_single(lambda row: model.predict(row, top_k=10), single_rows(features))
    return padded(found, ctx.top)


def _model(ctx: Context) -> Any:
    from napkinxc.models import PLT

    return PLT(str(ctx.model), threads=ctx.threads, tree_search_type="beam", beam_search_width=10)
