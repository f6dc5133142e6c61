"""PECOS XR-Linear: PIFA label vectors, a tree by hierarchical k-means, a linear classifier at every node.

It does not scale samples by itself, as others do, and is much worse without.
"""

from __future__ import annotations

from typing import Any

from context import WARMING, Context, best_of_sparse, single_rows, unit_rows


def train(ctx: Context) -> None:
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    features, labels = unit_rows(ctx.features("train")), ctx.labels("train").tocsc()
    vectors = LabelEmbeddingFactory.create(labels, features, method="pifa", threads=ctx.threads)
    tree = Indexer.gen(
        vectors, indexer_type="hierarchicalkmeans", nr_splits=16, max_leaf_size=100, threads=ctx.threads, seed=0
    )
    model = XLinearModel.train(features, labels, C=tree, threads=ctx.threads, negative_sampling_scheme="tfn+man")
    model.save(str(ctx.model))


def predict(ctx: Context) -> Any:
    from pecos.xmc.xlinear.model import XLinearModel

    with ctx.timed("load_s"):
        model = XLinearModel.load(str(ctx.model), is_predict_only=True)
    features = unit_rows(ctx.features("test"))
    model.predict(features[:WARMING], only_topk=ctx.top, beam_size=10, threads=ctx.threads)
    with ctx.timed("predict_s"):
        scores = model.predict(features, only_topk=ctx.top, beam_size=10, threads=ctx.threads)
    ctx.time_single(lambda row: model.predict(row, only_topk=10, beam_size=10, threads=1), single_rows(features))
    return best_of_sparse(scores.tocsr(), ctx.top)
