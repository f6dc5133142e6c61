"""Which tensors the files of a model have: their types, shapes and ranges, which `machxc.folder` checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from machxc.config import LEVELS, Config, layer_name
from machxc.formats import TensorSpec

# kind of file -> its tensors. Another kind of repetition is one more entry. Sizes: F feature slots, B buckets, P bytes
# with a bit a bucket, H0, H1, ... units of each hidden layer, Hn of the last, K labels, R repetitions, L levels (256);
# rows, runs of rows of one weight, and entries are free. Integers of three types take the fewest bytes that have room
# for the largest.
_UNSIGNED = "U8|U16|U32"
_ROWS = {
    "row_slots": TensorSpec(_UNSIGNED, ("rows",), below="F"),  # the slot of each row, or, where slots are many:
    # "slots" I32 [F], -1 to below rows: the row of each slot; -1: none
    "row_weights": TensorSpec("F32", ("runs",)),
    "repeats": TensorSpec(_UNSIGNED, ("runs",), adds=("rows", "rows")),  # how many rows have each of these weights
}
_LINEAR = {
    # sparse rows of weights, one after the other, of at most B entries each (what an entry is: stored.py; that its
    # bucket is below B: `_highest_bucket`)
    "lengths": TensorSpec(_UNSIGNED, ("rows",), adds=("entries", "B")),
    "entries": TensorSpec("U16", ("entries",)),
    "levels": TensorSpec("F32", ("L",)),
    "bias": TensorSpec("F32", ("B",)),
    **_ROWS,
}
TENSORS: dict[str, dict[str, TensorSpec]] = {
    "linear": _LINEAR,
    # few buckets, and many of them in each row: which are is a bit each, the least significant first
    "dense": {
        "present": TensorSpec("U8", ("rows", "P")),
        "codes": TensorSpec("U8", ("entries",)),
        "levels": TensorSpec("F32", ("L",)),
        "bias": TensorSpec("F32", ("B",)),
        **_ROWS,
    },
    "wide": _LINEAR | {"entries": TensorSpec("U32", ("entries",))},
    "hidden": {
        "table": TensorSpec("I8", ("rows", "H0")),  # times the scale of its row
        "table_scales": TensorSpec("F32", ("rows",)),
        "hidden_bias": TensorSpec("F32", ("H0",)),
        "output": TensorSpec("I8", ("B", "Hn")),
        "output_scales": TensorSpec("F32", ("B",)),
        # and of each further layer i = 1, 2, ...: "layer_i" I8 [Hi, Hi-1], "layer_i_scales" and "layer_i_bias" F32 [Hi]
        "bias": TensorSpec("F32", ("B",)),
        **_ROWS,
    },
    "partition": {"assignment": TensorSpec("U32", ("R", "K"), below="B")},
    # these, and those of LabelNames, which checks them itself
    "labels": {"counts": TensorSpec("U32", ("K",))},
    "few labels": {"seen": TensorSpec("U32", ("seen",), below="K"), "seen_counts": TensorSpec("U32", ("seen",))},
}


def specs_of(config: Config, kind: str, names: Collection[str] = ()) -> Mapping[str, TensorSpec]:
    """The tensors of a kind of file of a model of ``config``; ``names``: those that the file has."""
    specs = dict(TENSORS[kind])
    if "row_slots" in specs and "slots" in names:
        del specs["row_slots"]
        specs["slots"] = TensorSpec("I32", ("F",), low=-1, below="rows")
    if kind != "hidden":
        return specs
    for i in range(1, len(config.layers)):
        name = layer_name(i)
        specs[name] = TensorSpec("I8", (f"H{i}", f"H{i - 1}"))
        specs[f"{name}_scales"] = specs[f"{name}_bias"] = TensorSpec("F32", (f"H{i}",))
    return specs


def sizes_of(config: Config) -> dict[str, int]:
    """The numbers behind the symbols in shapes that follow from ``config``."""
    slots = min(config.n_features, 2**config.feature_bits)
    sizes = {
        "F": slots,
        "B": config.buckets,
        "P": -(-config.buckets // 8),
        "K": config.n_labels,
        "R": config.repetitions,
        "L": LEVELS,
    }
    sizes |= {f"H{i}": width for i, width in enumerate(config.layers)}
    return sizes | ({"Hn": config.layers[-1]} if config.layers else {})
