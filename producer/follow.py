"""Follow: watching a turn until its reply is there.

Notifications only say "look at this turn"; what is shown is always read from the tables.
So a lost notification delays a reader by a second at most, and a reader that comes late or
reconnects sees the same text as one that was there from the start.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.schemas.turns import OPEN_STATES, Turn, TurnState

#: A reader looks this often even if nothing woke it.
POLL_S = 1.0

_TAIL = """
SELECT t.state, coalesce(string_agg(c.text, '' ORDER BY c.position), '') AS text,
       min(c.position) AS first, coalesce(max(c.position), %(position)s) AS position
FROM turns t LEFT JOIN chunks c ON c.turn_id = t.id AND c.position > %(position)s
WHERE t.id = %(turn)s AND t.tenant_id = %(tenant)s GROUP BY t.id, t.state
"""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Restart:
    """The texts so far are void: the engine could not resume the reply and restarted it."""


RESTART = Restart()


class _TailRow(NamedTuple):
    """The row of `_TAIL`."""

    state: str
    text: str
    #: None: no new text.
    first: int | None
    position: int


@dataclass(frozen=True, slots=True)
class _Tail:
    state: TurnState
    text: str
    position: int
    #: Chunks that this reader had seen, or would have, were discarded.
    is_torn: bool = False


class Follower:
    """Wakes the readers of turns; one per process, living in its event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._readers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Follower":
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener

    async def follow(self, tenant_id: UUID, turn_id: UUID) -> AsyncIterator[str | Restart | Turn]:
        """Yield the reply's text as it comes, an empty string about once a second while there
        is none, and at last the settled turn; the texts since the last `Restart` add up to its
        reply.

        Raises:
            NotFound: the tenant has no such turn.
        """
        shown, position = "", -1
        async with self._woken(turn_id) as wake:
            while True:
                wake.clear()
                tail = await self._tail(tenant_id, turn_id, position)
                if tail is None or tail.state not in OPEN_STATES:
                    break
                if shown and tail.is_torn:
                    shown = ""
                    yield RESTART
                shown, position = shown + tail.text, tail.position
                if tail.text:
                    yield tail.text
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), POLL_S)
                    continue
                yield ""
            turn = await self._retry_read(tenant_id, turn_id)
            if turn.reply is not None:
                if not turn.reply.content.startswith(shown):
                    shown = ""
                    yield RESTART
                if rest := turn.reply.content[len(shown) :]:
                    yield rest
            yield turn

    @contextlib.asynccontextmanager
    async def _woken(self, turn_id: UUID) -> AsyncIterator[asyncio.Event]:
        event = asyncio.Event()
        self._readers[turn_id.hex].add(event)
        try:
            yield event
        finally:
            self._readers[turn_id.hex].discard(event)
            if not self._readers[turn_id.hex]:
                del self._readers[turn_id.hex]

    async def _tail(self, tenant_id: UUID, turn_id: UUID, position: int) -> _Tail | None:
        """New text, or an empty open tail while Postgres is away: the reader simply waits on."""
        try:
            return await asyncio.to_thread(self._read_tail, tenant_id, turn_id, position)
        except DatabaseUnavailable:
            return _Tail(TurnState.QUEUED, "", position)

    def _read_tail(self, tenant_id: UUID, turn_id: UUID, position: int) -> _Tail | None:
        params = {"tenant": tenant_id, "turn": turn_id, "position": position}
        rows = self._database.fetch(_TailRow, _TAIL, params)
        if not rows:
            return None
        (row,) = rows
        is_torn = row.first is not None and row.first > position + 1
        return _Tail(TurnState(row.state), row.text, row.position, is_torn)

    async def _retry_read(self, tenant_id: UUID, turn_id: UUID) -> Turn:
        while True:
            try:
                return await asyncio.to_thread(read_turn, self._database, tenant_id, turn_id)
            except DatabaseUnavailable:
                await asyncio.sleep(POLL_S)

    async def _listen(self) -> None:
        while True:
            try:
                await self._pass_on_notifications()
            except Exception as error:
                # Readers poll meanwhile; what matters is that the listening comes back.
                log.warning("follower.disconnected", error=type(error).__name__)
            await asyncio.sleep(POLL_S)

    async def _pass_on_notifications(self) -> None:
        connection = await self._database.connect_async()
        async with connection:
            await connection.execute(f"LISTEN {TURN_CHANNEL}")
            while True:
                async for notification in connection.notifies(timeout=POLL_S):
                    for event in self._readers.get(notification.payload, ()):
                        event.set()
                # A connection that is open at our end only would be listened to for ever.
                await connection.execute("SELECT 1")
