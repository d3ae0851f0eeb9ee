"""`/metrics`, `/live` and `/ready` of one process, on a port for them alone.

Metrics are of this process and in its memory: workers are threads and not processes, so nothing
needs prometheus_client's multiprocess files, which undercount and outlive their processes. What an
engine's child process does is measured by its parent.

Labels have few values, known in advance: never a tenant, a conversation, a turn or an error text.
"""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler
from typing import TypeVar

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from turnmill.schemas.observability.targets import listed_target
from turnmill.schemas.settings import Settings
from turnmill.schemas.urls import address, reachable

log = structlog.get_logger()

MetricT = TypeVar("MetricT", Counter, Histogram)

#: From a look at a turn to the longest wait for a reply.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

#: A loop that usually runs every second and has not for so long is stuck, seconds. Longer than
#: any wait for a database or broker that does not answer.
STUCK_AFTER_S = 90.0

#: A client that sends nothing for so long is left, seconds.
_CLIENT_TIMEOUT_S = 10.0

#: The metrics of this process. Not prometheus_client's own registry: libraries fill that one.
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)


def counter(name: str, text: str, *labels: str, known: Iterable[str] = ()) -> Counter:
    """Make a counter of this process; `_total` is added to its name.

    `known`: values of its one label, counted from the start. Prometheus' `rate` sees no increase
    in a series that begins with its first event, so that an alert would sleep through that one.
    """
    made = _remembering(Counter(f"turnmill_{name}", text, labels, registry=REGISTRY))
    for value in known:
        made.labels(value)
    return made


def histogram(name: str, text: str, *labels: str) -> Histogram:
    """Make a histogram of this process, in seconds."""
    return _remembering(
        Histogram(f"turnmill_{name}", text, labels, registry=REGISTRY, buckets=BUCKETS_S)
    )


def _remembering(metric: MetricT) -> MetricT:
    """With each series found at once: prometheus_client locks the metric and makes strings of the
    labels at every look-up, ten times a turn.
    """
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


DATABASE_RECONNECTS = counter(
    "database_reconnects",
    "Times that the connection to PostgreSQL which lasts was lost, or could not be opened.",
)
BROKER_RECONNECTS = counter(
    "broker_reconnects", "Times that a connection to the broker was given up."
)


@dataclass
class Health:
    """What the probes ask: each returns why not, or None if all is well."""

    #: Why the process cannot recover by itself: it is to be restarted. Never the database.
    stuck: Callable[[], str | None] = lambda: None
    #: Why it does no work at the moment.
    unready: Callable[[], str | None] = lambda: "starting"
    #: Metrics besides those in `REGISTRY`, in Prometheus' text format.
    more: Callable[[], bytes] = lambda: b""


@contextmanager
def telemetry(
    settings: Settings, component: str, health: Health, **labels: str
) -> Iterator[int | None]:
    """Serve metrics and probes inside the block; the port, or None where it may not listen.

    A process that may not listen, or whose port is taken, does its work all the same.
    """
    server = _open(settings.metrics.host, settings.metrics.port, health)
    if server is None:
        yield None
        return
    host, port = server.server_address[:2]
    log.info("metrics.started", host=host, port=port)
    threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()
    try:
        target = address(reachable(str(host)), port)
        with listed_target(settings.data, component, target, labels):
            yield port
    finally:
        server.shutdown()
        server.server_close()


def _open(host: str, port: int, health: Health) -> "_Server | None":
    """Listen on the port, or on any free one if another process of this machine has it."""
    for candidate in dict.fromkeys((port, 0)):
        try:
            return _Server(host, candidate, health)
        except OSError as error:
            log.warning(
                "metrics.port_unavailable",
                host=host,
                port=candidate,
                error=error.strerror,
                hint="set TURNMILL_METRICS__HOST or TURNMILL_METRICS__PORT; the process goes on",
            )
    return None


class _Server(socketserver.ThreadingTCPServer):
    """Not `HTTPServer`, which looks its own name up and may wait for a name server."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int, health: Health) -> None:
        self.health = health
        family, _, _, _, bound = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        super().__init__(bound, _Handler)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        health = self.server.health
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, generate_latest(REGISTRY) + health.more(), CONTENT_TYPE_LATEST)
            case "/live":
                self._answer_probe(health.stuck)
            case "/ready":
                self._answer_probe(lambda: health.stuck() or health.unready())
            case _:
                self._answer(404, b"Here are /metrics, /live and /ready.\n")

    do_HEAD = do_GET

    def _answer_probe(self, ask: Callable[[], str | None]) -> None:
        try:
            reason = ask()
        except Exception as error:
            log.exception("probe.failed", path=self.path)
            reason = type(error).__name__
        self._answer(503 if reason else 200, f"{reason or 'ok'}\n".encode())

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A scrape is no news."""
