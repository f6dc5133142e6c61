"""Compile what serving needs into NUMBA_CACHE_DIR: answer a query with a tiny model of each kind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import machxc
from machxc.server.engine import Engine
from machxc.testing import make_texts

texts, labels = make_texts(400, 40)
KINDS = (
    {"words": 1, "chars_min": 2, "chars_max": 4, "fold": True},
    {"learner": "counts"},
    {"hidden": 8},
)
for settings in KINDS:
    model = machxc.MACHClassifier(**settings).fit(
        texts, labels if "learner" not in settings else [a for a, *_ in labels]
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        Engine.load(Path(folder) / "model")
