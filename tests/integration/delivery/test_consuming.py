"""A worker consumes while its engine takes turns, and knows whether it does."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import ConsumerCancelled
from kombu import Connection
from kombu import Consumer as Consumers

from turnmill.schemas.broker import hint_queues
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.app import HintConsumer
from turnmill.workers.turn.leases import UNCONSUMED_S, Leases


@pytest.fixture
def leases(system: Any) -> Leases:
    return Leases(system.database, system.settings.worker, model="m", engine="echo")


@pytest.fixture
def consumer(system: Any, leases: Leases) -> Iterator[HintConsumer]:
    """Of the broker's own consumers, without the rest of Celery's worker."""
    queues = hint_queues(system.settings.broker, Lane, "m", system.deployment)
    consumer = object.__new__(HintConsumer)
    consumer._is_stopping = False
    consumer.app = SimpleNamespace(
        leases=leases, conf=SimpleNamespace(task_queues=queues), is_amqp=False
    )
    with Connection(system.settings.broker.url.get_secret_value()) as connection:
        consumer.task_consumer = Consumers(
            connection.channel(), queues, on_message=lambda message: None
        )
        consumer.task_consumer.consume()
        yield consumer


def test_a_worker_tells_whether_its_queues_have_consumers(
    consumer: HintConsumer, leases: Leases
) -> None:
    leases.consumed_at = float("-inf")
    assert not leases.takes_hints, "nobody has seen it consume"
    consumer._stay_consuming()
    assert leases.takes_hints
    leases.consumed_at = time.monotonic() - UNCONSUMED_S
    assert not leases.takes_hints, "the broker has not been heard of for too long"


def test_any_queue_without_its_consumer_asks_for_a_new_connection(
    consumer: HintConsumer, leases: Leases
) -> None:
    """As Flower's cancel-consumer, or a queue that was deleted, leaves it."""
    tags = dict(consumer.task_consumer._active_tags)
    queue, tag = tags.popitem()
    consumer.task_consumer.channel.basic_cancel(tag)
    leases.consumed_at = float("-inf")
    with pytest.raises(ConsumerCancelled, match=queue):
        consumer._stay_consuming()
    assert not leases.takes_hints
    consumer._is_stopping = True
    consumer._stay_consuming()


def test_the_consumers_follow_the_engine(consumer: HintConsumer, leases: Leases) -> None:
    leases.unavailable_because = "it loads"
    for _ in range(2):
        consumer._stay_consuming()
        assert consumer.task_consumer._active_tags == {}
        assert leases.hands_back.is_set()
    leases.unavailable_because = None
    consumer._stay_consuming()
    assert not leases.hands_back.is_set()
    assert consumer._unconsumed_queues() == []
