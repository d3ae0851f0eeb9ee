"""Users are forgotten in large tenants: in slices, by indexes, and while others write."""

import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from tests.integration.memory.conftest import Listening
from tests.integration.memory.world import World
from turnmill.producer.accept import accept
from turnmill.producer.memory.forgetting import forget_user
from turnmill.schemas.content import MediaPart
from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.files.files import File, Purpose
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.memory import erasing, orphans
from turnmill.schemas.store.memory.erasures import Erasure, key_hash, list_erasures
from turnmill.schemas.store.memory.finding import ROWS, find_keys
from turnmill.schemas.store.tables import turns
from turnmill.schemas.turns import Message, Role, TurnState
from turnmill.workers.upkeep.erasures import erase_all

WORD, OTHERS = "quetzalcoatlus", "archaeopteryx"

#: Enough that no plan reads such a table as a whole because it is small.
MANY = 20_000

#: Turns of other users, each with a delivery, a thread and a rating; half are of old releases.
_FILL = """
CREATE TEMP TABLE made AS
    SELECT n, gen_random_uuid() AS id, gen_random_uuid() AS conversation
    FROM generate_series(1, {many}) AS n;
INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params,
                   author, user_key)
SELECT id, '{tenant}', conversation, 1, id, 'm', 'interactive', 'completed',
    '[{{"role": "user", "content": "hello"}}]', '{{}}', 'U' || n,
    CASE WHEN n % 2 = 0 THEN 'slack:U' || n END FROM made;
INSERT INTO conversations (id, tenant_id, bot_id)
SELECT conversation, '{tenant}', (SELECT id FROM bots LIMIT 1) FROM made;
INSERT INTO deliveries (id, tenant_id, conversation_id, turn_id, channel, target, kind, state,
                        settled_at)
SELECT id, '{tenant}', conversation, id, 'slack', '{{}}', 'reply', 'sent', clock_timestamp()
FROM made;
INSERT INTO channel_threads (channel, thread, tenant_id, conversation_id, author, target)
SELECT 'slack', n, '{tenant}', conversation, 'U' || n, '{{}}' FROM made;
INSERT INTO ratings (id, tenant_id, conversation_id, turn_id, source, author, score)
SELECT id, '{tenant}', conversation, id, 'slack', 'U' || n, 1 FROM made;
INSERT INTO replies (turn_id, attempt, content, finish_reason, prompt_tokens, completion_tokens)
SELECT id, 1, '', 'stop', 1, 1 FROM made;
VACUUM ANALYZE
"""

_READ = """
SELECT relname, seq_tup_read FROM pg_stat_user_tables
WHERE relname IN ('turns', 'conversations', 'deliveries', 'channel_threads', 'ratings')
"""


@pytest.fixture
def world(system: Any, engine: Listening, tmp_path: Path) -> World:
    return World(system, system.database, tmp_path / "data")


def fill(world: World, url: str, many: int = MANY) -> None:
    with psycopg.connect(url, autocommit=True) as link:
        for statement in _FILL.format(many=many, tenant=world.tenant_id).split(";\n"):
            link.execute(statement)  # type: ignore[call-overload]


def read_whole(world: World, url: str) -> dict[str, int]:
    """How many rows of the large tables were read without an index."""
    world.database.close()  # its sessions tell what they did when they end
    with psycopg.connect(url) as link:
        return dict(link.execute(_READ).fetchall())


def send(world: World, word: str, file: File) -> UUID:
    """Let a user send a file; nobody answers."""
    turn = accept(world.database, world.system.request("See", user_key=f"api:{word}"))
    said = Message(role=Role.USER, content=(MediaPart(type="file", file_id=file.shown_id),))
    value = sa.func.jsonb_build_array(sa.cast(said.model_dump(mode="json"), JSONB))
    with world.database.begin() as connection:
        connection.execute(sa.update(turns).where(turns.c.id == turn.turn_id).values(input=value))
    world.end(turn.turn_id, TurnState.FAILED)
    return turn.turn_id


def files_of(world: World) -> set[UUID]:
    return {row.id for row in world.database.run("SELECT id FROM files")}


def forget(world: World, word: str) -> None:
    forget_user(world.database, world.tenant_id, f"api:{word}")
    assert [each.waiting for each in world.erase()] == [0]


def test_no_large_table_is_read_as_a_whole(
    world: World, database_url: str, eventually: Callable[..., None]
) -> None:
    world.live(WORD)
    fill(world, database_url)
    forget_user(world.database, world.tenant_id, f"slack:U{WORD}")
    # As after a restore: the key is not known.
    forget_user(world.database, world.tenant_id, f"api:{WORD}")
    world.database.run("UPDATE erasures SET key = NULL RETURNING at")
    world.database.run(
        "UPDATE deliveries SET state = 'sent', settled_at = clock_timestamp() "
        "WHERE state = 'pending' RETURNING id"
    )
    before = read_whole(world, database_url)
    assert [each.waiting for each in world.erase()] == [0, 0]
    assert read_whole(world, database_url) == before
    assert world.tables_with(WORD) == set()
    assert read_whole(world, database_url) != before


def test_others_write_in_the_users_conversation_while_files_are_searched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = world.call(WORD, f"A {WORD}!")
    send(world, WORD, world.upload(WORD))
    look, written = orphans._look, []

    def write(*slice_: Any) -> Any:
        # Its connection would be given up after ten seconds behind a lock.
        another = world.system.request("Hi", conversation_id=said.conversation_id,
                                       user_key=f"api:{OTHERS}")  # fmt: skip
        written.append(accept(world.database, another))
        return look(*slice_)

    monkeypatch.setattr(orphans, "_look", write)
    forget(world, WORD)
    assert len(written) >= 2
    assert world.tables_with(WORD) == set()


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has one turn, and the last minute is none of its own."""
    monkeypatch.setattr(orphans, "FIRST_ROWS", 1)
    monkeypatch.setattr(orphans, "MOST_ROWS", 1)
    monkeypatch.setattr(orphans, "LATE", timedelta(0))


def test_a_file_of_two_users_goes_with_the_last_of_them(world: World, short_slices: None) -> None:
    shared, own = world.upload("shared"), world.upload(WORD)
    for word in (OTHERS, WORD):
        send(world, word, shared)
        send(world, word, own if word == WORD else shared)
    forget(world, WORD)
    assert files_of(world) == {shared.file_id}
    assert len(world.files_with("shared")) == 1
    forget(world, OTHERS)
    assert files_of(world) == set()
    assert world.files_with("shared") == []
    assert world.database.run("SELECT file_id FROM erased_files") == []


def test_a_file_that_somebody_sends_during_the_search_stays(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    again, sent = orphans._look_again, []

    def send_late(*slice_: Any) -> Any:
        sent.append(send(world, OTHERS, file))
        return again(*slice_)

    monkeypatch.setattr(orphans, "LATE", timedelta(minutes=1))
    monkeypatch.setattr(orphans, "_look_again", send_late)
    forget(world, WORD)
    assert len(sent) == 1
    assert files_of(world) == {file.file_id}


def test_a_file_that_somebody_stores_during_the_search_stays_for_their_turn(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    send(world, OTHERS, world.upload(OTHERS))

    def search(*where: Any, **_: Any) -> Counter[str]:
        for step, _ in enumerate(orphans.search(*where)):
            if step == 0:
                tomorrow = datetime.now(UTC) + timedelta(days=1)
                world.files.prolong(world.tenant_id, file.file_id, tomorrow)
        return Counter(steps=step)

    with monkeypatch.context() as patch:
        patch.setattr("turnmill.workers.upkeep.erasures.delete_orphans", search)
        forget(world, WORD)
    assert file.file_id in files_of(world)
    send(world, OTHERS, file)
    forget(world, OTHERS)
    assert files_of(world) == set()


@pytest.mark.parametrize("is_owed", [True, False])
def test_only_who_sends_a_file_keeps_it_not_who_fetches_it(world: World, is_owed: bool) -> None:
    file = world.upload(WORD)
    world.database.run("UPDATE files SET source = '{}' RETURNING id")
    note = "INSERT INTO erased_files (tenant_id, file_id) VALUES (%s, %s)"
    world.database.run(note, (world.tenant_id, file.file_id))
    with world.storage.draft() as draft:
        draft.write(b"its bytes")
        world.files.save(
            draft, tenant_id=world.tenant_id, name="x", purpose=Purpose.MESSAGE,
            file_id=file.file_id, is_owed=is_owed,
        )  # fmt: skip
    assert bool(world.database.run("SELECT file_id FROM erased_files")) is is_owed


def test_a_search_that_is_interrupted_resumes(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.upload(WORD)
    for _ in range(6):
        world.end(accept(world.database, world.system.request("x")).turn_id, TurnState.FAILED)
    send(world, WORD, file)
    look, left = orphans._look, [4, 100]
    seen: Counter[int] = Counter()

    def some(*slice_: Any) -> Any:
        if seen[len(left)] == left[0]:
            left.pop(0)
            raise StorageUnavailable("The process ends here.")
        seen[len(left)] += 1
        return look(*slice_)

    monkeypatch.setattr(orphans, "_look", some)
    with pytest.raises(StorageUnavailable):
        forget(world, WORD)
    assert files_of(world) == {file.file_id}
    world.erase()
    assert files_of(world) == set()
    # Seven turns, the end, and what is looked at once more.
    assert seen == {2: 4, 1: 5}


def test_a_search_for_files_keeps_no_user_without_files_waiting(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in (WORD, "pteranodon"):
        send(world, word, world.upload(word))
    world.end(
        accept(world.database, world.system.request("Hi", user_key=f"api:{OTHERS}")).turn_id,
        TurnState.FAILED,
    )
    for word in (WORD, "pteranodon", OTHERS):
        forget_user(world.database, world.tenant_id, f"api:{word}")
    searches: list[UUID] = []

    def search(database: Any, storage: Any, tenant_id: UUID, **within: Any) -> Counter[str]:
        searches.append(tenant_id)
        return orphans.delete_orphans(database, storage, tenant_id, **within)

    monkeypatch.setattr("turnmill.workers.upkeep.erasures.delete_orphans", search)
    erase_all(world.database, world.storage, search_s=0)
    # One slice: one turn of three.
    assert len(files_of(world)) == 2
    waiting = {each.key for each in list_erasures(world.database, is_open=True)}
    assert waiting == {f"api:{WORD}", "api:pteranodon"}
    assert searches == [world.tenant_id]
    world.erase()
    assert (files_of(world), list_erasures(world.database, is_open=True)) == (set(), [])
    assert searches == [world.tenant_id] * 2


def test_a_search_rests_after_each_slice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    send(world, WORD, world.upload(WORD))
    pauses: list[float] = []
    monkeypatch.setattr(orphans.time, "sleep", pauses.append)
    forget(world, WORD)
    assert len(pauses) == 1
    assert 0 < pauses[0] <= orphans.MOST_PAUSE_S


def test_what_other_tenants_said_is_not_read_in_a_search(world: World, database_url: str) -> None:
    send(world, WORD, world.upload(WORD))
    large = [
        {"role": "user", "content": [{"type": "text", "text": random.randbytes(20_000).hex()}]}
    ]
    added = (
        "INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, "
        "input, params) VALUES (%s, %s, gen_random_uuid(), 1, gen_random_uuid(), 'm', "
        "'interactive', 'completed', %s, '{}')"
    )
    read = {}
    with psycopg.connect(database_url, autocommit=True) as link:
        for name, tenant_id in (("others", new_id()), ("own", world.tenant_id)):
            for _ in range(20):
                link.execute(added, (new_id(), tenant_id, json.dumps(large)))
            slice_ = orphans._Slice(world.tenant_id, [new_id()], UUID(int=0), 100)
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {orphans._SLICE}"
            row = link.execute(explain, slice_._asdict()).fetchone()  # type: ignore[call-overload]
            plan = row[0][0]["Plan"]
            read[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    # A text of 40,000 characters has at least five blocks beside its row.
    assert read["others"] < 50 < 100 < read["own"], read


def test_a_long_conversation_is_erased_in_parts_and_found_until_the_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.call(OTHERS, "A strange bird.")
    for word in (WORD, OTHERS, WORD, OTHERS, WORD):
        world.call(word, f"A {word}!", first.conversation_id)
    monkeypatch.setattr(erasing, "PART", 2)
    erase, parts = erasing._erase, []

    def fail_once(*part: Any) -> Any:
        parts.append(part)
        if len(parts) == 3:
            raise StorageUnavailable("The process ends here.")
        return erase(*part)

    monkeypatch.setattr(erasing, "_erase", fail_once)
    with pytest.raises(StorageUnavailable):
        forget(world, WORD)
    assert "turns" in world.tables_with(WORD)
    world.erase()
    assert world.tables_with(WORD) == set()
    assert "turns" in world.tables_with(OTHERS)
    assert len(parts) == 6


#: What is left of a user whose key nobody knows, in one table each. All others are before it.
_LEFT = {
    "turns": "UPDATE turns SET user_key = 'slack:~' WHERE id = %(turn)s",
    "users": "INSERT INTO users (id, tenant_id, key) VALUES (%(turn)s, %(tenant)s, 'slack:~')",
    "threads": "UPDATE channel_threads SET author = '~' WHERE thread = '7'",
    "ratings": "UPDATE ratings SET author = '~' WHERE turn_id = %(turn)s",
    "old turns": "UPDATE turns SET author = '~', user_key = NULL WHERE id = %(turn)s",
}


@pytest.mark.parametrize("table", list(_LEFT))
def test_a_key_is_found_by_its_hash(world: World, database_url: str, table: str) -> None:
    fill(world, database_url, 3 * ROWS)
    (row,) = world.database.run("SELECT id FROM turns WHERE author = 'U7'")
    world.database.run(_LEFT[table], {"turn": row.id, "tenant": world.tenant_id})
    erasures = [
        Erasure(world.tenant_id, key_hash(world.tenant_id, key), datetime.now(UTC))
        for key in ("slack:~", f"slack:{new_id()}", "slack:U8")
    ]
    found = find_keys(world.database, erasures)
    assert [each.key for each in found] == ["slack:~", None, "slack:U8"]


def test_turns_of_releases_that_kept_no_users_are_found(world: World, database_url: str) -> None:
    fill(world, database_url, 10)
    world.database.run("DELETE FROM channel_threads RETURNING thread")
    world.database.run("UPDATE turns SET input = '[\"mine\"]' WHERE author = 'U7' RETURNING id")
    forget_user(world.database, world.tenant_id, "slack:U7")
    world.erase()
    assert world.tables_with("mine") == set()
