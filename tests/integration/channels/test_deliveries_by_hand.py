"""Deliveries by hand: listed, retried, dropped, by command and API; found by the doctor; pruned."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from turnmill.producer.accept import accept
from turnmill.producer.api.app import create_app
from turnmill.producer.api.resources.metrics import render_open
from turnmill.producer.cli.app import app
from turnmill.producer.doctor import work
from turnmill.producer.doctor.database import Target
from turnmill.producer.doctor.findings import examine
from turnmill.producer.parked.replay import replay
from turnmill.producer.tenants import create_key
from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.settings import RetentionSettings
from turnmill.schemas.store.advance import advance, lock_conversations
from turnmill.schemas.tenants import Scope
from turnmill.workers.delivery.claims import Holder, claim_delivery
from turnmill.workers.upkeep.pruner import prune


@pytest.fixture
def system(make_system: Any, database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


def put(system: Any, state: DeliveryState, channel: str = "desk", **columns: Any) -> UUID:
    """A delivery in a state, as it would have got there."""
    row = {"id": new_id(), "tenant_id": system.tenant_id, "conversation_id": new_id()}
    row |= {"channel": channel, "target": Jsonb({}), "kind": "notice", "content": "secret"}
    row |= {"state": state, **columns}
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    system.database.run(f"INSERT INTO deliveries ({names}) VALUES ({marks})", tuple(row.values()))
    system.database.run(
        "INSERT INTO conversations (id, tenant_id, bot_id) SELECT %s, tenant_id, id FROM bots "
        "LIMIT 1",
        (row["conversation_id"],),
    )
    return UUID(str(row["id"]))


def fail(system: Any, channel: str = "desk") -> UUID:
    error = {"error_code": "is_archived", "error_message": "The channel is archived."}
    return put(system, DeliveryState.FAILED, channel, failures=3, attempt=3, **error)


def state_of(system: Any, delivery_id: UUID) -> Any:
    rows = system.database.run(
        "SELECT state, failures, (SELECT model FROM outbox WHERE turn_id = d.id) AS hinted "
        "FROM deliveries d WHERE id = %s",
        (delivery_id,),
    )
    return tuple(rows[0])


@pytest.fixture
def client(system: Any) -> Iterator[TestClient]:
    key = create_key(system.database, system.tenant_id, "admin", [Scope.ADMIN])
    with TestClient(create_app(system.settings)) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client


def run(system: Any, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["deliveries", *arguments], env=system.variables)


def test_the_command_lists_shows_retries_and_drops(system: Any) -> None:
    failed, other = fail(system), fail(system, "shop")
    queued, sent = put(system, DeliveryState.QUEUED), put(system, DeliveryState.SENT)
    listed = run(system, "list", "--state", "failed", "--channel", "desk").output
    assert show_id(Prefix.DELIVERY, failed) in listed
    assert show_id(Prefix.DELIVERY, other) not in listed
    shown = run(system, "show", show_id(Prefix.DELIVERY, failed)).output
    assert "The channel is archived." in shown
    assert "secret" not in listed + shown
    assert run(system, "retry", "--failed", "--channel", "desk").exit_code == 0
    assert state_of(system, failed) == ("queued", 0, "desk")
    assert state_of(system, other) == ("failed", 3, None)
    ids = [show_id(Prefix.DELIVERY, each) for each in (queued, sent)]
    assert run(system, "drop", *ids).exit_code == 1, "a sent one cannot be dropped"
    assert [state_of(system, each)[0] for each in (queued, sent)] == ["dropped", "sent"]
    assert run(system, "retry").exit_code != 0


def test_a_retried_deliverys_last_step_is_in_doubt(system: Any) -> None:
    """It may have used up its attempts by a platform's silence, and be there."""
    failed = fail(system)
    holder = Holder(system.database, new_id(), 30.0)
    assert run(system, "retry", "--failed").exit_code == 0
    claim = claim_delivery(holder, "desk", failed)
    assert claim is not None
    assert claim.job.is_doubtful


def test_the_api_lists_shows_retries_and_drops(system: Any, client: TestClient) -> None:
    failed, other = fail(system), fail(system)
    page = client.get("/deliveries", params={"state": "failed", "limit": 1}).json()
    assert [each["id"] for each in page["deliveries"]] == [show_id(Prefix.DELIVERY, other)]
    page = client.get("/deliveries", params={"after": page["next"]}).json()
    assert [each["id"] for each in page["deliveries"]] == [show_id(Prefix.DELIVERY, failed)]
    assert page["next"] is None
    path = f"/deliveries/{show_id(Prefix.DELIVERY, failed)}"
    assert client.get(path).json()["error_code"] == "is_archived"
    assert client.post(f"{path}/retry").json()["state"] == "queued"
    assert client.delete(path).json()["state"] == "dropped"
    assert client.get(f"/deliveries/{show_id(Prefix.DELIVERY, new_id())}").status_code == 404
    assert client.get("/deliveries/turn_1").status_code == 400


def test_another_tenant_and_another_scope_see_nothing(system: Any, client: TestClient) -> None:
    foreign = put(system, DeliveryState.FAILED, tenant_id=new_id())
    path = f"/deliveries/{show_id(Prefix.DELIVERY, foreign)}"
    assert client.get("/deliveries").json()["deliveries"] == []
    assert [client.get(path).status_code, client.post(f"{path}/retry").status_code] == [404, 404]
    key = create_key(system.database, system.tenant_id, "turns", [Scope.TURNS])
    client.headers["Authorization"] = f"Bearer {key}"
    assert client.get("/deliveries").status_code == 403


def test_the_doctor_finds_failed_untaken_and_forgotten_deliveries(system: Any) -> None:
    target = Target(system.settings, system.database, None)

    def found() -> list[str]:
        findings = examine({"deliveries": work.CHECKS["deliveries"]}, target)
        return [finding.detail for finding in findings]

    assert found() == []
    fail(system)
    turn = accept(system.database, system.request("hello"))
    put(system, DeliveryState.PENDING, turn_id=turn.turn_id)
    system.database.run("UPDATE turns SET state = 'completed', settled_at = '2020-01-01'")
    hinted = put(system, DeliveryState.QUEUED, "shop")
    system.database.run("DELETE FROM outbox")
    system.database.run(
        "INSERT INTO outbox (turn_id, model, lane, due_at, published_at) "
        "VALUES (%s, 'shop', 'delivery', '2020-01-01', '2020-01-01')",
        (hinted,),
    )
    untaken, forgotten, failed = found()
    assert "no delivery worker takes those of channel shop: 1 wait" in untaken
    assert "1 are pending although their turns have ended" in forgotten
    assert "The channel is archived." in failed
    others = [each.detail for each in examine({"workers": work.CHECKS["workers"]}, target)]
    assert not any("shop" in detail for detail in others), "no model is called shop"


def test_open_and_failed_deliveries_are_counted(system: Any) -> None:
    fail(system)
    put(system, DeliveryState.QUEUED)
    put(system, DeliveryState.SENT)
    figures = render_open(system.database).decode()
    assert 'turnmill_deliveries_count{channel="desk",state="failed"} 1.0' in figures
    assert 'turnmill_deliveries_count{channel="desk",state="queued"} 1.0' in figures
    assert 'state="sent"' not in figures


def test_a_replayed_turn_owes_its_reply_anew(system: Any) -> None:
    """Its user was told that it failed; the reply is another delivery."""
    turn = accept(system.database, system.request("hello"))
    told = put(
        system,
        DeliveryState.SENT,
        kind="reply",
        turn_id=turn.turn_id,
        progress=Jsonb({"parts": {"0": "1.1"}}),
        attempt=2,
    )
    system.database.run(
        "UPDATE deliveries SET conversation_id = (SELECT conversation_id FROM turns)"
    )
    with system.database.cursor() as cursor:
        lock_conversations(cursor, [turn.conversation_id])
        cursor.execute("DELETE FROM outbox")
        cursor.execute("UPDATE turns SET state = 'parked', settled_at = clock_timestamp()")
        advance(cursor, [turn.conversation_id])
    replay(system.database, system.tenant_id, [turn.turn_id])
    (row,) = system.database.run("SELECT * FROM deliveries")
    assert (row.state, row.progress, row.attempt) == ("pending", {}, 0)
    assert row.id != told


def test_deliveries_are_pruned_with_their_turns_and_notices_by_their_age(system: Any) -> None:
    old, young = (accept(system.database, system.request(text)) for text in ("a", "b"))
    for turn in (old, young):
        put(system, DeliveryState.SENT, turn_id=turn.turn_id, kind="reply")
    past = UUID(int=1)
    put(system, DeliveryState.SENT, id=past, settled_at="2020-01-01")
    kept = put(system, DeliveryState.SENT, settled_at="2020-01-01")
    system.database.run("UPDATE turns SET state = 'completed', settled_at = clock_timestamp()")
    system.database.run(
        "UPDATE turns SET id = %s, settled_at = '2020-01-01' WHERE id = %s",
        (UUID(int=2), old.turn_id),
    )
    system.database.run(
        "UPDATE deliveries SET turn_id = %s WHERE turn_id = %s", (UUID(int=2), old.turn_id)
    )
    prune(system.database, RetentionSettings(turns_days=30), lambda _: False)
    rows = system.database.run("SELECT id, turn_id FROM deliveries ORDER BY ordinal")
    assert [row.turn_id for row in rows] == [young.turn_id, None]
    assert rows[1].id == kept
