"""What is compared: every method with its settings, in the order of the tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    family       methods that are settings of the same thing share a colour and a line in the plots
    setting      what differs from the defaults, in words
    environment  the set of `environments.PACKAGES` that it runs in; "": machxc's own
    peer         the file of peers/
    options      of the peer, or for machxc: options of `machxc train`
    packages     whose versions tell what was run
    reads        "features": those of export.py; "texts": the texts, where there are any
    depth        labels that it ranks
    """

    name: str
    family: str
    setting: str
    environment: str
    peer: str
    options: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    reads: str = "features"
    depth: int = 100


def _ours(name: str, setting: str, *options: str) -> Method:
    packages = ("machxc", "numpy", "numba")
    return Method(name, "machxc", setting, "", "ours", {"train": list(options)}, packages, reads="texts")


def _omikuji(name: str, family: str, setting: str, **options: Any) -> Method:
    return Method(name, family, setting, "main", "omikuji", options, ("omikuji",))


def _fasttext(name: str, setting: str, **options: Any) -> Method:
    return Method(name, name, setting, "ft", "fasttext", options, ("fasttext-wheel",), reads="texts")


def _torch(name: str, setting: str, **options: Any) -> Method:
    return Method(name, name, setting, "pecos", "torch_heads", options, ("torch",))


_PARABEL, _BONSAI = "omikuji Parabel", "omikuji Bonsai"

METHODS = (
    _ours("machxc", "defaults"),
    _ours("machxc-prune", "weights below 1 dropped (defaults: 0.3 to 0.7)", "--prune", "1"),
    _ours("machxc-r4", "4 repetitions, by gradient", "--repetitions", "4", "--learner", "gradient"),
    _ours("machxc-r16", "16 repetitions, by gradient", "--repetitions", "16", "--learner", "gradient"),
    _omikuji("omikuji-parabel", _PARABEL, "defaults: 3 balanced trees"),
    _omikuji("omikuji-parabel-1", _PARABEL, "1 tree", n_trees=1),
    _omikuji(
        "omikuji-bonsai", _BONSAI, "3 trees, 100-ary, not balanced, depth 3",
        cluster_k=100, cluster_balanced=False, max_depth=3,
    ),
    Method(
        "pecos", "PECOS XR-Linear",
        "samples scaled to length 1; PIFA, 16-ary hierarchical k-means, leaves of 100, TFN+MAN, beam 10",
        "pecos", "pecos", packages=("libpecos",),
    ),
    Method("napkinxc", "napkinXC PLT", "defaults, beam 10", "main", "napkinxc", packages=("napkinxc",)),
    _fasttext("fasttext-hs", "hierarchical softmax, dim 100, lr 0.5, 25 epochs", loss="hs", lr=0.5),
    _fasttext("fasttext-ova", "one-vs-all, dim 100, lr 0.2, 25 epochs", loss="ova", lr=0.2),
    Method(
        "vw-recall-tree", "VW recall tree", "3 passes, one thread, names one label only",
        "main", "vw", packages=("vowpalwabbit",), depth=1,
    ),
    Method("bm25", "BM25", "a label's document: its training samples", "main", "bm25", packages=("bm25s",)),
    Method("centroid", "nearest centroid", "cosine, exact", "main", "centroid", packages=("scipy",)),
    _torch("torch-ova", "one output a label", head="ova"),
    _torch("torch-moe", "sparsely gated mixture of experts", head="moe"),
)  # fmt: skip
NAMES = tuple(method.name for method in METHODS)
