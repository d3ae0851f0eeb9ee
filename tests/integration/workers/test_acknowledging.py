"""A consumer on RabbitMQ acknowledges together what ends together, and nothing that runs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from amqp import spec
from kombu import Connection, Consumer, Producer, Queue

from turnmill.workers.vendor.amqp import acknowledge_together

QUEUE = Queue("hints", routing_key="hints", queue_arguments={"x-queue-type": "quorum"})
COUNT = 20


class Worker:
    """A consumer's channel as `HintConsumer` sets it up; `messages` by their number from 0."""

    def __init__(self, connection: Connection) -> None:
        self.channel: Any = connection.channel()
        self._soon: list[Callable[[], None]] = []
        self.messages: list[Any] = []
        #: Acknowledgements sent.
        self.sent: list[tuple[int, bool]] = []
        self._count(self.channel.send_method)
        acknowledge_together(self.channel, self._soon.append)
        Consumer(self.channel, [QUEUE], on_message=self.messages.append).consume()
        while len(self.messages) < COUNT:
            connection.drain_events(timeout=10)

    def acknowledge(self, *numbers: int) -> None:
        """In one round of the event loop."""
        for number in numbers:
            self.messages[number].ack()
        for call in self._soon:
            call()
        self._soon.clear()

    def _count(self, send: Callable[..., Any]) -> None:
        def send_method(method: Any, *args: Any, **options: Any) -> Any:
            if method == spec.Basic.Ack:
                self.sent.append(args[1])
            return send(method, *args, **options)

        self.channel.send_method = send_method


@pytest.fixture
def connection(rabbitmq_vhost_url: str) -> Iterator[Connection]:
    with Connection(rabbitmq_vhost_url) as connection:
        producer = Producer(connection)
        for number in range(COUNT):
            producer.publish(number, routing_key="hints", declare=[QUEUE], serializer="json")
        yield connection


def left(connection: Connection, worker: Worker, eventually: Callable[..., None]) -> set[int]:
    """The hints that RabbitMQ gives out again once the worker is gone."""
    expected = COUNT - len([each for each in worker.messages if each.acknowledged])
    expected += len([each for each in worker.messages if each._state == "REQUEUED"])
    worker.channel.close()
    found: set[int] = set()
    with connection.channel() as channel:
        Consumer(channel, [QUEUE], on_message=lambda each: found.add(each.payload)).consume()

        def have_come() -> bool:
            try:
                connection.drain_events(timeout=0.5)
            except TimeoutError:
                return len(found) >= expected
            return False

        eventually(have_come, 20)
    return found


def test_hints_that_end_together_are_one_acknowledgement(
    connection: Connection, eventually: Callable[..., None]
) -> None:
    worker = Worker(connection)
    worker.acknowledge(*range(COUNT))
    assert worker.sent == [(COUNT, True)]
    assert left(connection, worker, eventually) == set()


def test_a_running_hint_is_not_acknowledged_by_later_ones(
    connection: Connection, eventually: Callable[..., None]
) -> None:
    worker = Worker(connection)
    worker.acknowledge(0, 1, 3, 4)
    assert worker.sent == [(2, True), (4, False), (5, False)]
    worker.acknowledge(2, 6)
    worker.acknowledge(7, 5)
    assert worker.sent[3:] == [(3, True), (7, False), (8, True)]
    assert left(connection, worker, eventually) == set(range(8, COUNT))


def test_hints_that_are_handed_back_stay_so_whatever_is_acknowledged(
    connection: Connection, eventually: Callable[..., None]
) -> None:
    worker = Worker(connection)
    for number in (0, 3):
        worker.messages[number].requeue()
    worker.acknowledge(1, 2)
    worker.acknowledge(*range(4, 10))
    assert worker.sent == [(3, True), (10, True)]
    assert left(connection, worker, eventually) == {0, 3} | set(range(10, COUNT))
