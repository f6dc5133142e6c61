"""One phase of one peer, in the peer's own environment: python worker.py train|predict peers.NAME --data D --work W ...

Writes W/PHASE.json: status ("ok", "skipped", "out of time"), why, versions, and what the peer noted; predict also
writes W/ids.npy. What fails, fails with its traceback and exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from context import Context, OutOfTime, Skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=("train", "predict"))
    parser.add_argument("peer", help="the module, such as peers.omikuji")
    parser.add_argument("--data", type=Path, required=True, help="folder of the exported data set")
    parser.add_argument("--work", type=Path, required=True, help="folder of the model, and of what comes out")
    parser.add_argument("--options", type=json.loads, default={}, help="of the method, as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=900)
    parser.add_argument("--packages", nargs="*", default=[], help="whose versions are noted")
    given = parser.parse_args()
    ctx = Context(given.data, given.work, given.options, given.threads, given.time_limit)
    ctx.note(versions={name: version(name) for name in given.packages})
    ctx.scratch.mkdir(parents=True, exist_ok=True)
    ctx.note(**outcome(ctx, given.peer, given.phase))
    shutil.rmtree(ctx.scratch)
    (given.work / f"{given.phase}.json").write_text(json.dumps(ctx.notes))


def outcome(ctx: Context, peer: str, phase: str) -> dict[str, Any]:
    """Run the phase: its status, and why that is not "ok"."""
    try:
        if phase == "train":
            train(ctx, peer)
        else:
            predict(ctx, peer)
    except Skipped as skipped:
        return {"status": "skipped", "why": str(skipped)}
    except OutOfTime as stopped:
        return {"status": "out of time", "why": str(stopped), **stopped.facts}
    return {"status": "ok"}


def train(ctx: Context, peer: str) -> None:
    shutil.rmtree(ctx.model, ignore_errors=True)
    ctx.model.mkdir(parents=True)
    importlib.import_module(peer).train(ctx)


def predict(ctx: Context, peer: str) -> None:
    ids = np.asarray(importlib.import_module(peer).predict(ctx), np.int32)
    if ids.shape[0] != ctx.facts["n_test"] or ids.max(initial=-1) >= ctx.facts["n_labels"]:
        raise ValueError(f"{peer} gave ids of shape {ids.shape}, up to {ids.max(initial=-1)}: not for this data")
    np.save(ctx.scratch.parent / "ids.npy", ids[:, : ctx.top])


if __name__ == "__main__":
    main()
