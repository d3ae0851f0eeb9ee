"""The counters of a batch say what a scan of its turns would say, whoever changed the turns."""

import random
from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from turnmill.infra.migrations import upgrade
from turnmill.producer.accept import accept_many
from turnmill.producer.batches.control import cancel_batch
from turnmill.producer.batches.lookup import find_batch
from turnmill.producer.batches.progress import count_ended, progress, summarize
from turnmill.producer.cancel import cancel
from turnmill.producer.handoff import hand_off
from turnmill.producer.parked.listing import find_parked
from turnmill.producer.parked.replay import drop, replay
from turnmill.schemas.batches import BatchProgress, row_key
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered, Crashed, Failed, Outcome, Snoozed
from turnmill.schemas.parked import ParkedFilter
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DatabaseSettings
from turnmill.schemas.turns import Reply, TurnState, Usage
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.upkeep.batches import forget_batch_moves, merge_batch_moves
from turnmill.workers.upkeep.rescuer import sweep

USAGE = Usage(prompt_tokens=7, completion_tokens=3)
REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=USAGE))
OUTCOMES: list[Outcome] = [
    REPLY, REPLY, REPLY, Snoozed(0.0, "busy"), Snoozed(0.0, "drain", counts=False),
    Failed("bad", "No."), Crashed(),
]  # fmt: skip

_SCAN = """
SELECT state, count(*)::int AS turns, sum(t.attempt)::int AS attempts,
    coalesce(sum(prompt_tokens), 0)::int AS prompt_tokens,
    coalesce(sum(completion_tokens), 0)::int AS completion_tokens
FROM turns t LEFT JOIN replies r ON r.turn_id = t.id WHERE batch_id = %s GROUP BY state
"""
_FAILED = """
SELECT error_code, count(*)::int AS turns FROM turns
WHERE batch_id = %s AND state IN ('failed', 'parked') GROUP BY error_code
"""


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


def make_batch(database: Database, tenant_id: UUID, total: int) -> UUID:
    batch_id = new_id()
    database.run(
        "INSERT INTO batches (id, tenant_id, bot, name, fingerprint, total) "
        "VALUES (%s, %s, 'echo', 'made.csv', %s, %s)",
        (batch_id, tenant_id, batch_id.bytes, total),
    )
    return batch_id


class Walk:
    """Turns of a batch, and some of none, on their ways through the code of every process."""

    def __init__(self, system: Any, seed: int, total: int = 40) -> None:
        self._system, self._database = system, system.database
        self._chance = random.Random(seed)
        self.batch_id = make_batch(self._database, system.tenant_id, total)
        settings, model = system.settings.worker, system.settings.engine.model_name
        self._leases = Leases(self._database, settings, model=model, engine="echo")
        self._settler = Settler(self._database, max_attempts=1, give_up=Event())
        conversations = [new_id() for _ in range(total // 3)]
        rows = range(1, total + 1)
        requests = [
            system.request(
                f"row {row}",
                conversation_id=self._chance.choice(conversations),
                idempotency_key=row_key(self.batch_id, str(row)),
                batch_id=self.batch_id,
                batch_row=row,
            )
            for row in rows
        ] + [system.request(f"alone {row}") for row in rows]
        self.turns = accept_many(self._database, requests)

    def step(self) -> None:
        turn = self._chance.choice(self.turns)
        match self._chance.randrange(12):
            case 0:
                cancel(self._database, self._system.tenant_id, turn.turn_id)
            case 1:
                self._change_parked(replay)
            case 2:
                self._change_parked(drop)
            case 3 if self._chance.random() < 0.2:
                because = "Too hard."
                hand_off(self._database, self._system.tenant_id, turn.conversation_id, because)
            case 4:
                sweep(self._database, self._system.settings.worker)
            case 5:
                merge_all(self._database)
            case _:
                claim = self._leases.claim(turn.turn_id)
                if claim and self._chance.random() < 0.9:
                    self._settler.settle(claim, self._chance.choice(OUTCOMES))

    def _change_parked(self, way: Callable[..., Any]) -> None:
        parked = find_parked(self._database, self._system.tenant_id, ParkedFilter(), limit=2)
        way(self._database, self._system.tenant_id, parked)

    def read(self) -> BatchProgress:
        return progress(self._database, self._system.tenant_id, self.batch_id)


def merge_all(database: Database) -> None:
    """As if what there is had gathered for a minute."""
    database.run("UPDATE batch_moves SET last_at = last_at - interval '2 minutes'")
    merge_batch_moves(database)


def assert_counted(database: Database, batch_id: UUID, now: BatchProgress) -> None:
    scanned = database.run(_SCAN, (batch_id,))
    assert now.states == {TurnState(row.state): row.turns for row in scanned}
    assert now.attempts == sum(row.attempts for row in scanned)
    assert now.prompt_tokens == sum(row.prompt_tokens for row in scanned)
    assert now.completion_tokens == sum(row.completion_tokens for row in scanned)
    failed = {row.error_code: row.turns for row in database.run(_FAILED, (batch_id,))}
    assert {each.error_code: each.count for each in now.failures} == failed
    ended = sum(row.turns for row in scanned) - sum(
        now.states.get(state, 0) for state in ("waiting", "queued", "running")
    )
    assert count_ended(database, [batch_id]).get(batch_id, 0) == ended


def test_counters_agree_with_a_scan_after_each_of_many_changes(system: Any) -> None:
    seen: Counter[str] = Counter()
    for seed in range(3):
        walk = Walk(system, seed)
        for _ in range(160):
            walk.step()
            now = walk.read()
            assert_counted(system.database, walk.batch_id, now)
            seen.update(now.states)
    assert set(seen) == set(TurnState)


def test_attempts_are_those_of_the_attempts_table(system: Any) -> None:
    """Crashes, hand-backs, failed attempts and the one that runs; not the turns, nor the rows."""
    walk = Walk(system, 7)
    for _ in range(80):
        walk.step()
    (there,) = system.database.run(
        "SELECT count(*)::int AS n FROM attempts a JOIN turns t ON t.id = a.turn_id "
        "WHERE t.batch_id = %s",
        (walk.batch_id,),
    )
    assert walk.read().attempts == there.n > 0


def test_merging_bounds_the_rows_and_keeps_the_rate(system: Any) -> None:
    database, batch_id = system.database, make_batch(system.database, system.tenant_id, 5000)
    database.run(
        "INSERT INTO batch_moves (batch_id, new_state, turns) VALUES (%s, 'queued', 5000)",
        (batch_id,),
    )
    # 4,000 turns within 400 s.
    database.run(
        "INSERT INTO batch_moves (batch_id, old_state, new_state, turns, completion_tokens, "
        "first_at, last_at) SELECT %s, 'running', 'completed', 1, 5, at, at FROM "
        "(SELECT clock_timestamp() - n * interval '0.1 s' AS at FROM generate_series(1, 4000) n)",
        (batch_id,),
    )
    before = progress(database, system.tenant_id, batch_id)
    assert before.turns_per_s == pytest.approx(10, rel=0.1)
    assert merge_batch_moves(database) == 1
    after = progress(database, system.tenant_id, batch_id)
    assert after.states == before.states == {"queued": 1000, "completed": 4000}
    assert after.turns_per_s == pytest.approx(10, rel=0.2)
    assert after.tokens_per_s == pytest.approx(50, rel=0.2)
    (rows,) = database.run("SELECT count(*)::int AS n FROM batch_moves")
    assert rows.n < 100
    assert merge_batch_moves(database) == 0


def test_the_summary_names_a_row_for_each_kind_of_failure(system: Any) -> None:
    walk = Walk(system, 3)
    settle = walk._settler.settle
    failures = [Failed("too_long", "The prompt is too long."), Failed("refused", "No.")]
    for turn in walk.turns:
        if claim := walk._leases.claim(turn.turn_id):
            settle(claim, failures[turn.seq % 2] if turn.seq > 1 else REPLY)
    now = summarize(system.database, system.tenant_id, walk.batch_id)
    assert {each.error_code for each in now.failures} == {"too_long", "refused"}
    for each in now.failures:
        (row,) = system.database.run(
            "SELECT error_code, error_message FROM turns WHERE idempotency_key = %s",
            (row_key(walk.batch_id, each.example or ""),),
        )
        assert (row.error_code, row.error_message) == (each.error_code, each.message)


def test_a_batch_that_cannot_be_merged_holds_up_no_other_and_the_log_names_it(system: Any) -> None:
    bad, good = (make_batch(system.database, system.tenant_id, 2) for _ in range(2))
    for batch_id in (bad, good):
        system.database.run(
            "INSERT INTO batch_moves (batch_id, old_state, new_state, turns, first_at, last_at) "
            "SELECT %s, 'running', 'completed', 1, at, at FROM generate_series(1, 2), "
            "(SELECT clock_timestamp() - interval '1 hour' AS at)",
            (batch_id,),
        )
    refuse_moves(system, "NOT is_merged", bad)
    with capture_logs() as logs:
        assert merge_batch_moves(system.database) == 1
    merged = "SELECT batch_id FROM batch_moves WHERE is_merged"
    assert [row.batch_id for row in system.database.run(merged)] == [good]
    (failure,) = [log for log in logs if log["event"] == "batch.sweep_failed"]
    assert (failure["batch_id"], failure["constraint"]) == (bad.hex, "refuses")


def refuse_moves(system: Any, rule: str, batch_id: UUID) -> None:
    system.database.run(
        f"ALTER TABLE batch_moves ADD CONSTRAINT refuses CHECK ({rule} OR batch_id <> '{batch_id}')"
    )


def test_counters_that_cannot_be_deleted_keep_no_others(system: Any) -> None:
    bad, gone = (Walk(system, seed) for seed in (1, 2))
    system.database.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE check_violation; END $$"
    )
    system.database.run(
        "CREATE TRIGGER refuse BEFORE DELETE ON batch_moves FOR EACH ROW "
        f"WHEN (OLD.batch_id = '{bad.batch_id}') EXECUTE FUNCTION refuse()"
    )
    ids = [bad.batch_id, gone.batch_id]
    system.database.run("DELETE FROM batches WHERE id = ANY(%s)", (ids,))
    with capture_logs() as logs:
        forget_batch_moves(system.database)
    left = system.database.run("SELECT DISTINCT batch_id FROM batch_moves")
    assert [row.batch_id for row in left] == [bad.batch_id]
    assert [log["batch_id"] for log in logs] == [bad.batch_id.hex]


def test_counters_of_deleted_batches_are_forgotten(system: Any) -> None:
    kept, gone = (Walk(system, seed) for seed in (1, 2))
    system.database.run("DELETE FROM batches WHERE id = %s", (gone.batch_id,))
    forget_batch_moves(system.database)
    left = system.database.run("SELECT DISTINCT batch_id FROM batch_moves")
    assert [row.batch_id for row in left] == [kept.batch_id]


def test_turns_of_before_the_counters_are_counted_by_the_migration(
    system: Any, empty_database_url: str
) -> None:
    walk = Walk(system, 5)
    for _ in range(120):
        walk.step()
    upgrade(empty_database_url, "0019")
    copy = Database(DatabaseSettings(url=empty_database_url))
    for table in ("tenants", "batches", "turns", "replies"):
        rows = system.database.run(f"SELECT row_to_json(t)::text AS row FROM {table} t")
        copy.run(
            f"INSERT INTO {table} SELECT r.* FROM unnest(%s::text[]) AS given, "
            f"json_populate_record(NULL::{table}, given::json) AS r",
            ([row.row for row in rows],),
        )
    upgrade(empty_database_url)
    now = progress(copy, system.tenant_id, walk.batch_id)
    assert_counted(copy, walk.batch_id, now)
    assert now.turns_per_s is None
    assert now.first_accepted_at and now.last_settled_at
    copy.close()


def test_a_cancelled_batch_is_counted_by_the_page_and_turns_of_its_conversations_one_by_one(
    system: Any,
) -> None:
    walk = Walk(system, seed=7, total=100)
    for _ in range(40):
        walk.step()
    # The next turn of a conversation becomes due when those before it are cancelled.
    first = next(turn for turn in walk.turns if turn.state is TurnState.QUEUED)
    other = make_batch(system.database, system.tenant_id, 1)
    accept_many(system.database, [
        system.request("after it", conversation_id=first.conversation_id,
                       batch_id=other, batch_row=1)
    ])  # fmt: skip
    before = moves(system)
    batch = find_batch(system.database, system.tenant_id, walk.batch_id.hex)
    assert cancel_batch(system.database, batch)
    now = walk.read()
    assert now.is_done
    assert_counted(system.database, walk.batch_id, now)
    assert_counted(system.database, other, progress(system.database, system.tenant_id, other))
    assert moves(system) - before < 10


def moves(system: Any) -> int:
    (rows,) = system.database.run("SELECT count(*)::int AS n FROM batch_moves")
    return int(rows.n)
