"""The broker: reachable, and who consumes from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import Celery

from turnmill.producer.doctor.findings import Check, Finding, broken, ok, warning
from turnmill.schemas.broker import celery_settings
from turnmill.schemas.settings import Settings

#: How long live workers may take to say how they were started.
_INSPECT_S = 1.0


class Unreachable(Exception):
    """No broker, or none that lets us in."""


@dataclass(frozen=True)
class Patient:
    settings: Settings
    app: Celery
    #: kombu's connection; open.
    connection: Any
    #: What the queues are named after; None where PostgreSQL does not tell.
    deployment: str | None = None


@contextmanager
def connected(settings: Settings, deployment: str | None) -> Iterator[Patient]:
    """Raises `Unreachable`. kombu follows several URLs and Sentinels as workers do."""
    app = Celery("turnmill-doctor", set_as_current=False)
    try:
        app.conf.update(celery_settings(settings.broker))
        connection = app.connection_for_write()
        connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=3)
        # Redis is first spoken to here.
        connection.default_channel  # noqa: B018
    except Exception as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    try:
        yield Patient(settings, app, connection, deployment)
    finally:
        connection.release()


def _reached(patient: Patient) -> Iterator[Finding]:
    yield ok(str(patient.connection.transport.driver_type))


def _pool(patient: Patient) -> Iterator[Finding]:
    """Asks the workers themselves: what counts is how they were started."""
    inspect = patient.app.control.inspect(timeout=_INSPECT_S, connection=patient.connection)
    for worker, stats in sorted((inspect.stats() or {}).items()):
        pool = stats["pool"]
        if "prefork" in pool.get("implementation", ""):
            yield broken(
                f"{worker} forks: CUDA does not survive that, nor do the threads that keep leases",
                "start it with 'turnmill worker', or with --pool threads",
            )
        slots, held = pool.get("max-concurrency"), stats.get("prefetch_count")
        if slots and held and held > slots:
            yield warning(
                f"{worker} takes {held} hints at a time for {slots} slots: turns wait behind "
                "others while slots elsewhere are free",
                "start it with 'turnmill worker', or with worker_prefetch_multiplier=1",
            )


CHECKS: dict[str, Check[Patient]] = {"broker": _reached}
WORKER_CHECKS: dict[str, Check[Patient]] = {"worker pools": _pool}
