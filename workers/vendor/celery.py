"""Holds on Celery: the steps of its consumer, its remote control, its state of the process.

`HintConsumer` also overrides methods of Celery's `Consumer`, which are listed here.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.control import Control
from celery.worker.consumer.delayed_delivery import DelayedDelivery

if TYPE_CHECKING:
    from kombu import Connection

READ_IN = {"celery": "5.7.0"}
HOLDS = {
    "celery.app.trace:log_policy_reject": "277b0149b5df",
    "celery.app.trace:TraceInfo._log_error": "4a3dd85409af",
    "celery.worker.consumer.consumer:Consumer.Blueprint": "c8040867bb20",
    "celery.worker.consumer.consumer:Consumer.loop_args": "18b1ee3a1767",
    "celery.worker.consumer.consumer:Consumer.ensure_connected": "28f71a3c50ce",
    "celery.worker.consumer.consumer:Consumer.create_task_handler": "0d187fd14146",
    "celery.worker.consumer.consumer:Consumer.on_decode_error": "c69e55d9eac6",
    "celery.worker.consumer.consumer:Consumer.on_connection_error_after_connected": "ff35d706e0b7",
    "celery.worker.consumer.consumer:Consumer.register_with_event_loop": "831edb9c1cc4",
    "celery.worker.consumer.control:Control": "c38b6650f761",
    "celery.worker.consumer.tasks:Tasks.start": "8bc37ce0ce91",
    "celery.worker.pidbox:Pidbox": "ae0caa0316cd",
    "celery.worker.state:maybe_shutdown": "2cf835161a58",
    "celery.worker.strategy:default": "6baf864d983f",
}

_TRACE_LOGGER = "celery.app.trace"


def consumer_steps(control: type[Control]) -> list[str]:
    """List the steps of Celery's consumer, with `control` for its remote control.

    Native delayed delivery is left out.
    """
    return [
        step.replace(_path(Control), _path(control))
        for step in Consumer.Blueprint.default_steps
        if step != _path(DelayedDelivery)
    ]


def _path(step: type) -> str:
    return f"{step.__module__}:{step.__name__}"


def connect_patiently(
    connection: "Connection", between_tries: Callable[[], None], longest_pause_s: float
) -> None:
    """Bound the pauses between two tries to connect. Celery's own grow to 30 s."""
    ensure = connection.ensure_connection

    def patiently(*args: object, callback: Callable[[], None], **options: object) -> object:
        def pause() -> None:
            between_tries()
            callback()

        return ensure(*args, callback=pause, interval_max=longest_pause_s, **options)

    connection.ensure_connection = patiently


def replace_commands(
    control: Control, replace: Callable[[str, Callable[..., object]], Callable[..., object]]
) -> None:
    """Replace the handler of each command that the remote control knows."""
    node = control.box.node
    node.handlers = {name: replace(name, handler) for name, handler in node.handlers.items()}


def after_start(control: Control, then: Callable[[Consumer, object], None]) -> None:
    """Call `then(consumer, channel)` whenever the remote control has begun to listen.

    The box starts itself again after a command that it cannot read.
    """
    node, start = control.box.node, control.box.start

    def start_then(consumer: object) -> None:
        start(consumer)
        then(consumer, node.channel)

    control.start = control.box.start = start_then


def request_exit(status: int) -> None:
    """Let Celery's loop end the process with this status when it next comes round."""
    state.should_stop = status


def running_count() -> int:
    """Count the tasks that this process has in hand."""
    return len(state.active_requests)


def on_loop(consumer: object, callback: Callable[[], None]) -> None:
    """Run a callback in the thread of the consumer's event loop, if it has one."""
    hub = getattr(consumer, "hub", None)
    if hub is not None:
        hub.call_soon(callback)


class _Rejections(logging.Filter):
    """Drop Celery's line, with a traceback, about each hint that is handed back."""

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "data", {}).get("description") != "rejected"


_REJECTIONS = _Rejections()


def silence_rejections() -> None:
    """Keep Celery from logging each task that is rejected."""
    logging.getLogger(_TRACE_LOGGER).addFilter(_REJECTIONS)
