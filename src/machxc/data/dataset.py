"""A dataset: samples, the names of their labels, and how their features came about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from machxc.config import TextConfig
from machxc.data.options import SourceFacts
from machxc.labels import LabelNames
from machxc.samples import Array, Int64, Samples


@dataclass(frozen=True)
class Dataset:
    """Samples with all that belongs to them; the arrays may be memory-mapped, and are not to be written to.

    ``names`` of the K labels; ``text``: how texts became features (None: the features are numeric), ``text_reason``:
    why so, where it was chosen; ``unknown`` int64 [N]: how many labels of each sample are not among the names;
    ``source``: what was read (None for a part of a file).
    """

    samples: Samples
    names: LabelNames
    text: TextConfig | None
    unknown: Int64
    text_reason: str = ""
    source: SourceFacts | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def unknown_labels(self) -> int:
        """How many labels, over all samples, are not among the names."""
        return int(self.unknown.sum())

    def arrays(self) -> list[Array]:
        """The arrays of the samples and of the names."""
        return [*self.samples.arrays(), *self.names.arrays().values()]

    def rows(self, start: int, stop: int) -> Dataset:
        """Samples start to stop, without copying their features, labels or weights."""
        samples = self.samples
        weights = None if samples.weights is None else samples.weights[start:stop]
        part = Samples(samples.features.rows(start, stop), samples.labels.rows(start, stop), weights)
        return replace(self, samples=part, unknown=self.unknown[start:stop], source=None)


def no_unknown(n: int) -> Int64:
    """Zeros int64 [n] that take no memory."""
    return np.broadcast_to(np.zeros(1, np.int64), (n,))
