"""The server without HTTP: a model behind a queue, watched, and replaced while it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from machxc.errors import MachxcError
from machxc.server.batching import Batcher, Job
from machxc.server.engine import Engine, Options, Query, repetitions
from machxc.server.failures import Failure, unavailable
from machxc.server.settings import ServerSettings
from machxc.server.telemetry import Telemetry

log = logging.getLogger("machxc.server")

READY_SECONDS = 1.0  # in which a query must be answered by a server that is ready


class Service:
    """Answers queries with the model at ``path``, which `reload` reads again."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.settings = settings
        self.telemetry = Telemetry(lambda: self.batcher.waiting)
        self.batcher = Batcher(settings, self.telemetry.batch)
        self.is_draining = False
        self._reloading = asyncio.Lock()
        self._use(engine)

    def start(self) -> None:
        """Begin to answer."""
        self.batcher.start()

    async def stop(self) -> None:
        """Answer what waits, and end."""
        await self.batcher.stop()

    async def answers(
        self, queries: Sequence[Query], options: Options, *, engine: Engine | None = None, seconds: float | None = None
    ) -> list[bytes]:
        """The JSON of each query's answer. ``engine``: the model that was asked, if it has been replaced since.

        ``seconds``: the deadline, if it is sooner than that of the settings. Failure: see `Batcher.answers`.
        """
        return await self.batcher.answers(self._job(queries, options, engine, seconds))

    async def check_ready(self) -> None:
        """Answer a query, ahead of all that wait. Failure (503) when that takes too long, or the server is ending."""
        if self.is_draining:
            raise unavailable("the server is ending")
        if not self.batcher.is_alive:
            raise unavailable("a scoring thread has ended")
        job = self._job([self.engine.probe], Options(1), None, READY_SECONDS, first=True)
        try:
            await asyncio.wait_for(self.batcher.answers(job), READY_SECONDS)
        except (TimeoutError, Failure) as error:
            reason = error.message if isinstance(error, Failure) else "in time"
            raise unavailable(f"a query was not answered: {reason}") from None

    async def reload(self) -> bool:
        """Read the model folder again; requests go on meanwhile. False: it cannot be used, and the model stays."""
        async with self._reloading:
            try:
                path, number, device = self.engine.path, self.engine.number + 1, self.settings.device
                engine = await asyncio.to_thread(Engine.load, path, number, device)
            except MachxcError as error:
                log.error("the model was not reloaded, the previous one goes on: %s", error)
                self.telemetry.reload("failed")
                return False
            self._use(engine)
            self.telemetry.reload("ok")
            log.warning("reloaded %s: model number %d answers", engine.path, engine.number)
            return True

    def _use(self, engine: Engine) -> None:
        self.engine = engine
        answering = repetitions(engine.model)
        self.telemetry.model(engine.number, answering["answered"], answering["expected"])

    def _job(
        self,
        queries: Sequence[Query],
        options: Options,
        engine: Engine | None,
        seconds: float | None,
        *,
        first: bool = False,
    ) -> Job:
        limit = self.settings.deadline
        deadline = time.monotonic() + (limit if seconds is None else min(seconds, limit))
        future = asyncio.get_running_loop().create_future()
        return Job(engine or self.engine, queries, options, deadline, future, first)


def load_service(path: Path, settings: ServerSettings) -> Service:
    """Load a model to be served. ModelError when the folder has none; errors of its device as `Model.to`."""
    return Service(Engine.load(path, device=settings.device), settings)
