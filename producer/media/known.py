"""Refuse turns that refer to files which their tenant does not have."""

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.content import MediaPart
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.files.files import Purpose, unknown_file
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.turns import TurnRequest


class _Known(NamedTuple):
    tenant_id: UUID
    id: UUID
    purpose: str


_KNOWN = """
SELECT tenant_id, id, purpose FROM files
WHERE (tenant_id, id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[]))
"""


def refuse_unknown_files(cursor: Cursor, requests: Iterable[TurnRequest]) -> None:
    """Check the files that turns refer to; plain text costs no query.

    Raises:
        NotFound: the tenant has no such file.
        InvalidInput: it was not made to be a part of a message.
    """
    asked = {(request.tenant_id, id) for request in requests for id in _files_of(request)}
    if not asked:
        return
    columns = ([tenant for tenant, _ in asked], [id for _, id in asked])
    rows = fetch(cursor, _Known, _KNOWN, columns)
    known = {(row.tenant_id, row.id): row.purpose for row in rows}
    for tenant_id, file_id in asked:
        purpose = known.get((tenant_id, file_id))
        if purpose is None:
            raise unknown_file(file_id)
        if purpose != Purpose.MESSAGE:
            raise InvalidInput(
                "An uploaded file becomes a part of a message by a chat completion only: "
                "POST /v1/chat/completions",
                param="messages",
            )


def _files_of(request: TurnRequest) -> Iterable[UUID]:
    for message in request.messages:
        if not isinstance(message.content, str):
            for part in message.content:
                if isinstance(part, MediaPart) and part.file_id is not None:
                    yield parse_id(Prefix.FILE, part.file_id)
