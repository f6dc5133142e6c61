"""The linear repetitions of a small model, side by side in memory: one call encodes and scores in all of them.

A query takes some microseconds in each of up to 24 repetitions, which is no more than it takes to call compiled code.
So their arrays are put one after the other. Encoding, and what is added up in which order, are those of one repetition:
so are the scores. Many queries are scored repetition by repetition: the weights of one stay in the core's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from machxc.compiled import fast_kernel
from machxc.repetition.arithmetic import copy
from machxc.repetition.encode import Encoder, Int32, encode_sample
from machxc.repetition.linear import LinearScorer
from machxc.repetition.stored import Entries, add_narrow
from machxc.samples import Array, Features, Float32, Int64, frozen

MOST_ENTRIES = 1 << 23  # of all repetitions: 16 MB


@dataclass(frozen=True)
class Together:
    """R repetitions: what `Encoder` and `LinearScorer` have of each, one after the other.

    ``hashes`` uint64 [R, 3]: multiplier, addend and shift; ``slots`` int32 [R, F]. Repetition r's row i is number
    ``firsts[r]`` + i (int64 [R]) in ``row_weights`` and ``starts``. ``levels`` float32 [R, 256], ``bias`` [R, B].
    ``alike``: all repetitions encode a sample in the same way.
    """

    alike: bool
    sublinear_tf: bool
    l2: bool
    hashes: npt.NDArray[np.uint64]
    slots: Int32
    firsts: Int64
    row_weights: Float32
    starts: Int64
    entries: Entries
    levels: Float32
    bias: Float32

    @classmethod
    def of(cls, repetitions: Sequence[tuple[Encoder, LinearScorer]]) -> Together:
        """Copies of repetitions with narrow entries; see `fits`."""
        encoders, scorers = zip(*repetitions, strict=True)
        one: Encoder = encoders[0]
        sizes = [len(scorer.starts) for scorer in scorers]
        offsets = np.cumsum([0, *(len(scorer.entries) for scorer in scorers)])
        return cls(
            all(_alike(one, other) for other in encoders),
            one.sublinear_tf,
            one.l2,
            np.array([(each.multiplier, each.addend, each.shift) for each in encoders], np.uint64),
            np.stack([each.slots for each in encoders]),
            np.cumsum([0, *sizes[:-1]]),
            np.concatenate([np.append(each.row_weights, np.float32(0.0)) for each in encoders]),
            np.concatenate([each.starts + offset for each, offset in zip(scorers, offsets, strict=False)]),
            np.concatenate([each.entries for each in scorers]),
            np.stack([each.levels for each in scorers]),
            np.stack([each.bias for each in scorers]),
        )

    def sketch(self, features: Features, out: Float32) -> None:
        """The bucket scores of each query, before softmax or sigmoid, into ``out`` float32 [n, R, B]."""
        _sketch(
            frozen(features.indptr), frozen(features.indices), frozen(features.values),
            self.alike, self.sublinear_tf, self.l2, self.hashes, self.slots, self.firsts, self.row_weights,
            self.starts, self.entries, self.levels, self.bias, out,
        )  # fmt: skip


def fits(scorers: Sequence[object]) -> bool:
    """Whether `Together` is for them: several linear repetitions, their entries narrow and not many."""
    linear = [each for each in scorers if isinstance(each, LinearScorer) and each.entries.dtype == np.uint16]
    return len(linear) == len(scorers) > 1 and sum(len(each.entries) for each in linear) <= MOST_ENTRIES


def _alike(one: Encoder, other: Encoder) -> bool:
    if one.multiplier or other.multiplier:
        return one is other
    return np.array_equal(one.slots, other.slots) and np.array_equal(one.row_weights, other.row_weights)


@fast_kernel
def _sketch(
    indptr: Int64, indices: Array, values: Float32, alike: bool, sublinear_tf: bool, l2: bool,
    hashes: npt.NDArray[np.uint64], slots: Int32, firsts: Int64, row_weights: Float32,
    starts: Int64, entries: Entries, levels: Float32, bias: Float32, out: Float32,
) -> None:  # fmt: skip
    n, n_repetitions, n_buckets = out.shape
    z = np.empty(n_buckets, np.float32)
    ends = np.zeros(n + 1, np.int64)
    rows, weights = np.empty(len(indices), np.int32), np.empty(len(indices), np.float32)
    for r in range(n_repetitions):
        first = firsts[r]
        if r == 0 or not alike:
            for i in range(n):
                ends[i + 1] = encode_sample(
                    indptr[i], indptr[i + 1], indices, values, hashes[r, 0], hashes[r, 1], hashes[r, 2], slots[r],
                    row_weights[first:], sublinear_tf, l2, np.uint64(0), np.float32(1.0), np.uint64(0),
                    ends[i], rows, weights,
                )  # fmt: skip
        for i in range(n):
            copy(z, bias[r])
            for j in range(ends[i], ends[i + 1]):
                row = first + rows[j]
                add_narrow(z, weights[j], entries[starts[row] : starts[row + 1]], levels[r])
            copy(out[i, r], z)
