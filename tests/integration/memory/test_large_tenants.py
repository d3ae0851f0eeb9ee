"""Users are forgotten in large tenants: in slices, by indexes, and while others write."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tests.integration.memory.world import World, forget
from turnmill.producer.memory.forgetting import forget_user
from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.memory import erasing
from turnmill.schemas.store.memory.erasures import (
    Erasure,
    key_hash,
)
from turnmill.schemas.store.memory.finding import ROWS, find_keys

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

_OTHER_SESSIONS = """
SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
AND backend_type = 'client backend'
"""


def fill(world: World, url: str, many: int = MANY) -> None:
    with psycopg.connect(url, autocommit=True) as link:
        for statement in _FILL.format(many=many, tenant=world.tenant_id).split(";\n"):
            link.execute(statement)  # type: ignore[call-overload]


def read_whole(world: World, url: str, eventually: Callable[..., None]) -> dict[str, int]:
    """How many rows of the large tables were read without an index."""
    world.database.close()  # its sessions tell what they did when they end
    with psycopg.connect(url, autocommit=True) as link:
        eventually(lambda: link.execute(_OTHER_SESSIONS).fetchall() == [])
        return dict(link.execute(_READ).fetchall())


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
    before = read_whole(world, database_url, eventually)
    assert [each.waiting for each in world.erase()] == [0, 0]
    assert read_whole(world, database_url, eventually) == before
    assert world.tables_with(WORD) == set()
    assert read_whole(world, database_url, eventually) != before


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
