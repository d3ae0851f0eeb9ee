"""Celery, set up to carry hints: late acknowledgement, threads, and nothing it cannot keep."""

from functools import partial
from typing import Any
from uuid import UUID

from celery import Celery
from celery.worker.consumer import Consumer
from celery.worker.consumer.delayed_delivery import DelayedDelivery

from turnmill.schemas.broker import celery_settings, hint_queues, own_queues
from turnmill.schemas.settings import Settings

#: No ETA, countdown, autoretry, time limits, result backend or beat: retry times and
#: deadlines live in Postgres, and the threads pool could not enforce limits anyway.
WORKER_SETTINGS: dict[str, Any] = {
    "task_acks_late": True,
    "task_acks_on_failure": True,
    "task_reject_on_worker_lost": True,
    "worker_pool": "threads",
    "worker_prefetch_multiplier": 1,
    "worker_enable_prefetch_count_reduction": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_detect_quorum_queues": True,
    "broker_channel_error_retry": True,
    "worker_send_task_events": False,
    "worker_disable_rate_limits": True,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_consumer": "turnmill.workers.app:HintConsumer",
}


#: Longest pause between two tries to reach the broker.
RECONNECT_S = 2


class HintConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer without native delayed delivery, and soon back after an outage.

    That step retries every broker URL synchronously after a reconnect: with one node of three
    down, nothing is consumed for 18 seconds. Hints are never delayed, so it has no use here.
    """

    def ensure_connected(self, conn: Any) -> Any:
        """Celery's pauses grow to 30 s, in which a broker may long be back."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=RECONNECT_S)
        return super().ensure_connected(conn)

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        default_steps = [  # noqa: RUF012 - Celery reads it from the class
            step
            for step in Consumer.Blueprint.default_steps
            if not step.endswith(f":{DelayedDelivery.__name__}")
        ]


def create_app(settings: Settings, worker_id: UUID | None = None) -> Celery:
    """The app of a worker that serves the configured lanes of its model, and of Flower."""
    app = Celery("turnmill", set_as_current=False)
    app.conf.update(celery_settings(settings.broker), **WORKER_SETTINGS)
    app.conf.task_queues = hint_queues(
        settings.broker, settings.worker.lanes, settings.engine.model_name
    )
    if worker_id is not None:
        app.conf.task_queues += own_queues(settings, worker_id)
    return app
