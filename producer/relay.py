"""The relay: the only process that publishes.

It takes outbox rows in the order of their deadlines, marks them, and publishes their hints
with confirms; what the broker does not confirm is unmarked. A relay that dies in between
leaves marked rows whose hint nobody takes, which is what the rescuer looks for. Rows are
taken with SKIP LOCKED, so any number of relays may run.
"""

import threading
import time
from typing import Any

import psycopg
import structlog
from celery import Celery
from kombu import Connection, Producer

from turnmill.schemas.broker import celery_settings, hint_queues
from turnmill.schemas.database import Database
from turnmill.schemas.errors import BrokerUnavailable, DatabaseUnavailable
from turnmill.schemas.routes import ANSWER_TASK, OUTBOX_CHANNEL, queue_name
from turnmill.schemas.settings import Settings
from turnmill.schemas.turns import Lane

log = structlog.get_logger()

#: Pause while the broker's window is full; a slot of a worker frees a place.
WINDOW_POLL_S = 0.02

#: Publishing fails after about so long when the broker holds its confirms back (a memory
#: alarm): without socket timeouts it would hang for ever.
CONFIRM_TIMEOUT_S = 4
SOCKET_TIMEOUT_S = 5

_TAKE = """
WITH room AS (
    SELECT m.model, l.lane, %(window)s - (
        SELECT count(*) FROM outbox o
        WHERE o.model = m.model AND o.lane = l.lane AND o.published_at IS NOT NULL
    ) AS places
    FROM (SELECT DISTINCT model FROM bots) AS m CROSS JOIN unnest(%(lanes)s::text[]) AS l (lane)
), taken AS (
    SELECT due.turn_id FROM room CROSS JOIN LATERAL (
        SELECT turn_id FROM outbox
        WHERE model = room.model AND lane = room.lane AND published_at IS NULL
          AND due_at <= clock_timestamp()
        ORDER BY deadline_at, due_at
        LIMIT least(greatest(room.places, 0), %(batch_size)s)
        FOR UPDATE SKIP LOCKED
    ) AS due
)
UPDATE outbox SET published_at = clock_timestamp() FROM taken
WHERE outbox.turn_id = taken.turn_id
RETURNING outbox.turn_id, outbox.model, outbox.lane, set_config('synchronous_commit', 'off', true)
"""

_UNMARK = "UPDATE outbox SET published_at = NULL WHERE turn_id = ANY(%s)"

_IS_OWED = """
SELECT EXISTS (
    SELECT 1 FROM outbox WHERE published_at IS NULL AND due_at <= clock_timestamp()
) AS is_owed
"""


class Publisher:
    """One connection to the broker. Not to be shared between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = _publishing_app(settings)
        self._connection: Connection | None = None
        self._producer: Producer | None = None

    def publish(self, rows: list[Any]) -> None:
        """Publish a hint for each row; returns when the broker has confirmed them all.

        Raises:
            BrokerUnavailable: some may not have arrived.
        """
        try:
            producer = self._connected()
            for row in rows:
                self._app.send_task(
                    ANSWER_TASK,
                    kwargs={"turn_id": row.turn_id.hex, "lane": row.lane, "model": row.model},
                    queue=self._queue(row.lane, row.model),
                    producer=producer,
                    retry=False,
                    confirm_timeout=CONFIRM_TIMEOUT_S,
                )
        except Exception as error:
            # Whatever kombu, py-amqp or redis-py raise: the hints are published again.
            self.close()
            raise BrokerUnavailable(
                f"The broker cannot be reached: {type(error).__name__}: {error}"
            ) from error

    def close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:
                log.debug("broker.close_failed", error=type(error).__name__)

    def _connected(self) -> Producer:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._producer = self._app.amqp.Producer(self._connection)
        return self._producer

    def _queue(self, lane: str, model: str) -> Any:
        name = queue_name(lane, model)
        if name not in self._app.amqp.queues:
            for queue in hint_queues(self._settings.broker, [Lane(lane)], model):
                self._app.amqp.queues.add(queue)
        return self._app.amqp.queues[name]


class Relay:
    """Publishing threads, and a listener that wakes them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.database)
        self._stopping = threading.Event()
        self._wake = threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=self._publish_forever, name=f"publisher-{n}", daemon=True)
            for n in range(settings.relay.publishers)
        ]

    def run(self) -> None:
        """Relay until `stop` is called from another thread or a signal handler."""
        for thread in self._threads:
            thread.start()
        log.info("relay.started", window=self._settings.relay.window)
        while not self._stopping.is_set():
            try:
                self._listen()
            except (DatabaseUnavailable, psycopg.Error) as error:
                log.warning("relay.disconnected", error=type(error).__name__)
                self._stopping.wait(self._settings.relay.sweep_s)
        for thread in self._threads:
            thread.join(timeout=CONFIRM_TIMEOUT_S + SOCKET_TIMEOUT_S)
        self._database.close()

    def stop(self) -> None:
        self._stopping.set()

    def _listen(self) -> None:
        with self._database.connect() as connection:
            connection.execute(f"LISTEN {OUTBOX_CHANNEL}")
            while not self._stopping.is_set():
                self._wake.release()
                sweep_at = time.monotonic() + self._settings.relay.sweep_s
                while (left_s := sweep_at - time.monotonic()) > 0 and not self._stopping.is_set():
                    for _ in connection.notifies(timeout=min(left_s, 0.2), stop_after=1):
                        self._wake.release()

    def _publish_forever(self) -> None:
        publisher = Publisher(self._settings)
        while not self._stopping.is_set():
            if self._wake.acquire(timeout=0.2):
                self._drop_wakes()
                try:
                    self._publish_due(publisher)
                except (BrokerUnavailable, DatabaseUnavailable) as error:
                    log.warning("relay.stalled", error=error.message)
                    self._stopping.wait(self._settings.relay.sweep_s)
        publisher.close()

    def _drop_wakes(self) -> None:
        """Many notifications, one look."""
        while self._wake.acquire(blocking=False):
            pass

    def _publish_due(self, publisher: Publisher) -> None:
        """Publish until nothing is owed that the window has room for."""
        while not self._stopping.is_set():
            rows = self._take()
            if rows:
                if len(rows) >= self._settings.relay.batch_size:
                    self._wake.release()
                self._publish(publisher, rows)
            elif self._database.run(_IS_OWED)[0].is_owed:
                self._stopping.wait(WINDOW_POLL_S)
            else:
                return

    def _take(self) -> list[Any]:
        relay = self._settings.relay
        return self._database.run(
            _TAKE,
            {
                "window": relay.window,
                "batch_size": relay.batch_size,
                "lanes": [lane.value for lane in Lane],
            },
        )

    def _publish(self, publisher: Publisher, rows: list[Any]) -> None:
        try:
            publisher.publish(rows)
        except BrokerUnavailable:
            self._database.run(_UNMARK, ([row.turn_id for row in rows],))
            raise


def _publishing_app(settings: Settings) -> Celery:
    """An app of its own: socket timeouts that publishing needs would break a consumer."""
    app = Celery("turnmill-relay", set_as_current=False)
    app.conf.update(celery_settings(settings.broker))
    app.conf.task_queues = []
    if settings.broker.is_amqp:
        app.conf.broker_transport_options |= {
            "read_timeout": SOCKET_TIMEOUT_S,
            "write_timeout": SOCKET_TIMEOUT_S,
        }
    return app
