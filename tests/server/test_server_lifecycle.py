"""The server as a process: it starts degraded, reloads and ends without losing a request, and says when it is ill."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli_tools import spawn
from machxc.cli import main
from machxc.folder import repetition_file
from machxc.prediction import answer
from machxc.server.engine import Engine
from server_tools import PATIENCE, Client, program, running

QUERY = "w3a w3b w3c"
WHOLE = 1.0  # precision at 1 of the model of 16 repetitions, as recorded, and of half of it


@pytest.fixture(scope="module")
def sixteen(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 16 repetitions."""
    folder = tmp_path_factory.mktemp("sixteen") / "model"
    options = ("--repetitions", "16", "--buckets", "12", "--quiet")
    assert main(["train", str(files / "train.jsonl"), "--output", str(folder), *options]) == 0
    return folder


@pytest.fixture
def copy(files: Path, tmp_path: Path) -> Path:
    """A model that a test may change."""
    return Path(shutil.copytree(files / "texts", tmp_path / "model"))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- the start ---


def test_the_program_serves(files: Path) -> None:
    with program(files / "texts", "--example", "w1a") as server:
        assert server.client.search(QUERY)[0]["labels"][0] == "topic 03"
        assert server.client.get("/v1/model").json["examples"] == ["w1a"]
        code, err = server.end()
    assert (code, "30 labels, 4 of 4 repetitions" in err) == (0, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "machine.example"])
def test_others_are_served_with_a_key_only(files: Path, host: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "MACHXC_API_KEY"}
    outcome = spawn("serve", files / "texts", "--host", host, env=env)
    assert outcome.code == 2
    assert "give an API key" in outcome.err


def test_the_key_comes_from_a_file_or_the_environment(files: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from file\n")
    env = {**os.environ, "MACHXC_API_KEY": "from env"}
    for options, key in (((), "from env"), (("--api-key-file", tmp_path / "key"), "from file")):
        with program(files / "texts", "--host", "0.0.0.0", *options, env=env) as server:
            assert server.client.get("/v1/model").status == 401
            assert server.client.get("/v1/model", **{"X-API-Key": key}).status == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "70000"), r"'port' setting"),
        (("--window", "nan"), r"'window' setting"),
        (("--api-key-file", "nowhere"), "nowhere: cannot read the API key"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(files: Path, options: tuple[str, ...], message: str) -> None:
    outcome = spawn("serve", files / "texts", *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_port_that_is_taken_and_a_model_that_is_not_there(files: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = spawn("serve", files / "texts", "--port", taken.getsockname()[1])
    assert (outcome.code, "choose another --host or --port" in outcome.err) == (2, True)
    outcome = spawn("serve", tmp_path / "none", "--port", "0")
    assert (outcome.code, "expected a model folder" in outcome.err) == (2, True)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_the_extra_is_asked_for(
    files: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("machxc.server.")]:
        if name != "machxc.server.settings":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    capsys.readouterr()
    assert main(["serve", str(files / "texts")]) == 2
    assert "pip install 'machxc[serve]'" in capsys.readouterr().err


# --- missing repetitions ---


@pytest.mark.parametrize("n_missing", range(1, 9))
def test_missing_repetitions_degrade_the_answer_which_says_so(sixteen: Path, tmp_path: Path, n_missing: int) -> None:
    folder = Path(shutil.copytree(sixteen, tmp_path / "model"))
    for r in range(n_missing):
        file = folder / repetition_file(2 * r)
        if r % 2:
            file.write_bytes(file.read_bytes()[:-3])
        else:
            file.unlink()
    with running(folder) as server:
        reply = server.client.post({"queries": [QUERY]})
        missing = list(range(0, 2 * n_missing, 2))
        assert reply.status == 200
        assert reply.json["repetitions"] == {"answered": 16 - n_missing, "expected": 16, "missing": missing}
        assert reply.json["results"][0]["labels"][0] == "topic 03"
        assert f"machxc_repetitions_answered {16 - n_missing}.0" in server.client.get("/metrics").body.decode()


def test_precision_with_missing_repetitions_is_as_recorded(sixteen: Path, files: Path) -> None:
    """Queries whose best label is right: with 0 to 8 of 16 repetitions missing, and at most two in a hundred fewer."""
    model = Engine.load(sixteen).model
    samples = [json.loads(line) for line in (files / "test.jsonl").read_text().splitlines()]
    right = []
    for n_missing in range(9):
        ids, _ = answer(model.subset(list(range(n_missing, 16))), [sample["text"] for sample in samples], k=1)
        best = model.names.names(ids[:, 0])
        right.append(sum(name in sample["labels"] for name, sample in zip(best, samples, strict=True)) / len(samples))
    assert min(right) >= WHOLE - 0.02, right


def test_the_program_starts_without_a_damaged_repetition(copy: Path) -> None:
    (copy / repetition_file(1)).write_bytes(b"damaged")
    with program(copy) as server:
        assert server.client.post({"queries": [QUERY]}).json["repetitions"]["missing"] == [1]
        _, err = server.end()
    assert repetition_file(1) in err
    assert "3 of 4 repetitions" in err


# --- reload ---


class Load:
    """Clients that ask, each over one connection, until they are told to end; every answer must be whole."""

    def __init__(self, client: Client, n: int) -> None:
        self._client, self._end = client, threading.Event()
        self._threads = ThreadPoolExecutor(n)
        self._answers = [self._threads.submit(self._ask) for _ in range(n)]

    def _ask(self) -> set[int]:
        models = set()
        while not self._end.is_set():
            reply = self._client.post({"queries": [QUERY, "w5a"]})
            assert reply.status == 200, reply.body
            assert [result["labels"][0] for result in reply.json["results"]] == ["topic 03", "topic 05"]
            models.add(reply.json["model"])
        return models

    def end(self) -> set[int]:
        """Which models answered."""
        self._end.set()
        models = set().union(*(answers.result() for answers in self._answers))
        self._threads.shutdown()
        return models


def test_reload_drops_no_request(copy: Path, tmp_path: Path) -> None:
    with program(copy) as server:
        load = Load(server.client, 4)
        for number in (2, 3):
            newer = Path(shutil.copytree(copy, tmp_path / f"newer-{number}"))
            copy.rename(tmp_path / f"older-{number}")
            newer.rename(copy)
            server.process.send_signal(signal.SIGHUP)
            until(lambda number=number: server.client.get("/v1/model").json["number"] == number)  # type: ignore[misc]
        assert load.end() >= {3}
        code, err = server.end()
    assert code == 0
    assert "model number 3 answers" in err


def test_a_model_that_cannot_be_loaded_changes_nothing(copy: Path) -> None:
    with program(copy) as server:
        (copy / "config.json").write_bytes(b"{}")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 'machxc_reloads_total{result="failed"} 1.0' in server.client.get("/metrics").body.decode())
        assert server.client.get("/v1/model").json["number"] == 1
        assert server.client.search(QUERY)[0]["labels"][0] == "topic 03"
        _, err = server.end()
    assert "the model was not reloaded, the previous one goes on" in err


def test_reload_in_the_library(copy: Path) -> None:
    with running(copy) as server:
        assert asyncio.run_coroutine_threadsafe(server.service.reload(), server.loop).result(PATIENCE)
        assert server.client.post({"queries": [QUERY]}).json["model"] == 2


# --- the end ---


def in_flight(client: Client, n: int, queries: int) -> list[socket.socket]:
    """Connections on each of which a request was sent, and no answer read."""
    body = json.dumps({"queries": [QUERY] * queries}).encode()
    head = (
        f"POST /v1/search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    port = int(client.url.rpartition(":")[2])
    connections = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(n)]
    for connection in connections:
        connection.sendall(head.encode() + body)
    return connections


def read_all(connection: socket.socket) -> bytes:
    """What is answered until the server closes the connection."""
    parts = []
    with connection:
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def test_ending_drops_no_request_of_200_in_flight(files: Path) -> None:
    options = ("--deadline", "60000", "--queue", "100000", "--drain", "3")
    with program(files / "texts", *options) as server:
        connections = in_flight(server.client, 200, 20)
        server.process.send_signal(signal.SIGTERM)
        answers = [read_all(connection) for connection in connections]
        assert server.process.wait(PATIENCE) == 0
    assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * 200
    assert all(answer.count(b'"labels"') == 20 for answer in answers)


def test_a_server_that_ends_is_not_ready_and_closes_connections(files: Path) -> None:
    with program(files / "texts", "--drain", "30") as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.client.get("/readyz").status == 503)
        reply = server.client.post({"queries": [QUERY]})
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert server.end(signal.SIGTERM)[0] == 0  # the second one does not wait


# --- illness ---


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_readiness_turns_red_when_the_scoring_thread_dies(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise SystemExit

    with running(files / "texts") as server:
        assert server.client.get("/readyz").status == 200
        monkeypatch.setattr(server.service.engine, "answer", die)
        assert server.client.post({"queries": [QUERY]}).status == 503
        begin = time.monotonic()
        reply = server.client.get("/readyz")
        assert (reply.status, reply.code) == (503, "unavailable")
        assert time.monotonic() - begin < 30  # at once; by the clock of a busy machine
        assert server.client.get("/healthz").status == 200
        assert server.client.post({"queries": [QUERY]}).status == 503


def test_readiness_turns_red_when_the_scoring_thread_hangs(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, engine = threading.Event(), Engine.load(files / "texts")
    usual = engine.answer

    def hang(*arguments: Any) -> Any:
        assert gate.wait(PATIENCE)
        return usual(*arguments)

    with running(files / "texts") as server:
        monkeypatch.setattr(server.service.engine, "answer", hang)
        with ThreadPoolExecutor(1) as asking:
            stuck = asking.submit(server.client.post, {"queries": [QUERY]})
            until(lambda: "machxc-scoring" in str(threading.enumerate()) and not stuck.done())
            assert server.client.get("/readyz").status == 503
            gate.set()
            assert stuck.result().status == 200
        until(lambda: server.client.get("/readyz").status == 200)


def test_a_defect_is_told_as_json(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    with running(files / "texts") as server:
        monkeypatch.setattr(server.service.engine, "answer", break_down)
        reply = server.client.post({"queries": [QUERY]})
        assert (reply.status, reply.code) == (500, "internal")
        assert "ZeroDivisionError" in reply.json["error"]["message"]
