"""Retention: what goes in one round of pruning, a few hundred rows at a time.

A turn goes with all that belongs to it: reply, attempts, ratings, delivery, its conversation's
summary, and the conversation, with its threads, when that has no turn left. An open turn never
goes, whatever its age; the turns of a batch go with the batch. Rows that somebody holds are passed
over, so no statement here waits for anybody.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple
from uuid import UUID

import psycopg
import structlog
from psycopg.abc import Params

from turnmill.schemas.ids import first_id
from turnmill.schemas.postgres.database import OUTAGES
from turnmill.schemas.postgres.links import Link
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.settings import RetentionSettings
from turnmill.schemas.store.partitions import PARTITIONED
from turnmill.schemas.turns import OPEN_STATES, TurnState
from turnmill.workers.upkeep.clock import steady_now
from turnmill.workers.upkeep.isolated import isolated
from turnmill.workers.upkeep.months import Pause, drop, expired, make_ahead

log = structlog.get_logger()

#: Turns of one transaction: it lasts milliseconds.
PAGE_TURNS = 250

#: Pause after each transaction, in times of what it took: three quarters of the time are the
#: lanes'.
_PAUSE_SHARE = 3.0

#: So far apart, PostgreSQL's clock and this machine's are told of.
_TOLERATED = timedelta(hours=1)

#: Days that ids of received events are kept. Meta tries for 7 days, and the requests of WhatsApp
#: and Telegram carry no time by which an old one could be refused.
EVENTS_DAYS = 30

_ENDED = [state.value for state in TurnState if state not in OPEN_STATES]
_AGED = [state for state in _ENDED if state != TurnState.PARKED]


class _Now(NamedTuple):
    at: datetime


class _Page(NamedTuple):
    """A row of the statements that page: `last` is where the next page begins."""

    id: UUID
    last: UUID | int
    is_due: bool


#: By the key: what is kept, like an open turn, is passed once in a round.
_AGED_PAGE = """
SELECT id, id AS last, batch_id IS NULL AND settled_at < %(before)s AND state = ANY(%(states)s)
    AS is_due
FROM turns WHERE id > %(after)s AND id < %(end)s ORDER BY id LIMIT %(size)s
"""

_PARKED_PAGE = """
SELECT id, id AS last, true AS is_due FROM turns
WHERE state = 'parked' AND batch_id IS NULL AND settled_at < %(before)s AND id > %(after)s
ORDER BY id LIMIT %(size)s
"""

_BATCH_PAGE = """
SELECT id, batch_row AS last, true AS is_due FROM turns
WHERE batch_id = %(batch)s AND batch_row > %(after)s ORDER BY batch_row LIMIT %(size)s
"""

#: Attempts whose turn came before its month was made. The others go with their month.
_STRAY_PAGE = """
SELECT turn_id AS id, turn_id AS last, NOT EXISTS (
    SELECT FROM turns WHERE id = a.turn_id AND state = ANY(%(open)s)) AS is_due
FROM attempts_default a WHERE turn_id > %(after)s AND turn_id < %(end)s
ORDER BY turn_id LIMIT %(size)s
"""

_OLD_BATCHES = "SELECT id FROM batches WHERE created_at < %s ORDER BY id"

#: The row goes before its turns: a batch is never seen with a part of them.
_ENDED_BATCH = """
batches b WHERE id = %(batch)s AND created_at < %(before)s AND NOT EXISTS (
    SELECT FROM turns
    WHERE batch_id = b.id AND (settled_at IS NULL OR settled_at >= %(before)s))
"""

#: Batches that turns speak of and that are gone, found without reading all the turns.
_GONE_BATCHES = """
WITH RECURSIVE named AS (
    (SELECT batch_id FROM turns WHERE batch_id IS NOT NULL ORDER BY batch_id LIMIT 1)
    UNION ALL
    SELECT (SELECT batch_id FROM turns WHERE batch_id > named.batch_id ORDER BY batch_id LIMIT 1)
    FROM named WHERE named.batch_id IS NOT NULL
)
SELECT batch_id AS id FROM named
WHERE batch_id IS NOT NULL AND NOT EXISTS (SELECT FROM batches WHERE id = batch_id)
"""


class _Locked(NamedTuple):
    id: UUID
    conversation_id: UUID


#: States again: a parked turn may just have been queued anew.
_LOCK_TURNS = """
SELECT id, conversation_id FROM turns WHERE id = ANY(%s) AND state = ANY(%s)
ORDER BY id FOR UPDATE SKIP LOCKED
"""

#: One that is just being written is passed over: it goes with the conversation's next turn.
_SUMMARIES = """
summaries WHERE conversation_id IN (
    SELECT conversation_id FROM summaries WHERE conversation_id = ANY(%s) FOR UPDATE SKIP LOCKED)
"""

#: One that is just receiving an event is passed over.
_LOCK_THREADS = """
SELECT conversation_id AS id FROM channel_threads
WHERE conversation_id = ANY(%s) FOR UPDATE SKIP LOCKED
"""

_THREADS = """
channel_threads h WHERE conversation_id = ANY(%s)
AND NOT EXISTS (SELECT FROM turns WHERE conversation_id = h.conversation_id)
"""

#: Threads whose conversation has no turn (any more): a button began it, or its turns are gone.
_IDLE_THREAD_PAGE = """
SELECT conversation_id AS id, conversation_id AS last, created_at < %(before)s AND NOT EXISTS (
    SELECT FROM turns WHERE conversation_id = h.conversation_id) AS is_due
FROM channel_threads h WHERE conversation_id > %(after)s
ORDER BY conversation_id LIMIT %(size)s
"""

#: Notices, and replies whose turn is gone.
_DELIVERY_PAGE = """
SELECT id, id AS last, settled_at < %(before)s AND NOT EXISTS (
    SELECT FROM turns WHERE id = d.turn_id) AS is_due
FROM deliveries d WHERE id > %(after)s AND id < %(end)s ORDER BY id LIMIT %(size)s
"""

_OLD_EVENTS = """
channel_events WHERE (channel, event_id) IN (
    SELECT channel, event_id FROM channel_events WHERE received_at < %s
    ORDER BY received_at LIMIT %s FOR UPDATE SKIP LOCKED)
"""

_EMPTY = """
conversations c WHERE id = ANY(%s) AND next_seq = answered_seq + 1
AND NOT EXISTS (SELECT FROM turns WHERE conversation_id = c.id)
"""


class _Span(NamedTuple):
    """What is older than a retention: times and ids before these."""

    before: datetime
    end: UUID


class Round:
    """One round. Whoever runs it holds the pruner's lock."""

    def __init__(
        self,
        link: Link,
        retention: RetentionSettings,
        pause: Pause,
        on_progress: Callable[[Counter[str]], None] = lambda counts: None,
        *,
        is_dry: bool = False,
    ) -> None:
        """`on_progress` receives the numbers deleted so far, by table; a dry round only counts."""
        self._link = link
        self._retention = retention
        self._pause = pause
        self._on_progress = on_progress
        self._is_dry = is_dry
        (now,) = link.fetch(_Now, "SELECT clock_timestamp() AS at")
        self._there = now.at
        # A clock that is ahead would delete what is young: of two, the one that is behind counts.
        self._now = min(self._there, steady_now())
        if (ahead := self._there - self._now) > _TOLERATED:
            log.warning("clock.ahead", by_s=round(ahead.total_seconds()))
        #: What went, by table.
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Run each step, whatever ails those before it.

        Raises:
            psycopg.Error: the first one, once all steps were tried; at once what is the server's.
        """
        failed: list[psycopg.Error] = []
        for step in self._steps():
            try:
                step()
            except OUTAGES:
                raise
            except psycopg.Error as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _steps(self) -> Iterator[Callable[[], None]]:
        kept = self._retention
        if not self._is_dry:
            yield self._make_months
        yield partial(self._prune_batches, kept.kept_batches_days)
        yield partial(self._prune_turns, _AGED_PAGE, kept.turns_days, _AGED)
        yield partial(self._prune_turns, _PARKED_PAGE, kept.kept_parked_days, [TurnState.PARKED])
        yield partial(self._prune_deliveries, kept.turns_days)
        yield partial(self._prune_idle_threads, kept.turns_days)
        yield self._prune_events
        yield partial(self._prune_stray_attempts, kept.attempts_days)
        yield partial(self._drop_months, "attempts", kept.attempts_days)
        yield partial(self._drop_months, "replies", kept.kept_replies_days)

    def _make_months(self) -> None:
        for table in PARTITIONED:
            for name in make_ahead(self._link, table, self._there, self._pause):
                self.counts[f"{name} (made)"] += 1

    def _prune_turns(self, page: str, days: int | None, states: list[str]) -> None:
        if days is not None:
            for ids in self._pages(page, {"states": states, **self._span(days)._asdict()}):
                self._remove_each(ids, states)

    def _prune_batches(self, days: int | None) -> None:
        if days is None:
            return
        before = self._span(days).before
        gone = []
        for batch in self._link.fetch(Id, _OLD_BATCHES, (before,)):
            if isolated(partial(self._remove_batch, before), [batch.id], "batch"):
                gone.append(batch)
        # Read anew: a round before this one may have been ended between a batch and its turns.
        for batch in gone if self._is_dry else self._link.fetch(Id, _GONE_BATCHES):
            for ids in self._pages(_BATCH_PAGE, {"batch": batch.id}, after=0):
                self._remove_each(ids, _ENDED)

    def _prune_deliveries(self, days: int | None) -> None:
        if days is not None:
            for ids in self._pages(_DELIVERY_PAGE, self._span(days)._asdict()):
                isolated(self._remove_deliveries, ids, "delivery")

    def _prune_idle_threads(self, days: int | None) -> None:
        if days is not None:
            for ids in self._pages(_IDLE_THREAD_PAGE, self._span(days)._asdict()):
                isolated(self._remove_idle_threads, ids, "conversation")

    def _prune_events(self) -> None:
        before = self._span(EVENTS_DAYS).before
        size = None if self._is_dry else PAGE_TURNS
        while True:
            started_at = time.monotonic()
            gone = self._remove("channel_events", _OLD_EVENTS, (before, size))
            pause_s = (time.monotonic() - started_at) * _PAUSE_SHARE
            if size is None or gone < size or self._pause(pause_s):
                return

    def _prune_stray_attempts(self, days: int | None) -> None:
        if days is not None:
            open_states = [state.value for state in OPEN_STATES]
            for ids in self._pages(
                _STRAY_PAGE, {"open": open_states, **self._span(days)._asdict()}
            ):
                # Not the one that runs: its turn may just have been taken up again.
                isolated(self._remove_attempts, ids)

    def _drop_months(self, table: str, days: int | None) -> None:
        if days is None:
            return
        for partition in expired(self._link, table, self._span(days).end):
            if not self._is_dry and not drop(self._link, table, partition, self._pause):
                return
            self.counts[partition.name] += 1

    def _span(self, days: int) -> _Span:
        before = self._now - timedelta(days=days)
        return _Span(before, first_id(before))

    def _pages(
        self, page: str, params: Mapping[str, object], after: UUID | int = UUID(int=0)
    ) -> Iterator[list[UUID]]:
        """What is due, page by page, with a pause after each; ends when it is time to stop."""
        while True:
            started_at = time.monotonic()
            given = {**params, "after": after, "size": PAGE_TURNS}
            rows = self._link.fetch(_Page, page, given)
            if due := [row.id for row in rows if row.is_due]:
                yield due
                self._on_progress(self.counts)
            pause_s = (time.monotonic() - started_at) * _PAUSE_SHARE
            if len(rows) < PAGE_TURNS or self._pause(pause_s):
                return
            after = rows[-1].last

    def _remove_each(self, ids: list[UUID], states: list[str]) -> None:
        isolated(lambda some: self._remove_turns(some, states), ids)

    def _remove_turns(self, ids: list[UUID], states: list[str]) -> list[UUID]:
        with self._transaction():
            rows = self._link.fetch(_Locked, _LOCK_TURNS, (ids, states))
            gone = [row.id for row in rows]
            for table in (
                "chunks",
                "attempts",
                "replies",
                "ratings",
                "deliveries",
                "turn_sources",
                "knowledge_gaps",
                "turn_memory",
                "turn_readings",
            ):
                self._remove(table, f"{table} WHERE turn_id = ANY(%s)", (gone,))
            conversations = list({row.conversation_id for row in rows})
            self._remove("summaries", _SUMMARIES, (conversations,))
            self._remove("turns", "turns WHERE id = ANY(%s)", (gone,))
            self._remove_conversations(conversations)
        return gone

    def _remove_batch(self, before: datetime, ids: list[UUID]) -> list[UUID]:
        """Delete the row of one batch, if it has ended; return its id then."""
        which = {"batch": ids[0], "before": before}
        return ids if self._remove("batches", _ENDED_BATCH, which) else []

    def _remove_attempts(self, turn_ids: list[UUID]) -> list[UUID]:
        which = "attempts_default WHERE turn_id = ANY(%s) AND ended_at IS NOT NULL"
        self._remove("attempts", which, (turn_ids,))
        return turn_ids

    def _remove_deliveries(self, ids: list[UUID]) -> list[UUID]:
        self._remove("deliveries", "deliveries WHERE id = ANY(%s)", (ids,))
        return ids

    def _remove_idle_threads(self, ids: list[UUID]) -> list[UUID]:
        with self._transaction():
            self._remove_conversations(ids)
            self._remove_threads(ids)
        return ids

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One that fails counts for nothing."""
        counts = self.counts.copy()
        try:
            with self._link.transaction():
                yield
        except BaseException:
            self.counts = counts
            raise

    def _remove_conversations(self, ids: list[UUID]) -> None:
        """Locked by one statement and looked at again by the next: `accept` holds its
        conversation while it adds a turn, which an older snapshot would not show.
        """
        locked = f"SELECT id FROM {_EMPTY} ORDER BY id FOR UPDATE SKIP LOCKED"
        empty = [row.id for row in self._link.fetch(Id, locked, (ids,))]
        self._remove("conversations", _EMPTY, (empty,))
        self._remove_threads(empty)

    def _remove_threads(self, ids: list[UUID]) -> None:
        """Locked and looked at again, like conversations: an event may have brought a turn."""
        locked = [row.id for row in self._link.fetch(Id, _LOCK_THREADS, (ids,))]
        self._remove("channel_threads", _THREADS, (locked,))

    def _remove(self, table: str, which: str, params: Params) -> int:
        verb = "SELECT FROM" if self._is_dry else "DELETE FROM"
        count = self._link.execute(f"{verb} {which}", params).rowcount
        self.counts[table] += count
        return count
