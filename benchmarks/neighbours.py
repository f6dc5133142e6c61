"""The simplest rival: the labels of the most similar training samples, found by comparing with all of them.

    python benchmarks/neighbours.py [--datasets NAME ...] [--queries 1000] [--docs]

Both sides see the same features as the command line would make them: weighted by inverse document frequency, of length
1, similarity is the dot product. A label's score is the sum of the similarities of its samples among the 50 nearest
(the greatest of them, where a sample has one label: then it is the label of the nearest that comes first). One thread;
CPU seconds are those of the search alone; bytes are those of the sparse matrix of all training samples.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

import common
import datasets
from machxc.data import Dataset, read
from machxc.metrics import Evaluation
from machxc.samples import Features, Int64, Labels

DATASETS = tuple(name for name in datasets.NAMES if name != "catalogue")  # too many samples to compare with each
NEIGHBOURS = 50
BLOCK = 10  # queries compared with everything at a time
_Any = npt.NDArray[np.generic]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=datasets.NAMES, metavar="NAME")
    parser.add_argument("--queries", type=int, default=1000, help="test samples (default: the first %(default)s)")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/algorithm.md")
    arguments = parser.parse_args()
    print(common.header(), end="\n\n", flush=True)
    rows = []
    for name in arguments.datasets:
        try:
            rows.append(measure(datasets.files(name), arguments.queries))
        except datasets.AbsentError as absent:
            print(f"left out: {absent}", flush=True)
    columns = ("data", "P@1", "P@3", "P@5", "R@100", "CPU s/1,000", "MB")
    common.report("neighbours", common.table(columns, rows), write=arguments.docs, machine=True)


def measure(files: datasets.Files, n_queries: int) -> list[str]:
    """A line of the table."""
    train = read(files.train)
    known = {"text": train.text} if train.text else {"n_features": train.samples.features.n_features}
    test = read(files.test, names=train.names, unknown_labels="count", **known)
    test = test.rows(0, min(n_queries, len(test)))
    index, labels = Index.of(train), train.samples.labels
    queries = index.weighted(test.samples.features)
    start = time.process_time()
    found = [one for i in range(0, queries.shape[0], BLOCK) for one in index.nearest(queries[i : i + BLOCK])]
    took = (time.process_time() - start) / len(test) * 1000
    merge = np.add if np.diff(labels.indptr).max() > 1 else np.maximum
    evaluation = Evaluation((1, 3, 5, 100))
    evaluation.add([best_labels(*one, labels, merge) for one in found], test.samples.labels, test.unknown)
    metrics = [f"{100 * evaluation.result()[name]:.2f}" for name in ("P@1", "P@3", "P@5", "R@100")]
    return [files.name, *metrics, f"{took:.1f}", f"{index.nbytes / 1e6:,.0f}"]


@dataclass
class Index:
    """All training samples by feature: ``columns`` uint32, the feature ids in use; ``idf``; ``matrix`` [columns, N]."""

    columns: npt.NDArray[np.uint32]
    idf: npt.NDArray[np.float32]
    matrix: sparse.csr_matrix

    @classmethod
    def of(cls, train: Dataset) -> Index:
        """Count, weigh, transpose."""
        columns, counts = np.unique(train.samples.features.indices, return_counts=True)
        idf = (np.log((1 + len(train)) / (1 + counts)) + 1).astype(np.float32)
        index = cls(columns, idf, None)
        index.matrix = index.weighted(train.samples.features).T.tocsr()
        return index

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return int(self.matrix.data.nbytes + self.matrix.indices.nbytes + self.matrix.indptr.nbytes)

    def weighted(self, features: Features) -> sparse.csr_matrix:
        """Samples as rows of length 1; features that training did not have are left out."""
        places = np.minimum(np.searchsorted(self.columns, features.indices), len(self.columns) - 1)
        known = self.columns[places] == features.indices
        values = np.where(known, (1 + np.log(np.maximum(features.values, 1e-6))) * self.idf[places], 0)
        shape = (len(features), len(self.columns))
        matrix = sparse.csr_matrix((values.astype(np.float32), places, features.indptr), shape=shape)
        matrix.eliminate_zeros()
        norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        return sparse.csr_matrix(sparse.diags_array(1 / np.maximum(norms, 1e-9)) @ matrix, dtype=np.float32)

    def nearest(self, queries: sparse.csr_matrix) -> list[tuple[Int64, _Any]]:
        """For each query: the nearest samples, and how similar they are."""
        similar = (queries @ self.matrix).tocsr()
        found = []
        for first, last in zip(similar.indptr[:-1], similar.indptr[1:], strict=True):
            values, samples = similar.data[first:last], similar.indices[first:last]
            best = np.argpartition(-values, NEIGHBOURS)[:NEIGHBOURS] if len(values) > NEIGHBOURS else slice(None)
            found.append((samples[best].astype(np.int64), values[best]))
        return found


def best_labels(samples: Int64, similarities: _Any, labels: Labels, merge: np.ufunc) -> Int64:
    """The 100 best labels of the nearest samples, -1 where there are fewer."""
    sizes = labels.indptr[samples + 1] - labels.indptr[samples]
    ids = np.concatenate(
        [labels.indices[labels.indptr[i] : labels.indptr[i + 1]] for i in samples] or [np.empty(0, int)]
    )
    found, places = np.unique(ids, return_inverse=True)
    scores = np.zeros(len(found), np.float32)
    merge.at(scores, places, np.repeat(similarities, sizes))
    best = found[np.argsort(-scores, kind="stable")][:100]
    return np.pad(best.astype(np.int64), (0, 100 - len(best)), constant_values=-1)


if __name__ == "__main__":
    main()
