"""The conversations that people answer, page by page."""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self
from uuid import UUID

from pydantic import BaseModel

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.postgres.database import Database

#: What `Place.parse` takes.
PLACE_PATTERN = r"^conv_[0-9a-f]{32}(\.[0-9]{1,17})?$"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class _Row(NamedTuple):
    id: UUID
    bot: str
    handed_off_at: datetime
    handed_off_because: str
    turn_count: int
    channel: str | None
    thread: str | None


#: Those that wait longest first.
_LIST = """
SELECT c.id, b.name AS bot, c.handed_off_at, c.handed_off_because, c.next_seq - 1 AS turn_count,
    h.channel, h.thread
FROM conversations c JOIN bots b ON b.id = c.bot_id
LEFT JOIN LATERAL (
    SELECT channel, thread FROM channel_threads WHERE conversation_id = c.id LIMIT 1
) AS h ON true
WHERE c.tenant_id = %(tenant)s AND c.handed_off_at IS NOT NULL
  AND (%(at)s::timestamptz IS NULL OR (c.handed_off_at, c.id) > (%(at)s, %(after)s::uuid))
ORDER BY c.handed_off_at, c.id LIMIT %(limit)s
"""


class _Since(NamedTuple):
    handed_off_at: datetime | None


_SINCE = "SELECT handed_off_at FROM conversations WHERE id = %s AND tenant_id = %s"


class Place(NamedTuple):
    """Where a page ends: it holds after the conversation has been resumed."""

    conversation_id: UUID
    #: None: look when it was handed off, as clients that name a conversation want.
    handed_off_at: datetime | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a page's `next`, or a conversation's id. Raises `InvalidInput`."""
        if not re.match(PLACE_PATTERN, text):
            raise InvalidInput(
                "'after' is neither a page's 'next' nor a conversation's id.", param="after"
            )
        shown, _, microseconds = text.partition(".")
        at = _EPOCH + int(microseconds) * _MICROSECOND if microseconds else None
        return cls(parse_id(Prefix.CONVERSATION, shown), at)

    def __str__(self) -> str:
        shown = show_id(Prefix.CONVERSATION, self.conversation_id)
        if self.handed_off_at is None:
            return shown
        return f"{shown}.{(self.handed_off_at - _EPOCH) // _MICROSECOND}"


class HandedOff(BaseModel):
    """A conversation that a person answers."""

    conversation_id: str
    bot: str
    handed_off_at: datetime
    because: str
    turn_count: int
    #: Where its user writes from; null for conversations of the API.
    channel: str | None
    thread: str | None


class HandedOffPage(BaseModel):
    conversations: list[HandedOff]
    #: What to send as `after` for the next page; null at the end.
    next: str | None


def list_handed_off(
    database: Database, tenant_id: UUID, *, limit: int = 50, after: Place | None = None
) -> HandedOffPage:
    """One page of the conversations that people answer; `after` is where the one before ended.

    Raises:
        InvalidInput: `after` names a conversation that nobody can place: it is not handed off.
    """
    at = None if after is None else after.handed_off_at or _since(database, tenant_id, after)
    params = {"tenant": tenant_id, "at": at, "after": after and after[0], "limit": limit + 1}
    rows = database.fetch(_Row, _LIST, params)
    following = None
    if len(rows) > limit:
        last = rows[limit - 1]
        following = str(Place(last.id, last.handed_off_at))
    return HandedOffPage(conversations=[_shown(row) for row in rows[:limit]], next=following)


def _since(database: Database, tenant_id: UUID, after: Place) -> datetime:
    rows = database.fetch(_Since, _SINCE, (after.conversation_id, tenant_id))
    since = rows[0].handed_off_at if rows else None
    if since is None:
        raise InvalidInput(
            "The conversation of 'after' is not handed off any more, so nobody knows which follow. "
            "Send the 'next' of the page before, or leave 'after' out to begin again.",
            param="after",
        )
    return since


def _shown(row: _Row) -> HandedOff:
    return HandedOff(
        conversation_id=show_id(Prefix.CONVERSATION, row.id),
        bot=row.bot,
        handed_off_at=row.handed_off_at,
        because=row.handed_off_because,
        turn_count=row.turn_count,
        channel=row.channel,
        thread=row.thread,
    )
