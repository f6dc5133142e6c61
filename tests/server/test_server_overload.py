"""Many more requests than the server can answer: it answers what it can in time, and turns the others away."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from server_tools import program

CONNECTIONS, SECONDS, DEADLINE = 64, 20.0, 5.0
BODY = json.dumps({"queries": ["w3a w3b w3c w9a"] * 20})


@pytest.mark.slow
def test_overload(files: Path) -> None:
    """The server's queue has room for a tenth of what 64 connections ask, who ask again at once."""
    options = ("--queue", "128", "--deadline", str(DEADLINE * 1000))
    with program(files / "texts", *options) as server, ThreadPoolExecutor(CONNECTIONS) as clients:
        memory = psutil.Process(server.process.pid).memory_info
        load(clients, server.client.url, 2.0)
        before = memory().rss
        statuses, latencies = load(clients, server.client.url, SECONDS)
        grown = memory().rss - before
        assert server.client.get("/readyz").status in (200, 503)
        assert server.client.search("w3a")[0]["labels"][0] == "topic 03"
    assert statuses.keys() == {200, 429}
    assert sorted(latencies)[int(0.99 * len(latencies))] <= DEADLINE
    assert grown < 16 << 20


def load(clients: ThreadPoolExecutor, url: str, seconds: float) -> tuple[Counter[int], list[float]]:
    """How often each status came, and the seconds that answers of status 200 took."""
    end = time.monotonic() + seconds
    found = list(clients.map(lambda _: ask(url, end), range(CONNECTIONS)))
    return sum((statuses for statuses, _ in found), Counter()), [second for _, times in found for second in times]


def ask(url: str, end: float) -> tuple[Counter[int], list[float]]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    statuses, times = Counter[int](), []
    while (begin := time.monotonic()) < end:
        connection.request("POST", "/v1/search", BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
        times += [time.monotonic() - begin] if response.status == 200 else []
    connection.close()
    return statuses, times
