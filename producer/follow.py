"""Follow: watching a turn until its reply is there.

A notification wakes the readers of its turn, and what they show is always read from the tables. So
a reader that comes late or reconnects sees the same text as one that was there from the start.
A reader that waits reads nothing: one statement a process looks now and then whether any of their
turns has moved on without a notification, because it was lost or because its lane sends none.
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
from turnmill.schemas.postgres.database import Database, why_away
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.schemas.turns import OPEN_STATES, Turn, TurnState

#: So often, seconds, the turns of all readers are looked at while notifications come in ...
LOOK_S = 5.0
#: ... and while none can. The listener asks so often whether its connection lives.
POLL_S = 1.0
#: A reader yields an empty text this often while nothing wakes it.
SIGN_OF_LIFE_S = 1.0

_TAIL = """
SELECT t.state, coalesce(string_agg(c.text, '' ORDER BY c.position), '') AS text,
       min(c.position) AS first, coalesce(max(c.position), %(position)s) AS position
FROM turns t LEFT JOIN chunks c ON c.turn_id = t.id AND c.position > %(position)s
WHERE t.id = %(turn)s AND t.tenant_id = %(tenant)s GROUP BY t.id, t.state
"""

#: An index finds each last position.
_LOOK = """
SELECT t.id AS turn_id, t.state,
    (SELECT max(c.position) FROM chunks c WHERE c.turn_id = t.id) AS position
FROM turns t WHERE t.id = ANY(%s)
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


class _LookRow(NamedTuple):
    """A row of `_LOOK`."""

    turn_id: UUID
    state: str
    #: Of the last chunk; None: there is none.
    position: int | None

    def is_news(self, reader: "Reader") -> bool:
        """Whether the reader has not seen all of it."""
        is_open = TurnState(self.state) in OPEN_STATES
        return not is_open or (self.position is not None and self.position > reader.position)


class Reader:
    """One who waits for a turn."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        #: Of the last chunk that it has seen.
        self.position = -1

    async def is_woken(self, timeout_s: float) -> bool:
        """Wait until something is new; False if nothing was in that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.wake.wait()
        except TimeoutError:
            return False
        return True


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
        #: By the turn's id in hex, as notifications name it.
        self._readers: defaultdict[str, set[Reader]] = defaultdict(set)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_listening = False
        #: What was notified before is lost.
        self._has_begun = asyncio.Event()

    async def __aenter__(self) -> "Follower":
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._look_out())]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def follow(self, tenant_id: UUID, turn_id: UUID) -> AsyncIterator[str | Restart | Turn]:
        """Yield the reply's text as it comes, an empty string about once a second while there
        is none, and at last the settled turn; the texts since the last `Restart` add up to its
        reply.

        Raises:
            NotFound: the tenant has no such turn.
        """
        shown = ""
        async with self.reading(turn_id) as reader:
            while True:
                reader.wake.clear()
                tail = await self._tail(tenant_id, turn_id, reader.position)
                if tail is None or tail.state not in OPEN_STATES:
                    break
                if shown and tail.is_torn:
                    shown = ""
                    yield RESTART
                shown, reader.position = shown + tail.text, tail.position
                if tail.text:
                    yield tail.text
                while not await reader.is_woken(SIGN_OF_LIFE_S):
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
    async def reading(self, turn_id: UUID) -> AsyncIterator[Reader]:
        """A reader that notifications with this id wake. One of an id that is no turn's is woken
        every few seconds besides."""
        reader = Reader()
        self._readers[turn_id.hex].add(reader)
        try:
            yield reader
        finally:
            self._readers[turn_id.hex].discard(reader)
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

    async def _look_out(self) -> None:
        """Wake the readers whose turns have moved on, whether or not a notification came."""
        while True:
            pause_s = LOOK_S if self._is_listening else POLL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._has_begun.wait()
            self._has_begun.clear()
            try:
                await self._look()
            except DatabaseUnavailable:
                continue
            except Exception:  # the readers have nothing else that finds a lost notification
                log.exception("turns.look_failed")

    async def _look(self) -> None:
        waiting = {turn_id: tuple(readers) for turn_id, readers in self._readers.items()}
        if not waiting:
            return
        ids = list(map(UUID, waiting))
        rows = await asyncio.to_thread(self._database.fetch, _LookRow, _LOOK, (ids,))
        found = {row.turn_id.hex: row for row in rows}
        for turn_id, readers in waiting.items():
            row = found.get(turn_id)
            for reader in readers:
                if row is None or row.is_news(reader):
                    reader.wake.set()

    async def _listen(self) -> None:
        while True:
            try:
                await self._pass_on_notifications()
            except Exception as error:
                # What matters is that the listening comes back. Readers are looked after meanwhile.
                log.warning("follower.disconnected", error=why_away(error))
            self._is_listening = False
            await asyncio.sleep(POLL_S)

    async def _pass_on_notifications(self) -> None:
        connection = await self._database.connect_async()
        async with connection:
            await connection.execute(f"LISTEN {TURN_CHANNEL}")
            self._is_listening = True
            self._has_begun.set()
            while True:
                async for notification in connection.notifies(timeout=POLL_S):
                    for reader in self._readers.get(notification.payload, ()):
                        reader.wake.set()
                # A connection that is open at our end only would be listened to for ever.
                await connection.execute("SELECT 1")
