"""The API: what it answers, and what it refuses, always as JSON and never with a defect."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_tools import TOPICS
from machxc import Model, answer
from machxc.config import ESTIMATORS
from machxc.prediction import named
from machxc.samples import Features
from machxc.server.failures import __doc__ as failures_table
from server_tools import Client, Reply, running

QUERY = "w3a w3b w3c"

garbage = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def texts(files: Path) -> Iterator[Client]:
    """A server of a model of texts, with small limits."""
    limits = {"max_queries": 50, "max_top_k": 40, "max_text": 500, "max_body": 20_000, "max_candidates": 20}
    with running(files / "texts", examples=("w1a w1b",), **limits) as server:
        yield server.client


@pytest.fixture(scope="module")
def numbers(files: Path) -> Iterator[Client]:
    """A server of a model of numeric features."""
    with running(files / "numbers") as server:
        yield server.client


@pytest.fixture(scope="module")
def model(files: Path) -> Model:
    return Model.load(files / "texts")


# --- answers ---


def test_answers_are_those_of_the_library(texts: Client, model: Model) -> None:
    queries = [QUERY, "w7a w8b", "", "nothing known", "W3A, w3b!"]
    ids, scores = answer(model, queries, k=5)
    expected = [{"labels": labels, "scores": values} for labels, values in named(model.names, ids, scores)]
    assert texts.search(*queries, top_k=5) == expected


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators(texts: Client, model: Model, estimator: str) -> None:
    (found,) = texts.search(QUERY, estimator=estimator, top_k=3)
    (expected,) = named(model.names, *answer(model, [QUERY], k=3, estimator=estimator))
    assert (found["labels"], found["scores"]) == expected


def test_numeric_queries_in_any_order(numbers: Client, files: Path) -> None:
    (found,) = numbers.search({"indices": [17, 15, 16], "values": [1, 2.5, 1]}, top_k=2)
    row = Features(np.array([0, 3]), np.array([15, 16, 17], np.uint32), np.array([2.5, 1, 1], np.float32), 40)
    numeric = Model.load(files / "numbers")
    (expected,) = named(numeric.names, *numeric.top_k(row, 2))
    assert (found["labels"], found["scores"]) == expected
    assert found["labels"][0] == 3
    assert len(numbers.search({"indices": [], "values": []})[0]["labels"]) == 8


def test_candidates_and_the_least_score(texts: Client) -> None:
    (found,) = texts.search(QUERY, candidates=["topic 05", "topic 03", "topic 04"])
    assert sorted(found["labels"]) == ["topic 03", "topic 04", "topic 05"]
    assert found["labels"][0] == "topic 03"
    (strong,) = texts.search(QUERY, minimum_score=found["scores"][0])
    assert strong["labels"] == ["topic 03"]
    assert texts.search(QUERY, minimum_score=2) == [{"labels": [], "scores": []}]


def test_a_budget_tells_what_is_proven(texts: Client) -> None:
    exact = texts.search(QUERY, top_k=3)
    assert texts.search(QUERY, top_k=3, budget=10**9) == [exact[0] | {"proven": True}]


def test_top_k_beyond_the_labels(texts: Client) -> None:
    assert sorted(texts.search(QUERY, top_k=40)[0]["labels"]) == sorted(TOPICS)


def test_every_answer_says_who_answered(texts: Client) -> None:
    reply = texts.post({"queries": [QUERY]}).json
    assert reply["repetitions"] == {"answered": 4, "expected": 4, "missing": []}
    assert reply["model"] == 1
    assert reply["milliseconds"] > 0


def test_why(texts: Client, model: Model) -> None:
    (found,) = texts.search("w3a w3b w9c", top_k=3, explain=True)
    why = found["why"]
    strongest = {token["token"] for token in why["tokens"] if token["evidence"] > 0}
    assert {"w3a", "w3b"} <= strongest
    assert len(base64.b64decode(why["sketch"]["cells"])) == why["sketch"]["rows"] * why["sketch"]["columns"]
    assert why["sketch"]["rows"] == 4
    ids = model.names.ids_of(found["labels"])
    for i, votes in enumerate(why["votes"]):
        assert votes["buckets"] == [int(model.partition.buckets(ids[i : i + 1], r)[0]) for r in range(4)]
        assert np.exp(np.log(votes["probabilities"]).mean()) == pytest.approx(found["scores"][i], rel=0.01)
    assert why["narrowing"][0] == {"step": "all labels", "labels": 30}
    assert why["narrowing"][-1] == {"step": "repetition 4", "labels": 1}


def test_why_of_features(numbers: Client) -> None:
    (found,) = numbers.search({"indices": [15, 16], "values": [1, 1]}, explain=True)
    assert {token["token"] for token in found["why"]["tokens"]} == {"15", "16"}


def test_why_of_nothing(texts: Client) -> None:
    for options in ({}, {"minimum_score": 2.0}):
        (found,) = texts.search("", explain=True, **options)
        assert found["why"]["tokens"] == []


def test_facts(texts: Client, numbers: Client) -> None:
    facts = texts.get("/v1/model").json
    assert (facts["takes"], facts["n_labels"], facts["n_samples"]) == ("texts", 30, 400)
    assert facts["limits"]["max_top_k"] == 40
    assert facts["examples"] == ["w1a w1b"]
    assert numbers.get("/v1/model").json["takes"] == "features"


def test_health_and_metrics(texts: Client) -> None:
    assert texts.get("/healthz").json == {"status": "ok"}
    assert texts.get("/readyz").json == {"status": "ready"}
    texts.search(QUERY)
    metrics = texts.get("/metrics").body.decode()
    for pattern in (
        r'machxc_requests_total\{path="/v1/search",status="200"\} \d',
        r'machxc_stage_seconds_count\{stage="scoring"\} \d',
        r"machxc_batch_size_count \d",
        r"machxc_queue_depth 0.0",
        r"machxc_repetitions_answered 4.0",
    ):
        assert re.search(pattern, metrics), pattern


# --- refusals ---


def refused(reply: Reply, status: int, code: str) -> str:
    """The message of a refusal of this kind."""
    assert (reply.status, reply.code) == (status, code), reply.body
    assert reply.headers["content-type"] == "application/json"
    return str(reply.json["error"]["message"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "queries: Field required"),
        ({"queries": []}, "at least 1"),
        ({"queries": "text"}, "queries"),
        ({"queries": [1]}, r"queries\[0\]"),
        ({"queries": [None]}, r"queries\[0\]"),
        ({"queries": ["a"] * 51}, "at most 50"),
        ({"queries": ["a" * 501]}, "at most 500"),
        ({"queries": ["a"], "top_k": 0}, "top_k"),
        ({"queries": ["a"], "top_k": 41}, "top_k"),
        ({"queries": ["a"], "top_k": True}, "top_k"),
        ({"queries": ["a"], "top_k": "3"}, "top_k"),
        ({"queries": ["a"], "top_k": 10**400}, "top_k"),
        ({"queries": ["a"], "estimator": "best"}, "estimator"),
        ({"queries": ["a"], "candidates": []}, "candidates"),
        ({"queries": ["a"], "candidates": ["topic 01", "topic 99"]}, "no label 'topic 99'"),
        ({"queries": ["a"], "candidates": [3]}, "no label 3"),
        ({"queries": ["a"], "candidates": ["topic 01"] * 21}, "at most 20"),
        ({"queries": ["a"], "surprise": 1}, "surprise"),
        ({"queries": ["a"] * 5, "explain": True}, "at most 4"),
        ({"queries": ["a"], "timeout_ms": 0}, "timeout_ms"),
        ({"queries": ["a"], "budget": 0}, "budget"),
        ({"queries": ["a"], "budget": 9, "candidates": ["topic 01"]}, "either a budget or candidates"),
        ({"queries": [{"indices": [1], "values": [1.0]}]}, "the model takes a text"),
        ([], "the body"),
        ("text", "the body"),
        (None, "the body"),
    ],
    ids=str,
)
def test_what_is_not_a_search(texts: Client, body: Any, message: str) -> None:
    assert re.search(message, refused(texts.post(json.dumps(body).encode()), 422, "invalid_request"))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("text", "the model takes features"),
        ({"indices": [1, 2], "values": [1]}, "2 indices and 1 values"),
        ({"indices": [40], "values": [1]}, r"indices in \[0, 40\)"),
        ({"indices": [3, 3], "values": [1, 2]}, "every index once, got 3 twice"),
        ({"indices": [-1], "values": [1]}, "indices"),
        ({"indices": [2**32], "values": [1]}, "indices"),
        ({"indices": [1], "values": [1e39]}, "values"),
        ({"indices": [1]}, "values"),
    ],
    ids=str,
)
def test_what_is_no_numeric_query(numbers: Client, query: Any, message: str) -> None:
    assert re.search(message, refused(numbers.post({"queries": [query]}), 422, "invalid_request"))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"queries": ["\\ud800"]}', b'{"queries": ["a"], "top_k": 1e}', b"[" * 19_000, b"nul"],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_not_json(texts: Client, body: bytes) -> None:
    refused(texts.post(body), 400, "invalid_json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(texts: Client, number: str) -> None:
    reply = texts.post(b'{"queries": ["a"], "minimum_score": %b}' % number.encode())
    assert (reply.status, reply.code) in [(400, "invalid_json"), (422, "invalid_request")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonl"])
def test_only_json_is_read(texts: Client, kind: str) -> None:
    body = json.dumps({"queries": ["a"]}).encode()
    refused(texts.send("POST", "/v1/search", body, {"Content-Type": kind}), 415, "unsupported_media_type")
    assert texts.send("POST", "/v1/search", body, {"Content-Type": "Application/JSON; charset=utf-8"}).status == 200


def test_a_body_beyond_the_limit(texts: Client) -> None:
    body = b" " * 20_000
    refused(texts.post(body), 400, "invalid_json")
    assert "20000 bytes" in refused(texts.post(body + b" "), 413, "too_large")


def test_a_body_of_unknown_length_beyond_the_limit(texts: Client) -> None:
    connection = http.client.HTTPConnection(urlsplit(texts.url).netloc, timeout=60)
    chunks = (b" " * 5000 for _ in range(5))
    connection.request("POST", "/v1/search", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "too_large")
    connection.close()


def test_paths_and_methods_that_are_not_there(texts: Client) -> None:
    refused(texts.get("/v2/search"), 404, "not_found")
    refused(texts.get("/page/../../etc/passwd"), 404, "not_found")
    refused(texts.send("DELETE", "/v1/search"), 405, "method_not_allowed")


@garbage
@given(body=st.binary(max_size=200))
def test_no_bytes_are_a_defect(texts: Client, body: bytes) -> None:
    reply = texts.post(body)
    assert reply.status in (200, 400, 422)
    assert isinstance(reply.json, dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("queries", "top_k", "candidates", "estimator", "minimum_score", "explain", "timeout_ms", "indices", "values")


@garbage
@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), texts_too=st.booleans())
def test_no_json_is_a_defect(texts: Client, numbers: Client, body: dict[str, Any], texts_too: bool) -> None:
    if texts_too:
        body["queries"] = ["w1a", "\u0000", "京都"]
    for client in (texts, numbers):
        assert client.post(body).status in (200, 400, 422, 429, 504)


def test_every_failure_is_listed() -> None:
    source = (Path(__file__).parents[2] / "src/machxc/server/failures.py").read_text()
    raised = set(re.findall(r'Failure\((\d+), "(\w+)"', source))
    listed = set(re.findall(r"^(\w+) +(\d{3}) ", failures_table or "", re.M))
    assert {(code, status) for status, code in raised} <= listed


# --- the key ---


def test_the_key(files: Path) -> None:
    with running(files / "texts", api_key="a secret") as server:
        client, body = server.client, {"queries": [QUERY]}
        for wrong in ({}, {"X-API-Key": "a secre"}, {"Authorization": "Bearer x"}, {"Authorization": "Basic a secret"}):
            assert client.post(body, **wrong).headers["www-authenticate"] == "Bearer"
            refused(client.post(body, **wrong), 401, "unauthorized")
            refused(client.get("/v1/model", **wrong), 401, "unauthorized")
            refused(client.get("/metrics", **wrong), 401, "unauthorized")
        for right in (
            {"X-API-Key": "a secret"},
            {"Authorization": "Bearer a secret"},
            {"Authorization": "bearer a secret"},
        ):
            assert client.post(body, **right).status == 200
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/page/page.js"):
            assert client.get(path).status == 200
        assert client.get("/openapi.json").json["security"] == [{"key": []}]


def test_the_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("machxc.server.guard.hmac.compare_digest", compare)
    with running(files / "texts", api_key="k") as server:
        assert server.client.get("/v1/model", **{"X-API-Key": "x"}).status == 401
    assert compared == [(b"x", b"k")]


# --- the pages ---

PAGE = Path(__file__).parents[2] / "src" / "machxc" / "server" / "page"
ASSETS = sorted(f"/page/{file.name}" for file in PAGE.iterdir() if file.suffix != ".html")


@pytest.mark.parametrize("path", ["/", "/docs", *ASSETS])
def test_pages_ask_for_nothing_outside(texts: Client, path: str) -> None:
    reply = texts.get(path)
    assert reply.status == 200
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", reply.body.decode())
    assert {address for address in outside if "www.w3.org" not in address} == set()


# --- connections ---


def test_a_body_that_does_not_come(texts: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machxc.server.guard.BODY_SECONDS", 0.05)
    head = b"POST /v1/search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", int(texts.url.rpartition(":")[2])), 60) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_in_the_middle_of_its_body(texts: Client) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", int(texts.url.rpartition(":")[2])), 60) as connection:
        connection.sendall(head)
    assert texts.search(QUERY)
