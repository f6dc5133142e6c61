"""How good ranked labels are, by one code for all methods: python metrics.py DATA IDS [--depth D]

DATA is the folder of an exported data set, IDS a .npy file of label ids [n_test, up to 100], best first, -1: none.
Prints P@1,3,5, PSP@1,3,5 (propensities of Jain et al. 2016, A=0.55, B=1.5), R@10 and R@100 as JSON; those deeper than
what the method ranks (--depth) are null. They are machxc's own metrics: see `machxc.metrics` for the definitions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from machxc.metrics import Evaluation
from machxc.samples import Labels

METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@10", "R@100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("--depth", type=int, default=100)
    given = parser.parse_args()
    counts = np.load(given.data / "label_counts.npy")
    facts = json.loads((given.data / "facts.json").read_text())
    truth = sp.load_npz(given.data / "test_labels.npz").tocsr()
    print(json.dumps(metrics(np.load(given.ids), truth, counts, facts["n_samples"], given.depth)))


def metrics(ids: Any, truth: Any, label_counts: Any, n_samples: int, depth: int = 100) -> dict[str, float | None]:
    """The metrics of rankings ``ids``. Labels (columns of ``truth``) beyond ``label_counts`` were not in training."""
    counts = np.zeros(truth.shape[1], np.int64)
    counts[: len(label_counts)] = label_counts
    evaluation = Evaluation((1, 3, 5, 10, 100), counts, n_samples)
    evaluation.add(ids, Labels(truth.indptr.astype(np.int64), truth.indices.astype(np.uint32), truth.shape[1]))
    found = evaluation.result()
    return {name: found[name] if int(name.partition("@")[2]) <= depth else None for name in METRICS}


if __name__ == "__main__":
    main()
