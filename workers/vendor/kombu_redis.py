"""Holds on kombu's Redis channel: fewer commands for each hint, and the same recovery.

kombu pops a hint (BRPOP), records it as unacknowledged in one transaction, and deletes that record
in another. All three are calls of the event loop, which waits for each. Here a call serves as many
hints as there are.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from kombu.transport.virtual.base import QoS

if TYPE_CHECKING:
    from kombu.transport.redis import Channel
    from kombu.transport.virtual import Message

READ_IN = {"kombu": "5.7.0"}
HOLDS = {
    "kombu.transport.redis:QoS.append": "6883fd4024f5",
    "kombu.transport.redis:QoS.ack": "4b663d5a0b55",
    "kombu.transport.redis:QoS._remove_from_indices": "bda3c1298cc3",
    "kombu.transport.redis:QoS.restore_by_tag": "8d4598b973cc",
    "kombu.transport.redis:Channel.conn_or_acquire": "4015b30bac79",
    "kombu.transport.redis:Channel._create_client": "38ea1faeedc0",
    "kombu.transport.redis:Channel._brpop_start": "ba567e4a693e",
    "kombu.transport.redis:Channel._brpop_read": "c2e423dfeda8",
    "kombu.transport.virtual.base:QoS.append": "7dbb9ebe24bc",
    "kombu.transport.virtual.base:Transport._deliver": "112626776662",
    "kombu.transport.virtual.base:Channel.basic_consume": "429ca164fbeb",
    "kombu.transport.virtual.base:Channel.message_to_python": "af8663379fbf",
}

#: Runs a function that reads a message; returns None where the message is foreign.
Guard = Callable[[Callable[[], object]], Any]


def reuse_client(channel: "Channel") -> None:
    """Let a channel call through one client, which is thread-safe: kombu makes a new one for each
    acknowledgement and each hint that it notes, at the price of some commands.
    """
    pool, shared = None, None

    @contextmanager
    def conn_or_acquire(client: object = None) -> Iterator[object]:
        nonlocal pool, shared
        if client is None and channel.pool is not pool:
            pool, shared = channel.pool, channel._create_client()
        yield shared if client is None else client

    channel.conn_or_acquire = conn_or_acquire


class Places(Protocol):
    """Where hints find room."""

    def room(self, queue: str) -> int:
        """Return how many hints of the queue may be delivered."""
        ...

    def passed_over(self) -> Iterable[str]:
        """Name queues that the last BRPOP was not for and that have room now, in its order."""
        ...


def handle_together(
    channel: "Channel", places: Places, soon: Callable[[Callable[[], None]], object], guard: Guard
) -> None:
    """Take and acknowledge hints together.

    **After a BRPOP** the hints that wait behind the popped one are taken, too. The transaction that
    records the popped hint as unacknowledged also pops the others, so a lone hint costs no more
    commands than kombu's way. A second transaction records the others. Each hint is recorded before
    it is delivered, as kombu does it. The number taken doubles as long as the queue has as many: of
    a few hints, each of several idle workers gets some.

    **What ends** in one turn of the event loop is acknowledged by one transaction; `soon` has the
    loop call a function when it next comes round. Acknowledgements that a worker takes with it when
    it dies are of hints that nobody minds: their turns are settled.

    **A queue whose places were taken** when a BRPOP began is not waited for until that BRPOP has
    ended. After its places are given back, hints are taken of it at once.
    """
    channel.Message = _built_once(channel.Message)
    together = _Together(channel, places, soon, guard)
    channel.connection._deliver = together.deliver
    channel.qos.append = together.append
    channel.qos.ack = together.ack


class _Together:
    """What `handle_together` puts in the place of kombu's methods."""

    def __init__(
        self,
        channel: "Channel",
        places: Places,
        soon: Callable[[Callable[[], None]], object],
        guard: Guard,
    ) -> None:
        self._channel = channel
        self._places = places
        self._soon = soon
        self._guard = guard
        self._deliver_one = channel.connection._deliver
        self._append_one = channel.qos.append
        self._ended: list[str] = []
        self._recorded: set[str] = set()
        self._at_most = 1

    def deliver(self, payload: object, queue: str) -> None:
        """Deliver a hint that was popped from its queue, and those behind it.

        Raises what the message class raises for a foreign payload.
        """
        if queue not in self._channel.active_queues:
            self._deliver_one(payload, queue)
            return
        first = self._channel.Message(payload, channel=self._channel)
        more = min(self._places.room(queue) - 1, self._at_most)
        popped = self._record([first], queue, more)
        self._at_most = 1 if len(popped) < more else max(self._at_most, 2 * more)
        others = self._recorded_of(popped, queue)
        self._deliver_all([first, *others], queue)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a hint when the event loop next comes round."""
        if not self._ended:
            self._soon(self._flush)
        self._ended.append(delivery_tag)
        self._channel.qos._quick_ack(delivery_tag)

    def _flush(self) -> None:
        qos, tags = self._channel.qos, self._ended.copy()
        self._ended.clear()
        with qos.pipe_or_acquire() as pipe:
            pipe.zrem(qos.unacked_index_key, *tags).hdel(qos.unacked_key, *tags).execute()
        # If nothing waits in a BRPOP, the next one is for all queues that have room.
        for queue in self._places.passed_over() if self._channel._in_poll else ():
            if (room := self._places.room(queue)) > 0:  # another queue's may have taken it
                with self._channel.conn_or_acquire() as client:
                    popped = client.rpop(queue, room) or []
                self._deliver_all(self._recorded_of(popped, queue), queue)

    def _deliver_all(self, messages: Iterable[object], queue: str) -> None:
        for message in messages:
            self._guard(partial(self._deliver_one, message, queue))

    def append(self, message: object, tag: str) -> None:
        """Note a delivered hint in this process, and at Redis if `deliver` has not done it."""
        if tag in self._recorded:
            self._recorded.remove(tag)
            QoS.append(self._channel.qos, message, tag)
        else:
            self._append_one(message, tag)

    def _record(self, messages: "Sequence[Message]", queue: str, more: int = 0) -> list[bytes]:
        """Record messages as unacknowledged; pop at most `more` others of the queue."""
        qos, now = self._channel.qos, time.time()
        records = {each.delivery_tag: json.dumps([each._raw, "", queue]) for each in messages}
        with qos.pipe_or_acquire() as pipe:
            pipe.zadd(qos.unacked_index_key, dict.fromkeys(records, now))
            pipe.hset(qos.unacked_key, mapping=records)
            if more > 0:
                pipe.rpop(queue, more)
            _, _, *popped = pipe.execute()
        self._recorded.update(records)
        return [item for items in popped for item in items or ()]

    def _recorded_of(self, popped: list[bytes], queue: str) -> "list[Message]":
        """Build and record the messages, but for foreign ones."""
        messages = (self._guard(partial(self._build, item)) for item in popped)
        others = [message for message in messages if message is not None]
        if others:
            self._record(others, queue)
        return others

    def _build(self, item: bytes) -> "Message":
        return self._channel.Message(json.loads(item), channel=self._channel)


def _built_once(message_class: type) -> type:
    """Derive a message class that takes a message for its own payload: kombu builds one from all
    that it delivers.
    """

    class BuiltOnce(message_class):  # type: ignore[misc]
        def __new__(cls, payload: object, channel: object = None) -> Any:
            return payload if isinstance(payload, cls) else super().__new__(cls)

        def __init__(self, payload: object, channel: object = None) -> None:
            if payload is not self:
                super().__init__(payload, channel=channel)

    return BuiltOnce
