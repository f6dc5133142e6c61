"""fastText's classifier: the mean of word vectors, a softmax in a Huffman tree or one classifier a label.

It reads texts by itself, its words those of the other peers: lower case, two letters or more; of names, character
2- to 4-grams, too. Where there are no texts, the ids of a sample's features are its words, and values are lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from context import WARMING, Context, Skipped, padded

_DIM, _EPOCHS = 100, 25
_MOST_OPERATIONS = 2e13
_LABEL = "__label__"


def train(ctx: Context) -> None:
    import fasttext

    loss, facts = ctx.options["loss"], ctx.facts
    operations = 2 * facts["n_train"] * facts["n_labels"] * _DIM * _EPOCHS
    if loss == "ova" and operations > _MOST_OPERATIONS:
        raise Skipped(f"all labels of all samples, {_EPOCHS} times: {operations:.0e} operations")
    file, labels = ctx.scratch / "train.txt", ctx.labels("train")
    with file.open("w", encoding="utf-8") as out:
        for i, words in enumerate(lines(ctx, "train")):
            own = labels.indices[labels.indptr[i] : labels.indptr[i + 1]].tolist()
            out.write(" ".join([*(f"{_LABEL}{label}" for label in own), words]) + "\n")
    pieces = {"minn": 2, "maxn": 4} if facts["kind"] == "names" else {"minn": 0, "maxn": 0, "bucket": 0}
    model = fasttext.train_supervised(
        str(file),
        loss=loss,
        dim=_DIM,
        lr=ctx.options["lr"],
        epoch=_EPOCHS,
        minCount=1,
        thread=ctx.threads,
        verbose=0,
        **pieces,
    )
    model.save_model(str(ctx.model / "model.bin"))


def predict(ctx: Context) -> Any:
    import fasttext

    with ctx.timed("load_s"):
        model = fasttext.load_model(str(ctx.model / "model.bin"))
    queries = [f"{words}\n" for words in lines(ctx, "test")]
    for query in queries[:WARMING]:
        model.f.predict(query, ctx.top, 0.0, "strict")
    with ctx.timed("predict_s"):  # one thread: it has no other way
        found = [model.f.predict(query, ctx.top, 0.0, "strict") for query in queries]
    ctx.time_single(lambda query: model.f.predict(query, 10, 0.0, "strict"), queries)
    return padded(([int(label[len(_LABEL) :]) for _, label in row] for row in found), ctx.top)


def lines(ctx: Context, part: str) -> Iterator[str]:
    """The words of each sample."""
    if ctx.facts["kind"] != "features":
        for text in ctx.texts(part):
            yield " ".join(re.findall(r"\w+" if ctx.facts["kind"] == "names" else r"\w\w+", text.lower()))
        return
    features = ctx.features(part)
    for i in range(features.shape[0]):
        yield " ".join(
            f"w{column}" for column in features.indices[features.indptr[i] : features.indptr[i + 1]].tolist()
        )
