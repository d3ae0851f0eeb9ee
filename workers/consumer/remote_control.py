"""Celery's remote control, reduced to the commands that look.

Whoever reaches the broker can send a control command. Celery's own can stop a worker, take its
queues away, change its pool or revoke its tasks; Turnmill's are SIGTERM, a cancelled turn and
settings. `conf` and `report` are refused because they print settings.
"""

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer.control import Control

from turnmill.workers.vendor.celery import after_start, replace_commands

log = structlog.get_logger()

#: What Flower and `turnmill doctor` ask, and the switches of the events that Flower shows.
ALLOWED = frozenset(
    {
        "active",
        "active_queues",
        "clock",
        "disable_events",
        "dump_active",
        "dump_reserved",
        "dump_revoked",
        "dump_schedule",
        "dump_tasks",
        "enable_events",
        "heartbeat",
        "ping",
        "registered",
        "reserved",
        "revoked",
        "scheduled",
        "stats",
    }
)


#: What `stats` says of the broker. The alternates of its URL and the transport's options, which
#: hold those of Sentinels, may carry passwords.
SHOWN_OF_BROKER = frozenset(
    {"connect_timeout", "heartbeat", "hostname", "port", "transport", "virtual_host"}
)


class LookingControl(Control):  # type: ignore[misc]
    """Celery's control step with handlers that change nothing."""

    def __init__(self, consumer: object, **options: object) -> None:
        super().__init__(consumer, **options)
        replace_commands(self, _harmless)
        after_start(self, lambda consumer, channel: consumer.guard_reads(channel))


def _harmless(name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    if name not in ALLOWED:
        return _refusal(name)
    return _without_secrets(handler) if name == "stats" else handler


def _without_secrets(
    stats: Callable[..., dict[str, object]],
) -> Callable[..., dict[str, object]]:
    def show(state: object, **options: object) -> dict[str, object]:
        shown = stats(state, **options)
        broker = shown.get("broker")
        if isinstance(broker, dict):
            shown["broker"] = {key: broker[key] for key in SHOWN_OF_BROKER & broker.keys()}
        return shown

    return show


def _refusal(name: str) -> Callable[..., object]:
    def refuse(state: object, **_: object) -> dict[str, str]:
        log.warning("control.refused", command=name)
        return {"error": f"Turnmill's workers do not obey '{name}'."}

    return refuse
