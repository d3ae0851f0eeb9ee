"""The broker: reachable, and who consumes from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from celery import Celery
from kombu import Connection, Queue

from turnmill.producer.doctor.findings import Check, Finding, broken, ok, warning
from turnmill.producer.operations.remedies import worker_command
from turnmill.schemas.broker import celery_settings, hint_queues
from turnmill.schemas.settings import Settings
from turnmill.schemas.turns import Lane

#: The checks whether the broker takes hints at all: RabbitMQ's, and Redis' or Valkey's.
PUBLISHING, WRITING = "publishing", "writing"

#: How long live workers may take to say how they were started.
INSPECT_S = 1.0


class Unreachable(Exception):
    """No broker, or none that lets us in."""


@dataclass(frozen=True)
class Target:
    settings: Settings
    app: Celery
    #: Open.
    connection: Connection
    #: What the queues are named after; None where PostgreSQL does not tell.
    deployment: str | None = None
    #: The lanes of our model that live workers say they consume.
    consumed: frozenset[str] = frozenset()

    @property
    def queues(self) -> dict[Lane, Queue]:
        """Our model's, by lane; none where PostgreSQL does not tell their names."""
        if self.deployment is None:
            return {}
        model = self.settings.engine.model_name
        queues = hint_queues(self.settings.broker, Lane, model, self.deployment)
        return dict(zip(Lane, queues, strict=True))


@contextmanager
def connected(
    settings: Settings, deployment: str | None, consumed: frozenset[str] = frozenset()
) -> Iterator[Target]:
    """Raises `Unreachable`. kombu follows several URLs and Sentinels as workers do."""
    app = Celery("turnmill-doctor", set_as_current=False)
    try:
        app.conf.update(celery_settings(settings.broker))
        connection = app.connection_for_write()
        connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=3)
        # Redis is first spoken to here.
        connection.default_channel  # noqa: B018
    except Exception as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    try:
        yield Target(settings, app, connection, deployment, consumed)
    finally:
        connection.release()


def _reached(target: Target) -> Iterator[Finding]:
    yield ok(str(target.connection.transport.driver_type))


def _pool(target: Target) -> Iterator[Finding]:
    """Asks the workers themselves: what counts is how they were started."""
    inspect = target.app.control.inspect(timeout=INSPECT_S, connection=target.connection)
    for worker, stats in sorted((inspect.stats() or {}).items()):
        pool = stats["pool"]
        if "prefork" in pool.get("implementation", ""):
            yield broken(
                f"{worker} forks: CUDA does not survive that, nor do the threads that keep leases",
                "start it with 'turnmill worker', or with --pool threads",
            )
        slots, held = pool.get("max-concurrency"), stats.get("prefetch_count")
        if slots and held and held > slots:
            yield warning(
                f"{worker} takes {held} hints at a time for {slots} slots: turns wait behind "
                "others while slots elsewhere are free",
                "start it with 'turnmill worker', or with worker_prefetch_multiplier=1",
            )


def _consumers(target: Target) -> Iterator[Finding]:
    """What the broker holds, and who takes it: Redis does not know its consumers."""
    model = target.settings.engine.model_name
    for lane, queue in target.queues.items():
        hints, consumers = _held(target, queue)
        if lane not in target.consumed and hints:
            yield broken(
                f"{hints} hints of lane {lane} of {model} lie in the broker, and no live worker "
                "consumes the lane",
                worker_command(model, lane, target.settings),
            )
        if lane in target.consumed and consumers == 0:
            yield broken(
                f"workers say that they consume lane {lane} of {model}, but the broker has no "
                f"consumer of {queue.name}",
                "a worker connects again within seconds; if this stays, restart the workers",
            )


def _held(target: Target, queue: Queue) -> tuple[int, int | None]:
    """Hints that wait in a queue, and its consumers where the broker knows them."""
    # A refusal closes its channel.
    with target.connection.channel() as channel:
        try:
            found = queue(channel).queue_declare(passive=True)
        except target.connection.channel_errors:
            return 0, 0 if target.settings.broker.is_amqp else None
    return found.message_count, found.consumer_count if target.settings.broker.is_amqp else None


CHECKS: dict[str, Check[Target]] = {"broker": _reached}
WORKER_CHECKS: dict[str, Check[Target]] = {"consumers": _consumers, "worker pools": _pool}
