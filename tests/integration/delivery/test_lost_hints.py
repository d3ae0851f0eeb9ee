"""Lost hints come back, and hints that only wait are not doubled: the broker keeps its window."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.relay.lost import LostHints
from turnmill.producer.relay.outbox import REHINT
from turnmill.producer.relay.publisher import Publisher
from turnmill.schemas.ids import new_id
from turnmill.schemas.routes import queue_name
from turnmill.schemas.store.fleet.deployment import DEPLOYMENT_ID
from turnmill.schemas.turns import Lane

Eventually = Callable[..., None]

WINDOW = 64
SLOTS = 4
#: Far less than a hint waits in the lanes of these tests.
QUICK = {"TURNMILL_WORKER__HINT_LOST_AFTER_S": "0.5"}
SMALL = {"TURNMILL_RELAY__WINDOW": str(WINDOW)}


@pytest.fixture
def publisher(system: Any) -> Iterator[Publisher]:
    publisher = Publisher(system.settings)
    yield publisher
    publisher.close()


@pytest.fixture
def lost_hints(system: Any) -> Iterator[LostHints]:
    """Not started: the tests look."""
    lost = LostHints(system.settings, system.database)
    yield lost
    lost.close()


def depth(system: Any, publisher: Publisher) -> int:
    model = system.settings.engine.model_name
    return publisher.depth("interactive", model, system.deployment)


def publish(system: Any, publisher: Publisher, count: int) -> None:
    """Accept turns and publish their hints, as a relay would have done a minute ago."""
    accept_many(system.database, [system.request(f"turn {n}") for n in range(count)])
    rows = system.database.run(
        "UPDATE outbox SET published_at = clock_timestamp() - interval '1 minute' "
        "RETURNING turn_id, lane, model, NULL::uuid AS own_worker_id, "
        f"{DEPLOYMENT_ID} AS deployment"
    )
    depth(system, publisher)
    publisher.publish(rows)


def steal(system: Any, count: int | None = None) -> int:
    """Take hints out of the broker as a worker that is killed at once does; return how many."""
    name = queue_name(Lane.INTERACTIVE, system.settings.engine.model_name, system.deployment)
    stolen = 0
    with (
        Connection(system.settings.broker.url.get_secret_value()) as connection,
        connection.channel() as channel,
    ):
        while stolen != count and channel.basic_get(name, no_ack=True) is not None:
            stolen += 1
    return stolen


def unpublished(system: Any) -> int:
    rows = system.database.run("SELECT count(*) AS n FROM outbox WHERE published_at IS NULL")
    return int(rows[0].n)


def test_hints_that_wait_in_the_broker_are_not_lost_however_old(
    system: Any, publisher: Publisher, lost_hints: LostHints
) -> None:
    publish(system, publisher, 20)
    assert [lost_hints.look() for _ in range(4)] == [0, 0, 0, 0]


def test_as_many_hints_come_back_as_the_broker_misses(
    system: Any, publisher: Publisher, lost_hints: LostHints
) -> None:
    publish(system, publisher, 20)
    assert steal(system, 7) == 7
    assert [lost_hints.look() for _ in range(2)] == [0, 7]
    assert unpublished(system) == 7
    assert [lost_hints.look() for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("refused", [Lane.INTERACTIVE, Lane.BATCH])
def test_a_lane_whose_hints_cannot_be_changed_holds_up_no_other(
    system: Any, lost_hints: LostHints, refused: Lane
) -> None:
    """As if both lanes' queues had been wiped."""
    (kept,) = {Lane.INTERACTIVE, Lane.BATCH} - {refused}
    for lane in (refused, kept):
        accept_many(system.database, [system.request(f"turn {n}", lane=lane) for n in range(5)])
    system.database.run("UPDATE outbox SET published_at = clock_timestamp() - interval '1 minute'")
    system.database.run(
        "ALTER TABLE outbox ADD CONSTRAINT refuses "
        f"CHECK (published_at IS NOT NULL OR lane <> '{refused}')"
    )
    assert [lost_hints.look() for _ in range(2)] == [0, 5]
    rows = system.database.run("SELECT lane FROM outbox WHERE published_at IS NULL")
    assert [row.lane for row in rows] == [kept] * 5


def test_two_relays_that_look_at_once_bring_back_a_lost_hint_once(
    system: Any, publisher: Publisher
) -> None:
    publish(system, publisher, 20)
    steal(system, 5)
    model = system.settings.engine.model_name
    (now,) = system.database.run("SELECT clock_timestamp() AS looked_at")
    seen = {"model": model, "lane": "interactive", "lost_after_s": 1.0, "at_most": 5}
    seen |= {"depth": depth(system, publisher), "looked_at": now.looked_at}
    found = [system.database.run(REHINT, seen)[0].rehinted_count for _ in range(2)]
    assert found == [5, 0]


def test_a_saturated_lane_keeps_the_broker_at_its_window_and_finds_what_it_loses(
    system: Any, publisher: Publisher, eventually: Eventually
) -> None:
    """Each hint waits many times as long as an idle lane's would count as lost after."""
    system.start("relay", **QUICK, **SMALL)
    system.start_worker("--concurrency", str(SLOTS), **QUICK)
    requests = [system.request(f"[[wait=0.05]] {n}") for n in range(400)]
    accepted = accept_many(system.database, requests)
    depths: list[int] = []
    stopping = threading.Event()

    def measure() -> None:
        while not stopping.wait(0.05):
            depths.append(depth(system, publisher))

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        eventually(lambda: system.count("state = 'completed'") > 100, 60)
        stolen = steal(system, 20)
        system.wait_until_settled(120)
    finally:
        stopping.set()
        thread.join()
    assert stolen == 20
    system.assert_answered_once_and_in_order(accepted)
    assert max(depths) <= WINDOW + SLOTS + 2


def test_every_turn_is_hinted_again_soon_after_the_queue_was_wiped(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    system.start_worker("--concurrency", str(SLOTS))
    blocked = [accept(system.database, system.request("[[wait=2]]")) for _ in range(SLOTS)]
    eventually(lambda: system.count("state = 'running'") == SLOTS)
    waiting = accept_many(system.database, [system.request(f"turn {n}") for n in range(50)])
    eventually(lambda: unpublished(system) == 0)
    steal(system)
    # 10 s after the wipe, and what a busy machine needs for the turns.
    system.wait_until_settled(20)
    system.assert_answered_once_and_in_order([*blocked, *waiting])


def test_a_lane_without_a_queue_misses_all_its_hints(system: Any, lost_hints: LostHints) -> None:
    """Its broker came back empty: the queue is declared again on the way."""
    accept_many(system.database, [system.request(f"{new_id()}") for _ in range(3)])
    system.database.run("UPDATE outbox SET published_at = clock_timestamp() - interval '1 minute'")
    assert [lost_hints.look() for _ in range(2)] == [0, 3]


def test_hint_whose_turn_is_not_queued_is_removed_and_not_published_for_ever(
    system: Any, lost_hints: LostHints
) -> None:
    done, queued = accept_many(system.database, [system.request(text) for text in ("a", "b")])
    system.database.run("UPDATE turns SET state = 'completed' WHERE id = %s", (done.turn_id,))
    system.database.run("UPDATE outbox SET published_at = clock_timestamp() - interval '1 minute'")
    assert [lost_hints.look() for _ in range(2)] == [0, 1]
    rows = system.database.run("SELECT turn_id FROM outbox")
    assert [row.turn_id for row in rows] == [queued.turn_id]
