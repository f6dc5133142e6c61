"""From label sets to target buckets: each label replaced by its bucket, several labels in one bucket a target once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from machxc.compiled import kernel
from machxc.partition import Partition
from machxc.repetition.windows import gather_rows
from machxc.samples import Float32, Int64, Samples, UInt32

Int32 = npt.NDArray[np.int32]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Targets:
    """Target buckets of n samples: CSR (indptr int64 [n + 1], buckets int32, rising in a row); weights float32 [n]."""

    indptr: Int64
    buckets: Int32
    weights: Float32


def bucket_targets(samples: Samples, order: Int64, partition: Partition, r: int) -> Targets:
    """The target buckets of the samples ``order`` (int64 [n]) in repetition r."""
    labels = samples.labels
    ends, ids = gather_rows(labels.indptr, labels.indices, order.astype(np.uint32))
    indptr = np.zeros(len(order) + 1, np.int64)
    buckets = np.empty(len(ids), np.int32)
    used = _distinct(np.diff(ends), partition.buckets(ids, r), indptr, buckets)
    weights = np.ones(len(order), np.float32) if samples.weights is None else np.asarray(samples.weights)[order]
    return Targets(indptr, buckets[:used], weights)


def bucket_counts(samples: Samples, partition: Partition, r: int) -> npt.NDArray[np.float64]:
    """How many (sample, label) pairs fall into each bucket, counted with the samples' weights: float64 [B]."""
    counts = np.zeros(partition.n_buckets)
    labels = samples.labels
    for start in range(0, len(labels), _CHUNK):
        part = labels.rows(start, min(start + _CHUNK, len(labels)))
        weights = None
        if samples.weights is not None:
            weights = np.repeat(samples.weights[start : start + len(part)], np.diff(part.indptr))
        counts += np.bincount(partition.buckets(part.indices, r), weights, minlength=partition.n_buckets)
    return counts


@kernel
def _distinct(lengths: Int64, buckets: UInt32, out_indptr: Int64, out: Int32) -> int:
    """Insert each sample's buckets in order, each once."""
    read = used = 0
    for n in range(len(lengths)):
        first = used
        for j in range(read, read + lengths[n]):
            bucket = np.int32(buckets[j])
            at = used
            while at > first and out[at - 1] > bucket:
                at -= 1
            if at > first and out[at - 1] == bucket:
                continue
            for k in range(used, at, -1):
                out[k] = out[k - 1]
            out[at] = bucket
            used += 1
        read += lengths[n]
        out_indptr[n + 1] = used
    return used
