"""The publisher: one connection to the broker that hints go through, with confirms."""

import threading
import time
from collections.abc import Callable

import structlog
from amqp import Channel
from amqp.exceptions import MessageNacked, PreconditionFailed
from celery import Celery
from celery.utils.nodenames import anon_nodename
from kombu import Connection, Producer
from kombu.exceptions import BatchPublishError

from turnmill.producer.relay.outbox import DueHint
from turnmill.schemas.broker import OWN_QUEUE_EXPIRES_S, celery_settings, hint_queue
from turnmill.schemas.errors import BrokerUnavailable
from turnmill.schemas.ids import new_id
from turnmill.schemas.observability.telemetry import BROKER_RECONNECTS
from turnmill.schemas.routes import (
    ANSWER_TASK,
    DELIVERY_LANE,
    SEND_TASK,
    own_queue_name,
    queue_name,
)
from turnmill.schemas.settings import Settings

log = structlog.get_logger()

#: Publishing fails after about so long when the broker holds its confirms back (a memory
#: alarm): without socket timeouts it would hang for ever.
CONFIRM_TIMEOUT_S = 4
SOCKET_TIMEOUT_S = 5

#: RabbitMQ tells the second who declares a new quorum queue that it is there before it has a
#: leader, and refuses what is then published to it.
_declaring = threading.Lock()


class Publisher:
    """One connection to the broker. Not to be shared between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = _publishing_app(settings)
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._confirms: _Confirms | None = None
        self._known_queues: set[str] = set()
        self._origin = anon_nodename()

    def publish(self, rows: list[DueHint]) -> None:
        """Publish a hint for each row; returns when the broker has confirmed them all.

        A row whose queue the broker refuses holds up no other: it stays marked, and the next look
        for lost hints has it tried again.

        Raises:
            BrokerUnavailable: some may not have arrived.
        """
        try:
            producer = self._connected()
            lanes = {_lanes_queue(row): row for row in rows if row.own_worker_id is None}
            refused = {name for name, row in lanes.items() if not self._has_queue(name, row)}
            rows = [row for row in rows if _lanes_queue(row) not in refused]
            # Redis takes them in one pipeline; to RabbitMQ each goes at once.
            with producer.batch():
                for row in rows:
                    self._publish_one(producer, row)
            self._let_expire(producer, rows)
            if self._confirms is not None:
                self._confirms.wait(len(rows))
        except Exception as error:
            # Whatever kombu, py-amqp or redis-py raise: the hints are published again.
            reason = self._why_refused(error)
            self._drop()
            raise BrokerUnavailable(f"The broker takes no hints: {reason}") from error

    def depth(self, lane: str, model: str, deployment: str) -> int:
        """Count the messages in a lane's queue that no worker has taken; declare the queue.

        A queue that the broker refuses holds none of our hints.

        Raises:
            BrokerUnavailable: it did not say.
        """
        try:
            self._connected()
            assert self._connection is not None
            queue = hint_queue(self._settings.broker, lane, model, deployment)
            with _declaring, self._connection.channel() as channel:
                declared = channel.queue_declare(
                    queue=queue.name,
                    durable=queue.durable,
                    auto_delete=queue.auto_delete,
                    arguments=queue.queue_arguments,
                )
            return int(declared.message_count)
        except PreconditionFailed:
            return 0
        except Exception as error:
            # Whatever kombu, py-amqp or redis-py raise: the next look connects again.
            self._drop()
            raise BrokerUnavailable(
                f"The broker cannot be reached: {type(error).__name__}: {error}"
            ) from error

    def _why_refused(self, error: Exception) -> str:
        """Say what an operator has to look for: a broker that refuses hints may well be reached."""
        if isinstance(error, BatchPublishError) and error.__cause__ is not None:
            # kombu's own words tell nothing: Redis' do (out of memory, a replica, a full disk).
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if isinstance(error, TimeoutError) and self._confirms is not None:
            return (
                f"it has confirmed none for {CONFIRM_TIMEOUT_S} s. RabbitMQ holds them back while "
                "an alarm of its memory or disk lasts (rabbitmq-diagnostics alarms)"
            )
        return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Close the connection to the broker."""
        self._forget(lambda connection: connection.close())

    def _drop(self) -> None:
        """Drop the connection without closing it: a silent broker would delay that by 10 s."""
        BROKER_RECONNECTS.inc()
        self._forget(lambda connection: connection.collect(socket_timeout=1))

    def _forget(self, end: Callable[[Connection], None]) -> None:
        connection, self._connection = self._connection, None
        self._producer = self._confirms = None
        self._known_queues.clear()
        if connection is not None:
            try:
                end(connection)
            except Exception as error:
                log.debug("broker.close_failed", error=type(error).__name__)

    def _publish_one(self, producer: Producer, row: DueHint) -> None:
        """What `send_task` does, less the half of its time that goes into features unused here."""
        task, hint = _task(row)
        message = self._app.amqp.as_task_v2(
            str(new_id()), task, kwargs=hint, kwargsrepr=repr(hint), argsrepr="()",
            origin=self._origin,
        )  # fmt: skip
        producer.publish(
            message.body,
            exchange="",
            routing_key=_queue(row),
            headers=message.headers,
            delivery_mode=2,
            serializer="json",
            **message.properties,
        )

    def _let_expire(self, producer: Producer, rows: list[DueHint]) -> None:
        """What a worker that dies has not taken goes with its queue."""
        if not self._settings.broker.is_amqp:
            for queue in {_queue(row) for row in rows if row.own_worker_id is not None}:
                producer.channel.client.expire(queue, OWN_QUEUE_EXPIRES_S)

    def _connected(self) -> Producer:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._producer = self._app.amqp.Producer(self._connection)
            if self._settings.broker.is_amqp:
                self._confirms = _Confirms(self._producer.channel)
        return self._producer

    def _has_queue(self, name: str, row: DueHint) -> bool:
        """Declare a lane's queue, once per connection; False if the broker refuses it.

        On a channel of its own: RabbitMQ closes the one on which it refuses a declaration.
        """
        if name in self._known_queues:
            return True
        assert self._connection is not None
        queue = hint_queue(self._settings.broker, row.lane, row.model, row.deployment)
        try:
            with _declaring:
                channel = self._connection.channel()
                queue(channel).declare()
                channel.close()
        except self._connection.channel_errors as error:
            log.error("relay.queue_refused", queue=name, error=f"{type(error).__name__}: {error}")
            return False
        self._known_queues.add(name)
        return True


def _task(row: DueHint) -> tuple[str, dict[str, str]]:
    """The task that a hint asks for, and its arguments."""
    if row.lane == DELIVERY_LANE:
        return SEND_TASK, {"delivery_id": row.turn_id.hex, "channel": row.model}
    return ANSWER_TASK, {"turn_id": row.turn_id.hex, "lane": row.lane, "model": row.model}


def _queue(row: DueHint) -> str:
    """Name the queue. A worker's own may be gone: its hints are late then, not lost."""
    if row.own_worker_id is None:
        return _lanes_queue(row)
    return own_queue_name(row.lane, row.model, row.deployment, row.own_worker_id)


def _lanes_queue(row: DueHint) -> str:
    return queue_name(row.lane, row.model, row.deployment)


class _Confirms:
    """RabbitMQ's publisher confirms for many hints at once, instead of one round trip each.

    https://www.rabbitmq.com/docs/confirms#publisher-confirms
    """

    def __init__(self, channel: Channel) -> None:
        self._connection = channel.connection
        self._confirmed = 0
        self._published = 0
        self._out_of_order: set[int] = set()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.confirm_select()

    def wait(self, published_count: int) -> None:
        """Return when all that was published is confirmed; raises what py-amqp does."""
        self._published += published_count
        deadline = time.monotonic() + CONFIRM_TIMEOUT_S
        while self._confirmed < self._published:
            self._connection.drain_events(timeout=max(deadline - time.monotonic(), 0.001))

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        if multiple:
            self._confirmed = max(self._confirmed, delivery_tag)
        else:
            self._out_of_order.add(delivery_tag)
        while self._confirmed + 1 in self._out_of_order:
            self._confirmed += 1
        self._out_of_order = {tag for tag in self._out_of_order if tag > self._confirmed}

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:
        raise MessageNacked


def _publishing_app(settings: Settings) -> Celery:
    """An app of its own: socket timeouts that publishing needs would break a consumer."""
    app = Celery("turnmill-relay", set_as_current=False)
    app.conf.update(celery_settings(settings.broker))
    app.conf.task_queues = []
    if settings.broker.is_amqp:
        app.conf.broker_transport_options = {
            "read_timeout": SOCKET_TIMEOUT_S,
            "write_timeout": SOCKET_TIMEOUT_S,
        }
    return app
