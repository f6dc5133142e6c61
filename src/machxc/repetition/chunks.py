"""How many samples a repetition takes up at a time: what bounds the memory it needs beside its weights."""

from __future__ import annotations

from collections.abc import Callable

from machxc.samples import Features

CHUNK = 4096  # samples, at most
CHUNK_VALUES = 1 << 20  # feature values, on average: 8 MB when encoded
LEFT_OUT_BATCH, CANDIDATES = 256, 20  # left-out samples prepared at a time; buckets that each is compared with
MEMBERS = 16  # samples of a bucket that tell what its samples have (counts.py)
BAND = 1024  # features that are counted at a time, with all others: 16 MB, which caches hold better than all, too
MOST_ROWS = 8192  # of the features that most samples have: these are associated (associations.py)
WINDOW, WINDOW_BYTES = 1 << 20, 1 << 26  # a window of an epoch (windows.py): samples, or bytes of them, about
OnSamples = Callable[[int], None]
"""Called with the number of samples each time some were trained on."""


def chunk_size(features: Features) -> int:
    """How many samples to encode at a time: as many for every run over the same samples."""
    per_sample = len(features.indices) / max(1, len(features))
    return max(1, min(CHUNK, int(CHUNK_VALUES / max(1.0, per_sample))))
