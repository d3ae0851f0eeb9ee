"""The relay takes a few hints at the same cost beside a large backlog as beside a small one."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from turnmill.producer.relay.outbox import NEXT, REHINT, STALE, TAKE, UNMARK
from turnmill.schemas.postgres.links import PLAN_ONCE
from turnmill.schemas.turns import Lane

BACKLOG = 60_000

FILL = f"""
INSERT INTO outbox (turn_id, model, lane, due_at)
SELECT gen_random_uuid(), 'm', 'batch', clock_timestamp() - interval '1 day' + n * interval '1 ms'
FROM generate_series(1, {BACKLOG}) AS n
"""
LANES = [lane.value for lane in Lane]
TAKING = {
    "window": 512, "lanes": LANES, "batch_size": 64, "warm_lanes": ["interactive"], "warm_s": 60.0,
    "ttl_s": 0.5,
}  # fmt: skip
LOST = {"model": "m", "lane": "batch", "lost_after_s": 0.0, "depth": 0, "at_most": 10}


@pytest.fixture
def link(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True, row_factory=namedtuple_row) as link:
        link.execute(FILL)
        link.execute("VACUUM ANALYZE outbox")
        yield link


def full_scans(link: psycopg.Connection[Any]) -> int:
    """How often the outbox was read from its first row to its last."""
    link.execute("SELECT pg_stat_force_next_flush()")
    statement = "SELECT seq_scan AS n FROM pg_stat_user_tables WHERE relname = 'outbox'"
    return int(link.execute(statement).fetchall()[0].n)


def entries_read(link: psycopg.Connection[Any]) -> int:
    """How many entries of the outbox's indexes were read, all statements together."""
    link.execute("SELECT pg_stat_force_next_flush()")
    statement = (
        "SELECT sum(idx_tup_read)::bigint AS n FROM pg_stat_user_indexes WHERE relname = 'outbox'"
    )
    return int(link.execute(statement).fetchall()[0].n)


@pytest.mark.parametrize(
    "hints",
    ["lane = 'batch'", "is_immediate = true", "lane = 'paused'"],
    ids=["tried before", "new", "of a paused batch"],
)
def test_no_statement_of_the_relay_reads_all_of_the_outbox(
    link: psycopg.Connection[Any], hints: str
) -> None:
    link.execute(f"UPDATE outbox SET {hints}")
    link.execute("VACUUM ANALYZE outbox")
    link.execute(PLAN_ONCE)
    before, entries = full_scans(link), entries_read(link)
    is_paused = "paused" in hints
    taken: list[UUID] = []
    for _ in range(3):
        taken += [row.turn_id for row in link.execute(TAKE, TAKING)]
    assert len(taken) == (0 if is_paused else 3 * 64)
    link.execute(UNMARK, (taken[:64],))
    link.execute(NEXT, TAKING)
    stale = link.execute(STALE, LOST).fetchall()
    assert [(row.model, row.lane) for row in stale] == ([] if is_paused else [("m", "batch")])
    (now,) = link.execute("SELECT clock_timestamp() AS at").fetchall()
    (found,) = link.execute(REHINT, LOST | {"looked_at": now.at}).fetchall()
    assert found.missing_count == (0 if is_paused else 2 * 64)
    assert full_scans(link) == before
    assert entries_read(link) - entries < BACKLOG / 10
