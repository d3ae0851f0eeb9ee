"""The pruner: what is old goes with all that belongs to it, and nobody waits for that."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.turns import read_conversation
from turnmill.schemas.errors import DatabaseUnavailable, NotFound, SettingsError
from turnmill.schemas.files.files import Purpose
from turnmill.schemas.files.opening import open_files, open_storage
from turnmill.schemas.files.storage import Storage
from turnmill.schemas.ids import first_id, new_id
from turnmill.schemas.postgres.links import Link
from turnmill.schemas.settings import RetentionSettings
from turnmill.schemas.store.partitions import PARTITIONED, Month, create_month, months_from
from turnmill.schemas.store.tables import PRUNER_LOCK_KEY
from turnmill.schemas.turns import AcceptedTurn, Lane, TurnState
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.prompt import build_prompt
from turnmill.workers.upkeep import retention as retention_module
from turnmill.workers.upkeep.months import MONTHS_AHEAD
from turnmill.workers.upkeep.pruner import Pruner, prune

Eventually = Callable[..., None]

#: Older than any retention in these tests, and in months of its own (see `past_months`).
PAST = datetime(2020, 1, 15, tzinfo=UTC)
YEAR = RetentionSettings(turns_days=365)

_OLD_TURNS = """
WITH n AS (SELECT * FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS n (id, number)),
conversation AS (
    INSERT INTO conversations (id, tenant_id, bot_id, next_seq, answered_seq)
    SELECT n.id, %(tenant)s, b.id, 2, CASE WHEN %(state)s = 'waiting' THEN 0 ELSE 1 END
    FROM n, (SELECT id FROM bots LIMIT 1) AS b
), turn AS (
    INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input,
        params, idempotency_key, attempt, accepted_at, settled_at)
    SELECT n.id, %(tenant)s, n.id, 1, b.id, b.model, 'batch', %(state)s,
        '[{"role": "user", "content": "old"}]', '{}', 'old ' || n.id, 1, %(at)s,
        CASE WHEN %(state)s <> 'waiting' THEN %(at)s END
    FROM n, (SELECT id, model FROM bots LIMIT 1) AS b
), attempt AS (
    INSERT INTO attempts (turn_id, number, worker_id, lane, ended_at, outcome)
    SELECT id, 1, id, 'batch', %(at)s, 'answered' FROM n WHERE %(state)s <> 'waiting'
)
INSERT INTO replies (turn_id, attempt, content, finish_reason, prompt_tokens, completion_tokens)
SELECT id, 1, repeat('old ', 50), 'stop', 1, 1 FROM n WHERE %(state)s = 'completed'
"""

_WAITS = """
SELECT waiting.wait_event, waiting.query FROM pg_stat_activity waiting
JOIN pg_stat_activity pruner ON pruner.pid = ANY(pg_blocking_pids(waiting.pid))
WHERE waiting.wait_event_type = 'Lock' AND pruner.application_name = 'turnmill pruner'
"""


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    """A database; whoever needs a worker runs it inline."""
    return make_system(database_url, "amqp://nobody")


def add_old(system: Any, count: int, state: str = "completed", at: datetime = PAST) -> list[UUID]:
    start = first_id(at).int
    ids = [UUID(int=start + (number << 64) + new_id().int % 2**60) for number in range(count)]
    params = {"ids": ids, "tenant": system.tenant_id, "state": state, "at": at}
    system.database.run(_OLD_TURNS, params)
    return ids


def backdate(system: Any, turns: Sequence[AcceptedTurn], days: int) -> list[UUID]:
    """As if these settled turns had been accepted and answered so long ago."""
    shift = int(timedelta(days=days).total_seconds() * 1000) << 80
    moved = [UUID(int=turn.turn_id.int - shift) for turn in turns]
    pairs = ([turn.turn_id for turn in turns], moved)
    moving = "UPDATE {} SET {} = m.after FROM unnest(%s::uuid[], %s::uuid[]) AS m (before, after)"
    for table in PARTITIONED:
        system.database.run(f"{moving.format(table, 'turn_id')} WHERE turn_id = before", pairs)
    system.database.run(f"{moving.format('turns', 'id')} WHERE id = before", pairs)
    system.database.run(
        "UPDATE turns SET settled_at = settled_at - make_interval(days => %s) WHERE id = ANY(%s)",
        (days, moved),
    )
    return moved


def past_months(system: Any) -> None:
    """The partitions as they would be had the tables been partitioned in December 2019."""
    for table in PARTITIONED:
        system.database.run(f"DROP TABLE {table}_before")
        system.database.run(
            f"CREATE TABLE {table}_before PARTITION OF {table} "
            f"FOR VALUES FROM (MINVALUE) TO ('{Month(2020, 1).first_id}')"
        )
        for month in [*months_from(Month(2020, 1), 2), Month.of(datetime.now(UTC))]:
            for statement in create_month(table, month):
                system.database.run(statement)


def prune_now(
    system: Any, retention: RetentionSettings = YEAR, **options: Any
) -> Counter[str] | None:
    return prune(system.database, retention, never_stops, **options)


def never_stops(seconds: float) -> bool:
    return threading.Event().wait(seconds)


def answer(system: Any, *requests: Any) -> list[AcceptedTurn]:
    accepted = accept_many(system.database, requests)
    with InlineWorker(system.settings):
        system.wait_until_settled()
    return accepted


def rows(system: Any, table: str, key: str = "id") -> set[UUID]:
    return {row.key for row in system.database.run(f"SELECT {key} AS key FROM {table}")}


def parts(system: Any, table: str) -> set[str]:
    found = system.database.run(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = %s::regclass",
        (table,),
    )
    return {row.name for row in found}


@contextmanager
def watched(system: Any) -> Iterator[list[str]]:
    """Every wait for a lock that the pruner holds or is queued for."""
    seen: list[str] = []
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(0.002):
            seen.extend(f"{row.wait_event}: {row.query}" for row in system.database.run(_WAITS))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stopping.set()
        thread.join()


def test_ten_thousand_turns_are_pruned_without_blocking_the_lanes(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    old = add_old(system, 10_000)
    kept = add_old(system, 20, "waiting") + add_old(system, 20, "parked")
    live: list[AcceptedTurn] = []

    def are_gone() -> bool:
        live.extend(accept_many(system.database, [system.request("live") for _ in range(5)]))
        return system.count(f"id <= '{max(old)}'") == len(kept)

    system.start("relay")
    with watched(system) as waits:
        system.start_worker(
            TURNMILL_RETENTION__TURNS_DAYS="365",
            TURNMILL_RETENTION__PARKED_DAYS="5000",
            TURNMILL_RETENTION__EVERY_S="0.5",
        )
        eventually(are_gone, 90)
        live_ids = {turn.turn_id for turn in live}
        eventually(lambda: rows(system, "replies", "turn_id") == live_ids, 60, 0.1)
    assert waits == []
    assert len(live) > 20
    assert rows(system, "turns") == live_ids | set(kept)
    assert rows(system, "attempts", "turn_id") == live_ids | set(kept[20:])
    assert system.database.run("SELECT count(*) AS n FROM conversations")[0].n == len(live) + 40


def test_a_dropped_month_leaves_the_attempts_of_open_turns(system: Any) -> None:
    past_months(system)
    february = datetime(2020, 2, 3, tzinfo=UTC)
    answered, open_turn = add_old(system, 1)[0], add_old(system, 1, at=february)[0]
    system.database.run("UPDATE turns SET state = 'running' WHERE id = %s", (open_turn,))
    gone = prune_now(system, RetentionSettings())
    assert gone == {"attempts_before": 1, "attempts_2020_01": 1}
    assert rows(system, "attempts", "turn_id") == {open_turn}
    # Without a retention for them, turns and replies are for ever.
    assert rows(system, "replies", "turn_id") == rows(system, "turns") == {answered, open_turn}
    system.database.run("UPDATE turns SET state = 'completed'")
    assert prune_now(system, RetentionSettings()) == {"attempts_2020_02": 1}


def test_a_month_of_replies_is_dropped_when_its_last_turn_is_gone(system: Any) -> None:
    past_months(system)
    add_old(system, 3)
    late = add_old(system, 1, at=datetime(2020, 2, 3, tzinfo=UTC))[0]
    system.database.run("UPDATE turns SET settled_at = now() WHERE id = %s", (late,))
    gone = prune_now(system)
    assert gone is not None
    assert (gone["turns"], gone["replies"], gone["replies_2020_01"]) == (3, 3, 1)
    assert {"replies_2020_01", "replies_2020_02"} & parts(system, "replies") == {"replies_2020_02"}
    assert rows(system, "replies", "turn_id") == {late}


def test_a_stuck_reader_delays_the_dropping_of_a_month_and_nothing_else(system: Any) -> None:
    past_months(system)
    add_old(system, 1)
    with InlineWorker(system.settings), watched(system) as waits:
        with psycopg.connect(system.settings.database.url.get_secret_value()) as reader:
            reader.execute("SELECT count(*) FROM attempts")
            pruning = threading.Thread(target=prune_now, args=(system, RetentionSettings()))
            pruning.start()
            while pruning.is_alive():
                accept(system.database, system.request("live"))
            system.wait_until_settled()
            assert waits == []
            assert "attempts_2020_01" in parts(system, "attempts")
        gone = prune_now(system, RetentionSettings())
    assert gone is not None
    assert "attempts_2020_01" in gone


def test_months_are_made_ahead(system: Any) -> None:
    ahead = [*months_from(Month.of(datetime.now(UTC)).next(), MONTHS_AHEAD)]
    for table in PARTITIONED:
        for month in ahead:
            system.database.run(f"DROP TABLE {month.partition_of(table)}")
    made = {month.partition_of(table) for month in ahead for table in PARTITIONED}
    assert set(prune_now(system) or ()) == {f"{name} (made)" for name in made}
    assert made <= parts(system, "attempts") | parts(system, "replies")
    assert prune_now(system) == {}


def test_a_month_that_was_made_too_late_stays_in_the_default_partition(system: Any) -> None:
    month = Month.of(datetime.now(UTC)).next()
    system.database.run(f"DROP TABLE {month.partition_of('attempts')}")
    early = add_old(system, 1, at=datetime(month.year, month.month, 2, tzinfo=UTC))
    assert prune_now(system) == {}
    assert month.partition_of("attempts") not in parts(system, "attempts")
    assert rows(system, "attempts_default", "turn_id") == set(early)


def test_attempts_in_the_default_partition_are_pruned_by_row(system: Any) -> None:
    past_months(system)
    for name in ("attempts_2020_01", "attempts_2020_02"):
        system.database.run(f"DROP TABLE {name}")
    add_old(system, 3)
    open_turn = add_old(system, 1)[0]
    system.database.run("UPDATE turns SET state = 'running' WHERE id = %s", (open_turn,))
    gone = prune_now(system, RetentionSettings())
    assert gone is not None
    assert gone["attempts"] == 3
    assert rows(system, "attempts", "turn_id") == {open_turn}


def test_of_two_pruners_one_works(system: Any) -> None:
    add_old(system, 1)
    with system.database.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s)", (PRUNER_LOCK_KEY,))
        assert prune_now(system) is None
    gone = None
    while gone is None:
        gone = prune_now(system)
    assert gone["turns"] == 1


def test_turn_that_cannot_be_deleted_stays_alone_and_the_log_names_it(system: Any) -> None:
    past_months(system)
    bad, *_ = add_old(system, 5)
    system.database.run("CREATE TABLE refers (turn_id uuid REFERENCES turns (id))")
    system.database.run("INSERT INTO refers VALUES (%s)", (bad,))
    with capture_logs() as logs:
        counts = prune_now(system)
    assert counts is not None
    assert counts["turns"] == 4
    assert [row.id for row in system.database.run("SELECT id FROM turns")] == [bad]
    failures = [log["turn_id"] for log in logs if log["event"] == "turn.sweep_failed"]
    assert failures == [bad.hex]


def test_rows_of_other_tables_that_cannot_be_deleted_stay_alone_too(system: Any) -> None:
    notices = [UUID(int=first_id(PAST).int + number) for number in range(3)]
    for notice in notices:
        system.database.run(
            "INSERT INTO deliveries (id, tenant_id, conversation_id, channel, target, kind, "
            "content, state, settled_at) VALUES (%s, %s, %s, 'desk', '{}', 'notice', 'x', 'sent', "
            "%s)",
            (notice, system.tenant_id, new_id(), PAST),
        )
    idle = [new_id() for _ in range(3)]
    for conversation in idle:
        _begin_thread(system, conversation.hex, conversation)
        system.database.run(
            "INSERT INTO conversations (id, tenant_id, bot_id) SELECT %s, tenant_id, id FROM bots",
            (conversation,),
        )
    batches = [add_batch(system, 1) for _ in range(2)]
    held = {"deliveries": notices[0], "conversations": idle[0], "batches": batches[0]}
    for table, row_id in held.items():
        system.database.run(f"CREATE TABLE of_{table} (id uuid REFERENCES {table} (id))")
        system.database.run(f"INSERT INTO of_{table} VALUES (%s)", (row_id,))
    with capture_logs() as logs:
        assert prune_now(system) is not None
    assert {table: rows(system, table) for table in held} == {
        "deliveries": {held["deliveries"]},
        "conversations": {held["conversations"]} | rows(system, "turns", "conversation_id"),
        "batches": {held["batches"]},
    }
    assert rows(system, "turns", "batch_id") == {held["batches"]}
    failed = {each["event"]: each for each in logs if each["event"].endswith(".sweep_failed")}
    assert failed["delivery.sweep_failed"]["delivery_id"] == held["deliveries"].hex
    assert failed["conversation.sweep_failed"]["conversation_id"] == held["conversations"].hex
    assert failed["batch.sweep_failed"]["batch_id"] == held["batches"].hex
    assert len(failed) == 3


def test_a_table_that_postgres_refuses_to_prune_keeps_no_other(system: Any) -> None:
    """Not even one whose rows have no ids by which they could be tried alone."""
    past_months(system)
    system.database.run(
        "INSERT INTO channel_events (channel, event_id, received_at) VALUES ('slack', '1', %s)",
        (PAST,),
    )
    system.database.run("CREATE TABLE of_events (c text, e text, "
        "FOREIGN KEY (c, e) REFERENCES channel_events (channel, event_id))")  # fmt: skip
    system.database.run("INSERT INTO of_events VALUES ('slack', '1')")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        prune_now(system)
    assert "attempts_2020_01" not in parts(system, "attempts")
    assert "replies_2020_01" not in parts(system, "replies")


@pytest.fixture
def photos(system: Any, tmp_path: Path) -> Storage:
    """The storage of a file that has expired."""
    settings = system.settings.model_copy(update={"data": tmp_path})
    storage = open_storage(settings)
    with storage.draft() as draft:
        draft.write(b"a photo")
        open_files(system.database, settings).save(
            draft, tenant_id=system.tenant_id, name="x", purpose=Purpose.MESSAGE, expires_at=PAST
        )
    return storage


def test_a_stopping_pruner_begins_with_no_files(system: Any, photos: Storage) -> None:
    assert prune(system.database, YEAR, lambda _: True, storage=photos) is not None
    assert len(rows(system, "files")) == 1


def test_a_pruner_that_lost_its_connection_says_why_and_begins_with_no_files(
    system: Any, photos: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[Link] = []

    def lose(_: object) -> None:
        pid = links[0].info.backend_pid
        system.database.run("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        links[0].execute("SELECT 1")

    monkeypatch.setattr(retention_module.Round, "run", lose)
    with pytest.raises(DatabaseUnavailable, match="terminating connection"):
        prune_now(system, on_link=links.append, storage=photos)
    assert len(rows(system, "files")) == 1


def test_files_do_not_wait_for_tables_that_the_pruner_may_not_change(
    system: Any, photos: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise psycopg.errors.InsufficientPrivilege("must be owner of table attempts")

    monkeypatch.setattr(retention_module, "drop", refuse)
    past_months(system)
    add_old(system, 1)
    with pytest.raises(SettingsError, match="must be owner"):
        prune_now(system, storage=photos)
    assert rows(system, "files") == set()


def test_a_conversation_goes_on_after_its_beginning_was_pruned(system: Any) -> None:
    first = system.request("one", idempotency_key="k1")
    begun = answer(system, first)
    same = {"conversation_id": begun[0].conversation_id}
    begun += answer(system, system.request("two", **same))
    backdate(system, begun[:1], 400)
    assert prune_now(system) is not None
    turns = read_conversation(system.database, system.tenant_id, begun[0].conversation_id)
    assert [turn.seq for turn in turns] == [2]
    third = accept(system.database, system.request("three", **same))
    assert (third.seq, third.state) == (3, TurnState.QUEUED)
    assert prompt_of(system, third) == ["two", "two", "three"]
    # The key went with its turn: the same call is a new turn.
    again = accept(system.database, first)
    assert not again.is_duplicate


def prompt_of(system: Any, turn: AcceptedTurn) -> list[str]:
    model = system.settings.engine.model_name
    leases = Leases(system.database, system.settings.worker, model=model, engine="echo")
    claim = leases.claim(turn.turn_id)
    assert claim is not None
    prompt = build_prompt(system.database, EchoEngine(system.settings.engine), claim)
    return [message.content for message in prompt.messages]


def test_a_conversation_goes_with_its_last_turn_and_can_begin_anew(system: Any) -> None:
    conversation_id = new_id()
    turns = answer(
        system,
        *(system.request(text, conversation_id=conversation_id) for text in ("one", "two")),
    )
    backdate(system, turns, 400)
    gone = prune_now(system)
    assert gone is not None
    assert (gone["turns"], gone["conversations"]) == (2, 1)
    with pytest.raises(NotFound):
        read_conversation(system.database, system.tenant_id, conversation_id)
    anew = accept(system.database, system.request("three", conversation_id=conversation_id))
    assert (anew.seq, anew.state) == (1, TurnState.QUEUED)


def test_a_summary_goes_with_the_turns_that_it_tells_of(system: Any) -> None:
    old, young = begin(system, ["one", "two"]), begin(system, ["one", "two"])
    for turn in (old[0], young[0]):
        summarize(system, turn)
    backdate(system, old[:1], 400)
    gone = prune_now(system)
    assert gone is not None
    assert (gone["turns"], gone["summaries"]) == (1, 1)
    assert rows(system, "summaries", "conversation_id") == {young[0].conversation_id}


def test_no_summary_outlives_its_conversation(system: Any) -> None:
    talk = begin(system, ["one", "two"])
    backdate(system, talk[:1], 400)
    assert prune_now(system) is not None
    # Written while the turn that it tells of was being pruned.
    summarize(system, talk[0])
    backdate(system, talk[1:], 400)
    assert prune_now(system) is not None
    assert rows(system, "conversations") == rows(system, "summaries", "conversation_id") == set()


def test_the_pruner_passes_over_a_summary_that_is_being_written(system: Any) -> None:
    talk = begin(system, ["one", "two", "three"])
    summarize(system, talk[0])
    backdate(system, talk[:1], 400)
    with psycopg.connect(system.settings.database.url.get_secret_value()) as writer:
        writer.execute("UPDATE summaries SET content = 'new'")
        assert (prune_now(system) or Counter())["turns"] == 1
    assert len(rows(system, "summaries", "conversation_id")) == 1
    backdate(system, talk[1:2], 400)
    assert (prune_now(system) or Counter())["summaries"] == 1


def begin(system: Any, texts: Sequence[str]) -> list[AcceptedTurn]:
    """A conversation that is answered to its end."""
    conversation_id = new_id()
    return answer(system, *(system.request(t, conversation_id=conversation_id) for t in texts))


def summarize(system: Any, turn: AcceptedTurn) -> None:
    """As if a worker had told of the conversation up to this turn."""
    system.database.run(
        "INSERT INTO summaries (conversation_id, seq, content) VALUES (%s, %s, 'They spoke.')",
        (turn.conversation_id, turn.seq),
    )


def test_a_batch_goes_as_a_whole_even_if_the_round_is_ended_in_between(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "PAGE_TURNS", 4)
    batches = [add_batch(system, 10) for _ in range(2)]
    young = batches[1]
    system.database.run(
        "UPDATE turns SET settled_at = now() WHERE batch_id = %s AND batch_row = 7", (young,)
    )
    # Ended after the first page of its turns, as by the death of the worker.
    prune(system.database, YEAR, lambda seconds: True)
    assert system.count("true") == 16
    assert rows(system, "batches") == {young}
    prune_now(system)
    assert system.count(f"batch_id = '{young}'") == system.count("true") == 10


def add_batch(system: Any, count: int) -> UUID:
    batch_id = new_id()
    requests = [
        system.request("row", lane=Lane.BATCH, batch_id=batch_id, batch_row=row + 1)
        for row in range(count)
    ]
    backdate(system, answer(system, *requests), 400)
    system.database.run(
        "INSERT INTO batches (id, tenant_id, bot, name, fingerprint, total, created_at) "
        "VALUES (%s, %s, 'bot', 'file', %s, %s, now() - interval '400 days')",
        (batch_id, system.tenant_id, batch_id.bytes, count),
    )
    return batch_id


def test_each_kind_has_its_own_retention(system: Any) -> None:
    add_old(system, 3)
    add_old(system, 2, "parked")
    add_old(system, 2, "waiting")
    assert system.count("true") == 7
    prune_now(system, RetentionSettings(turns_days=5000, parked_days=365))
    assert system.count("state = 'parked'") == 0
    assert system.count("true") == 5
    prune_now(system, RetentionSettings())
    assert system.count("true") == 5
    prune_now(system)
    assert system.count("state = 'waiting'") == system.count("true") == 2


def test_a_dry_round_tells_what_a_real_one_does(system: Any) -> None:
    past_months(system)
    add_old(system, 300)
    add_old(system, 2, "failed")
    before = {table: rows(system, table, "turn_id") for table in PARTITIONED}
    told = prune_now(system, is_dry=True)
    assert {table: rows(system, table, "turn_id") for table in PARTITIONED} == before
    assert told is not None
    assert (told["turns"], told["replies"], told["attempts"]) == (302, 300, 302)
    seen: list[int] = []
    gone = prune_now(system, on_progress=lambda counts: seen.append(counts["turns"]))
    assert gone is not None
    assert {table: gone[table] for table in ("turns", *PARTITIONED)} == {
        table: told[table] for table in ("turns", *PARTITIONED)
    }
    assert seen[-1] == 302
    assert len(seen) > 1


def test_a_pruner_stops_in_the_middle_of_its_work(
    system: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "PAGE_TURNS", 1)
    add_old(system, 2000)
    pruner = Pruner(system.database, RetentionSettings(turns_days=365, every_s=0.01))
    pruner.start()
    eventually(lambda: system.count("true") < 2000)
    pruner.close()
    assert not pruner._thread.is_alive()
    assert system.count("true") > 0


def _begin_thread(system: Any, thread: str, conversation_id: UUID, at: datetime = PAST) -> None:
    system.database.run(
        "INSERT INTO channel_threads "
        "(channel, thread, tenant_id, conversation_id, author, target, created_at) "
        "VALUES ('slack', %s, %s, %s, 'U1', '{}', %s)",
        (thread, system.tenant_id, conversation_id, at),
    )


def _threads(system: Any) -> list[str]:
    rows = system.database.run("SELECT thread FROM channel_threads ORDER BY thread")
    return [row.thread for row in rows]


def test_ratings_and_threads_go_with_their_turn_and_conversation(system: Any) -> None:
    old, waiting = add_old(system, 1)[0], add_old(system, 1, "waiting")[0]
    _begin_thread(system, "old", old)
    _begin_thread(system, "waiting", waiting)
    for turn in (old, waiting):
        system.database.run(
            "INSERT INTO ratings (id, tenant_id, conversation_id, turn_id, source, author, score) "
            "VALUES (%s, %s, %s, %s, 'slack', 'U1', 1)",
            (new_id(), system.tenant_id, turn, turn),
        )
    prune_now(system)
    assert _threads(system) == ["waiting"]
    assert [row.turn_id for row in system.database.run("SELECT turn_id FROM ratings")] == [waiting]


def test_a_thread_without_a_turn_goes_when_it_is_old(system: Any) -> None:
    """A button began it, or its conversation went in a round that passed over the thread."""
    _begin_thread(system, "gone", new_id())
    _begin_thread(system, "young", new_id(), datetime.now(UTC))
    for thread in ("button", "person"):
        conversation_id = new_id()
        _begin_thread(system, thread, conversation_id)
        system.database.run(
            "INSERT INTO conversations (id, tenant_id, bot_id) SELECT %s, tenant_id, id FROM bots",
            (conversation_id,),
        )
    assert prune_now(system, RetentionSettings()) == Counter()
    counts = prune_now(system)
    assert counts is not None
    assert counts["channel_threads"] == 3
    assert _threads(system) == ["young"]
    assert system.database.run("SELECT id FROM conversations") == []


def test_a_thread_that_receives_an_event_is_passed_over(system: Any) -> None:
    _begin_thread(system, "busy", new_id())
    with psycopg.connect(system.settings.database.url.get_secret_value()) as link:
        link.execute("UPDATE channel_threads SET target = '{}'")
        prune_now(system)
    assert _threads(system) == ["busy"]
    prune_now(system)
    assert _threads(system) == []


def test_ids_of_events_are_kept_for_30_days(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "PAGE_TURNS", 10)
    system.database.run(
        "INSERT INTO channel_events (channel, event_id, received_at) "
        "SELECT 'slack', n, clock_timestamp() - make_interval(days => n) "
        "FROM generate_series(1, 40) AS n"
    )
    preview = prune_now(system, RetentionSettings(), is_dry=True)
    assert preview is not None
    assert preview["channel_events"] == 11
    prune_now(system, RetentionSettings())
    rows = system.database.run("SELECT event_id FROM channel_events ORDER BY event_id::int")
    assert [int(row.event_id) for row in rows] == [*range(1, 30)]
