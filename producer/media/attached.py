"""Images and sounds that came with a message of a channel: owed to its turn, and fetched later."""

from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.capable import taken_kinds
from turnmill.schemas.channels.events import UserMessage
from turnmill.schemas.content import MAX_PARTS, MediaPart, parts_of
from turnmill.schemas.files.files import Purpose, shown_name
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.turns import Lane


class _Model(NamedTuple):
    model: str


_MODEL = "SELECT model FROM bots WHERE tenant_id = %s AND name = %s AND deleted_at IS NULL"

#: Nobody reads a file that was never fetched: it goes within days.
_OWE = """
INSERT INTO files (id, tenant_id, name, purpose, bytes, sha256, mime, source, fetch_at, expires_at)
VALUES (%(id)s, %(tenant)s, %(name)s, %(purpose)s, 0, '', '', %(source)s, clock_timestamp(),
    clock_timestamp() + interval '1 day')
"""


def attach(cursor: Cursor, tenant_id: UUID, bot: str, event: UserMessage) -> UserMessage:
    """Put references to its files into a message, as far as a live worker of the bot takes them.

    The files are owed: `workers/delivery/fetching.py` fetches them. A turn waits for its own.
    """
    if not event.files:
        return event
    found = fetch(cursor, _Model, _MODEL, (tenant_id, bot))
    taken = taken_kinds(cursor, found[0].model, Lane.INTERACTIVE) if found else set()
    wanted = [file for file in event.files if file.kind in taken]
    if not wanted:
        return event
    parts = []
    for file in wanted:
        file_id = new_id()
        source = {"channel": event.address.channel, "kind": file.kind, "ref": file.ref}
        given = {"id": file_id, "tenant": tenant_id, "name": shown_name(file.name or file.kind)}
        cursor.execute(_OWE, given | {"purpose": Purpose.MESSAGE, "source": Jsonb(source)})
        parts.append(MediaPart(type=file.kind, file_id=show_id(Prefix.FILE, file_id)))
    said = parts_of(event.content) if event.content else ()
    content = (*said, *parts)[:MAX_PARTS]
    return event.model_copy(update={"content": content})
