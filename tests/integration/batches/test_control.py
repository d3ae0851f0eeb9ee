"""Batches are paused, resumed, cancelled and retried, whatever runs meanwhile."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from turnmill.infra.bench.batch.made_rows import MadeRows
from turnmill.producer.accept import accept_many
from turnmill.producer.batches import control, submission
from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.control import cancel_batch, pause, resume, retry
from turnmill.producer.batches.lookup import find_batch
from turnmill.producer.batches.progress import progress
from turnmill.producer.batches.submission import submit
from turnmill.producer.cancel import cancel
from turnmill.producer.doctor import diagnose
from turnmill.producer.operations.why import Explainer, Reason
from turnmill.producer.parked.replay import replay
from turnmill.schemas.batches import Batch, BatchProgress
from turnmill.schemas.errors import BatchCancelled, LaterTurnAnswered
from turnmill.schemas.outcomes import Answered, Failed, Snoozed
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.batches import sweep
from turnmill.schemas.store.batches.sweep import CANCEL_BATCH, PAUSE, RESUME, sweep_page
from turnmill.schemas.turns import Lane, Reply, TurnState, Usage
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.upkeep import batches as upkeep
from turnmill.workers.upkeep import rescuer as rescuers
from turnmill.workers.upkeep.batches import finish_sweeps
from turnmill.workers.upkeep.rescuer import Rescuer

REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "PAGE_HINTS", 7)
    monkeypatch.setattr(sweep, "PAGE_TURNS", 7)


def write_backlog(folder: Path, rows: int = 40) -> Backlog:
    """Every fourth row goes on with the conversation of the row before."""
    path = folder / "tickets.csv"
    lines = [f"{n},{n - (n % 4 == 0)},question {n}" for n in range(1, rows + 1)]
    path.write_text("\n".join(["id,conversation,prompt", *lines]) + "\n")
    return read_backlog(path)


@pytest.fixture
def batch(system: Any, tmp_path: Path) -> Batch:
    bot = system.settings.engine.model_name
    return submit(system.database, system.tenant_id, bot, write_backlog(tmp_path))


def new_leases(system: Any) -> Leases:
    settings = system.settings.worker.model_copy(update={"lease_s": 60.0})
    model = system.settings.engine.model_name
    return Leases(system.database, settings, model=model, engine="echo")


def settler(system: Any) -> Settler:
    return Settler(system.database, max_attempts=1, give_up=threading.Event())


def read(system: Any, batch: Batch) -> BatchProgress:
    return progress(system.database, system.tenant_id, batch.batch_id)


def rows_in(system: Any, batch: Batch, state: str) -> list[Any]:
    query = "SELECT id FROM turns WHERE batch_id = %s AND state = %s ORDER BY batch_row"
    return [row.id for row in system.database.run(query, (batch.batch_id, state))]


def claim_all(system: Any, batch: Batch) -> list[Any]:
    """Offer every queued turn of the batch to a worker, as hints that are under way would."""
    leases = new_leases(system)
    return [
        claim for turn_id in rows_in(system, batch, "queued") if (claim := leases.claim(turn_id))
    ]


def lanes(system: Any) -> dict[str, int]:
    query = "SELECT lane, count(*)::int AS n FROM outbox WHERE published_at IS NULL GROUP BY lane"
    return {row.lane: row.n for row in system.database.run(query)}


def unfinished(system: Any) -> int:
    query = "SELECT count(*)::int AS n FROM batches WHERE swept_row IS NOT NULL"
    return int(system.database.run(query)[0].n)


def test_a_paused_batch_leaves_the_lane_to_others_and_comes_back_whole(
    system: Any, batch: Batch
) -> None:
    assert new_leases(system).claim(rows_in(system, batch, "queued")[0])
    held = rows_in(system, batch, "queued")
    others = [system.request(f"other {n}", lane=Lane.BATCH) for n in range(3)]
    accept_many(system.database, others)
    before = lanes(system)
    assert pause(system.database, batch)
    assert read(system, batch).is_paused
    assert lanes(system) == {"batch": 3, "paused": len(held)}
    assert resume(system.database, batch)
    assert lanes(system) == before
    assert not read(system, batch).is_paused and unfinished(system) == 0


def test_pausing_and_resuming_twice_says_so(system: Any, batch: Batch) -> None:
    assert [pause(system.database, batch), pause(system.database, batch)] == [True, False]
    assert [resume(system.database, batch), resume(system.database, batch)] == [True, False]
    shown = find_batch(system.database, system.tenant_id, batch.batch_id.hex)
    assert shown.paused_at is None


def test_a_pause_holds_before_any_hint_was_moved(system: Any, batch: Batch) -> None:
    """Hints are in the broker, and more become due, when a batch is paused."""
    system.database.run("UPDATE outbox SET published_at = clock_timestamp()")
    first = claim_all(system, batch)[:3]
    system.database.run(PAUSE, (batch.batch_id,))
    for claim in first:
        assert settler(system).settle(claim, REPLY), "what runs is answered"
    queued = rows_in(system, batch, "queued")
    assert claim_all(system, batch) == []
    assert lanes(system).get("paused", 0) == len(queued) > 0
    resume(system.database, batch)
    assert len(claim_all(system, batch)) == len(queued)


def test_a_row_accepted_into_a_paused_batch_waits_for_its_resumption_and_for_no_relay(
    system: Any, batch: Batch
) -> None:
    """The hint stands in the batch lane until the rows have been gone through."""
    system.database.run("UPDATE outbox SET due_at = clock_timestamp() - interval '1 min'")
    system.database.run(PAUSE, (batch.batch_id,))
    row = rows_in(system, batch, "queued")[0]
    why = Explainer(system.database, system.settings).explain(row)
    assert why is not None and why.reason is Reason.BATCH_PAUSED
    assert str(why.remedy).startswith("turnmill batch resume batch_")


def test_turns_that_become_due_during_a_pause_start_after_it(system: Any, batch: Batch) -> None:
    pause(system.database, batch)
    (later,) = rows_in(system, batch, "waiting")[:1]
    (first,) = system.database.run(
        "SELECT f.id FROM turns f JOIN turns t USING (conversation_id) "
        "WHERE t.id = %s AND f.seq = 1",
        (later,),
    )
    cancel(system.database, system.tenant_id, first.id)
    assert later in rows_in(system, batch, "queued")
    assert new_leases(system).claim(later) is None
    resume(system.database, batch)
    assert new_leases(system).claim(later) is not None


def test_a_pause_changes_no_other_batch_and_no_other_turn(system: Any, batch: Batch) -> None:
    (other,) = accept_many(system.database, [system.request("other", lane=Lane.BATCH)])
    pause(system.database, batch)
    assert new_leases(system).claim(other.turn_id) is not None


@pytest.mark.parametrize("decision", ["pause", "resume", "cancel"])
def test_workers_finish_a_sweep_whose_command_was_ended(
    system: Any, batch: Batch, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "ROUND_S", 60.0)

    def killed(row: int) -> None:
        raise KeyboardInterrupt

    if decision == "resume":
        pause(system.database, batch)
    way = {"pause": pause, "resume": resume, "cancel": cancel_batch}[decision]
    with pytest.raises(KeyboardInterrupt):
        way(system.database, batch, killed)
    assert unfinished(system) == 1
    assert not finish_sweeps(system.database), "nothing is left for another round"
    assert unfinished(system) == 0
    expected = {"pause": {"paused": 30}, "resume": {"batch": 30}, "cancel": {}}[decision]
    assert lanes(system) == expected
    assert read(system, batch).is_done == (decision == "cancel")


@pytest.mark.parametrize("failing", ["sweep", "merge_batch_moves"])
def test_a_chore_of_the_rescuer_that_fails_keeps_no_other(
    system: Any,
    batch: Batch,
    failing: str,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rescuers, failing, fail)
    system.database.run(PAUSE, (batch.batch_id,))
    settings = system.settings.worker.model_copy(update={"rescue_every_s": 0.05})
    leases = new_leases(system)
    rescuer = Rescuer(system.database, settings, leases)
    leases.start()
    rescuer.start()
    try:
        eventually(lambda: unfinished(system) == 0)
    finally:
        rescuer.close()
        leases.close()


@pytest.mark.parametrize("decision", [PAUSE, CANCEL_BATCH])
def test_workers_leave_a_sweep_to_the_command_that_is_still_at_it(
    system: Any, batch: Batch, decision: str
) -> None:
    system.database.run(decision, (batch.batch_id,))
    with system.database.cursor() as cursor:
        cursor.execute(sweep._WAIT_TO_SWEEP, (batch.batch_id,))
        before = lanes(system)
        assert not finish_sweeps(system.database)
        assert lanes(system) == before and unfinished(system) == 1
    finish_sweeps(system.database)
    assert unfinished(system) == 0


def test_a_worker_ends_a_round_of_sweeps_after_a_while(
    system: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks after dead workers, too."""
    monkeypatch.setattr(upkeep, "ROUND_S", 0.0)
    system.database.run(CANCEL_BATCH, (batch.batch_id,))
    rounds = 1
    while finish_sweeps(system.database):
        rounds += 1
    assert rounds > 40 // sweep.PAGE_TURNS
    assert read(system, batch).states == {TurnState.CANCELLED: 40}


def submit_none(system: Any, name: str) -> Batch:
    """A batch of which no row was accepted: the first was refused, or somebody pressed Ctrl-C."""
    (row,) = system.database.run(
        "INSERT INTO batches (id, tenant_id, name, fingerprint, total, bot) "
        "VALUES (gen_random_uuid(), %s, %s, sha256(%s), 40, 'bot') RETURNING id",
        (system.tenant_id, name, name.encode()),
    )
    return find_batch(system.database, system.tenant_id, row.id.hex)


def never_swept(row: int) -> None:
    raise AssertionError(f"There is no row {row}.")


def test_a_batch_without_any_turn_has_no_row_to_sweep(system: Any) -> None:
    batch = submit_none(system, "none")
    assert pause(system.database, batch, never_swept) and unfinished(system) == 0
    assert resume(system.database, batch, never_swept) and unfinished(system) == 0
    assert retry(system.database, batch, never_swept).replayed == 0
    assert cancel_batch(system.database, batch, never_swept) and unfinished(system) == 0


def test_workers_pass_over_a_batch_that_cannot_be_swept(
    system: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "ROUND_S", 60.0)
    broken = [submit_none(system, f"broken {n}") for n in range(3)]
    for each in (*broken, batch):
        system.database.run(PAUSE, (each.batch_id,))
    # One row more than PostgreSQL can count.
    last = 2**31 - 1
    for each in broken:
        system.database.run(
            "UPDATE batches SET swept_row = %s WHERE id = %s", (last, each.batch_id)
        )
    assert not finish_sweeps(system.database)
    assert lanes(system) == {"paused": 30} and unfinished(system) == len(broken)


def test_a_batch_whose_sweep_takes_long_is_not_always_the_first(
    system: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "ROUND_S", 0.0)
    endless = submit_none(system, "endless")

    def sweeps(database: Database, batch_id: UUID, *, yields: bool) -> int | None:
        if batch_id == endless.batch_id:
            return 1
        return sweep_page(database, batch_id, yields=yields)

    monkeypatch.setattr(upkeep, "sweep_page", sweeps)
    for each in (endless, batch):
        system.database.run(PAUSE, (each.batch_id,))
    for _ in range(200):
        finish_sweeps(system.database)
        if lanes(system) == {"paused": 30}:
            return
    raise AssertionError("The other batch never had its turn.")


def test_a_sweep_for_an_overtaken_decision_does_not_move_the_newer_one_on(
    system: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the pause ends just when the batch is resumed: none of its rows is forgotten."""
    system.database.run(PAUSE, (batch.batch_id,))
    run = system.database.run

    def overtaken(statement: str, params: Any = None) -> list[Any]:
        monkeypatch.undo()
        run(RESUME, (batch.batch_id,))
        return run(statement, params)  # type: ignore[no-any-return]

    monkeypatch.setattr(system.database, "run", overtaken)
    sweep_page(system.database, batch.batch_id)
    while sweep_page(system.database, batch.batch_id) is not None:
        pass
    assert lanes(system) == {"batch": 30}


def test_claims_and_decisions_at_random_leave_no_hint_behind(system: Any, batch: Batch) -> None:
    stopping = threading.Event()
    claims: list[Any] = []

    def claim_on() -> None:
        while not stopping.is_set():
            claims.extend(claim_all(system, batch)[:2])

    def decide() -> None:
        for _ in range(8):
            pause(system.database, batch)
            resume(system.database, batch)

    threads = [threading.Thread(target=work) for work in (claim_on, decide, decide)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stopping.set()
    threads[0].join()
    resume(system.database, batch)
    assert set(lanes(system)) <= {"batch"}
    claim_all(system, batch)
    assert read(system, batch).states[TurnState.RUNNING] == 30


def test_cancelling_ends_running_queued_and_waiting_turns_and_keeps_what_was_answered(
    system: Any, batch: Batch
) -> None:
    leases, settling = new_leases(system), settler(system)
    for turn_id in rows_in(system, batch, "queued")[:5]:
        claim = leases.claim(turn_id)
        assert claim is not None and settling.settle(claim, REPLY)
    (running,) = [leases.claim(turn_id) for turn_id in rows_in(system, batch, "queued")[-1:]]
    assert running is not None
    assert cancel_batch(system.database, batch)
    assert not settling.settle(running, REPLY), "it is fenced"
    now = read(system, batch)
    assert now.states == {TurnState.COMPLETED: 5, TurnState.CANCELLED: 35}
    assert now.is_done and now.is_cancelled
    assert lanes(system) == {} and unfinished(system) == 0
    assert not cancel_batch(system.database, batch)


def test_what_was_cancelled_can_be_neither_paused_nor_retried_nor_submitted_again(
    system: Any, batch: Batch, tmp_path: Path
) -> None:
    cancel_batch(system.database, batch)
    for way in (pause, resume, retry):
        with pytest.raises(BatchCancelled, match="--name"):
            way(system.database, batch)
    backlog = write_backlog(tmp_path)
    with pytest.raises(BatchCancelled, match="--name"):
        submit(system.database, system.tenant_id, batch.bot, backlog)
    again = submit(system.database, system.tenant_id, batch.bot, backlog, name="again")
    assert again.batch_id != batch.batch_id


def test_cancelling_ends_a_submission_that_is_still_under_way(
    system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "CHUNK_ROWS", 5)
    backlog, bot = write_backlog(tmp_path), system.settings.engine.model_name
    seen: list[Batch] = []

    def cancels(count: int) -> None:
        if count == 10:
            (row,) = system.database.run("SELECT id FROM batches")
            seen.append(find_batch(system.database, system.tenant_id, row.id.hex))
            cancel_batch(system.database, seen[0])

    with pytest.raises(BatchCancelled):
        submit(system.database, system.tenant_id, bot, backlog, on_accepted=cancels)
    now = read(system, seen[0])
    assert (now.states, now.is_done) == ({TurnState.CANCELLED: 10}, True)


def test_failed_and_parked_rows_are_retried_in_their_places_and_no_others(
    system: Any, batch: Batch
) -> None:
    outcomes = {1: Failed("bad", "No."), 2: Snoozed(0.0, "busy"), 3: Failed("bad", "No."), 5: REPLY}
    leases, settling = new_leases(system), settler(system)
    for row, outcome in outcomes.items():
        (turn,) = system.database.run(
            "SELECT id FROM turns WHERE batch_id = %s AND batch_row = %s", (batch.batch_id, row)
        )
        claim = leases.claim(turn.id)
        assert claim is not None and settling.settle(claim, outcome)
    # Row 4 goes on with the conversation of row 3.
    (fourth,) = system.database.run(
        "SELECT id FROM turns WHERE batch_id = %s AND batch_row = 4", (batch.batch_id,)
    )
    claim = leases.claim(fourth.id)
    assert claim is not None and settling.settle(claim, REPLY)

    before = read(system, batch)
    assert {each.error_code: each.count for each in before.failures} == {
        "bad": 2, "attempts_used_up": 1,
    }  # fmt: skip
    done = retry(system.database, batch)
    assert (done.replayed, done.refused, type(done.refusal)) == (2, 1, LaterTurnAnswered)
    now = read(system, batch)
    assert now.failed == 1 and now.completed == 2
    assert [(each.error_code, each.count) for each in now.failures] == [("bad", 1)]
    for claim in claim_all(system, batch):
        assert settling.settle(claim, REPLY)
    assert read(system, batch).failed == 1


def rows_read(plan: dict[str, Any]) -> int:
    """How many rows the nodes of an executed plan went through, those they threw away included."""
    thrown = (value for name, value in plan.items() if name.startswith("Rows Removed by"))
    each = plan["Actual Rows"] + sum(thrown)
    inner = sum(map(rows_read, plan.get("Plans", [])))
    return int(each * plan["Actual Loops"]) + inner


@pytest.mark.parametrize(("statement", "before", "now"), [
    ("_HOLD", "paused", "batch"),
    ("_RELEASE", "batch", "paused"),
    ("_OPEN_TURNS", "paused", "batch"),
])  # fmt: skip
def test_a_sweep_costs_no_more_because_statistics_are_of_before_the_last_one(
    system: Any, statement: str, before: str, now: str
) -> None:
    run = system.database.run
    for table in ("outbox", "turns"):
        # Autovacuum must not come and tell the truth.
        run(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    bot = system.settings.engine.model_name
    submit(system.database, system.tenant_id, bot, MadeRows(500), name="another")
    run("ANALYZE turns")
    batch = submit(system.database, system.tenant_id, bot, MadeRows(20_000))
    run("UPDATE outbox SET lane = %s", (before,))
    run("ANALYZE outbox")
    run("UPDATE outbox SET lane = %s", (now,))
    page = {"batch": batch.batch_id, "after": 0, "size": 1000}
    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {getattr(sweep, statement)}"
    (row,) = run(explain, page)
    assert rows_read(row[0][0]["Plan"]) < 20_000


@pytest.mark.parametrize("decision", [pause, resume, cancel_batch])
def test_a_sweep_goes_on_from_page_to_page_to_the_last_row_there_is(
    system: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, decision: Callable[..., bool]
) -> None:
    """Rows between may be missing, and their numbers be larger than a smallint."""
    for row, number in ((2, 32_000), (3, 32_700), (39, 70_000), (40, 100_000)):
        system.database.run(
            "UPDATE turns SET batch_row = %s WHERE batch_id = %s AND batch_row = %s",
            (number, batch.batch_id, row),
        )
    monkeypatch.setattr(sweep, "PAGE_HINTS", 31_000)
    monkeypatch.setattr(sweep, "PAGE_TURNS", 31_000)
    if decision is resume:
        pause(system.database, batch)
    rows: list[int] = []
    decision(system.database, batch, rows.append)
    assert rows == [31_000, 62_000, 93_000, 100_000] and unfinished(system) == 0
    hints = {pause: {"paused": 30}, resume: {"batch": 30}, cancel_batch: {}}[decision]
    assert lanes(system) == hints


def fail_all(system: Any, batch: Batch) -> int:
    """Answer every row with an error; return their number."""
    settling, count = settler(system), 0
    while claims := claim_all(system, batch):
        for claim in claims:
            assert settling.settle(claim, Failed("bad", "No."))
        count += len(claims)
    return count


def test_a_retry_holds_a_page_of_rows_and_continues_where_it_was_ended(
    system: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fail_all(system, batch) == 40
    held: list[int] = []

    def noting(database: Any, tenant_id: UUID, turn_ids: list[UUID], **options: Any) -> Any:
        held.append(len(turn_ids))
        return replay(database, tenant_id, turn_ids, **options)

    monkeypatch.setattr(control, "replay", noting)
    monkeypatch.setattr(control, "PAGE_ROWS", 6)

    def ends(row: int) -> None:
        if row >= 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retry(system.database, batch, ends)
    begun = sum(held)
    assert 18 <= begun < 40
    rows: list[int] = []
    done = retry(system.database, batch, rows.append)
    assert (done.replayed, done.refused) == (40 - begun, 0)
    # A conversation that reaches beyond its page comes as a whole.
    assert max(held) <= 7 and rows[-1] == 40
    assert retry(system.database, batch).replayed == 0


def test_turns_of_a_conversation_are_retried_in_their_order_wherever_their_rows_are(
    system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PAGE_ROWS", 1)
    path = tmp_path / "mixed.jsonl"
    rows = [{"conversation": "c", "turn": turn, "prompt": f"Turn {turn}."} for turn in (3, 1, 2)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    bot = system.settings.engine.model_name
    batch = submit(system.database, system.tenant_id, bot, read_backlog(path))
    assert fail_all(system, batch) == 3
    assert retry(system.database, batch).replayed == 3
    settling = settler(system)
    for _ in rows:
        (claim,) = claim_all(system, batch)
        assert settling.settle(claim, REPLY)
    assert read(system, batch).states == {TurnState.COMPLETED: 3}


def test_what_is_retried_during_a_pause_is_answered_after_it(system: Any, batch: Batch) -> None:
    leases, settle = new_leases(system), settler(system)
    # The fourth row goes on with the third's conversation.
    third = rows_in(system, batch, "queued")[2]
    claim = leases.claim(third)
    assert claim is not None
    assert settle.settle(claim, Failed("engine_failure", "no"))
    assert pause(system.database, batch)
    retry(system.database, batch)
    assert resume(system.database, batch)
    while claims := claim_all(system, batch):
        for each in claims:
            settle.settle(each, REPLY)
    assert read(system, batch).states == {TurnState.COMPLETED: 40}


def test_a_turn_in_quarantine_stays_there_through_a_pause(system: Any, batch: Batch) -> None:
    first = rows_in(system, batch, "queued")[0]
    system.database.run("UPDATE outbox SET lane = 'quarantine' WHERE turn_id = %s", (first,))
    assert pause(system.database, batch)
    assert claim_all(system, batch) == []
    assert resume(system.database, batch)
    (row,) = system.database.run("SELECT lane FROM outbox WHERE turn_id = %s", (first,))
    assert row.lane == "quarantine"


@pytest.mark.usefixtures("brief_doctor")
def test_the_doctor_finds_nothing_wrong_with_a_paused_batch(
    system: Any, batch: Batch, database_url: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    monkeypatch.setenv("TURNMILL_BROKER__URL", valkey_url)
    system.database.run("UPDATE outbox SET due_at = due_at - interval '1 hour'")

    def waiting() -> list[str]:
        return [each.detail for each in diagnose() if "lane batch" in each.detail]

    assert len(waiting()) == 2, "neither a worker nor a relay"
    pause(system.database, batch)
    assert waiting() == []
    assert not any("lane paused" in each.detail for each in diagnose())
