"""``machxc serve``: a model over HTTP, and a page to ask it from. The twin of `machxc.server.lifecycle.serve`."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.console import Console
from machxc.cli.kernels import ANSWERING, tell_of_compiling
from machxc.errors import DataError, MissingExtraError, SettingError
from machxc.server.settings import ServerSettings

if TYPE_CHECKING:
    from machxc.server.service import Service

KEY = "MACHXC_API_KEY"

_EXTRA = {"fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"}
_LIMITS = {
    "max_body": "bytes of a request",
    "max_queries": "queries of a request",
    "max_top_k": "labels of an answer",
    "max_text": "characters of a text",
    "max_candidates": "candidate labels of a request",
}


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "serve MODEL",
        run,
        "answer over HTTP, with a search page",
        "Serve a model over HTTP: the API at /v1, the search page at /, the API's description at /docs, metrics for "
        "Prometheus at /metrics. SIGHUP reads the model folder again, SIGTERM ends when all requests are answered.",
        "interrupted",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder")
    _add_address(parser)
    _add_work(parser)
    _add_limits(parser)
    return parser


def _add_address(parser: ArgumentParser) -> None:
    defaults = ServerSettings()
    group = parser.add_argument_group("where, and for whom")
    group.add_argument("--host", default=defaults.host, help=f"address to listen on (default: {defaults.host})")
    group.add_argument("--port", type=int, default=defaults.port, help=f"0: any free one (default: {defaults.port})")
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        help=f"requests must show the key in this file (or else in the environment's {KEY})",
    )
    group.add_argument("--no-api-key", action="store_true", help="answer anybody, also on an address others can reach")
    group.add_argument("--example", action="append", default=[], metavar="TEXT", help="a query that the page offers")


def _add_work(parser: ArgumentParser) -> None:
    defaults = ServerSettings()
    group = parser.add_argument_group("how work is done")
    common.add_device(group)
    group.add_argument("--threads", type=common.positive, metavar="T", default=1, help="that score (default: 1)")
    group.add_argument(
        "--batch", type=common.positive, default=defaults.batch, metavar="N", help="queries scored together, at most"
    )
    group.add_argument(
        "--window", type=float, default=defaults.window * 1000, metavar="MS", help="that a busy server waits for more"
    )
    group.add_argument(
        "--queue", type=common.positive, default=defaults.queue, metavar="N", help="queries that may wait; beyond: 429"
    )
    group.add_argument(
        "--deadline", type=float, default=defaults.deadline * 1000, metavar="MS", help="to answer within, or 504"
    )
    group.add_argument(
        "--drain", type=float, default=defaults.drain, metavar="S", help="to accept requests after SIGTERM"
    )


def _add_limits(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("limits of a request")
    for name, what in _LIMITS.items():
        default = getattr(ServerSettings(), name)
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=common.positive, metavar="N", default=default, help=f"{what} (default: {default})"
        )


def run(arguments: Namespace, console: Console) -> None:
    """Serve until a signal ends it."""
    settings = server_settings(arguments)
    try:
        from machxc.server.lifecycle import serve
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise MissingExtraError("serve", "serve") from None
    tell_of_compiling(console, ANSWERING)

    def announce(url: str, service: Service) -> None:
        facts = service.engine.facts
        answering = (
            f"{facts['repetitions']['answered']} of {show.count(facts['repetitions']['expected'], 'repetition')}"
        )
        console.note(f"{show.printable(facts['name'])}: {show.count(facts['n_labels'], 'label')}, {answering}")
        console.out(url)
        console.flush()

    serve(Path(arguments.model), settings, announce)


def server_settings(arguments: Namespace) -> ServerSettings:
    """The settings of the command line. SettingError: others can reach the server, and there is no key."""
    settings = ServerSettings(
        host=arguments.host,
        port=arguments.port,
        api_key=None if arguments.no_api_key else _api_key(arguments.api_key_file),
        device=arguments.device,
        threads=arguments.threads,
        batch=arguments.batch,
        window=arguments.window / 1000,
        queue=arguments.queue,
        deadline=arguments.deadline / 1000,
        drain=arguments.drain,
        examples=tuple(arguments.example),
        **{name: getattr(arguments, name) for name in _LIMITS},
    )
    if settings.api_key is None and not settings.is_local and not arguments.no_api_key:
        raise SettingError(
            f"others can reach {settings.host}: give an API key with --api-key-file or the environment's {KEY}, "
            "or --no-api-key to answer anybody"
        )
    return settings


def _api_key(path: str | None) -> str | None:
    if path is None:
        return os.environ.get(KEY) or None
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DataError(f"cannot read the API key: {reason}", path=path) from None
