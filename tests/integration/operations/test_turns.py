"""Turns are listed page by page, and found by any name that somebody knows."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from turnmill.producer.accept import accept
from turnmill.producer.operations import turns as operations
from turnmill.producer.operations.turns import TurnFilter, find_turns, list_turns
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import Lane, TurnState


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


def accepted(system: Any, text: str = "hello", **fields: Any) -> UUID:
    turn_id: UUID = accept(system.database, system.request(text, **fields)).turn_id
    return turn_id


def shown(turn_id: UUID) -> str:
    return f"turn_{turn_id.hex}"


def ids(system: Any, **wanted: Any) -> set[str]:
    return {turn.turn_id for turn in list_turns(system.database, TurnFilter(**wanted)).turns}


def test_each_filter_lets_through_what_it_names(system: Any) -> None:
    one = accepted(system)
    batch = accepted(system, lane=Lane.BATCH)
    failed = accepted(system)
    system.database.run(
        "UPDATE turns SET state = 'failed', error_code = 'deadline_exceeded' WHERE id = %s",
        (failed,),
    )
    other = create_tenant(system.database, "acme", system.settings)
    request = system.request("hello").model_copy(update={"tenant_id": other})
    acme = accept(system.database, request).turn_id
    everything = {shown(each) for each in (one, batch, failed, acme)}
    assert ids(system) == everything, "of all tenants"
    assert ids(system, tenant="acme") == {shown(acme)}
    assert ids(system, lane=Lane.BATCH) == {shown(batch)}
    assert ids(system, state=TurnState.FAILED) == {shown(failed)}
    assert ids(system, error_code="deadline_exceeded") == {shown(failed)}
    assert ids(system, bot=system.settings.engine.model_name) == everything
    assert ids(system, model="another") == set()
    assert ids(system, before=datetime.now(UTC) - timedelta(minutes=1)) == set()
    assert ids(system, before=datetime.now(UTC) + timedelta(minutes=1)) == everything


def test_pages_together_hold_each_turn_once(system: Any) -> None:
    expected = [shown(accepted(system)) for _ in range(7)]
    seen: list[str] = []
    after = None
    while True:
        page = list_turns(system.database, TurnFilter(), limit=3, after=after)
        seen += [turn.turn_id for turn in page.turns]
        if page.next is None:
            break
        after = UUID(page.next.removeprefix("turn_"))
    assert seen == sorted(expected, reverse=True)


def test_a_page_of_a_rare_kind_stops_after_so_many_turns_and_says_how_far_it_looked(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for one failed turn among a hundred million must not read them all."""
    monkeypatch.setattr(operations, "LOOKED_AT", 3)
    rare = accepted(system)
    system.database.run("UPDATE turns SET state = 'failed'")
    for _ in range(5):
        accepted(system)
    wanted = TurnFilter(state=TurnState.FAILED)
    page = list_turns(system.database, wanted)
    assert page.turns == []
    assert page.next is not None
    assert page.looked_back_to is not None
    page = list_turns(system.database, wanted, after=UUID(page.next.removeprefix("turn_")))
    assert [turn.turn_id for turn in page.turns] == [shown(rare)]
    assert page.next is None


def test_no_turn_falls_between_two_looks(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "LOOKED_AT", 2)
    expected = [shown(accepted(system)) for _ in range(7)]
    system.database.run("UPDATE turns SET state = 'failed'")
    seen, after = [], None
    while True:
        page = list_turns(system.database, TurnFilter(state=TurnState.FAILED), after=after)
        seen += [turn.turn_id for turn in page.turns]
        if page.next is None:
            break
        after = UUID(page.next.removeprefix("turn_"))
    assert seen == expected[::-1]


def test_a_turn_is_found_by_every_name_it_has(system: Any) -> None:
    conversation = new_id()
    turn = accepted(system, conversation_id=conversation, idempotency_key="order-4711")
    accepted(system)
    system.database.run(
        "INSERT INTO channel_threads (channel, thread, tenant_id, conversation_id, author, target) "
        "VALUES ('acme-slack', 'C1:1700.1', %(tenant)s, %(conversation)s, 'U1', '{}'), "
        "('a', 'C1/1700000000.000001', %(tenant)s, %(conversation)s, 'U1', '{}'), "
        "('b', 'D1', %(tenant)s, %(conversation)s, 'U1', '{}'), "
        "('other', 'C1:1700.2', %(tenant)s, %(conversation)s, 'U1', '{}')",
        {"tenant": system.tenant_id, "conversation": conversation},
    )
    system.database.run(
        "INSERT INTO channel_events (channel, event_id, turn_id) VALUES ('other', 'Ev1', %s)",
        (turn,),
    )
    delivery = new_id()
    system.database.run(
        "INSERT INTO deliveries (id, tenant_id, conversation_id, turn_id, channel, target, kind, "
        "state) VALUES (%s, %s, %s, %s, 'a', '{}', 'reply', 'failed')",
        (delivery, system.tenant_id, conversation, turn),
    )
    link = "https://acme.slack.com/archives"
    names = {
        shown(turn): "id",
        turn.hex[:20]: "id",
        f"turn_{turn.hex[:20]}": "id",
        f"conv_{conversation.hex}": "conversation",
        "order-4711": "idempotency key",
        "C1:1700.1": "thread of acme-slack",
        "C1:1700.2": "thread of other",
        "Ev1": "event of other",
        f"dlv_{delivery.hex}": "delivery",
        f"{link}/C1/p1700000000000001": "thread of a",
        f"{link}/C1/p1700000009000002?thread_ts=1700000000.000001&cid=C1": "thread of a",
        f"{link}/D1/p1700000005000001": "thread of b",
    }
    for name, by in names.items():
        found = find_turns(system.database, name)
        assert [(each.turn_id, each.found_by) for each in found] == [(shown(turn), by)], name
    for name in ("order-4712", f"dlv_{new_id().hex}", f"{link}/C1/p1700000009000002"):
        assert find_turns(system.database, name) == []
    assert find_turns(system.database, "order-4711", tenant="acme") == []


def test_the_start_of_an_id_may_fit_several_turns(system: Any) -> None:
    turns = {shown(accepted(system)) for _ in range(3)}
    start = min(turns)[: len("turn_") + 6]
    assert {turn.turn_id for turn in find_turns(system.database, start)} == turns
