"""A consumer on Redis takes, records and acknowledges hints together, and loses none by it.

Counted are the calls that wait for the server: each `BRPOP` is one, and each transaction.
"""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import redis
from kombu import Connection, Consumer, Producer, Queue
from kombu.asynchronous import Hub

from turnmill.schemas.routes import own_queue_name, queue_name
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.app import HintConsumer, PlacesByLane
from turnmill.workers.vendor.kombu import CHANNEL_CLOSED_ERRORS, order_queues, wrap_readers
from turnmill.workers.vendor.kombu_redis import handle_together, reuse_client

QUEUE = queue_name(Lane.BATCH, "echo", "d1")
OWN = own_queue_name(Lane.BATCH, "echo", "d1", UUID(int=1))
OTHER_LANE = queue_name(Lane.INTERACTIVE, "echo", "d1")
PLACES = 32


class Worker:
    """A consumer's channel as `HintConsumer` sets it up, with `PLACES` hints at most."""

    def __init__(self, url: str, stack: ExitStack, places: int = PLACES) -> None:
        self._places = places
        self._connection = stack.enter_context(Connection(url))
        self._records = stack.enter_context(redis.Redis.from_url(url))
        self.channel: Any = self._connection.channel()
        self.channel.basic_qos(0, 2 * places, False)
        self.soon: list[Callable[[], None]] = []
        self.delivered: list[Any] = []
        #: Hints that Redis had no record of when they were delivered.
        self.unrecorded: list[Any] = []
        self.foreign_count = 0
        self.clients_made = 0
        wrap_readers(self.channel, lambda read, kind: partial(self._guard, read))
        self._count_clients(self.channel._create_client)
        reuse_client(self.channel)
        self.places = PlacesByLane(self.channel.qos, places)
        handle_together(self.channel, self.places, self.soon.append, self._guard)
        queues = [Queue(name, exchange="") for name in (QUEUE, OWN, OTHER_LANE)]
        self.consumer = Consumer(self.channel, queues, on_message=self._deliver)
        self.consumer.consume()
        order_queues(self.channel, self.places)

    @property
    def room(self) -> int:
        return self._places - len(self.held)

    @property
    def held(self) -> list[Any]:
        return [each for each in self.delivered if not each.acknowledged]

    def drain(self, timeout_s: float = 5) -> None:
        """One round of the event loop that finds a hint."""
        self._connection.drain_events(timeout=timeout_s)

    def fill(self) -> None:
        """Take all that find a place, and begin to wait for the other lane."""
        while self.room:
            self.drain()
        with suppress(TimeoutError):
            self.drain(timeout_s=0.01)

    def acknowledge(self) -> None:
        """All hints, in one round of the event loop."""
        for message in self.held:
            message.ack()
        self.come_round()

    def come_round(self) -> None:
        calls, self.soon[:] = self.soon.copy(), []
        for call in calls:
            call()

    def die(self) -> None:
        """Without returning what is unacknowledged."""
        self.channel.do_restore = False
        self._connection.release()

    def _count_clients(self, create: Callable[..., Any]) -> None:
        def create_client(**options: Any) -> Any:
            self.clients_made += 1
            return create(**options)

        self.channel._create_client = create_client

    def _deliver(self, message: Any) -> None:
        self.delivered.append(message)
        if not self._records.hexists("unacked", message.delivery_tag):
            self.unrecorded.append(message)

    def _guard(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ValueError, KeyError):
            self.foreign_count += 1
        return None


@pytest.fixture
def make_worker(valkey_url: str) -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:
        yield partial(Worker, valkey_url, stack)


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def publish(valkey_url: str) -> Iterator[Callable[..., None]]:
    with Connection(valkey_url) as connection:
        producer = Producer(connection)

        def send(count: int, queue: str = QUEUE) -> None:
            for number in range(count):
                producer.publish({"number": number}, routing_key=queue, serializer="json")

        yield send


def numbers(worker: Worker) -> list[int]:
    return [message.decode()["number"] for message in worker.delivered]


def calls(client: redis.Redis, do: Callable[[], object]) -> int:
    """Count the calls to Redis of `do` that a consumer waits for, beside the tests' own."""
    client.config_resetstat()
    do()
    stats = client.info("commandstats")
    transactions, polls = (
        stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("exec", "brpop")
    )
    return int(transactions + polls)


def test_waiting_hints_are_taken_and_acknowledged_by_few_calls(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    publish(100)
    worker = make_worker()

    def take_all() -> None:
        while worker.room:
            worker.drain()

    # kombu: two calls for each of 32 hints. Here: BRPOP and two transactions for 2, 3, 5, 9 and 13.
    assert calls(client, take_all) <= 5 * 3
    assert numbers(worker) == list(range(PLACES))
    assert calls(client, worker.acknowledge) == 1
    # One that waits in BRPOP, one for all else.
    assert worker.clients_made <= 2
    assert (client.zcard("unacked_index"), client.hlen("unacked")) == (0, 0)


def test_a_lone_hint_costs_no_more_calls_than_kombu_makes(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    publish(1)
    worker = make_worker()
    # BRPOP, and one transaction that records the hint and looks for others.
    assert calls(client, worker.drain) == 2
    assert numbers(worker) == [0]


def test_redis_has_a_record_of_each_hint_before_it_is_delivered(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    publish(20)
    worker = make_worker()
    while len(worker.delivered) < 20:
        worker.drain()
    assert worker.unrecorded == []
    assert client.hlen("unacked") == client.zcard("unacked_index") == 20
    raw, exchange, queue = json.loads(client.hgetall("unacked").popitem()[1])
    assert (set(raw) >= {"body", "properties"}, exchange, queue) == (True, "", QUEUE)


@pytest.mark.parametrize("places", [1, 3, 8])
def test_a_worker_takes_no_more_hints_than_it_has_places(
    make_worker: Callable[..., Worker],
    publish: Callable[..., None],
    client: redis.Redis,
    places: int,
) -> None:
    publish(30)
    worker = make_worker(places)
    for _ in range(3):
        while worker.room:
            worker.drain()
        assert len(worker.held) == places
        assert client.llen(QUEUE) == 30 - len(worker.delivered)
        worker.acknowledge()


def test_places_that_become_free_while_another_lane_is_waited_for_are_filled_at_once(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    publish(30)
    worker = make_worker(4)
    worker.fill()
    assert client.info("clients")["blocked_clients"] == 1
    # One transaction that acknowledges four and, after four were taken, one that records them.
    assert calls(client, worker.acknowledge) == 2
    assert (numbers(worker), len(worker.held), worker.unrecorded) == (list(range(8)), 4, [])
    worker.held[0].ack()
    worker.come_round()
    assert (numbers(worker), len(worker.held)) == (list(range(9)), 4)


def test_a_full_lane_is_filled_from_the_worker_s_own_queue_first(
    make_worker: Callable[..., Worker], publish: Callable[..., None]
) -> None:
    worker = make_worker(2)
    for _ in range(2):
        publish(1)
        publish(1, OWN)
    worker.fill()
    assert [each.delivery_info["routing_key"] for each in worker.held] == [OWN, OWN]
    publish(1, OWN)
    worker.acknowledge()
    assert [each.delivery_info["routing_key"] for each in worker.held] == [OWN, QUEUE]


def test_a_worker_that_consumes_no_more_takes_no_more(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    publish(8)
    worker = make_worker(4)
    worker.fill()
    worker.consumer.cancel()
    worker.acknowledge()
    assert (numbers(worker), client.llen(QUEUE)) == (list(range(4)), 4)


def test_a_few_hints_are_shared_by_idle_workers(
    make_worker: Callable[..., Worker], publish: Callable[..., None]
) -> None:
    workers = [make_worker(), make_worker()]
    publish(10)
    for worker in workers * 2:
        worker.drain()
    assert [len(worker.delivered) for worker in workers] == [5, 5]


def test_hints_of_a_dead_worker_are_restored(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    publish(20)
    dying, living = make_worker(), make_worker()
    while len(dying.delivered) < 20:
        dying.drain()
    dying.die()
    living.channel.qos.visibility_timeout = -1
    for _ in range(2):
        living.channel.qos.restore_visible(num=10, interval=1)
    while len(living.delivered) < 20:
        living.drain()
    assert sorted(numbers(living)) == list(range(20))


def test_the_loop_does_not_wait_before_it_acknowledges() -> None:
    hub, done = Hub(), []
    consumer: Any = SimpleNamespace(hub=hub, _acknowledge=lambda flush: flush())
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(hub):
        theirs.send(b"x")
        hub.add_reader(ours, lambda: done.append("woke"))
        for number in range(2):
            flush = partial(done.append, f"flushed {number}")
            hub.call_soon(partial(HintConsumer._acknowledge_soon, consumer, flush))
            next(hub.loop)
    assert done == ["flushed 0", "woke", "flushed 1", "woke"]


def test_acknowledging_over_a_lost_connection_harms_no_new_one(
    make_worker: Callable[..., Worker], publish: Callable[..., None]
) -> None:
    publish(1)
    worker = make_worker()
    worker.drain()
    worker.die()
    worker.held[0].ack()
    (flush,) = worker.soon
    with pytest.raises(CHANNEL_CLOSED_ERRORS):
        flush()
    # Celery connects again if this raises.
    consumer: Any = SimpleNamespace(connection_errors=CHANNEL_CLOSED_ERRORS)
    HintConsumer._acknowledge(consumer, flush)


def test_hints_that_a_closing_worker_holds_return_to_their_queue(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    publish(10)
    worker = make_worker()
    while len(worker.delivered) < 10:
        worker.drain()
    worker.channel.close()
    assert (client.llen(QUEUE), client.hlen("unacked")) == (10, 0)


def test_foreign_messages_among_hints_are_dropped_alone(
    make_worker: Callable[..., Worker], publish: Callable[..., None], client: redis.Redis
) -> None:
    foreign = [b"\xff", b"[[", b"7.", json.dumps({"body": ""}).encode()]
    publish(2)
    for message in foreign:
        client.lpush(QUEUE, message)
        publish(1)
    worker = make_worker()
    while len(worker.delivered) < 2 + len(foreign):
        worker.drain()
    assert worker.foreign_count == len(foreign)
    worker.acknowledge()
    assert (client.llen(QUEUE), client.hlen("unacked"), client.zcard("unacked_index")) == (0, 0, 0)
