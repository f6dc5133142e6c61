"""A PyTorch module of one's own in front of a model: trained end to end with MACH's loss, kept, and asked again.

    python examples/deep_encoder.py [--samples N] [--encoders E]

The samples are made up: points in 256 dimensions, of 100 labels that no plane parts. Two encoders are trained, each
under repetitions of its own, and two models learn from what they make; their scores, added up, say more than either:
what one encoder does not tell, the other may. (With an encoder for each repetition that is the model of the paper.)

Needs: pip install 'machxc[torch]'.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from machxc import MACHClassifier
from machxc.torch.modules import encode, load_weights, save_weights, train_encoder

WIDTH, LABELS = 256, 100


class Residual(nn.Module):  # type: ignore[misc]  # torch is not looked into
    """Any module will do that gives a row of numbers for each input; this one has a block that adds to what it gets."""

    def __init__(self, n_inputs: int, width: int) -> None:
        super().__init__()
        self.inward = nn.Linear(n_inputs, width)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.GELU())

    def forward(self, inputs: Any) -> Any:
        """[n, n_inputs] -> [n, width]."""
        hidden = self.inward(inputs)
        return hidden + self.block(hidden)


def main() -> None:
    """Train, save, load, ask; print how often the best label is the right one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="to train on (default %(default)s)")
    parser.add_argument("--encoders", type=int, default=2, help="encoders, and models (default %(default)s)")
    given = parser.parse_args()
    (X, y), (queries, wanted) = made(given.samples, 0), made(1000, 1)
    alone = MACHClassifier(hidden=0, repetitions=4, epochs=5).fit(X, y)
    print(f"linear, no encoder     {alone.score(queries, wanted):.3f}")
    total = np.zeros((len(queries), len(alone.classes_)))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.encoders):
            train(Path(folder) / str(number), X, y, number)
            scores = answers(Path(folder) / str(number), queries)
            print(f"encoder {number + 1}              {accuracy(scores, alone.classes_, wanted):.3f}")
            total += scores
    print(f"all encoders together  {accuracy(total, alone.classes_, wanted):.3f}")


def train(folder: Path, X: Any, y: Any, number: int) -> None:
    """One encoder and its model, into a folder: the model's files, and the module's weights beside them."""
    torch.manual_seed(number)
    module = Residual(WIDTH, 128)
    train_encoder(module, X, y, repetitions=4, epochs=15, learning_rate=2e-3, seed=number)  # gradients reach all of it
    model = MACHClassifier(hidden=0, repetitions=4, random_state=number).fit(encode(module, X), y)
    model.save(folder)
    save_weights(module, folder.with_suffix(".safetensors"))


def answers(folder: Path, queries: Any) -> Any:
    """The scores of all labels, from what was saved; the module's code is its owner's, and was not saved."""
    module = Residual(WIDTH, 128)
    load_weights(module, folder.with_suffix(".safetensors"))
    return MACHClassifier.load(folder).predict_proba(encode(module, queries))


def made(n: int, seed: int) -> tuple[Any, Any]:
    """Points and labels: a label has four places in a plane of 16 dimensions, which is bent into 256."""
    fixed, source = np.random.default_rng(99), np.random.default_rng(seed)
    places, first = fixed.standard_normal((LABELS, 4, 16)), fixed.standard_normal((16, 64)) / 4
    bend = fixed.standard_normal((64, WIDTH)) / 8
    labels = np.arange(n) % LABELS
    points = places[labels, source.integers(0, 4, n)] + 0.35 * source.standard_normal((n, 16))
    return (np.tanh(points @ first) @ bend).astype(np.float32), labels


def accuracy(scores: Any, names: Any, wanted: Any) -> float:
    """How often the best label is the right one."""
    return float(np.mean(names[scores.argmax(axis=1)] == wanted))


if __name__ == "__main__":
    main()
