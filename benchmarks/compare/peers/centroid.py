"""Nearest centroid: a label is the mean direction of its training samples; labels are ranked by cosine, exactly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sp

from context import WARMING, Context, best_of_sparse, single_rows, unit_rows

_BLOCK = 64  # samples whose scores are in memory, a thread


def train(ctx: Context) -> None:
    centroids = unit_rows(ctx.labels("train").T.tocsr() @ unit_rows(ctx.features("train")))
    sp.save_npz(ctx.model / "centroids.npz", centroids.T.tocsr(), compressed=False)


def predict(ctx: Context) -> Any:
    with ctx.timed("load_s"):
        centroids = sp.load_npz(ctx.model / "centroids.npz")
    features = ctx.features("test")
    blocks = [features[i : i + _BLOCK] for i in range(0, features.shape[0], _BLOCK)]
    best_of_sparse((features[:WARMING] @ centroids).tocsr(), ctx.top)
    with ctx.timed("predict_s"), ThreadPoolExecutor(ctx.threads) as pool:
        ids = list(pool.map(lambda block: best_of_sparse((block @ centroids).tocsr(), ctx.top), blocks))
    ctx.time_single(lambda row: best_of_sparse((row @ centroids).tocsr(), 10), single_rows(features))
    return np.concatenate(ids)
