"""Holds on py-amqp's channel: one acknowledgement for many hints.

RabbitMQ numbers a channel's deliveries from 1, whatever their consumers, and lets one `basic.ack`
acknowledge all up to a number (https://www.rabbitmq.com/docs/confirms#consumer-acks-multiple-parameter).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amqp import Channel

READ_IN = {"amqp": "5.4.2"}
HOLDS = {
    "amqp.channel:Channel.basic_ack": "e9bd81d18429",
    "amqp.channel:Channel.basic_reject": "d75f5010b9dd",
    "amqp.channel:Channel._on_basic_deliver": "bb7791d8f28e",
}


def acknowledge_together(channel: "Channel", soon: Callable[[Callable[[], None]], object]) -> None:
    """Acknowledge what ends in one turn of the event loop together.

    `soon` has the loop call a function when it next comes round. A hint that has not ended is never
    acknowledged by the number of a later one.
    """
    acknowledging = _Acknowledging(channel, soon)
    channel.basic_ack = acknowledging.ack
    channel.basic_reject = acknowledging.reject


class _Acknowledging:
    def __init__(self, channel: "Channel", soon: Callable[[Callable[[], None]], object]) -> None:
        self._ack = channel.basic_ack
        self._reject = channel.basic_reject
        self._soon = soon
        #: Deliveries that are to be acknowledged.
        self._ended: list[int] = []
        #: All deliveries up to this number are acknowledged or rejected, and these beyond it.
        self._up_to = 0
        self._beyond: set[int] = set()

    def ack(self, delivery_tag: int, multiple: bool = False) -> None:
        if not self._ended:
            self._soon(self._flush)
        self._ended.append(delivery_tag)

    def reject(self, delivery_tag: int, requeue: bool) -> None:
        self._reject(delivery_tag, requeue)
        self._beyond.add(delivery_tag)

    def _flush(self) -> None:
        ended, self._ended = sorted(self._ended), []
        self._beyond.update(ended)
        while self._up_to + 1 in self._beyond:
            self._up_to += 1
            self._beyond.remove(self._up_to)
        if up_to := [tag for tag in ended if tag <= self._up_to]:
            # The last of those that RabbitMQ still waits for: it refuses any other number.
            self._ack(up_to[-1], multiple=True)
        for tag in ended[len(up_to) :]:
            self._ack(tag)
