"""The other side of benchmarks/serving.py: a FastAPI handler as one would write it around an index of the same names.

    python benchmarks/serving_peer.py build KIND TRAIN FOLDER      # usearch or bm25s
    python benchmarks/serving_peer.py serve KIND FOLDER PORT

usearch: labels are the mean of their names' embeddings (character 2- to 4-grams, hashed, projected to 128 dimensions at
random), found by an HNSW index with the package's defaults. bm25s: a label's document is the n-grams of its names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

DIMENSIONS, BITS = 128, 18
Ask = Callable[[str, int], tuple[list[int], list[float]]]

vectorizer = HashingVectorizer(
    analyzer="char_wb", ngram_range=(2, 4), n_features=1 << BITS, alternate_sign=False, norm=None, lowercase=True
)


def projection() -> Any:
    """Random directions: float32 [2**18, 128]."""
    return np.random.default_rng(0).standard_normal((1 << BITS, DIMENSIONS), np.float32)


def embedded(counts: Any, directions: Any) -> Any:
    """Embeddings of length 1 of rows of counts."""
    vectors = np.asarray(counts.astype(np.float32) @ directions)  # float64 would copy all directions for each query
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def build(kind: str, train: Path, folder: Path) -> None:
    """Read the names, make the index of a kind, and keep it with the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    labels = sorted({sample["labels"][0] for sample in samples})
    places = {label: i for i, label in enumerate(labels)}
    owners = np.array([places[sample["labels"][0]] for sample in samples])
    counts = vectorizer.transform([sample["text"] for sample in samples]).astype(np.float32)
    member = sparse.csr_matrix((np.ones(len(owners), np.float32), (owners, np.arange(len(owners)))))
    documents = (member @ counts).tocsr()
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    {"usearch": build_usearch, "bm25s": build_bm25s}[kind](documents, folder)


def build_usearch(documents: Any, folder: Path) -> None:
    from usearch.index import Index

    index = Index(ndim=DIMENSIONS, metric="cos", dtype="f32")
    index.add(np.arange(documents.shape[0]), embedded(documents, projection()))
    index.save(str(folder / "index.usearch"))


def build_bm25s(documents: Any, folder: Path) -> None:
    import bm25s

    repeated = np.minimum(documents.data, 20).astype(np.int64)
    ends, features = documents.indptr.tolist(), documents.indices
    rows = [np.repeat(features[a:b], repeated[a:b]).tolist() for a, b in pairwise(ends)]
    index = bm25s.BM25()
    index.index((rows, {str(i): i for i in range(documents.shape[1])}), show_progress=False)
    index.save(str(folder / "bm25s"))


def ask_usearch(folder: Path) -> Ask:
    from usearch.index import Index

    index, directions = Index.restore(str(folder / "index.usearch")), projection()

    def ask(text: str, k: int) -> tuple[list[int], list[float]]:
        found = index.search(embedded(vectorizer.transform([text]), directions)[0], k, threads=1)
        return found.keys.tolist(), (1 - found.distances).tolist()

    return ask


def ask_bm25s(folder: Path) -> Ask:
    import bm25s

    index = bm25s.BM25.load(str(folder / "bm25s"))

    def ask(text: str, k: int) -> tuple[list[int], list[float]]:
        tokens = list(map(str, vectorizer.transform([text]).indices.tolist()))
        if not tokens:
            return [], []
        ids, scores = index.retrieve([tokens], k=k, show_progress=False)
        return ids[0].tolist(), scores[0].tolist()

    return ask


def serve(kind: str, folder: Path, port: int) -> None:
    """Serve an index: the same request, the same answer."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        queries: list[str]
        top_k: int = 10

    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    ask = {"usearch": ask_usearch, "bm25s": ask_bm25s}[kind](folder)
    app = FastAPI()

    async def search(request: Request) -> Any:
        answers = (ask(query, request.top_k) for query in request.queries)
        return {"results": [{"labels": [labels[i] for i in ids], "scores": scores} for ids, scores in answers]}

    search.__annotations__["request"] = Request
    app.post("/v1/search")(search)
    app.get("/readyz")(lambda: {"status": "ready"})
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    verb, kind, first, second = sys.argv[1:]
    if verb == "build":
        build(kind, Path(first), Path(second))
    else:
        serve(kind, Path(first), int(second))
