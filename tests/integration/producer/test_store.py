"""Changes of a turn's state: races that only a pause inside a statement shows, and rows that a hand
or an older release left behind.

With a real Postgres and no broker. A paused statement has taken its snapshot, but no lock yet.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from tests.integration.workers.claiming import sweep_once
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.tenants import save_bot
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered, Snoozed
from turnmill.schemas.store.claim import CLAIM
from turnmill.schemas.turns import AcceptedTurn, GenerationParams, Lane, Reply, Usage
from turnmill.workers.turn import leases as lease_module
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.upkeep.evidence import PARKED_AFTER

Eventually = Callable[..., None]
REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))
_PAUSE = 4711


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@pytest.fixture
def settler(system: Any) -> Settler:
    return Settler(system.database, max_attempts=5, give_up=threading.Event())


def new_leases(system: Any, model: str | None = None) -> Leases:
    """The leases of a worker that died long ago, as the rescuer sees it."""
    settings = system.settings.worker.model_copy(update={"lanes": tuple(Lane), "lease_s": 60.0})
    model = model or system.settings.engine.model_name
    leases = Leases(system.database, settings, model=model, engine="echo")
    add_worker(system, leases.worker_id, "clock_timestamp() - interval '1 minute'", model)
    return leases


def claimed(system: Any, turn: AcceptedTurn, model: str | None = None) -> Claim:
    claim = new_leases(system, model).claim(turn.turn_id)
    assert claim is not None
    return claim


def add_worker(system: Any, worker_id: UUID, seen_at: str, model: str | None = None) -> None:
    system.database.run(
        "INSERT INTO worker_liveness (id, host, pid, model, engine, lanes, slots, seen_at) "
        f"VALUES (%s, 'h', 1, %s, 'echo', %s, 8, {seen_at})",
        (worker_id, model or system.settings.engine.model_name, [lane.value for lane in Lane]),
    )


def state(system: Any, turn: AcceptedTurn) -> str:
    return str(system.read(turn).state)


def leave_hint_behind(system: Any, turn: AcceptedTurn) -> None:
    """What the claim of an earlier release could leave: a hint of a turn that is not queued."""
    system.database.run(
        "INSERT INTO outbox (turn_id, model, lane, due_at, published_at) SELECT id, model, lane, "
        "clock_timestamp() + interval '1 hour', clock_timestamp() - interval '1 hour' "
        "FROM turns WHERE id = %s",
        (turn.turn_id,),
    )


def assert_one_hint_per_queued_turn(system: Any) -> None:
    odd = system.database.run(
        "SELECT t.id, t.state, o.turn_id FROM turns t FULL JOIN outbox o ON o.turn_id = t.id "
        "WHERE (t.state = 'queued') IS DISTINCT FROM (o.turn_id IS NOT NULL)"
    )
    assert odd == []


@contextmanager
def paused(system: Any, eventually: Eventually, call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run `call`, whose statement calls `pause()`; its locks come after the block."""
    system.database.run(
        "CREATE OR REPLACE FUNCTION pause() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN "
        f"PERFORM pg_advisory_xact_lock_shared({_PAUSE}); RETURN true; END $$"
    )
    with ThreadPoolExecutor(1) as pool, system.database.connect() as gate:
        gate.execute(f"SELECT pg_advisory_lock({_PAUSE})")
        future = pool.submit(call)
        waiting = f"SELECT 1 FROM pg_locks WHERE objid = {_PAUSE} AND NOT granted"
        eventually(lambda: future.done() or system.database.run(waiting))
        assert not future.done(), future.result()
        yield future


# --- Races


def test_claim_between_whose_snapshot_and_lock_the_turn_was_snoozed_leaves_it_alone(
    system: Any, settler: Settler, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = accept(system.database, system.request("hello"))
    late, first = new_leases(system), new_leases(system)
    pausing = CLAIM.replace("model = %(model)s", "model = %(model)s AND pause()")
    monkeypatch.setattr(lease_module, "CLAIM", pausing)
    with paused(system, eventually, lambda: late.claim(turn.turn_id)) as late_claim:
        monkeypatch.setattr(lease_module, "CLAIM", CLAIM)
        claim = first.claim(turn.turn_id)
        assert claim is not None
        assert settler.settle(claim, Snoozed(3600.0, "busy"))
    assert late_claim.result() is None, "the turn is due in an hour"
    assert state(system, turn) == "queued"
    assert_one_hint_per_queued_turn(system)


# --- Rows left behind


@pytest.mark.parametrize("change", ["requeue", "rescue", "advance"])
def test_hint_left_behind_does_not_keep_its_turn_from_being_queued(
    system: Any, settler: Settler, change: str
) -> None:
    conversation = new_id()
    requests = [system.request(text, conversation_id=conversation) for text in ("one", "two")]
    first, second = accept_many(system.database, requests)
    claim = claimed(system, first)
    leave_hint_behind(system, second if change == "advance" else first)
    match change:
        case "requeue":
            assert settler.settle(claim, Snoozed(0.0, "busy"))
        case "rescue":
            assert sweep_once(system) == 1
        case "advance":
            assert settler.settle(claim, REPLY)
    (hint,) = system.database.run(
        "SELECT turn_id FROM outbox WHERE published_at IS NULL AND due_at <= clock_timestamp()"
    )
    assert hint.turn_id == (second if change == "advance" else first).turn_id
    assert_one_hint_per_queued_turn(system)


@pytest.mark.parametrize("change", ["requeue", "rescue"])
def test_turn_whose_attempt_has_no_row_is_requeued(
    system: Any, settler: Settler, change: str
) -> None:
    turn = accept(system.database, system.request("hello", lane=Lane.BATCH))
    claim = claimed(system, turn)
    system.database.run("DELETE FROM attempts")
    if change == "requeue":
        assert settler.settle(claim, Snoozed(0.0, "busy"))
    else:
        assert sweep_once(system) == 1
    (hint,) = system.database.run("SELECT turn_id, lane FROM outbox")
    assert (hint.turn_id, hint.lane) == (turn.turn_id, "batch")


# --- A row that cannot be changed


def refuse_changes_of(system: Any, turn: AcceptedTurn) -> None:
    """As if this row broke a rule of the database that nobody foresaw."""
    system.database.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE check_violation USING MESSAGE = 'a text that must not be logged'; END $$"
    )
    system.database.run(
        "CREATE TRIGGER refuse BEFORE UPDATE ON turns FOR EACH ROW "
        f"WHEN (OLD.id = '{turn.turn_id}') EXECUTE FUNCTION refuse()"
    )


@pytest.mark.parametrize("is_in_quarantine", [False, True])
def test_row_that_cannot_be_rescued_fails_alone_and_the_log_names_it(
    system: Any, is_in_quarantine: bool
) -> None:
    other_model = "other"
    save_bot(system.database, system.tenant_id, other_model, other_model, "", GenerationParams())
    bad, *good = accept_many(system.database, [system.request(f"turn {n}") for n in range(3)])
    request = system.request("elsewhere").model_copy(update={"bot": other_model})
    elsewhere = accept(system.database, request)
    if is_in_quarantine:
        system.database.run("UPDATE outbox SET lane = 'quarantine'")

    def die() -> None:
        for turn in (bad, *good):
            claimed(system, turn)
        claimed(system, elsewhere, other_model)
        # Workers that die together tell of a machine, and their turns are not charged in full.
        system.database.run(
            "UPDATE worker_liveness w SET seen_at = seen_at - n * interval '10 s' FROM "
            "(SELECT id, row_number() OVER (ORDER BY id) AS n FROM worker_liveness) AS t "
            "WHERE t.id = w.id"
        )

    for _ in range(PARKED_AFTER - 1 if is_in_quarantine else 0):
        die()
        sweep_once(system)
        system.database.run("DELETE FROM worker_liveness")
    die()
    refuse_changes_of(system, bad)
    with capture_logs() as logs:
        sweep_once(system)
    rescued = "parked" if is_in_quarantine else "queued"
    assert [state(system, turn) for turn in (bad, *good, elsewhere)] == ["running", *[rescued] * 3]
    (failure,) = [log for log in logs if log["event"] == "turn.sweep_failed"]
    assert failure["turn_id"] == bad.turn_id.hex
    assert "must not be logged" not in str(logs)


def test_leases_of_the_future_that_cannot_be_cut_keep_no_others_nor_the_rescue(system: Any) -> None:
    """As after a step back of the clock, of workers whose rows are gone."""
    bad, good, lost = accept_many(system.database, [system.request(f"turn {n}") for n in range(3)])
    for turn in (bad, good):
        claimed(system, turn)
    system.database.run(
        "UPDATE turns SET leased_until = clock_timestamp() + interval '1 day' WHERE id = ANY(%s)",
        ([bad.turn_id, good.turn_id],),
    )
    system.database.run("DELETE FROM worker_liveness")
    claimed(system, lost)
    refuse_changes_of(system, bad)
    with capture_logs() as logs:
        sweep_once(system)
    ahead = "SELECT id FROM turns WHERE leased_until > clock_timestamp() + interval '1 hour'"
    assert [row.id for row in system.database.run(ahead)] == [bad.turn_id]
    assert state(system, lost) == "queued"
    assert [log["turn_id"] for log in logs if log["event"] == "turn.sweep_failed"] == [
        bad.turn_id.hex
    ]
    (cut,) = [log for log in logs if log["event"] == "clock.stepped_back"]
    assert (cut["lease_count"], cut["hint_count"]) == (1, 0)
