"""What the bookkeeping of a turn asks of PostgreSQL: so many statements, commits and notifications.

They are counted where psycopg sends them, for no machine is quiet enough to time them. A turn that
costs more shall cost more on purpose.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.turns import read_turn
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres import database as database_module
from turnmill.schemas.routes import OUTBOX_CHANNEL, TURN_CHANNEL
from turnmill.schemas.turns import AcceptedTurn, Lane, TurnState
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.turn.answer import answer_turn
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Ending, end_turns

MANY = 32

#: Find the bots; take the numbers; insert the turns and owe their hints.
ACCEPT = 3
#: Notify the relay.
WAKE = 1
CLAIM = 1
#: Lock the conversations, lock the turns, end them, advance the conversations, their deliveries.
SETTLE = 5
HISTORY = 1


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@dataclass
class Counted:
    #: Statements, and "COMMIT" where one does not commit by itself.
    sent: list[str] = field(default_factory=list)
    #: Statements that did.
    alone: int = 0

    @property
    def commits(self) -> int:
        return self.sent.count("COMMIT") + self.alone

    @property
    def statements(self) -> int:
        return len(self.sent) - self.sent.count("COMMIT")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """`with counted() as cost`: what this thread sends inside the block."""
    costs: dict[int, Counted] = {}
    execute, commit = psycopg.Cursor.execute, psycopg.Connection.commit

    def counting_execute(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        if cost := costs.get(threading.get_ident()):
            cost.sent.append(str(query))
            cost.alone += self.connection.autocommit
        return execute(self, query, *args, **options)

    def counting_commit(self: Any) -> None:
        if cost := costs.get(threading.get_ident()):
            cost.sent.append("COMMIT")
        commit(self)

    monkeypatch.setattr(psycopg.Cursor, "execute", counting_execute)
    monkeypatch.setattr(psycopg.Connection, "commit", counting_commit)

    @contextmanager
    def count() -> Iterator[Counted]:
        cost = costs[threading.get_ident()] = Counted()
        try:
            yield cost
        finally:
            del costs[threading.get_ident()]

    return count


def requests(system: Any, count: int, lane: Lane = Lane.BATCH) -> list[Any]:
    return [system.request(f"turn {number}", lane=lane) for number in range(count)]


def endings(system: Any, accepted: list[AcceptedTurn], *, is_watched: bool) -> list[Ending]:
    """Claim the turns; return how they end."""
    settings = system.settings.worker
    model = system.settings.engine.model_name
    leases = Leases(system.database, settings, model=model, engine="echo")
    claims = leases._claim([turn.turn_id for turn in accepted])
    return [
        Ending(
            claim.turn_id,
            claim.conversation_id,
            claim.attempt,
            claim.worker_id,
            is_watched=is_watched,
            state=TurnState.COMPLETED,
            outcome="answered",
            content="yes",
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
            cached_tokens=0,
        )
        for claim in claims
        if claim is not None
    ]


@contextmanager
def listening(system: Any, channel: str) -> Iterator[Callable[[], int]]:
    """Inside the block: count the notifications since its begin."""
    with system.database.connect() as link:
        link.execute(f"LISTEN {channel}")
        yield lambda: len(list(link.notifies(timeout=0.2)))


@pytest.mark.parametrize("count", [1, MANY])
def test_accepting_turns_costs_as_many_statements_as_accepting_one(
    system: Any, counted: Callable[[], Any], count: int
) -> None:
    accept_many(system.database, requests(system, 1))  # and a connection is made
    with listening(system, OUTBOX_CHANNEL) as heard, counted() as cost:
        accept_many(system.database, requests(system, count))
        assert (cost.statements, cost.commits) == (ACCEPT + WAKE, 2)
        assert heard() == 1


def test_accepting_notifies_after_the_commit_that_waits_for_the_disk(
    system: Any, counted: Callable[[], Any]
) -> None:
    """PostgreSQL lets one transaction that notifies commit at a time: calls would wait in line."""
    with counted() as cost:
        accept(system.database, system.request("hello"))
    notifying = [number for number, text in enumerate(cost.sent) if "pg_notify" in text]
    assert notifying == [cost.sent.index("COMMIT") + 1] == [len(cost.sent) - 1]


def test_a_turn_is_accepted_even_if_the_relay_cannot_be_notified(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise psycopg.OperationalError("too many notifications in the NOTIFY queue")

    monkeypatch.setattr(database_module, "notify", fail)
    accepted = accept(system.database, system.request("hello"))
    # Any other statement of the same connection works.
    assert read_turn(system.database, system.tenant_id, accepted.turn_id).state == "queued"


def test_answering_a_turn_costs_a_claim_and_a_settlement(
    system: Any, counted: Callable[[], Any]
) -> None:
    with running_worker(system.settings) as (worker, _):
        # The first one has the connection made.
        assert answer_turn(worker, accept(system.database, system.request("hello")).turn_id)
        first = accept(system.database, system.request("hello"))
        with counted() as cost:
            assert answer_turn(worker, first.turn_id)
        assert (cost.statements, cost.commits) == (CLAIM + SETTLE, 2), cost.sent
        second = accept(
            system.database, system.request("and now", conversation_id=first.conversation_id)
        )
        with counted() as cost:
            assert answer_turn(worker, second.turn_id)
        assert (cost.statements, cost.commits) == (CLAIM + HISTORY + SETTLE, 3), cost.sent


def test_claims_and_settlements_of_many_turns_cost_as_much_as_those_of_one(
    system: Any, counted: Callable[[], Any]
) -> None:
    accepted = accept_many(system.database, requests(system, MANY))
    with counted() as claiming:
        ending = endings(system, accepted, is_watched=False)
    assert (claiming.statements, claiming.commits) == (CLAIM, 1)
    with counted() as settling:
        assert end_turns(system.database, ending) == [True] * MANY
    assert (settling.statements, settling.commits) == (SETTLE, 1)


@pytest.mark.parametrize("is_watched", [False, True])
def test_settling_notifies_only_of_turns_that_somebody_may_wait_for(
    system: Any, is_watched: bool
) -> None:
    """PostgreSQL lets one transaction that notifies commit at a time."""
    accepted = accept_many(system.database, requests(system, MANY))
    ending = endings(system, accepted, is_watched=is_watched)
    with listening(system, TURN_CHANNEL) as heard:
        end_turns(system.database, ending)
        assert heard() == (MANY if is_watched else 0)


def test_settling_notifies_the_relay_only_if_a_turn_is_due_by_it(system: Any) -> None:
    conversation = new_id()
    pair = [system.request(text, conversation_id=conversation) for text in ("one", "two")]
    first, _ = accept_many(system.database, pair)
    (lone,) = accept_many(system.database, requests(system, 1))
    for turn, expected in ((lone, 0), (first, 1)):
        ending = endings(system, [turn], is_watched=False)
        with listening(system, OUTBOX_CHANNEL) as heard:
            end_turns(system.database, ending)
            assert heard() == expected
