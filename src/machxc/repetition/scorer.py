"""A trained repetition, ready to score."""

from __future__ import annotations

from typing import Protocol

from machxc.config import Config
from machxc.repetition.encode import Rows
from machxc.repetition.linear import LinearScorer
from machxc.repetition.network import NetworkScorer
from machxc.samples import Array, Float32


class Scorer(Protocol):
    """What retrieval needs of a repetition."""

    def logits(self, rows: Rows, out: Float32) -> None:
        """Bucket scores before softmax or sigmoid, into ``out`` float32 [n, B]."""


def scorer_of(config: Config, tensors: dict[str, Array]) -> Scorer:
    """The scorer of a repetition's stored tensors."""
    if config.hidden:
        return NetworkScorer(tensors, normalised=config.normalisation == "layer")
    return LinearScorer(tensors)
