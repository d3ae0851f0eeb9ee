"""`turnmill deliver`: one process that brings replies and notices to all configured channels."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from celery import Celery
from celery.exceptions import Reject
from celery.signals import worker_ready

from turnmill.schemas.channels.configuration import Configuration, load_configuration
from turnmill.schemas.errors import DatabaseUnavailable, SettingsError
from turnmill.schemas.files.opening import open_parts
from turnmill.schemas.ids import new_id
from turnmill.schemas.observability.telemetry import STUCK_AFTER_S, Health, telemetry
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.routes import SEND_TASK
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.workers.consumer.app import create_delivery_app
from turnmill.workers.consumer.main import consume
from turnmill.workers.consumer.stopping import POLL_S, Stopping
from turnmill.workers.delivery.base import Delivery
from turnmill.workers.delivery.claims import Holder
from turnmill.workers.delivery.fetching import Fetcher
from turnmill.workers.delivery.progress import Progress
from turnmill.workers.delivery.registry import Deliveries
from turnmill.workers.delivery.send import Sender
from turnmill.workers.delivery.sweep import Sweeper
from turnmill.workers.delivery.voice import Speaker
from turnmill.workers.media.registry import create_synthesizer
from turnmill.workers.turn.backoff import backoff_s
from turnmill.workers.vendor.celery import running_count

log = structlog.get_logger()

#: After the drain: how long the process may take to end.
LEAVE_S = 1.7


@dataclass
class Consuming:
    """What `HintConsumer` reads and sets, as it does of a worker's leases."""

    looped_at: float = float("inf")
    consumed_at: float = float("-inf")
    unavailable_because: str | None = None
    hands_back: threading.Event = field(default_factory=threading.Event)
    draining: threading.Event = field(default_factory=threading.Event)

    def why_stuck(self) -> str | None:
        if self.looped_at < time.monotonic() - STUCK_AFTER_S:
            return f"the consumer's loop has not come round for {STUCK_AFTER_S:g} s"
        return None

    def why_unready(self) -> str | None:
        if self.draining.is_set():
            return "draining"
        if self.consumed_at < time.monotonic() - 5:
            return "the consumer is not connected to the broker"
        return None


class DeliveryWorker:
    """The parts of one process."""

    def __init__(self, settings: Settings, channels: Mapping[str, Delivery]) -> None:
        delivery = settings.delivery
        threads = delivery.concurrency * len(channels)
        # For each channel besides: a file that is fetched.
        size = min(settings.database.pool_size, 2 * threads + len(channels) + 2)
        self.database = Database(settings.database.model_copy(update={"pool_size": size}))
        self.holder = Holder(self.database, new_id(), delivery.lease_s)
        self.channels = list(channels)
        self.give_up = threading.Event()
        self.consuming = Consuming()
        self.sender = Sender(
            self.holder,
            channels,
            max_attempts=delivery.max_attempts,
            give_up=self.give_up,
            speaker=Speaker(create_synthesizer(settings.media), delivery.lease_s),
        )
        self.sweeper = Sweeper(self.holder)
        self.fetcher = Fetcher(self.database, open_parts(self.database, settings), channels)
        self.progress = [
            Progress(self.holder, name, channels, delivery.concurrency)
            for name, channel in channels.items()
            if channel.shows_progress
        ]


def run_delivery_worker(settings: Settings) -> int:
    """Deliver until SIGTERM; the exit status.

    Raises:
        SettingsError: there are no channels, or one of them lacks its library or a secret.
    """
    configuration = load_configuration(settings.config_path)
    if not configuration.channels:
        raise SettingsError(
            "There are no channels to deliver to. Configure one in turnmill.toml (TURNMILL_CONFIG)."
        )
    health = Health()
    with (
        telemetry(settings, "deliver", health, channels="+".join(configuration.channels)),
        running_delivery_worker(settings, configuration) as worker,
    ):
        health.stuck = worker.consuming.why_stuck
        health.unready = worker.consuming.why_unready
        names = worker.channels
        deployment = read_deployment(worker.database)
        app = create_delivery_app(settings, deployment, names, worker.consuming)
        _register(app, worker)
        drain = _Drain(worker, settings.delivery.drain_s)

        def on_ready(sender: object, **_: object) -> None:
            drain.consuming(sender)
            log.info("deliver.consuming", channels=names)

        worker_ready.connect(on_ready, weak=False)
        drain.listen()
        hostname = f"delivery-{os.getpid()}@{socket.gethostname()}"
        threads = settings.delivery.concurrency * len(names)
        status = consume(app, hostname, threads, settings)
        worker.give_up.set()
    return status


@contextmanager
def running_delivery_worker(
    settings: Settings, configuration: Configuration
) -> Iterator[DeliveryWorker]:
    """A worker whose threads run. Raises `SettingsError`."""
    with ExitStack() as stack:
        channels = Deliveries(configuration, settings.delivery)
        for channel in channels.values():
            stack.callback(channel.close)
        worker = DeliveryWorker(settings, channels)
        stack.callback(worker.database.close)
        parts: list[Sweeper | Fetcher | Progress] = [
            worker.sweeper,
            worker.fetcher,
            *worker.progress,
        ]
        for part in parts:
            stack.callback(part.close)
            part.start()
        yield worker


def _register(app: Celery, worker: DeliveryWorker) -> None:
    @app.task(name=SEND_TASK, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]
    def send(delivery_id: str, channel: str = "", **_: object) -> None:
        """Send a delivery; arguments of later versions are ignored."""
        try:
            _send(worker, channel, UUID(delivery_id))
        except BaseException as error:
            if isinstance(error, Reject):
                raise
            # A MemoryError or SystemExit that escapes costs the threads pool a slot for good.
            log.exception("hint.failed", delivery_id=delivery_id)


def _send(worker: DeliveryWorker, channel: str, delivery_id: UUID) -> None:
    """Wait out a Postgres that is away; hand the hint back when this process stops meanwhile."""
    tries = 0
    while True:
        try:
            worker.sender.send(channel, delivery_id)
            return
        except DatabaseUnavailable as error:
            tries += 1
            log.warning("delivery.stalled", delivery_id=delivery_id.hex, error=error.message)
            if worker.give_up.wait(backoff_s(tries, cap_s=2.0)):
                raise Reject("stopping while the database is away", requeue=True) from None


class _Drain(Stopping):
    """Let the deliveries in work finish; a step takes one call to a platform."""

    def __init__(self, worker: DeliveryWorker, drain_s: float) -> None:
        super().__init__(drain_s)
        self._worker = worker

    def run(self) -> None:
        log.info("drain.started", delivery_count=self._count(), drain_s=self.drain_s)
        started_at = time.monotonic()
        self._worker.consuming.draining.set()
        for progress in self._worker.progress:
            progress.stop()
        self.stop_consuming()
        while self._count() and time.monotonic() - started_at < self.drain_s:
            time.sleep(POLL_S)
        self.leave_in(LEAVE_S)
        self._worker.give_up.set()
        # Here, and not where the process ends: a call that hangs may keep it from coming there.
        self._worker.fetcher.close()
        log.info("drain.finished", left_count=self._count())
        self.end_loop()

    def _count(self) -> int:
        """Deliveries that are being sent, or whose progress is being shown."""
        return running_count() + sum(progress.busy_count for progress in self._worker.progress)
