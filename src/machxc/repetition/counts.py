"""What a counted repetition has counted, and the weight that follows from a count (see counting.py)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from machxc.compiled import inline
from machxc.repetition.chunks import MEMBERS
from machxc.repetition.encode import Encoder, Rows
from machxc.repetition.windows import at_hand
from machxc.samples import Float32, Int64, Samples, UInt32

POWER, LENGTH, PRIOR, UNSEEN, CALM = 0.7, 0.4, 0.5, 0.01, 2.4  # measured on names, terms and queries: docs/algorithm.md


@dataclass(frozen=True)
class Pairs:
    """All (sample, bucket) pairs, each once, ordered by bucket and then by sample.

    ``members`` uint32 (samples), ``buckets`` uint32, ``weights`` float32 (the samples'); those of bucket b are
    starts[b] to starts[b + 1] (int64 [B + 1]).
    """

    members: UInt32
    buckets: UInt32
    weights: Float32
    starts: Int64

    def __len__(self) -> int:
        return len(self.members)

    def parts(self, n: int) -> list[slice]:
        """About equal parts, at most ``n`` and at least one, no bucket in two of them."""
        bounds = self.starts[np.searchsorted(self.starts, np.linspace(0, len(self), n + 1)[1:-1])]
        ends = np.unique(np.append(bounds, len(self))).tolist()
        return [slice(a, b) for a, b in itertools.pairwise([0, *(end for end in ends if end > 0)])] or [slice(0, 0)]


@dataclass(frozen=True)
class Counts:
    """What was counted.

    Row by row, of the features f: ``starts`` int64 [rows + 1], ``entries`` uint32 (the buckets that f met, rising),
    ``counts`` float32, c(f, b) of each, ``background`` float32 [rows], smoothing times p(f). Of the buckets b, each
    float32 [B]: ``shares``, their samples; ``lengths``, the sum of the values of their features; ``features``, how many
    these are. ``smoothing`` is the setting.
    """

    starts: Int64
    entries: UInt32
    counts: Float32
    background: Float32
    shares: Float32
    lengths: Float32
    features: Float32
    smoothing: np.float32

    @property
    def penalties(self) -> Float32:
        """What long buckets pay: LENGTH ln(1 + L(b) / smoothing), float32 [B]."""
        penalties: Float32 = np.float32(LENGTH) * np.log1p(self.lengths / self.smoothing)
        return penalties

    @property
    def log_shares(self) -> Float32:
        """ln of the number of samples of each bucket, of an empty one as if it had UNSEEN: float32 [B]."""
        logarithms: Float32 = np.log(np.maximum(self.shares, np.float32(UNSEEN)))
        return logarithms

    @property
    def mean_value(self) -> np.float32:
        """m: the mean value of a feature in a sample."""
        total = self.features.sum(dtype=np.float64)
        return np.float32(self.lengths.sum(dtype=np.float64) / total if total else 1.0)


@dataclass(frozen=True)
class Members:
    """Samples of some buckets: those of the i-th are the rows starts[i] to starts[i + 1]; numbers of their pairs."""

    starts: Int64
    pairs: Int64
    rows: Rows


def members_of(samples: Samples, encoder: Encoder, pairs: Pairs, buckets: Int64) -> Members:
    """The first MEMBERS samples of each bucket, encoded."""
    starts = pairs.starts
    lengths = np.minimum(starts[buckets + 1] - starts[buckets], MEMBERS)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    numbers = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths) + np.repeat(starts[buckets], lengths)
    return Members(bounds, numbers, encoded(samples, encoder, pairs.members[numbers]))


def encoded(samples: Samples, encoder: Encoder, members: UInt32) -> Rows:
    """Some samples, in any order, encoded."""
    features, places = at_hand(samples, members.astype(np.int64))
    return encoder(features, places)


def with_others(pairs: Pairs) -> Int64:
    """Numbers of the pairs that leave something in their bucket when they are left out: int64."""
    rest = np.bincount(pairs.buckets, pairs.weights)[pairs.buckets] - pairs.weights
    return np.flatnonzero((pairs.weights > 0) & (rest > 1e-3 * pairs.weights)).astype(np.int64)


@inline
def weight_of(count: np.float32, background: np.float32, penalty: np.float32) -> np.float32:
    """w(f, b) of a count, before what is below 0 is left out."""
    weight: np.float32 = np.log1p(count ** np.float32(POWER) / background) - penalty
    return weight


@inline
def shared(count: np.float32, share: np.float32, length: np.float32, features: np.float32) -> np.float32:
    """e(f, b), the share of the samples of b that have f: its mean value there, over that of a feature there."""
    return count * features / (share * length)
