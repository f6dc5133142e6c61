"""A server to test: in a thread of this process, or as the program; and requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

for module in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(module, reason="the server needs the extra machxc[serve]")

import uvicorn

from machxc.server.app import create_app
from machxc.server.engine import Engine
from machxc.server.lifecycle import Server, listen, url_of
from machxc.server.service import Service
from machxc.server.settings import ServerSettings

PATIENCE = 60.0  # seconds: on a busy machine, anything may take long


@dataclass(frozen=True)
class Reply:
    """What was answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the error that it is."""
        return str(self.json["error"]["code"])


@dataclass(frozen=True)
class Client:
    """Sends requests to one server, each over a connection of its own."""

    url: str

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.send("GET", path, headers=headers)

    def post(self, body: bytes | dict[str, Any], path: str = "/v1/search", **headers: str) -> Reply:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", path, content, {"Content-Type": "application/json", **headers})

    def search(self, *queries: Any, **options: Any) -> Any:
        """The results of a search that succeeds."""
        reply = self.post({"queries": list(queries), **options})
        assert reply.status == 200, reply.body
        return reply.json["results"]


class Running(threading.Thread):
    """A service behind HTTP, in a thread with an event loop of its own."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        super().__init__(daemon=True)
        self._engine, self._settings = engine, settings
        self._listener = listen(settings)
        self._begun = threading.Event()
        self.client = Client(url_of(self._listener))
        self.service: Service
        self.loop: asyncio.AbstractEventLoop
        self._server: uvicorn.Server

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop, self.service = asyncio.get_running_loop(), Service(self._engine, self._settings)
        config = uvicorn.Config(create_app(self.service), log_config=None, lifespan="off", ws="none", access_log=False)
        self._server = Server(config)
        self.service.start()
        task = asyncio.create_task(self._server.serve([self._listener]))
        while not self._server.started:
            await asyncio.sleep(0.001)
        self._begun.set()
        await task
        await self.service.stop()

    def __enter__(self) -> Running:
        self.start()
        assert self._begun.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self.join(PATIENCE)
        assert not self.is_alive()


def running(folder: Path, **settings: Any) -> Running:
    """A server of the model in a folder, on any free port."""
    return Running(Engine.load(folder), ServerSettings(port=0, **settings))


@dataclass
class Program:
    """`machxc serve`, in a process of its own."""

    process: subprocess.Popen[str]
    client: Client

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit code and what was written to standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@contextlib.contextmanager
def program(*arguments: object, env: dict[str, str] | None = None) -> Iterator[Program]:
    """`machxc serve` with arguments, once it can be asked; killed if it still runs in the end."""
    command = [sys.executable, "-m", "machxc.cli", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=env)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), process.communicate()
        yield Program(process, Client(url))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
