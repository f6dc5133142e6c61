"""The routes, and what OpenAPI tells of them."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from machxc import __version__
from machxc.server import schemas
from machxc.server.engine import repetitions
from machxc.server.failures import Failure, internal, of_status
from machxc.server.guard import ASSETS, SEARCH, Guard
from machxc.server.service import Service
from machxc.server.telemetry import CONTENT_TYPE

_JSON = "application/json"
_PAGES = {"/": "index.html", "/docs": "docs.html"}
_ASSETS = ("page.css", "page.js", "sketch.js", "docs.js", "icon.svg")
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_SUMMARIES = {
    400: "the body is not JSON",
    401: "the API key is missing or wrong",
    408: "the body did not arrive",
    413: "the body is too long",
    415: "the body is not said to be application/json",
    422: "what is asked is not what the API or the model expects",
    429: "the queue is full: come again after Retry-After seconds",
    503: "nothing is left that scores, or the server is ending",
    504: "the deadline passed before the query's turn came; nothing was scored",
}


def create_app(service: Service) -> Guard:
    """The ASGI application of a service."""
    app = FastAPI(
        title="machxc",
        version="1",
        description="The right few labels out of very many, for a text or for features.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.request_model = schemas.request_model(service.settings)
    _add_failures(app)
    _add_search(app)
    _add_facts(app, service)
    _add_health(app, service)
    _add_pages(app)
    app.openapi = lambda: _openapi(app, secured=service.settings.api_key is not None)  # type: ignore[method-assign]
    return Guard(app, service, Search(service, app.state.request_model))


class Search:
    """POST /v1/search, bytes to bytes: what the guard calls, past the framework, whose routing costs as much again."""

    def __init__(self, service: Service, model: type[schemas.SearchRequest]) -> None:
        self._service, self._model = service, model

    async def __call__(self, body: bytes, started: float) -> bytes:
        """The answer to a body that arrived at ``started`` (time.perf_counter). Failure when it is refused."""
        service = self._service
        asked = schemas.understood(body, self._model, service.engine, service.settings)
        answers = await service.answers(asked.queries, asked.options, engine=asked.engine, seconds=asked.seconds)
        found = asked.engine.facts["repetitions"]
        return _ANSWER % (
            b",".join(answers),
            found["answered"],
            found["expected"],
            str(found["missing"]).encode(),
            asked.engine.number,
            (time.perf_counter() - started) * 1e3,
        )


_ANSWER = b'{"results":[%b],"repetitions":{"answered":%d,"expected":%d,"missing":%b},"model":%d,"milliseconds":%.3f}'


def _add_search(app: FastAPI) -> None:
    reference = {"schema": {"$ref": "#/components/schemas/SearchRequest"}}

    @app.post(
        SEARCH,
        tags=["search"],
        summary="The best labels of one query or many",
        response_model=schemas.SearchResponse,
        response_description="the answers",
        responses=_failures(400, 401, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra={"requestBody": {"required": True, "content": {_JSON: reference}}},
    )
    async def search() -> Response:
        raise AssertionError("the guard answers this path")


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/model",
        tags=["search"],
        summary="The facts of the model that answers, and the limits of requests",
        response_model=schemas.ModelResponse,
        response_description="the facts",
        responses=_failures(401),
    )
    async def model() -> Any:
        settings = service.settings
        limits = {name: getattr(settings, name) for name in schemas.Limits.model_fields if name != "deadline_ms"}
        return {
            **service.engine.facts,
            "repetitions": repetitions(service.engine.model),
            "limits": {**limits, "deadline_ms": round(settings.deadline * 1000)},
            "examples": list(settings.examples),
            "version": __version__,
        }


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get(
        "/healthz",
        tags=["operation"],
        summary="Whether the event loop turns",
        response_model=schemas.Status,
        response_description="it does",
    )
    async def healthz() -> Any:
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["operation"],
        summary="Whether a query is answered in time",
        response_model=schemas.Status,
        response_description="it is",
        responses=_failures(503),
    )
    async def readyz() -> Any:
        await service.check_ready()
        return {"status": "ready"}

    @app.get(
        "/metrics",
        tags=["operation"],
        summary="Counts and times, for Prometheus",
        response_class=Response,
        response_description="the metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_failures(401)},
    )
    async def metrics() -> Response:
        return Response(service.telemetry.exposition(), headers={"Content-Type": CONTENT_TYPE})


def _add_pages(app: FastAPI) -> None:
    folder = files("machxc.server") / "page"
    routes = {**_PAGES, **{ASSETS + name: name for name in _ASSETS}}
    for path, name in routes.items():
        _add_page(app, path, (folder / name).read_bytes(), _KINDS[name.rpartition(".")[2]])


def _add_page(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def _add_failures(app: FastAPI) -> None:
    def respond(failure: Failure) -> Response:
        return Response(failure.body(), failure.status, failure.headers, _JSON)

    async def on_failure(request: Request, error: Exception) -> Response:
        assert isinstance(error, Failure)
        return respond(error)

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(of_status(error.status_code, str(error.detail), dict(error.headers or {})))

    async def on_defect(request: Request, error: Exception) -> Response:
        return respond(internal(error))

    app.add_exception_handler(Failure, on_failure)
    app.add_exception_handler(HTTPException, on_refusal)
    app.add_exception_handler(Exception, on_defect)


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.ErrorResponse, "description": _SUMMARIES[status]} for status in statuses}


def _openapi(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, asked = models_json_schema(
            [(app.state.request_model, "validation")], ref_template="#/components/schemas/{model}"
        )
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(asked["$defs"])
        if secured:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
