"""Holds on kombu and py-amqp: what a consumer's channel keeps to itself.

Channels are of two families. An AMQP channel is py-amqp's; a Redis channel is kombu's own, which
polls its queues in turn and keeps unacknowledged messages in Redis. A function for one family does
nothing to a channel of the other.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kombu import Consumer, Message
    from kombu.transport.pyamqp import Channel as AMQPChannel
    from kombu.transport.redis import Channel as RedisChannel
    from kombu.transport.virtual import QoS

READ_IN = {"kombu": "5.7.0", "amqp": "5.4.2"}
HOLDS = {
    "kombu.messaging:Consumer.cancel": "1eadb8de1ba3",
    "kombu.messaging:Consumer._basic_consume": "ee35fca918ba",
    "kombu.transport.redis:Channel.__init__": "4b1f45b355f8",
    "kombu.transport.redis:Channel._brpop_start": "ba567e4a693e",
    "kombu.transport.redis:Channel._brpop_read": "c2e423dfeda8",
    "kombu.transport.redis:Channel._receive": "de970c0d68fb",
    "kombu.transport.redis:MultiChannelPoller.on_readable": "e98f2e1d1f1f",
    "kombu.transport.virtual.base:QoS.ack": "1467f5999364",
    "kombu.transport.virtual.base:QoS.__init__": "e9f47a60ca9c",
    "kombu.transport.virtual.base:QoS.restore_unacked_once": "40676f7f01f0",
    "kombu.transport.virtual.base:Channel.basic_consume": "429ca164fbeb",
    "kombu.transport.virtual.base:Channel.basic_cancel": "d6121e7feef2",
    "kombu.transport.virtual.base:Channel.message_to_python": "af8663379fbf",
    "kombu.transport.virtual.base:Message.__init__": "117c34027c7f",
    "kombu.message:Message.payload": "39177f6208d7",
    "kombu.message:Message.decode": "8e2d685d31e9",
    "kombu.transport.pyamqp:Message.__init__": "c7b75928f7d7",
    "amqp.channel:Channel.basic_consume": "c0c80ae9aae7",
    "amqp.channel:Channel._on_basic_cancel": "f3c7bcd07bbf",
    "amqp.channel:Channel._remove_tag": "e1f3053be18a",
}

#: A hint that is acknowledged on a closed Redis channel raises this: its connection is None.
CHANNEL_CLOSED_ERRORS = (AttributeError,)


class QueueOrder(Protocol):
    """What kombu asks before each poll of Redis (its `queue_order_strategy`)."""

    def update(self, queues: Iterable[str]) -> None:
        """Note the queues that are consumed."""
        ...

    def consume(self, count: int) -> list[str]:
        """Name at most `count` queues to poll, in the order in which they are emptied."""
        ...

    def rotate(self, last_used: str) -> None:
        """Note the queue that the last message came from."""
        ...


def is_redis(channel: object) -> bool:
    return hasattr(channel, "_queue_cycle")


def order_queues(channel: "RedisChannel", order: QueueOrder) -> None:
    """Let `order` choose the queues that a Redis channel polls."""
    order.update(channel.active_queues)
    channel._queue_cycle = order


def unacknowledged(qos: "QoS") -> "list[Message]":
    """List the messages that a Redis channel has delivered and that are not yet acknowledged."""
    delivered = qos._delivered.copy()
    return [message for tag, message in delivered.items() if tag not in qos._dirty]


def derive_message_class(
    channel: "RedisChannel | AMQPChannel", derive: Callable[[type], type]
) -> None:
    """Replace the class of the messages that the channel builds."""
    channel.Message = derive(channel.Message)


def set_payload(message: "Message", payload: object) -> None:
    """Give a message its decoded body, so that nobody decodes it again."""
    message._decoded_cache = payload


def wrap_readers(
    channel: "RedisChannel | AMQPChannel",
    wrap: Callable[[Callable[[], object], str], Callable[[], object]],
) -> None:
    """Replace the functions that read from Redis: "BRPOP" for hints, "LISTEN" for fan-out."""
    for kind, read in getattr(channel, "handlers", {}).items():
        channel.handlers[kind] = wrap(read, kind)


def keep_unacknowledged(channel: object) -> None:
    """Do not return unacknowledged messages to Redis when the channel is closed."""
    if hasattr(channel, "do_restore"):
        channel.do_restore = False


def has_consumers(consumer: "Consumer") -> bool:
    return bool(consumer._active_tags)


def consumed_queues(consumer: "Consumer") -> set[str]:
    """Name the queues that the consumer's channel still has a consumer for."""
    channel = consumer.channel
    if not getattr(channel, "is_open", True):
        return set()
    by_tag = getattr(channel, "callbacks", None)  # AMQP
    tags = channel._consumers if by_tag is None else by_tag
    return {name for name, tag in consumer._active_tags.items() if tag in tags}
