"""What Prometheus reads: one registry an app, so that several live in one process."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of an app. `totals` and `levels` are read when Prometheus asks."""

    def __init__(
        self, totals: dict[str, tuple[str, Callable[[], int]]], levels: dict[str, tuple[str, Callable[[], int]]]
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Totals(totals))
        for name, (about, read) in levels.items():
            Gauge(name, about, registry=self.registry).set_function(read)
        self.requests = Counter("cprs_requests", "Requests by path and status.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "cprs_request_seconds", "Time of a request, waiting included.", ("path",), buckets=_SECONDS, registry=self.registry
        )
        self.received = Counter("cprs_body_bytes", "Bytes of bodies of requests.", registry=self.registry)
        self.characters = Counter("cprs_characters", "Characters of compressed contexts.", ("side",), registry=self.registry)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Totals(Collector):
    def __init__(self, totals: dict[str, tuple[str, Callable[[], int]]]) -> None:
        self._totals = totals

    def collect(self) -> list[CounterMetricFamily]:
        return [CounterMetricFamily(name, about, value=read()) for name, (about, read) in self._totals.items()]
