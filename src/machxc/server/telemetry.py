"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from machxc.server.engine import Stages

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """Counts and times of one server, in a registry of its own."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "machxc_requests", "Requests answered, by path and HTTP status", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "machxc_request_seconds",
            "From a request's arrival to its answer",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "machxc_stage_seconds",
            "Stages of a batch: waiting (of its oldest query), features, scoring, naming",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._sizes = Histogram("machxc_batch_size", "Queries of a batch", buckets=_SIZES, registry=registry)
        self._reloads = Counter("machxc_reloads", "Reloads of the model, by result", ("result",), registry=registry)
        self._answered = Gauge("machxc_repetitions_answered", "Repetitions that answer", registry=registry)
        self._expected = Gauge("machxc_repetitions_expected", "Repetitions of the whole model", registry=registry)
        self._number = Gauge("machxc_model_number", "1 for the first model, one more a reload", registry=registry)
        Gauge("machxc_queue_depth", "Queries that wait", registry=registry).set_function(waiting)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, size: int, stages: Stages) -> None:
        """A batch was scored."""
        self._sizes.observe(size)
        for stage, seconds in stages.items():
            self._stages.labels(stage).observe(seconds)

    def model(self, number: int, answered: int, expected: int) -> None:
        """Another model answers."""
        self._number.set(number)
        self._answered.set(answered)
        self._expected.set(expected)

    def reload(self, result: str) -> None:
        """A reload is done ("ok") or not ("failed")."""
        self._reloads.labels(result).inc()

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
