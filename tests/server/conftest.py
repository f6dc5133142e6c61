"""Servers of tiny models, shared by the tests that do not change them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra machxc[serve]")
pytest.importorskip("uvicorn", reason="the server needs the extra machxc[serve]")
pytest.importorskip("prometheus_client", reason="the server needs the extra machxc[serve]")

from server_tools import Client, running


@pytest.fixture(scope="session")
def texts(files: Path) -> Iterator[Client]:
    """A server of a model of texts, with small limits."""
    limits = {"max_queries": 50, "max_top_k": 40, "max_text": 500, "max_body": 20_000, "max_candidates": 20}
    with running(files / "texts", examples=("w1a w1b",), **limits) as server:
        yield server.client


@pytest.fixture(scope="session")
def numbers(files: Path) -> Iterator[Client]:
    """A server of a model of numeric features."""
    with running(files / "numbers") as server:
        yield server.client
