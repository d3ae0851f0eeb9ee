"""What a worker answers to `/live` and `/ready`, and its gauges."""

import time

from prometheus_client import CollectorRegistry, generate_latest

from turnmill.schemas.observability.telemetry import STUCK_AFTER_S, Health
from turnmill.schemas.settings import WorkerSettings
from turnmill.workers.consumer.metrics import WorkerGauges
from turnmill.workers.turn.leases import Leases


def watch_worker(health: Health, leases: Leases, settings: WorkerSettings) -> None:
    """Let the probes ask a worker that has loaded its engine."""
    registry = CollectorRegistry()
    registry.register(WorkerGauges(leases, settings.lanes, settings.concurrency))
    health.more = lambda: generate_latest(registry)
    health.stuck = lambda: why_stuck(leases)
    health.unready = lambda: why_unready(leases)


def why_stuck(leases: Leases) -> str | None:
    """Name the loop that has not come round for long, if there is one.

    While a loop waits for PostgreSQL or the broker, it still comes round.
    """
    latest_s = time.monotonic() - STUCK_AFTER_S
    for loop, seen_at in (("heartbeat", leases.heartbeat.beat_at), ("consumer", leases.looped_at)):
        if seen_at < latest_s:
            return f"the {loop}'s loop has not come round for {STUCK_AFTER_S:g} s"
    return None


def why_unready(leases: Leases) -> str | None:
    """Say why no turns are taken. A standby that waits, its model loaded, is ready."""
    if leases.draining.is_set():
        return "draining"
    if leases.unavailable_because is not None:
        return "the engine is away"
    if leases.reconnected_s < 0:
        return "the heartbeat is not connected to PostgreSQL"
    if leases.consuming.is_set() and not leases.takes_hints:
        return "the consumer is not connected to the broker"
    return None
