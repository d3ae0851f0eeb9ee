"""The relay publishes the hints of deliveries, each channel's to a queue of its own."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from kombu import Connection

from turnmill.producer.accept import accept
from turnmill.producer.relay.lost import LostHints
from turnmill.producer.relay.process import Relay
from turnmill.schemas.broker import hint_queue
from turnmill.schemas.ids import new_id
from turnmill.schemas.routes import DELIVERY_LANE, SEND_TASK

QUEUED = """
INSERT INTO deliveries (id, tenant_id, conversation_id, channel, target, kind, content, state)
VALUES (%s, %s, %s, %s, '{}', 'notice', 'secret', %s)
"""
HINTED = """
INSERT INTO outbox (turn_id, model, lane, is_immediate, published_at)
VALUES (%s, %s, 'delivery', true, clock_timestamp() - make_interval(mins => %s))
"""


@pytest.fixture
def start_relay(system: Any) -> Iterator[Callable[[], None]]:
    relay = Relay(system.settings)
    thread = threading.Thread(target=relay.run)
    yield thread.start
    relay.stop()
    thread.join(30)


@pytest.fixture
def lost_hints(system: Any) -> Iterator[LostHints]:
    lost = LostHints(system.settings, system.database)
    yield lost
    lost.close()


def owe(system: Any, channel: str, state: str = "queued", published_min: int | None = None) -> UUID:
    delivery_id = new_id()
    system.database.run(QUEUED, (delivery_id, system.tenant_id, new_id(), channel, state))
    system.database.run(HINTED, (delivery_id, channel, published_min))
    return delivery_id


def take(system: Any, channel: str) -> list[Any]:
    """All hints of a channel's queue: task and arguments."""
    queue = hint_queue(system.settings.broker, DELIVERY_LANE, channel, system.deployment)
    taken = []
    with Connection(system.settings.broker.url.get_secret_value()) as connection:
        channel_ = connection.channel()
        queue(channel_).declare()
        while (message := channel_.basic_get(queue.name, no_ack=True)) is not None:
            taken.append((message.headers["task"], json.loads(message.body)[1]))
        channel_.close()
    return taken


def owed(system: Any) -> set[UUID]:
    return {row.turn_id for row in system.database.run("SELECT turn_id FROM outbox")}


def test_hints_of_deliveries_go_to_their_channels_queues_and_hold_ids_only(
    system: Any, start_relay: Callable[[], None], eventually: Callable[..., None]
) -> None:
    assert take(system, "desk") == take(system, "shop") == []
    one, other = owe(system, "desk"), owe(system, "shop")
    start_relay()
    hints: list[Any] = []
    eventually(lambda: hints.extend(take(system, "desk")) or hints)
    assert hints == [(SEND_TASK, {"delivery_id": one.hex, "channel": "desk"})]
    eventually(lambda: hints.extend(take(system, "shop")) or len(hints) == 2)
    assert hints[1] == (SEND_TASK, {"delivery_id": other.hex, "channel": "shop"})


def test_lost_hints_of_deliveries_are_published_again_and_orphans_removed(
    system: Any, lost_hints: LostHints
) -> None:
    lost, sent = owe(system, "desk", published_min=1), owe(system, "desk", "sent", 1)
    gone = new_id()
    system.database.run(HINTED, (gone, "desk", 1))
    assert [lost_hints.look() for _ in range(2)] == [0, 1]
    assert owed(system) == {lost}
    assert sent not in owed(system)
    (row,) = system.database.run("SELECT published_at FROM outbox")
    assert row.published_at is None


def test_a_turns_hint_is_judged_by_the_turn_beside_deliveries(
    system: Any, lost_hints: LostHints
) -> None:
    turn = accept(system.database, system.request("hello"))
    system.database.run("UPDATE outbox SET published_at = clock_timestamp() - interval '1 minute'")
    delivery = owe(system, system.settings.engine.model_name, published_min=1)
    assert [lost_hints.look() for _ in range(2)] == [0, 2]
    assert owed(system) == {turn.turn_id, delivery}
