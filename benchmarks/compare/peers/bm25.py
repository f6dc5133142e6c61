"""BM25 by bm25s: a label's document is the features of its training samples, a query the features of a sample."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from context import WARMING, Context

_REPEATS = 20  # of a feature in a document, at most: BM25 saturates long before


def train(ctx: Context) -> None:
    import bm25s

    presence, labels = ctx.features("train"), ctx.labels("train")
    presence.data[:] = 1
    documents = (labels.T.tocsr() @ presence).tocsr()
    repeated = np.minimum(documents.data, _REPEATS).astype(np.int64)
    ends, features = documents.indptr.tolist(), documents.indices
    rows = [np.repeat(features[a:b], repeated[a:b]).tolist() for a, b in itertools.pairwise(ends)]
    index = bm25s.BM25()
    index.index((rows, {str(i): i for i in range(presence.shape[1])}), show_progress=False)
    index.save(str(ctx.model))


def predict(ctx: Context) -> Any:
    import bm25s

    with ctx.timed("load_s"):
        index = bm25s.BM25.load(str(ctx.model))
    features = ctx.features("test")
    indices, ends = list(map(str, features.indices.tolist())), features.indptr.tolist()
    queries = [indices[a:b] for a, b in itertools.pairwise(ends)]
    top = min(ctx.top, ctx.facts["n_labels"])
    index.retrieve(queries[:WARMING], k=top, n_threads=ctx.threads, show_progress=False)
    with ctx.timed("predict_s"):
        ids, scores = index.retrieve(queries, k=top, n_threads=ctx.threads, show_progress=False)
    ctx.time_single(lambda query: index.retrieve([query], k=min(10, top), show_progress=False), queries)
    return np.where(scores > 0, ids, -1)
