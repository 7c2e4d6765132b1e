"""What an operator watches, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cprs_integrations.result import Stats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter("cprs_requests", "Answered requests.", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            "cprs_request_seconds", "Time to the end of the answer.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self._tokens = Counter("cprs_tokens", "Tokens of compressed documents.", ["part"], registry=self.registry)
        self._windows = Counter("cprs_windows", "Windows that the critic read.", registry=self.registry)
        self.queue = Gauge("cprs_queue", "Requests taken and not yet answered.", registry=self.registry)
        self.kept = Gauge("cprs_kept_bytes", "Memory of the scores kept for /v1/select.", registry=self.registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._answers.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def compressed(self, stats: Stats) -> None:
        """Count a compression."""
        self._tokens.labels("original").inc(stats.original_tokens)
        self._tokens.labels("kept").inc(stats.kept_tokens)
        self._windows.inc(stats.windows)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)
