"""Celery, set up to carry hints: late acknowledgement, threads, and nothing it cannot keep."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID

from celery import Celery
from celery.worker.consumer import Consumer
from celery.worker.consumer.delayed_delivery import DelayedDelivery

from turnmill.schemas.broker import celery_settings, hint_queues, old_queues, own_queues
from turnmill.schemas.routes import lane_of
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.deployment import Deployment
from turnmill.schemas.turns import Lane

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


#: A wait for hints at Redis ends after this time, and the next one may be for other lanes.
REDIS_POLL_S = 0.1

#: Longest pause between two tries to reach the broker.
RECONNECT_S = 2


class HintConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer with places for each lane, without native delayed delivery, and soon back
    after an outage.

    That step retries every broker URL synchronously after a reconnect: with one node of three
    down, nothing is consumed for 18 seconds. Hints are never delayed, so it has no use here.

    There are threads for `worker.concurrency` turns of each lane. RabbitMQ's quorum queues give
    each consumer, that is each queue, so many hints. Redis knows one number for all queues; there
    `PlacesByLane` chooses the queues.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # What kombu raises when a hint is acknowledged on a Redis channel that is closed.
        self.connection_errors: Any = (*self.conninfo.connection_errors, AttributeError)

    @property
    def initial_prefetch_count(self) -> int:
        threads: int = self.pool.limit
        return threads // self.app.lane_count if self.app.is_amqp else threads

    @initial_prefetch_count.setter
    def initial_prefetch_count(self, _: int) -> None:
        """Celery's own idea of it is for one queue."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Without giving hints back to a Redis that is gone: kombu would fail at it in a way that
        ends the worker. The rescuer finds them.
        """
        if hasattr(channel := self.task_consumer.channel, "do_restore"):
            channel.do_restore = False
        super().on_connection_error_after_connected(exc)

    def loop_args(self) -> Any:
        channel = self.task_consumer.channel
        if hasattr(channel, "_queue_cycle"):
            places = PlacesByLane(channel.qos, self.pool.limit // self.app.lane_count)
            places.update(channel.active_queues)
            channel._queue_cycle = places
        return super().loop_args()

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


class PlacesByLane:
    """Which queues Redis is asked for: those of lanes with a place free here, interactive first.

    Stands where kombu's transport keeps its `queue_order_strategy`.
    """

    def __init__(self, qos: Any, places: int) -> None:
        self._qos = qos
        self._places = places
        self._queues: list[str] = []

    def update(self, queues: Iterable[str]) -> None:
        """The queues that are consumed."""
        order = list(Lane)
        self._queues = sorted(queues, key=lambda queue: order.index(lane_of(queue)))

    def consume(self, count: int) -> list[str]:
        """The queues to ask, in the order in which they are emptied."""
        held = Counter(
            lane_of(message.delivery_info["routing_key"])
            for tag, message in self._qos._delivered.copy().items()
            if tag not in self._qos._dirty
        )
        return [queue for queue in self._queues if held[lane_of(queue)] < self._places][:count]

    def rotate(self, last_used: str) -> None:
        """Their order is their lanes'."""


def create_app(settings: Settings, deployment: Deployment, worker_id: UUID | None = None) -> Celery:
    """The app of a worker that serves the configured lanes of its model, and of Flower."""
    broker, lanes, model = settings.broker, settings.worker.lanes, settings.engine.model_name
    app = Celery("turnmill", set_as_current=False)
    app.lane_count = len(settings.worker.lanes)
    app.is_amqp = settings.broker.is_amqp
    app.conf.update(celery_settings(settings.broker), **WORKER_SETTINGS)
    if not settings.broker.is_amqp:
        app.conf.broker_transport_options["polling_interval"] = REDIS_POLL_S
    app.conf.task_queues = hint_queues(broker, lanes, model, deployment.id)
    if worker_id is not None:
        app.conf.task_queues += own_queues(settings, deployment.id, worker_id)
    if deployment.has_old_queues:
        app.conf.task_queues += old_queues(broker, lanes, model)
    return app
