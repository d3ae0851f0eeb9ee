"""PostgreSQL's clock steps while real `turnmill deliver` processes send."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.delivering import Channels, Receiver
from tests.integration.workers.clock.stepping import HOUR, Eventually, step


@pytest.fixture
def channels(stepping_system: Any, tmp_path: Path) -> Channels:
    return Channels(stepping_system, tmp_path)


@pytest.fixture
def receiver(channels: Channels) -> Iterator[Receiver]:
    receiver = Receiver()
    channels.configure_webhook("desk", receiver)
    yield receiver
    receiver.close()


@pytest.mark.parametrize("step_s", [-HOUR, -480.0, HOUR])
def test_a_delivery_is_sent_once_by_the_process_that_holds_it(
    channels: Channels, receiver: Receiver, step_s: float, eventually: Eventually
) -> None:
    receiver.open.clear()
    patient = {"TURNMILL_DELIVERY__TIMEOUT_S": "30", "TURNMILL_DELIVERY__LEASE_S": "60"}
    workers = [channels.deliver(eventually, **patient) for _ in range(2)]
    channels.system.start("relay")
    channels.notice("desk", "hello")
    eventually(lambda: receiver.received)
    step(channels.system, step_s)
    eventually(lambda: all(worker.says("clock.stepped") for worker in workers), 10)
    receiver.open.set()
    eventually(channels.all_sent, 10)
    assert len(receiver.received) == 1
    assert channels.database.run("SELECT attempt FROM deliveries")[0].attempt == 1


def test_a_process_that_begins_after_a_step_forward_sends_nothing_that_another_is_sending(
    channels: Channels, receiver: Receiver, eventually: Eventually
) -> None:
    receiver.open.clear()
    patient = {"TURNMILL_DELIVERY__TIMEOUT_S": "30", "TURNMILL_DELIVERY__LEASE_S": "60"}
    channels.deliver(eventually, **patient)
    channels.system.start("relay")
    channels.notice("desk", "hello")
    eventually(lambda: receiver.received)
    step(channels.system, HOUR)
    channels.deliver(eventually, **patient)
    channels.notice("desk", "and more")
    eventually(lambda: len(receiver.received) == 2)
    receiver.open.set()
    eventually(channels.all_sent, 10)
    assert sorted(receiver.texts) == ["and more", "hello"]
    assert len(receiver.received) == 2
    attempts = channels.database.run("SELECT attempt FROM deliveries")
    assert [row.attempt for row in attempts] == [1, 1]


@pytest.mark.parametrize("step_s", [-HOUR, -480.0, HOUR])
def test_the_delivery_of_a_killed_process_is_sent_by_another_within_seconds(
    channels: Channels, receiver: Receiver, step_s: float, eventually: Eventually
) -> None:
    receiver.open.clear()
    dead = channels.deliver(eventually)
    channels.system.start("relay")
    channels.notice("desk", "hello")
    eventually(lambda: receiver.received)
    channels.deliver(eventually)
    dead.kill()
    receiver.open.set()
    step(channels.system, step_s)
    eventually(channels.all_sent, 15)
    assert receiver.texts == ["hello"]
