"""Labels to buckets, a different hash in every repetition, and back.

`HashPartition` stores two short rows of integers a repetition and no table: its hash can be inverted, so the members of
a bucket are computed, not looked up. `TablePartition` holds a given assignment behind the same contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from machxc.config import BOUNDS
from machxc.errors import DataError, SettingError
from machxc.samples import Array, Int64, UInt32

UInt64 = npt.NDArray[np.uint64]

_STREAM = 0x6D61_6368_7863_6862  # sets the partition's random numbers apart from any other use of the same seed
_GOLDEN = 0x9E37_79B9_7F4A_7C15
_CHUNK = 1 << 15  # labels hashed at a time: the arrays between the steps stay in the cache, whatever the input


class Partition(Protocol):
    """What retrieval and training ask of a partition: R repetitions, each of them K labels dealt into B buckets."""

    @property
    def n_labels(self) -> int:
        """K: label ids lie in [0, K)."""

    @property
    def n_buckets(self) -> int:
        """B: bucket ids lie in [0, B)."""

    @property
    def n_repetitions(self) -> int:
        """R: repetitions are numbered from 0 to R - 1."""

    def buckets(self, labels: Array, r: int) -> UInt32:
        """Each label's bucket in repetition r: uint32, the shape of ``labels``; DataError for an id out of [0, K)."""

    def members(self, bucket: int, r: int) -> Int64:
        """The labels in a bucket of repetition r: int64, increasing."""


def permute(
    x: UInt64,
    p0: np.uint64,
    p1: np.uint64,
    p2: np.uint64,
    p3: np.uint64,
    p4: np.uint64,
    p5: np.uint64,
    shift: np.uint64,
    mask: np.uint64,
) -> UInt64:
    """A bijection on the integers of w bits: multiply-add, xorshift, multiply-add, xorshift, multiply-add, mod 2**w.

    ``mask`` is 2**w - 1, w <= 32; p0, p2 and p4 are odd; ``shift`` is at least w / 2, so that an xorshift is its own
    inverse and the inverse of the whole is the same function of other numbers (`inverse_of`). All are uint64: written
    for NumPy arrays, and compiled as it stands into the kernels of `machxc.retrieval`.
    """
    x = (x * p0 + p1) & mask
    x = x ^ (x >> shift)
    x = (x * p2 + p3) & mask
    x = x ^ (x >> shift)
    return (x * p4 + p5) & mask


def inverse_of(parameters: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """The six numbers with which `permute` undoes what it does with ``parameters`` on integers of ``bits`` bits."""
    modulus = 1 << bits
    m0, k0, m1, k1, m2, k2 = parameters
    steps = ((pow(m, -1, modulus), k) for m, k in ((m2, k2), (m1, k1), (m0, k0)))
    return tuple(number for m, k in steps for number in (m, -k * m % modulus))


@dataclass(frozen=True)
class HashPartition:
    """h(i) = (y * B) >> w with y = (a * mix(i) + c) mod 2**w: multiply-shift hashing of a mixed label id, no table.

    w = max(1, ceil(log2 K)) bits; a is odd. ``mix`` is a bijection on w bits, drawn anew for each repetition: with one
    mix for all of them, two repetitions whose a agree (up to sign, or up to a small factor) would hold nearly the same
    pairs of labels together, and among the 2**(w - 1) odd a of a small K that happens often (measured with 159 to 3,993
    labels and 32 repetitions: some two shared 20 to 170 times the pairs they should; with a mix for each, at most 2).
    The numbers of a repetition are outputs of SplitMix64 (Steele, Lea and Flood 2014): see `parameters`.

    As i -> y is a bijection, the members of a bucket are a contiguous range of y pulled back. Over the draw of a and c
    any two labels share a bucket with probability at most ceil(2**w / B) / 2**w <= 2 / B, and with probability 0 when
    B >= 2**w: then h is one-to-one (B = 2**w: onto all buckets). Bucket sizes are those of K ids dealt without
    replacement into B ranges that differ by at most one in length, hence no more uneven than by independent throws.

    ``n_labels`` K and ``n_buckets`` B in [1, 2**32 - 1], ``n_repetitions`` R in [1, 4096], ``seed`` in [0, 2**63 - 1];
    SettingError otherwise. ``numbers``: which repetitions these R are, where some are missing (None: 0 to R - 1).
    """

    n_labels: int
    n_buckets: int
    n_repetitions: int
    seed: int
    numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_setting("n_labels", self.n_labels, "n_labels")
        _check_setting("n_buckets", self.n_buckets, "buckets")
        _check_setting("n_repetitions", self.n_repetitions, "repetitions")
        _check_setting("seed", self.seed, "seed")

    def subset(self, numbers: Sequence[int]) -> HashPartition:
        """The same partition with only the repetitions ``numbers`` (of 0 to R - 1), in that order."""
        for number in numbers:
            _check_repetition(number, self.n_repetitions)
        kept = tuple(number if self.numbers is None else self.numbers[number] for number in numbers)
        return replace(self, n_repetitions=len(kept), numbers=kept)

    @property
    def bits(self) -> int:
        """w: the bits of a label id."""
        return max(1, (self.n_labels - 1).bit_length())

    @property
    def shift(self) -> int:
        """By how much `permute` shifts: the upper half of the bits onto the lower half."""
        return (self.bits + 1) // 2

    def parameters(self, r: int) -> tuple[int, ...]:
        """The six numbers of `permute` in repetition r: (m0, k0, m1, k1) make mix(i), the last two are a and c.

        Each is the top w bits of one output of SplitMix64; multipliers are made odd.
        """
        _check_repetition(r, self.n_repetitions)
        number = r if self.numbers is None else self.numbers[r]
        words = (_splitmix64((self.seed ^ _STREAM) + (8 * number + j + 1) * _GOLDEN) for j in range(6))
        return tuple((word >> (64 - self.bits)) | (j % 2 == 0) for j, word in enumerate(words))

    @cached_property
    def forward(self) -> UInt64:
        """`parameters` of every repetition: uint64 [R, 6]."""
        return np.array([self.parameters(r) for r in range(self.n_repetitions)], np.uint64)

    @cached_property
    def inverse(self) -> UInt64:
        """The numbers with which `permute` takes y back to the label: uint64 [R, 6]."""
        rows = (self.parameters(r) for r in range(self.n_repetitions))
        return np.array([inverse_of(row, self.bits) for row in rows], np.uint64)

    def buckets(self, labels: Array, r: int) -> UInt32:
        """Each label's bucket in repetition r: uint32, the shape of ``labels``; DataError for an id out of [0, K)."""
        _check_repetition(r, self.n_repetitions)
        ids = _check_labels(labels, self.n_labels)
        out = np.empty(ids.shape, np.uint32)
        flat, flat_out = ids.reshape(-1), out.reshape(-1)
        for start in range(0, len(flat), _CHUNK):
            y = self._permute(flat[start : start + _CHUNK].astype(np.uint64), self.forward[r])
            flat_out[start : start + _CHUNK] = (y * np.uint64(self.n_buckets)) >> np.uint64(self.bits)
        return out

    def members(self, bucket: int, r: int) -> Int64:
        """The labels in a bucket of repetition r: int64, increasing. Time and memory go with their number, not K."""
        _check_repetition(r, self.n_repetitions)
        _check_bucket(bucket, self.n_buckets)
        first = -(-(bucket << self.bits) // self.n_buckets)
        last = -(-((bucket + 1) << self.bits) // self.n_buckets)
        labels = self._permute(np.arange(first, last, dtype=np.uint64), self.inverse[r])
        return np.sort(labels[labels < np.uint64(self.n_labels)]).astype(np.int64)

    def _permute(self, x: UInt64, parameters: UInt64) -> UInt64:
        p0, p1, p2, p3, p4, p5 = parameters
        return permute(x, p0, p1, p2, p3, p4, p5, np.uint64(self.shift), np.uint64((1 << self.bits) - 1))


class TablePartition:
    """A given assignment of labels to buckets, learned or chosen elsewhere.

    ``assignment`` uint32 [R, K] (any integer array is converted; a memory map stays one): the bucket of each label in
    each repetition. DataError when it is not a table of bucket ids in [0, B).
    """

    def __init__(self, assignment: Array, n_buckets: int) -> None:
        table = np.asarray(assignment)
        _check_setting("n_buckets", n_buckets, "buckets", owner="TablePartition")
        if table.ndim != 2 or not table.size or table.dtype.kind not in "iu":
            raise DataError(
                "the assignment of TablePartition must be a table of integers [repetitions, labels], at least 1 x 1. "
                f"Got {table.dtype} {list(table.shape)} instead."
            )
        if int(table.min()) < 0 or int(table.max()) >= n_buckets:
            r, label = np.argwhere((table < 0) | (table >= n_buckets))[0]
            raise DataError(
                f"repetition {r} assigns label {label} to bucket {table[r, label]}; "
                f"expected buckets in [0, {n_buckets})"
            )
        self.assignment: UInt32 = np.ascontiguousarray(table, np.uint32)
        self.n_buckets = n_buckets

    @property
    def n_labels(self) -> int:
        """K."""
        return int(self.assignment.shape[1])

    @property
    def n_repetitions(self) -> int:
        """R."""
        return int(self.assignment.shape[0])

    def buckets(self, labels: Array, r: int) -> UInt32:
        """Each label's bucket in repetition r: uint32, the shape of ``labels``; DataError for an id out of [0, K)."""
        _check_repetition(r, self.n_repetitions)
        return np.asarray(self.assignment[r])[_check_labels(labels, self.n_labels)]

    def members(self, bucket: int, r: int) -> Int64:
        """The labels in a bucket of repetition r: int64, increasing. The first call makes `inverted`, and keeps it."""
        _check_repetition(r, self.n_repetitions)
        _check_bucket(bucket, self.n_buckets)
        labels, starts = self.inverted
        return labels[r, starts[r, bucket] : starts[r, bucket + 1]].astype(np.int64)

    @cached_property
    def inverted(self) -> tuple[UInt32, Int64]:
        """The inverted index: labels uint32 [R, K] by bucket, then by id, and each bucket's start int64 [R, B + 1]."""
        labels = np.empty(self.assignment.shape, np.uint32)
        starts = np.zeros((self.n_repetitions, self.n_buckets + 1), np.int64)
        narrow = np.uint16 if self.n_buckets <= 1 << 16 else np.uint32  # 16 bits: NumPy's stable sort is a radix sort
        for r, row in enumerate(self.assignment):
            labels[r] = np.argsort(row.astype(narrow), kind="stable")
            np.cumsum(np.bincount(row, minlength=self.n_buckets), out=starts[r, 1:])
        return labels, starts


def _splitmix64(state: int) -> int:
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB % 2**64
    return z ^ (z >> 31)


def _check_setting(name: str, value: int, bound: str, owner: str = "HashPartition") -> None:
    _, low, high = BOUNDS[bound]
    if not isinstance(value, int) or isinstance(value, bool) or not int(low) <= value <= int(high):
        raise SettingError(
            f"The '{name}' parameter of {owner} must be an int in [{low}, {high}]. Got {value!r} instead."
        )


def _check_repetition(r: int, n_repetitions: int) -> None:
    if not 0 <= r < n_repetitions:
        raise SettingError(f"repetition {r} does not exist; expected one in [0, {n_repetitions})")


def _check_bucket(bucket: int, n_buckets: int) -> None:
    if not 0 <= bucket < n_buckets:
        raise DataError(f"bucket {bucket} does not exist; expected one in [0, {n_buckets})")


def _check_labels(labels: Array, n_labels: int) -> Array:
    ids = np.asarray(labels)
    if ids.size and ids.dtype.kind not in "iu":
        raise DataError(f"expected label ids as integers, got an array of {ids.dtype}")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= n_labels):
        wrong = ids[(ids < 0) | (ids >= n_labels)].flat[0]
        raise DataError(f"label id {wrong} is out of range: expected ids in [0, {n_labels})")
    return ids if ids.size else ids.astype(np.uint32)
