"""Connections to PostgreSQL that do not wait for ever, at either end.

A peer that vanished without a word is noticed by keepalives, and by TCP_USER_TIMEOUT while
something is under way; without the latter Linux repeats itself for a quarter of an hour. Behind
a load balancer that keeps dead connections open neither helps: there only a limit on the wait
for an answer does. The server gets the same limits, lest a lock outlive whoever held it: it looks
for us during a statement, too, and ends one that nobody waits for any more.
"""

import os
import select
import threading
import time
import weakref
from typing import Any, Self

import psycopg
from psycopg.abc import ConnParam, Params, PQGen

from turnmill.schemas.postgres.rows import RowT, rows_of
from turnmill.schemas.postgres.vendor import ResultT, within

#: A peer that vanished without a word is noticed after about 11 seconds.
KEEPALIVE: dict[str, ConnParam] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

#: The server's half: what it does when we are the one that vanished, or were paused; and what our
#: statements rely on, whatever the server, the database or the role has as its default. To compile
#: a search of many passages takes longer than the search.
#:
#: A limit that is shorter than ours would end statements that make progress; PostgreSQL 17 has one
#: more than older ones. `synchronous_commit` is raised from `off`, by which PostgreSQL forgets at a
#: crash what was accepted; the other levels are an operator's choice between standbys. So is
#: `search_path`: a schema may be chosen by it.
_SESSION = """
SET statement_timeout = 0; SET lock_timeout = 0;
SELECT set_config('transaction_timeout', '0', false)
WHERE current_setting('transaction_timeout', true) <> '0';
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off';
SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = '10s'; SET idle_in_transaction_session_timeout = '10s';
SET client_connection_check_interval = '2s';
SET idle_session_timeout = 0; SET jit = off; SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off; SET DateStyle = ISO; SET TimeZone = 'UTC';
SET IntervalStyle = postgres; SET extra_float_digits = 1; SET standard_conforming_strings = on
"""

#: For a process of few statements that read their tables by indexes: PostgreSQL plans each once for
#: a connection. At every execution, planning would take longer than what is planned. Such a plan
#: must not depend on how large the tables were when it was made.
PLAN_ONCE = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off"

#: Sent with the connection's first packet, which poolers understand.
_STARTUP: dict[str, ConnParam] = {"client_encoding": "UTF8"}


class Stop(threading.Event):
    """An event that ends `Link.hear`, too."""

    def __init__(self) -> None:
        super().__init__()
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            weakref.finalize(self, os.close, end)

    def fileno(self) -> int:
        return self._reader

    def set(self) -> None:
        was_set = self.is_set()
        super().set()
        if not was_set:
            os.write(self._writer, b"!")


class Link(psycopg.Connection[object]):
    """Raises `psycopg.OperationalError`, and is closed, after `answer_timeout_s` of silence."""

    answer_timeout_s = 10.0

    @classmethod
    def open(
        cls,
        conninfo: str = "",
        *,
        answer_timeout_s: float,
        autocommit: bool = False,
        is_pooled: bool = False,
        session: str = "",
        **options: Any,
    ) -> Self:
        """Connect, and set up the session, by the statements of `session` too.

        Behind a pooler in transaction mode (`is_pooled`) there is no session: a SET
        would reach whoever has the server connection next, and a prepared statement would be
        missed by it. The server's defaults count there, and `suitability` looks at them.
        """
        link = cls.connect(conninfo, autocommit=True, **(options | KEEPALIVE | _STARTUP))
        link.answer_timeout_s = answer_timeout_s
        try:
            if is_pooled:
                link.prepare_threshold = None
            else:
                link.execute(f"{_SESSION}; {session}")
            link.autocommit = autocommit
        except BaseException:
            link.close()
            raise
        return link

    def fetch(self, kind: type[RowT], statement: str, params: Params | None = None) -> list[RowT]:
        """Run a statement, and return its rows. Raises `psycopg.Error`."""
        with self.cursor(row_factory=rows_of(kind)) as cursor:
            return cursor.execute(statement, params).fetchall()

    # Other versions of psycopg have other arguments.
    def wait(self, gen: PQGen[ResultT], *args: Any, **kwargs: Any) -> ResultT:
        return super().wait(within(self.answer_timeout_s, gen, self.pgconn.finish), *args, **kwargs)

    def wait_for_notifications(self, timeout_s: float, stop: Stop) -> list[str]:
        """The payloads of notifications, as soon as there are any; none after `timeout_s`, or when
        told to stop.

        psycopg's own wait wakes ten times a second, which every idle process would pay for.
        Raises `psycopg.OperationalError` when the connection breaks.
        """
        poll, ends_at = select.poll(), time.monotonic() + timeout_s
        for each in (self, stop):
            poll.register(each, select.POLLIN)
        # What comes need not be a notification; of an end, it is the server's word of it first.
        while not (heard := self._payloads()) and not stop.is_set():
            if (left_s := ends_at - time.monotonic()) <= 0:
                break
            poll.poll(left_s * 1000)
        return heard

    def _payloads(self) -> list[str]:
        return [each.payload for each in self.notifies(timeout=0)]


class AsyncLink(psycopg.AsyncConnection[object]):
    """Like `Link`, for an event loop; in autocommit."""

    answer_timeout_s = 10.0

    @classmethod
    async def open(cls, conninfo: str, *, answer_timeout_s: float, **options: Any) -> Self:
        link = await cls.connect(conninfo, autocommit=True, **(options | KEEPALIVE | _STARTUP))
        link.answer_timeout_s = answer_timeout_s
        try:
            await link.execute(_SESSION)
        except BaseException:
            await link.close()
            raise
        return link

    async def wait(self, gen: PQGen[ResultT], *args: Any, **kwargs: Any) -> ResultT:
        guarded = within(self.answer_timeout_s, gen, self.pgconn.finish)
        return await super().wait(guarded, *args, **kwargs)
