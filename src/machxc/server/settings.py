"""What may be set of a server, with bounds."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, fields

from machxc.errors import SettingError
from machxc.torch.device import check_device

# name -> lowest, highest
BOUNDS: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "threads": (1, 256),
    "batch": (1, 4096),
    "window": (0.0, 1.0),
    "queue": (1, 1_000_000),
    "deadline": (0.001, 600.0),
    "drain": (0.0, 600.0),
    "max_body": (1024, 1 << 30),
    "max_queries": (1, 100_000),
    "max_top_k": (1, 100_000),
    "max_text": (1, 1 << 24),
    "max_candidates": (1, 1 << 24),
    "max_explained": (0, 1000),
}


@dataclass(frozen=True)
class ServerSettings:
    """What may be set of a server. SettingError when a value is out of `BOUNDS`.

    ``host``, ``port`` (0: any that is free); ``api_key``: what requests must show (None: nothing).
    ``device``: what answers, see `machxc.torch.device`; ``threads`` that score; ``batch``: queries scored in one step,
    at most; ``window``: seconds that the next batch of a busy server waits to fill; ``queue``: queries that may wait;
    ``deadline``: seconds in which a request is answered; ``drain``: seconds that the server goes on accepting requests
    after it was told to end, while they come.
    Limits of a request: ``max_body`` bytes, ``max_queries``, ``max_top_k`` labels, ``max_text`` characters of a query,
    ``max_candidates`` labels, ``max_explained`` queries that are explained. ``examples``: queries that the page offers.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    device: str = "cpu"
    threads: int = 1
    batch: int = 32
    window: float = 0.001
    queue: int = 1024
    deadline: float = 2.0
    drain: float = 1.0
    max_body: int = 4 << 20
    max_queries: int = 1000
    max_top_k: int = 1000
    max_text: int = 10_000
    max_candidates: int = 10_000
    max_explained: int = 4
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_device(self.device)
        for field in fields(self):
            if field.name in BOUNDS:
                _check(field.name, getattr(self, field.name), whole=field.type == "int")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise SettingError("the API key must be one line of printable ASCII characters, at least one")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _check(name: str, value: float, *, whole: bool) -> None:
    low, high = BOUNDS[name]
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        kind = "an int" if whole else "a number"
        raise SettingError(f"The '{name}' setting of the server must be {kind} in [{low}, {high}]. Got {value!r}.")
