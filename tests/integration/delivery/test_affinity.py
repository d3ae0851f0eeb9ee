"""Affinity: a conversation returns to the worker that holds it, and never waits long for it.

Lost hints are looked for so late here that only the lateness of a hint brings it to another worker.
"""

import signal
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from kombu import Connection

from turnmill.producer.accept import accept
from turnmill.producer.relay.outbox import TAKE
from turnmill.producer.relay.publisher import Publisher
from turnmill.schemas.broker import hint_queues, own_queues
from turnmill.schemas.ids import new_id
from turnmill.schemas.routes import own_queue_name, queue_name
from turnmill.schemas.settings import load_settings
from turnmill.schemas.turns import Lane

Eventually = Callable[..., None]

NEVER = {"TURNMILL_WORKER__HINT_LOST_AFTER_S": "3600"}
#: A hint is late after longer than a busy machine takes to deliver one.
PATIENT = {"TURNMILL_AFFINITY__TTL_MS": "2000"}
#: Two workers that compete evenly would give six turns in a row to one of them by chance, 1 in 32.
TURNS = 12


class Talk:
    """One conversation, a turn at a time."""

    def __init__(self, system: Any, eventually: Eventually, lane: Lane = Lane.INTERACTIVE) -> None:
        self.id = new_id()
        self._system = system
        self._eventually = eventually
        self._lane = lane

    def say(self, text: str = "hello") -> UUID:
        """Accepted, not answered."""
        request = self._system.request(text, conversation_id=self.id, lane=self._lane)
        return accept(self._system.database, request).turn_id

    def answered_by(self, turn_id: UUID) -> int:
        """The process that answers the turn."""
        self._eventually(lambda: self._system.count(f"id = '{turn_id}' AND state = 'completed'"))
        rows = self._system.database.run(
            "SELECT w.pid FROM turns t JOIN worker_liveness w ON w.id = t.worker_id "
            "WHERE t.id = %s",
            (turn_id,),
        )
        return int(rows[0].pid)

    def ask(self) -> int:
        return self.answered_by(self.say())


def warmth(system: Any) -> list[bool | None]:
    """Of each first attempt, in order."""
    rows = system.database.run("SELECT is_warm FROM attempts WHERE number = 1 ORDER BY started_at")
    return [row.is_warm for row in rows]


def start_two(system: Any) -> dict[int, Any]:
    """A relay and two workers, by process id."""
    system.start("relay", **NEVER, **PATIENT)
    workers = [system.start_worker(**NEVER, **PATIENT) for _ in range(2)]
    return {worker.pid: worker for worker in workers}


def test_a_conversation_stays_with_its_worker_for_as_long_as_that_answers(
    system: Any, eventually: Eventually
) -> None:
    workers = start_two(system)
    talk = Talk(system, eventually)
    (holder,) = {talk.ask() for _ in range(TURNS)}
    (other,) = workers.keys() - {holder}
    assert warmth(system) == [None, *[True] * (TURNS - 1)]
    # At once, while the relay cannot know.
    workers[holder].send(signal.SIGSTOP)
    assert talk.ask() == other
    workers[holder].send(signal.SIGCONT)
    assert talk.ask() == other, "from now on that one holds it"
    workers[other].send(signal.SIGKILL)
    assert talk.ask() == holder
    assert talk.ask() == holder
    assert warmth(system)[TURNS:] == [False, True, False, True]


def test_a_draining_worker_strands_nothing_and_batch_turns_are_any_workers(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    workers = start_two(system)
    talk = Talk(system, eventually)
    holder = talk.ask()
    batch = Talk(system, eventually, Lane.BATCH)
    for _ in range(4):
        batch.ask()
    assert set(warmth(system)) == {None}, "nobody looks who holds them"
    slow = Talk(system, eventually)
    while slow.ask() != holder:
        slow = Talk(system, eventually)
    slow.say("[[wait=30]] keeps the worker draining")
    eventually(lambda: system.count("state = 'running'") == 1)
    workers[holder].send(signal.SIGTERM)
    talk.ask()
    eventually(lambda: workers[holder].says("drain.consuming_stopped"))
    assert talk.ask() != holder


def test_without_affinity_no_worker_has_a_queue_of_its_own() -> None:
    settings = load_settings(affinity={"warm_s": 0})
    assert own_queues(settings, "d", new_id()) == []
    settings = load_settings(affinity={"lanes": ["batch"]}, worker={"lanes": ["interactive"]})
    assert own_queues(settings, "d", new_id()) == []


def test_rabbitmq_moves_a_late_hint_to_the_lane_by_itself(
    make_system: Callable[..., Any], database_url: str, rabbitmq_vhost_url: str,
    eventually: Eventually,
) -> None:  # fmt: skip
    settings = make_system(database_url, rabbitmq_vhost_url).settings
    lane, model, worker_id = Lane.INTERACTIVE, settings.engine.model_name, new_id()
    with Connection(rabbitmq_vhost_url) as connection:
        channel = connection.channel()
        declared = own_queues(settings, "d", worker_id)
        assert [queue.name for queue in declared] == [own_queue_name(lane, model, "d", worker_id)]
        for queue in [*declared, *hint_queues(settings.broker, [lane], model, "d")]:
            queue(channel).declare()
        publisher = Publisher(settings)
        publisher.publish([_Row(new_id(), lane.value, model, worker_id)])
        publisher.close()
        lanes_queue = queue_name(lane, model, "d")
        eventually(lambda: channel.basic_get(lanes_queue, no_ack=True) is not None)


def test_a_dead_workers_queue_goes_on_valkey(
    make_system: Callable[..., Any], database_url: str, valkey_url: str
) -> None:
    settings = make_system(database_url, valkey_url).settings
    publisher, row = Publisher(settings), _Row(new_id(), "interactive", "m", new_id())
    publisher.publish([row])
    publisher.close()
    with Connection(valkey_url) as connection:
        name = own_queue_name(row.lane, row.model, "d", row.own_worker_id)
        assert 0 < connection.channel().client.ttl(name) <= 60


class _Row:
    def __init__(self, turn_id: UUID, lane: str, model: str, own_worker_id: UUID) -> None:
        self.turn_id, self.lane, self.model = turn_id, lane, model
        self.deployment, self.own_worker_id = "d", own_worker_id


# --- Whose queue


class Fleet:
    """Workers and conversations in the tables; the relay's statement is run by hand."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self._database = system.database

    def worker(self, **changes: Any) -> UUID:
        row = {
            "id": new_id(), "host": "h", "pid": 1, "model": self._system.settings.engine.model_name,
            "engine": "echo", "lanes": ["interactive"], "slots": 2, "is_consuming": True,
            "own_lanes": ["interactive"], "seen_at": "now", **changes,
        }  # fmt: skip
        self._database.run(
            f"INSERT INTO worker_liveness ({', '.join(row)}) "
            f"VALUES ({', '.join(['%s'] * len(row))})",
            tuple(row.values()),
        )
        return row["id"]

    def due(self, holder: UUID | None, **fields: Any) -> UUID:
        """The second turn of a conversation whose first one this worker has answered."""
        conversation = new_id()
        first = accept(
            self._database, self._system.request("1", conversation_id=conversation, **fields)
        )
        self._database.run("DELETE FROM outbox WHERE turn_id = %s", (first.turn_id,))
        self._database.run(
            "UPDATE turns SET state = 'completed', worker_id = %s, settled_at = clock_timestamp() "
            "WHERE id = %s",
            (holder, first.turn_id),
        )
        self._database.run(
            "UPDATE conversations SET answered_seq = 1 WHERE id = %s", (conversation,)
        )
        request = self._system.request("2", conversation_id=conversation, **fields)
        return accept(self._database, request).turn_id

    def take(self, ttl_s: float = 60.0, warm_s: float = 600.0) -> dict[UUID, UUID | None]:
        self._database.run(
            "UPDATE worker_liveness SET seen_at = clock_timestamp() WHERE seen_at > '2021-01-01'"
        )
        rows = self._database.run(
            TAKE,
            {"window": 100, "batch_size": 100, "lanes": ["interactive", "batch"],
             "warm_lanes": ["interactive"], "warm_s": warm_s, "ttl_s": ttl_s},
        )  # fmt: skip
        return {row.turn_id: row.own_worker_id for row in rows}


@pytest.fixture
def fleet(make_system: Callable[..., Any], database_url: str) -> Fleet:
    return Fleet(make_system(database_url, "amqp://nobody"))


def test_a_hint_goes_to_the_worker_that_holds_the_conversation(fleet: Fleet) -> None:
    one, other = fleet.worker(), fleet.worker()
    turns = {fleet.due(one): one, fleet.due(other): other, fleet.due(None): None}
    assert fleet.take() == turns


@pytest.mark.parametrize(
    "changes",
    [
        {"is_consuming": False},
        {"seen_at": "2020-01-01"},
        {"own_lanes": []},
        {"model": "another"},
        {"slots": 0},
    ],
)
def test_a_hint_is_the_lanes_if_its_worker_cannot_take_it(
    fleet: Fleet, changes: dict[str, Any]
) -> None:
    turn = fleet.due(fleet.worker(**changes))
    assert fleet.take() == {turn: None}


def test_a_worker_gets_no_more_hints_than_it_has_slots(fleet: Fleet) -> None:
    worker = fleet.worker(slots=2)
    for _ in range(3):
        fleet.due(worker)
    assert sorted(fleet.take().values(), key=str) == [worker, worker, None]
    turn = fleet.due(worker)
    assert fleet.take() == {turn: None}, "its hints are not claimed yet"


def test_a_late_hint_is_the_lanes_once(fleet: Fleet) -> None:
    worker = fleet.worker()
    turn = fleet.due(worker)
    assert fleet.take(ttl_s=0) == {turn: worker}
    assert fleet.take() == {turn: None}
    assert fleet.take() == {}


def test_a_conversation_that_has_grown_cold_is_any_workers(fleet: Fleet) -> None:
    turn = fleet.due(fleet.worker())
    assert fleet.take(warm_s=0) == {turn: None}
