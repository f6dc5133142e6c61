"""Requests generated from the server's own OpenAPI description: none is a defect, every answer is as described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from machxc.server.guard import COUNTED_PATHS
from server_tools import Client, running

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'machxc[test]'")

EXAMPLES = 50  # an endpoint and kind
NAMES = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
CALLS = [
    ("/v1/search", "POSITIVE"), ("/v1/search", "NEGATIVE"), ("/v1/model", "POSITIVE"),
    ("/healthz", "POSITIVE"), ("/readyz", "POSITIVE"), ("/metrics", "POSITIVE"),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(files: Path) -> Iterator[Client]:
    with running(files / "texts", max_queries=5, max_text=50, max_candidates=5, max_top_k=20) as server:
        yield server.client


def operations(client: Client) -> dict[str, Any]:
    """What the description lists, by path."""
    schema = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
    return {result.ok().path: result.ok() for result in schema.get_all_operations()}


def test_every_path_is_described(client: Client) -> None:
    assert operations(client).keys() == COUNTED_PATHS - {"/", "/docs", "/openapi.json"}


@pytest.mark.parametrize(("path", "mode"), CALLS, ids=lambda value: value.lower())
def test_generated_requests(client: Client, path: str, mode: str) -> None:
    from schemathesis.specs.openapi import checks

    described = [getattr(checks, name) for name in NAMES]
    chosen = [schemathesis.checks.not_a_server_error, *described]
    operation, statuses = operations(client)[path], []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(schemathesis.GenerationMode[mode]))
    def ask(case: Any) -> None:
        response = case.call(timeout=60)
        late = response.status_code == 504 and case.body.get("timeout_ms", 1e9) < 1000  # as the request asked for
        statuses.append(200 if late else response.status_code)
        case.validate_response(response, checks=described if late else chosen)

    ask()
    assert (200 in statuses) == (mode == "POSITIVE"), statuses
    assert max(statuses) < 500
