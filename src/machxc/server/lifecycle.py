"""Start, reload, drain: a server in its process, from the socket to the last answer.

SIGTERM: readiness turns red and every answer asks its client to close the connection; after ``drain`` seconds no
connection is accepted any more, and what is in flight is answered. SIGINT: the same, without waiting first. A second
of either ends the process at once. SIGHUP: the model folder is read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from machxc.errors import SettingError
from machxc.server.app import create_app
from machxc.server.service import Service, load_service
from machxc.server.settings import ServerSettings

log = logging.getLogger("machxc.server")

_BACKLOG = 2048
_IDLE_SECONDS = 30  # that a connection is kept open between requests
_SWITCH_SECONDS = 0.0005  # the longest that a scoring thread in Python keeps the event loop waiting


Announce = Callable[[str, Service], None]


class Server(uvicorn.Server):
    """uvicorn, ended by `lifecycle` alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """No signal is handled here."""
        yield


def serve(path: Path, settings: ServerSettings, announce: Announce) -> None:
    """Serve the model at ``path`` until a signal ends it. ``announce``: called with its URL once it can be asked.

    ModelError when there is no model; SettingError when the address cannot be listened on.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    with contextlib.closing(listen(settings)) as listener:
        config = _config(settings)
        runner = asyncio.Runner(loop_factory=config.get_loop_factory())
        with runner:
            runner.run(_serve(path, settings, config, listener, announce))


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens on the address of the settings. SettingError when there is none to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise SettingError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}; "
            "choose another --host or --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _config(settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        "machxc.server.app:create_app",  # replaced once the model is there
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.deadline) + 10,
    )


async def _serve(
    path: Path,
    settings: ServerSettings,
    config: uvicorn.Config,
    listener: socket.socket,
    announce: Announce,
) -> None:
    service = await asyncio.to_thread(load_service, path, settings)
    config.app = create_app(service)
    server = Server(config)
    gc.collect()
    gc.freeze()  # libraries and model stay: going through them again and again would take a tenth of a second each time
    service.start()
    endings = _handle_signals(service, server)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.001)
    announce(url_of(listener), service)
    try:
        await task
    finally:
        endings.clear()
        await service.stop()


def _handle_signals(service: Service, server: uvicorn.Server) -> set[asyncio.Task[object]]:
    """Let signals end and reload the server; returns the tasks that do so, which must be kept."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[object]]()

    def end(seconds: float) -> None:
        if service.is_draining:
            server.should_exit = server.force_exit = True
            return
        service.is_draining = True
        log.warning("ending: no more requests in %g s", seconds)
        loop.call_later(seconds, setattr, server, "should_exit", True)

    def reload() -> None:
        tasks.add(loop.create_task(service.reload()))

    loop.add_signal_handler(signal.SIGTERM, end, service.settings.drain)
    loop.add_signal_handler(signal.SIGINT, end, 0.0)
    loop.add_signal_handler(signal.SIGHUP, reload)
    return tasks
