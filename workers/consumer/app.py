"""Celery, set up to carry hints: late acknowledgement, threads, and nothing it cannot keep."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
from amqp.exceptions import ConsumerCancelled
from celery import Celery
from celery.worker.consumer import Consumer
from kombu import Message
from kombu.asynchronous import Hub

from turnmill.schemas.broker import (
    celery_settings,
    hint_queue,
    hint_queues,
    old_queues,
    own_queues,
)
from turnmill.schemas.observability.telemetry import BROKER_RECONNECTS
from turnmill.schemas.routes import ANSWER_TASK, DELIVERY_LANE, SEND_TASK, lane_of
from turnmill.schemas.settings import BrokerSettings, Settings
from turnmill.schemas.store.fleet.deployment import Deployment
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.hints import NotAHint, UnknownTask, checked, read_hint
from turnmill.workers.consumer.metrics import HINTS_DROPPED
from turnmill.workers.consumer.remote_control import LookingControl
from turnmill.workers.turn.leases import Leases
from turnmill.workers.vendor import amqp
from turnmill.workers.vendor.celery import connect_patiently, consumer_steps
from turnmill.workers.vendor.kombu import (
    CHANNEL_CLOSED_ERRORS,
    consumed_queues,
    derive_message_class,
    has_consumers,
    is_redis,
    keep_unacknowledged,
    order_queues,
    unacknowledged,
    wrap_readers,
)
from turnmill.workers.vendor.kombu_redis import handle_together, reuse_client

if TYPE_CHECKING:
    from kombu.transport.redis import Channel as RedisChannel

log = structlog.get_logger()

#: No ETA, countdown, autoretry, time limits, result backend or beat: retry times and
#: deadlines live in Postgres, and the threads pool could not enforce limits anyway.
WORKER_SETTINGS: dict[str, object] = {
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
    "worker_consumer": "turnmill.workers.consumer.app:HintConsumer",
}


#: A wait for hints at Redis ends after this time, and the next one may be for other lanes.
REDIS_POLL_S = 0.1

#: Longest pause between two tries to reach the broker.
RECONNECT_S = 2

#: How often a worker looks whether it still consumes.
CONSUMING_POLL_S = 1.0

#: A hint of a later version is kept so long before it is handed back, so that it does not spin.
HAND_BACK_S = 1.0


class HintConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer with places for each lane, without native delayed delivery, and soon back
    after an outage.

    That step retries every broker URL synchronously after a reconnect: with one node of three
    down, nothing is consumed for 18 seconds. Hints are never delayed, so it has no use here.

    There are threads for so many turns of each lane, or deliveries of each channel. RabbitMQ's
    quorum queues give each consumer, that is each queue, so many hints. Redis knows one number for
    all queues; there `PlacesByLane` chooses the queues.
    """

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)
        self.connection_errors: tuple[type[BaseException], ...] = (
            *self.conninfo.connection_errors,
            *CHANNEL_CLOSED_ERRORS,
            ConsumerCancelled,  # `_stay_consuming` raises it, whatever the broker
        )
        self.app.consumer = self
        self._is_stopping = False
        self._dropped: Counter[str] = Counter()

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
        keep_unacknowledged(self.task_consumer.channel)
        BROKER_RECONNECTS.inc()
        super().on_connection_error_after_connected(exc)

    def stop_consuming(self) -> None:
        """Take no more hints, and do not mind it. In the loop's thread only."""
        self._is_stopping = True
        self.task_consumer.cancel()

    def loop_args(self) -> object:
        channel = self.task_consumer.channel
        derive_message_class(channel, checked)
        self.guard_reads(channel)
        if is_redis(channel):
            self._hasten(channel)
        else:
            amqp.acknowledge_together(channel, self._acknowledge_soon)
        return super().loop_args()

    def _hasten(self, channel: "RedisChannel") -> None:
        """Let a Redis channel choose queues by lane, and serve several hints by one command."""
        places = PlacesByLane(channel.qos, self.pool.limit // self.app.lane_count, self.app.lane_of)
        order_queues(channel, places)
        reuse_client(channel)
        read = partial(self._read, kind="BRPOP")
        handle_together(channel, places, self._acknowledge_soon, read)

    def _acknowledge_soon(self, flush: Callable[[], None]) -> None:
        """Called on the loop, acknowledge before it waits again: what the loop itself calls "soon"
        comes after the wait, and the hints that take the places would come later by that.
        """

        def once() -> None:
            self.hub.on_tick.discard(once)
            self._acknowledge(flush)

        self.hub.on_tick.add(once)

    def _acknowledge(self, flush: Callable[[], None]) -> None:
        """Over a connection that is lost nothing is acknowledged, and a new one is no worse for it:
        the hints come again and find nothing to claim.
        """
        try:
            flush()
        except BrokenPipeError:
            raise
        except self.connection_errors as error:
            log.warning("hints.unacknowledged", error=type(error).__name__)

    def ensure_connected(self, conn: object) -> object:
        connect_patiently(conn, self._note_loop, RECONNECT_S)
        return super().ensure_connected(conn)

    def _note_loop(self) -> None:
        if leases := self.app.leases:
            leases.looped_at = time.monotonic()

    def create_task_handler(self, *args: object, **options: object) -> Callable[[object], None]:
        handle = super().create_task_handler(*args, **options)

        def on_message(message: object) -> None:
            try:
                read_hint(message, self.app.hint_task)
            except NotAHint as error:
                self._drop(message, error.reason)
            except UnknownTask as error:
                self._hand_back(message, error.name)
            else:
                handle(message)

        return on_message

    def on_decode_error(self, message: object, exc: Exception) -> None:
        """What kombu could not even build a message of; Celery's own would log its body."""
        self._drop(message, exc.reason if isinstance(exc, NotAHint) else "unreadable")

    def guard_reads(self, channel: object) -> None:
        """Let no message end the loop that reads it from Redis, be it no JSON or no message."""
        wrap_readers(channel, lambda read, kind: partial(self._read, read, kind))

    def _read(self, read: Callable[[], object], kind: str) -> object:
        foreign = (NotAHint, ValueError, RecursionError)
        if kind == "LISTEN":
            foreign = (*foreign, TypeError, LookupError, AttributeError)  # type: ignore[assignment]
        try:
            return read()
        except foreign as error:
            # It was popped and is recorded nowhere: nothing is left to acknowledge.
            self._count(error.reason if isinstance(error, NotAHint) else "unreadable")
        return None

    def _drop(self, message: Message, reason: str) -> None:
        """Acknowledge: a rejection would send it on to a lane's queue from a worker's own."""
        self._count(reason)
        channel = message.channel
        consumer_tag = (message.delivery_info or {}).get("consumer_tag")
        if consumer_tag not in (channel.no_ack_consumers or ()):
            channel.basic_ack(message.delivery_tag)

    def _count(self, reason: str) -> None:
        """Log the first, and then each time the number has doubled."""
        HINTS_DROPPED.labels(reason).inc()
        self._dropped[reason] += 1
        count = self._dropped[reason]
        if count & (count - 1) == 0:
            log.warning("hint.foreign_dropped", reason=reason, count=count)

    def _hand_back(self, message: Message, task: str) -> None:
        log.warning("hint.unknown_task", task=task, hint="a later version's; handed back")
        self.timer.call_after(
            HAND_BACK_S, message.reject_log_error, (log, self.connection_errors, True)
        )

    def register_with_event_loop(self, hub: Hub) -> None:
        super().register_with_event_loop(hub)
        hub.timer.call_repeatedly(CONSUMING_POLL_S, self._stay_consuming)
        # Celery has just begun to consume, be the engine there or not.
        hub.call_soon(self._stay_consuming)

    def _stay_consuming(self) -> None:
        """Consume while the engine takes turns; start again when the consumers are gone, whoever
        cancelled them.

        Raises `ConsumerCancelled`, which Celery answers with a new connection.
        """
        self._note_loop()
        if self._is_stopping:
            return
        if leases := self.app.leases:
            if leases.unavailable_because:
                self._pause(leases)
                return
            self._resume(leases)
        if gone := self._unconsumed_queues():
            log.error("worker.consumers_gone", queues=gone, action="connects to the broker again")
            raise ConsumerCancelled(gone[0])
        if leases:
            leases.consumed_at = time.monotonic()

    def _pause(self, leases: Leases) -> None:
        """Cancel the consumers first: hints that are handed back would come here again."""
        if has_consumers(self.task_consumer):
            self.task_consumer.cancel()
            log.info("worker.consuming_paused")
        leases.hands_back.set()

    def _resume(self, leases: Leases) -> None:
        if leases.hands_back.is_set():
            leases.hands_back.clear()
            self.task_consumer.consume()
            log.info("worker.consuming_resumed")

    def _unconsumed_queues(self) -> list[str]:
        """Name the configured queues that our channel no longer has a consumer for."""
        consumed = consumed_queues(self.task_consumer)
        return [q.name for q in self.app.conf.task_queues if q.name not in consumed]

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        default_steps = consumer_steps(LookingControl)


class PlacesByLane:
    """Which queues Redis is asked for: those of lanes with a place free here, interactive first.

    kombu asks it as its `QueueOrder`.
    """

    def __init__(self, qos: object, places: int, lane_of: Callable[[str], str] = lane_of) -> None:
        """`lane_of` tells which queues share their places."""
        self._qos = qos
        self._places = places
        self._lane_of = lane_of
        self._queues: list[str] = []
        self._asked: list[str] = []

    def update(self, queues: Iterable[str]) -> None:
        """The queues that are consumed."""
        order: dict[str, int] = {lane: place for place, lane in enumerate(Lane)}
        # A worker's own queue, whose name is the longer one, before the lane's: it expires.
        self._queues = sorted(queues, key=lambda q: (order.get(self._lane_of(q), 0), -len(q)))

    def consume(self, count: int) -> list[str]:
        """The queues to ask, in the order in which they are emptied."""
        self._asked = self._free()[:count]
        return self._asked

    def room(self, queue: str) -> int:
        """Return how many hints of the queue find a place."""
        return self._places - self._held()[self._lane_of(queue)]

    def passed_over(self) -> list[str]:
        """The queues of lanes that had no place free at the last poll and have one now."""
        return [queue for queue in self._free() if queue not in self._asked]

    def _free(self) -> list[str]:
        held = self._held()
        return [queue for queue in self._queues if held[self._lane_of(queue)] < self._places]

    def _held(self) -> Counter[str]:
        return Counter(
            self._lane_of(message.delivery_info["routing_key"])
            for message in unacknowledged(self._qos)
        )

    def rotate(self, last_used: str) -> None:
        """Their order is their lanes'."""


def create_app(settings: Settings, deployment: Deployment, leases: Leases | None = None) -> Celery:
    """The app of a worker that serves the configured lanes of its model, and of Flower.

    `leases`: the worker's, if it is one of a process that answers turns.
    """
    broker, lanes, model = settings.broker, settings.worker.lanes, settings.engine.model_name
    app = _app(broker, ANSWER_TASK)
    app.leases = leases
    app.lane_count = len(settings.worker.lanes)
    app.lane_of = lane_of
    app.conf.task_queues = hint_queues(broker, lanes, model, deployment.id)
    if leases is not None:
        app.conf.task_queues += own_queues(settings, deployment.id, leases.worker_id)
    if deployment.has_old_queues:
        app.conf.task_queues += old_queues(broker, lanes, model)
    return app


def create_delivery_app(
    settings: Settings, deployment: Deployment, channels: Sequence[str], consuming: object
) -> Celery:
    """The app of a delivery worker: one queue a channel, each with places of its own.

    `consuming` has the attributes of `Leases` that `HintConsumer` reads and sets.
    """
    app = _app(settings.broker, SEND_TASK)
    app.leases = consuming
    app.lane_count = len(channels)
    app.lane_of = str
    app.conf.task_queues = [
        hint_queue(settings.broker, DELIVERY_LANE, channel, deployment.id) for channel in channels
    ]
    return app


def _app(broker: BrokerSettings, task: str) -> Celery:
    """An app that carries hints for one task."""
    app = Celery("turnmill", set_as_current=False)
    app.hint_task = task
    #: The process's `HintConsumer`, once it has one.
    app.consumer = None
    app.is_amqp = broker.is_amqp
    app.conf.update(celery_settings(broker), **WORKER_SETTINGS)
    if not broker.is_amqp:
        app.conf.broker_transport_options["polling_interval"] = REDIS_POLL_S
    return app
