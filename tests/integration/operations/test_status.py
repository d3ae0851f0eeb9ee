"""The status: what it counts, why turns wait, and what it costs.

With a real PostgreSQL. The broker is not asked; where a hint is, the outbox says.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.api.resources.metrics import render_open
from turnmill.producer.operations import lanes
from turnmill.producer.operations.queue import COUNTED, read_open
from turnmill.producer.operations.status import LaneStatus, Status, read_status
from turnmill.producer.operations.why import Explainer, Reason, Why
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.tables import RELAY_NAME
from turnmill.schemas.turns import Lane
from turnmill.workers.turn.leases import Leases

Eventually = Callable[..., None]

#: Turns behind each other, accepted by one statement: as many as a backlog has.
_MANY = """
WITH bot AS (SELECT id, tenant_id, model FROM bots LIMIT 1), turn AS (
    INSERT INTO turns
        (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params)
    SELECT gen_random_uuid(), tenant_id, gen_random_uuid(), 1, id, model, 'batch', 'queued',
        '[]', '{}'
    FROM bot, generate_series(1, %(queued)s) RETURNING id, model
), waiting AS (
    INSERT INTO turns
        (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params)
    SELECT gen_random_uuid(), tenant_id, gen_random_uuid(), 2, id, model, 'batch', 'waiting',
        '[]', '{}'
    FROM bot, generate_series(1, %(waiting)s)
)
INSERT INTO outbox (turn_id, model, lane, is_immediate) SELECT id, model, 'batch', true FROM turn
"""

#: Rows that statements of this session have read, by index or without.
_READ = """
SELECT pg_stat_force_next_flush(), (
    SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))
    FROM pg_stat_user_tables WHERE relname IN ('turns', 'outbox', 'attempts')) AS n
"""


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@pytest.fixture
def worker(system: Any, eventually: Eventually) -> Iterator[Leases]:
    """A worker that lives, consumes two lanes and claims what it is told to."""
    model = system.settings.engine.model_name
    leases = Leases(system.database, system.settings.worker, model=model, engine="echo")
    leases.start()
    yield leases
    leases.close()


def status(system: Any) -> Status:
    return read_status(system.database, system.settings)


def lane(system: Any, name: Lane = Lane.INTERACTIVE) -> LaneStatus:
    (found,) = [each for each in status(system).lanes if each.lane == name]
    return found


def why(system: Any, turn_id: UUID) -> Why:
    found = Explainer(system.database, system.settings).explain(turn_id)
    assert found is not None
    return found


def change(system: Any, what: str, *values: object) -> None:
    system.database.run(f"UPDATE outbox SET {what}", values)


def test_every_reason_to_wait_is_told_with_what_helps(system: Any, eventually: Eventually) -> None:
    """One turn, from reason to reason as they are removed, and a second one behind it."""
    said: list[Why] = []
    conversation = new_id()
    first = accept(system.database, system.request("one", conversation_id=conversation)).turn_id
    second = accept(system.database, system.request("two", conversation_id=conversation)).turn_id

    def say(turn_id: UUID = first) -> Why:
        said.append(why(system, turn_id))
        return said[-1]

    assert say().remedy == "turnmill worker --lane interactive"
    lanes.pause(system.database, Lane.INTERACTIVE, None, by="ada@ops", reason="GPU replaced")
    assert "by ada@ops: GPU replaced" in say().text
    assert said[-1].remedy == "turnmill lanes resume interactive"
    lanes.resume(system.database, Lane.INTERACTIVE, None)
    change(system, "lane = 'paused'")
    assert str(say().remedy).startswith("turnmill batch resume")
    change(system, "lane = 'interactive'")
    change(system, "is_immediate = false, due_at = clock_timestamp() + interval '20 s'")
    assert say().text.endswith("for further messages")
    change(system, "is_immediate = true, due_at = clock_timestamp()")

    model = system.settings.engine.model_name
    leases = Leases(system.database, system.settings.worker, model=model, engine="echo")
    leases.start()
    try:
        leases.unavailable_because = "no answer from the server"
        eventually(lambda: say().reason is Reason.ENGINE_AWAY)
        assert "no answer from the server" in said[-1].text
        leases.unavailable_because = None
        eventually(lambda: say().reason is Reason.ON_ITS_WAY)
        change(system, "due_at = clock_timestamp() - interval '1 min'")
        assert say().remedy == "turnmill relay"
        relay = Database(system.settings.database)
        with relay.connect() as listening:
            listening.execute(f"SET application_name = '{RELAY_NAME}'")
            for mark in ("NULL", "clock_timestamp()"):
                # It marks a hint, and takes the mark back when the broker does not confirm it.
                change(system, f"published_at = {mark}")
                assert say().remedy == "turnmill doctor"
                assert "a relay runs, and the broker does not take it" in said[-1].text
        relay.close()
        change(system, "published_at = clock_timestamp() - interval '1 min'")
        assert "publishes it again" in say().text
        many = [system.request("other") for _ in range(system.settings.worker.concurrency)]
        for other in accept_many(system.database, many):
            assert leases.claim(other.turn_id)
        assert "8 of 8 slots" in say().text
        system.database.run("UPDATE turns SET state = 'completed' WHERE state = 'running'")
        assert leases.claim(first)
        assert "attempt 1" in say().text
        assert say(second).text.startswith(
            f"waits for an earlier turn of its conversation, turn_{first.hex}, which is being"
        )
    finally:
        leases.close()
    assert {each.reason for each in said} == set(Reason)
    assert not any("one" in each.text.split() for each in said), "no prompt"


def test_workers_that_have_lost_the_broker_are_not_to_be_joined_by_more(
    system: Any, worker: Leases, eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("hello"))
    worker.consuming.clear()
    eventually(lambda: why(system, turn.turn_id).remedy == "turnmill doctor")
    assert "live and take no hints" in why(system, turn.turn_id).text


def test_a_turn_that_backs_off_tells_why_its_last_attempt_failed(
    system: Any, worker: Leases
) -> None:
    turn = accept(system.database, system.request("hello"))
    worker.claim(turn.turn_id)
    system.database.run(
        "UPDATE attempts SET error = 'out of memory'; UPDATE turns SET state = 'queued'; "
        "INSERT INTO outbox (turn_id, model, lane, due_at) SELECT id, model, lane, "
        "clock_timestamp() + interval '20 s' FROM turns"
    )
    assert why(system, turn.turn_id).text.endswith("after attempt 1: out of memory")
    assert (lane(system).queued, lane(system).snoozed) == (0, 1)


def test_a_turn_that_has_ended_waits_for_nothing(system: Any) -> None:
    turn = accept(system.database, system.request("hello"))
    system.database.run("UPDATE turns SET state = 'completed'")
    assert Explainer(system.database, system.settings).explain(turn.turn_id) is None


def test_a_worker_for_a_model_that_this_installation_does_not_serve_is_named_by_its_weights(
    system: Any,
) -> None:
    turn = accept(system.database, system.request("hello"))
    system.database.run("UPDATE turns SET model = 'my model'; UPDATE outbox SET model = 'my model'")
    remedy = why(system, turn.turn_id).remedy
    name = "TURNMILL_ENGINE__SERVED_NAME='my model'"
    assert remedy == f"TURNMILL_ENGINE__MODEL=WEIGHTS {name} turnmill worker --lane interactive"


def test_lanes_are_counted_by_state_and_the_oldest_turn_is_named(
    system: Any, worker: Leases
) -> None:
    conversation = new_id()
    requests = [system.request("a", conversation_id=conversation) for _ in range(3)]
    running, *_ = accept_many(system.database, requests)
    queued = accept_many(system.database, [system.request("b") for _ in range(2)])
    assert worker.claim(running.turn_id)
    found = lane(system)
    assert (found.queued, found.waiting, found.running, found.slots) == (2, 2, 1, 8)
    assert not found.is_estimate
    assert found.oldest is not None
    assert found.oldest.turn_id == f"turn_{min(turn.turn_id for turn in queued).hex}"
    assert lane(system, Lane.BATCH).queued == 0, "a lane that a worker serves is shown empty too"


def test_the_rate_is_that_of_the_live_workers_and_tells_when_the_lane_will_be_empty(
    system: Any, worker: Leases, eventually: Eventually
) -> None:
    eventually(lambda: lane(system).turns_per_s == 0.0)
    assert lane(system).left_s is None
    for _ in range(120):
        worker.ended.note(Lane.INTERACTIVE)
    system.database.run("UPDATE worker_liveness SET started_at = started_at - interval '1 hour'")
    accept_many(system.database, [system.request("hello") for _ in range(10)])
    eventually(lambda: lane(system).turns_per_s == 2.0)
    assert lane(system).left_s == 5.0


def test_workers_of_an_older_release_leave_the_rate_open(system: Any, worker: Leases) -> None:
    worker.close()
    system.database.run("UPDATE worker_liveness SET ended_lately = NULL")
    assert lane(system).turns_per_s is None


def test_the_status_of_a_long_backlog_reads_no_more_than_that_of_a_short_one(system: Any) -> None:
    """Twice: with nobody's statistics of the tables, and with them."""
    size, parts = 4 * COUNTED, 4
    for _ in range(parts):
        system.database.run(_MANY, {"queued": size // parts, "waiting": size // parts})
    for analyze in (False, True):
        if analyze:
            system.database.run("ANALYZE turns; ANALYZE outbox")
        before = system.database.run(_READ)[0].n
        found = lane(system, Lane.BATCH)
        system.database.run("SELECT pg_stat_force_next_flush()")
        read = system.database.run(_READ)[0].n - before
        assert COUNTED / 2 < read < 4 * COUNTED < 2 * size
        assert found.is_estimate
        if analyze:
            assert found.queued == pytest.approx(size, rel=0.2)
            assert found.waiting == pytest.approx(size, rel=0.2)


def test_a_scrape_of_the_metrics_reads_no_more_of_a_long_backlog(system: Any) -> None:
    def rows_read() -> int:
        system.database.run("SELECT pg_stat_force_next_flush()")
        return int(system.database.run(_READ)[0].n)

    def read_by_a_scrape() -> int:
        before = rows_read()
        render_open(system.database)
        return rows_read() - before

    reads = []
    for size in (100, 2 * COUNTED, 2 * COUNTED):
        system.database.run(_MANY, {"queued": size, "waiting": size})
        # Finished turns, among which a scan of the table would look for open ones.
        system.database.run("UPDATE turns SET state = 'completed' WHERE state = 'queued'")
        reads.append(read_by_a_scrape())
    few, many, more = reads
    assert few < COUNTED
    assert more <= many + 100


def test_paused_batches_are_counted_apart(system: Any) -> None:
    accept_many(system.database, [system.request("hello", lane=Lane.BATCH) for _ in range(4)])
    change(system, "lane = 'paused' WHERE turn_id IN (SELECT turn_id FROM outbox LIMIT 3)")
    (found,) = read_open(system.database).values()
    assert (found.queued, found.held) == (1, 3)


def test_a_delivery_that_backs_off_is_no_turn_and_spoils_no_figures(system: Any) -> None:
    accept(system.database, system.request("hello"))
    system.database.run(
        "INSERT INTO outbox (turn_id, model, lane, due_at) VALUES "
        "(gen_random_uuid(), 'desk', 'delivery', clock_timestamp() + interval '20 s')"
    )
    assert [each.lane for each in status(system).lanes] == [Lane.INTERACTIVE]
    figures = render_open(system.database).decode()
    assert 'turnmill_turns_open_count{lane="interactive",state="queued"} 1.0' in figures
    assert "turnmill_outbox_unpublished_count 2.0" in figures


def test_the_status_is_what_programs_read(system: Any, worker: Leases) -> None:
    accept(system.database, system.request("my secret question"))
    shown = status(system).model_dump_json()
    read = json.loads(shown)
    assert {each["lane"] for each in read["lanes"]} == {"interactive", "batch"}
    assert read["workers"][0]["state"] == "consuming"
    assert "secret" not in shown
