"""machxc's own answers, timed as those of its peers; the command line trained it, on the original file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from context import SINGLE, WARMING, Context


def predict(ctx: Context) -> Any:
    """Rank the labels of the test file ctx.options["test"] with the model in ctx.model."""
    from machxc.data import read
    from machxc.model import Model
    from machxc.prediction import answer, known_features

    with ctx.timed("load_s"):
        model = Model.load(ctx.model)
    given = read(Path(ctx.options["test"]), names=model.names, unknown_labels="count", **known_features(model))
    features = given.samples.features
    model.top_k(features.rows(0, min(WARMING, len(features))), ctx.top, jobs=ctx.threads)
    with ctx.timed("predict_s"):
        ids, _ = model.top_k(features, ctx.top, jobs=ctx.threads)
    if model.config.text is None:
        rows = [features.rows(i, i + 1) for i in range(min(SINGLE, len(features)))]
        ctx.time_single(lambda row: model.top_k(row, 10), rows)
    else:
        texts = ctx.texts("test")
        ctx.time_single(lambda text: answer(model, [text], k=10), texts)
    return exported_ids(ctx, model, ids)


def exported_ids(ctx: Context, model: Any, ids: Any) -> Any:
    """The label ids of the exported files for the model's own."""
    if ctx.facts["kind"] == "features":
        return ids
    exported = {name: i for i, name in enumerate(json.loads((ctx.data / "labels.json").read_text(encoding="utf-8")))}
    own, places = np.unique(ids, return_inverse=True)
    known = [-1 if i < 0 else exported[str(model.names.names(np.array([i]))[0])] for i in own.tolist()]
    return np.array(known, np.int32)[places].reshape(ids.shape)
