"""Which tensors the files of a model have: their types, shapes and ranges, which `machxc.folder` checks."""

from __future__ import annotations

from collections.abc import Mapping

from machxc.config import LEVELS, Config, layer_name
from machxc.formats import TensorSpec

# kind of file -> its tensors. Another kind of repetition is one more entry. Sizes: F feature slots, B buckets, H0, H1,
# ... units of each hidden layer, Hn of the last, K labels, R repetitions, L levels (256); rows and entries are free.
_LINEAR = {
    "slots": TensorSpec("I32", ("F",), low=-1, below="rows"),  # the row of each feature slot; -1: dropped
    "row_weights": TensorSpec("F32", ("rows",)),
    # sparse rows of weights: row i has the entries starts[i] to starts[i + 1], at most B of them (what an entry is:
    # stored.py; that its bucket is below B: `_highest_bucket`)
    "starts": TensorSpec("I64", ("rows+1",), rises=("entries", "B")),
    "entries": TensorSpec("U16", ("entries",)),
    "levels": TensorSpec("F32", ("L",)),
    "bias": TensorSpec("F32", ("B",)),
}
TENSORS: dict[str, dict[str, TensorSpec]] = {
    "linear": _LINEAR,
    "wide": _LINEAR | {"entries": TensorSpec("U32", ("entries",))},
    "hidden": {
        "slots": TensorSpec("I32", ("F",), low=-1, below="rows"),
        "row_weights": TensorSpec("F32", ("rows",)),
        "table": TensorSpec("I8", ("rows", "H0")),  # times the scale of its row
        "table_scales": TensorSpec("F32", ("rows",)),
        "hidden_bias": TensorSpec("F32", ("H0",)),
        "output": TensorSpec("I8", ("B", "Hn")),
        "output_scales": TensorSpec("F32", ("B",)),
        # and of each further layer i = 1, 2, ...: "layer_i" I8 [Hi, Hi-1], "layer_i_scales" and "layer_i_bias" F32 [Hi]
        "bias": TensorSpec("F32", ("B",)),
    },
    "partition": {"assignment": TensorSpec("U32", ("R", "K"), below="B")},
    # these, and those of LabelNames, which checks them itself
    "labels": {"counts": TensorSpec("U32", ("K",))},
    "few labels": {"seen": TensorSpec("U32", ("seen",), below="K"), "seen_counts": TensorSpec("U32", ("seen",))},
}


def specs_of(config: Config, kind: str) -> Mapping[str, TensorSpec]:
    """The tensors of a kind of file of a model of ``config``."""
    if kind != "hidden":
        return TENSORS[kind]
    specs = dict(TENSORS[kind])
    for i in range(1, len(config.layers)):
        name = layer_name(i)
        specs[name] = TensorSpec("I8", (f"H{i}", f"H{i - 1}"))
        specs[f"{name}_scales"] = specs[f"{name}_bias"] = TensorSpec("F32", (f"H{i}",))
    return specs


def sizes_of(config: Config) -> dict[str, int]:
    """The numbers behind the symbols in shapes that follow from ``config``."""
    slots = min(config.n_features, 2**config.feature_bits)
    sizes = {"F": slots, "B": config.buckets, "K": config.n_labels, "R": config.repetitions, "L": LEVELS}
    sizes |= {f"H{i}": width for i, width in enumerate(config.layers)}
    return sizes | ({"Hn": config.layers[-1]} if config.layers else {})
