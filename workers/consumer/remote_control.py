"""Celery's remote control, reduced to the commands that look.

Whoever reaches the broker can send a control command. Celery's own can stop a worker, take its
queues away, change its pool or revoke its tasks; Turnmill's are SIGTERM, a cancelled turn and
settings. `conf` and `report` are refused because they print settings.
"""

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer.control import Control

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

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        node, start = self.box.node, self.box.start
        node.handlers = {
            name: handler if name in ALLOWED else _refusal(name)
            for name, handler in node.handlers.items()
        }
        node.handlers["stats"] = _without_secrets(node.handlers["stats"])

        def start_guarded(consumer: Any) -> None:
            start(consumer)
            consumer.guard_reads(node.channel)

        # The box starts itself anew after a command that it cannot read.
        self.start = self.box.start = start_guarded


def _without_secrets(stats: Callable[..., dict[str, Any]]) -> Any:
    def show(state: Any, **options: Any) -> dict[str, Any]:
        shown = stats(state, **options)
        broker = shown.get("broker")
        if isinstance(broker, dict):
            shown["broker"] = {key: broker[key] for key in SHOWN_OF_BROKER & broker.keys()}
        return shown

    return show


def _refusal(name: str) -> Any:
    def refuse(state: Any, **_: Any) -> dict[str, str]:
        log.warning("control.refused", command=name)
        return {"error": f"Turnmill's workers do not obey '{name}'."}

    return refuse
