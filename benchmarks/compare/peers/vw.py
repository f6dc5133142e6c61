"""Vowpal Wabbit's recall tree: multi-class in time logarithmic in the labels. It names one label, and ranks no others.

A training sample with several labels is given once for each. One thread: it learns on no more.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from context import WARMING, Context

_PASSES = 3
_MOST_BITS = 27  # 2^27 weights of 4 numbers: 2 GB
_A_LABEL = 64  # weights for each feature, by which the table is sized


def train(ctx: Context) -> None:
    import vowpalwabbit

    labels, file = ctx.labels("train"), ctx.scratch / "train.txt"
    with file.open("w") as out:
        for i, line in enumerate(lines(ctx.features("train"))):
            for label in labels.indices[labels.indptr[i] : labels.indptr[i + 1]].tolist():
                out.write(f"{label + 1} {line}\n")
    bits = max(18, min(_MOST_BITS, math.ceil(math.log2(ctx.facts["n_features"] * _A_LABEL))))
    vowpalwabbit.Workspace(
        f"--recall_tree {ctx.facts['n_labels']} --loss_function logistic -b {bits} -d {file} "
        f"-f {ctx.model / 'model.vw'} --passes {_PASSES} --cache_file {ctx.scratch / 'cache'} -k "
        f"--holdout_off --quiet --random_seed 0"
    ).finish()


def predict(ctx: Context) -> Any:
    import vowpalwabbit

    with ctx.timed("load_s"):
        model = vowpalwabbit.Workspace(f"-t -i {ctx.model / 'model.vw'} --quiet")
    queries = lines(ctx.features("test"))
    for query in queries[:WARMING]:
        model.predict(query)
    with ctx.timed("predict_s"):
        found = [model.predict(query) for query in queries]
    ctx.time_single(model.predict, queries)
    return np.array(found, np.int32)[:, None] - 1


def lines(features: Any) -> list[str]:
    """Samples without labels, in its text format."""
    indices, data, ends = features.indices.tolist(), features.data.tolist(), features.indptr.tolist()
    rows = (zip(indices[a:b], data[a:b], strict=True) for a, b in itertools.pairwise(ends))
    return ["| " + " ".join(f"{column}:{value:.6g}" for column, value in row) for row in rows]
