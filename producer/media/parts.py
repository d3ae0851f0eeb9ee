"""Parts of a call's messages become parts of a turn: checked, stored, referred to."""

from uuid import UUID

from turnmill.schemas.content import InlinePart, MediaPart, TextPart
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.files.files import Files, Purpose
from turnmill.schemas.files.parts import PartKeeper
from turnmill.schemas.ids import Prefix, parse_id


def call_part(
    files: Files, parts: PartKeeper, tenant_id: UUID, part: MediaPart | InlinePart
) -> MediaPart | TextPart:
    """Return what a turn has in the place of a part of a call.

    An uploaded file stays as it is; the turn refers to what was made of it.

    Raises:
        NotFound: the tenant has no such file.
        InvalidInput: it is not what it should be, or too large.
        StorageUnavailable, DatabaseUnavailable: nothing was stored.
    """
    if isinstance(part, InlinePart):
        return parts.keep(tenant_id, part.type, part.data, part.name)
    if part.file_id is None:
        return part
    file = files.find(tenant_id, parse_id(Prefix.FILE, part.file_id))
    if file.purpose == Purpose.MESSAGE:
        kind = file.mime.partition("/")[0]
        if part.type not in (kind, "file"):
            raise InvalidInput(f"The file is {file.mime}, no {part.type}.", param="messages")
        return MediaPart(type="image" if kind == "image" else "audio", file_id=part.file_id)
    if file.size > parts.max_bytes:
        raise InvalidInput(
            f"The file has {file.size:,} bytes; in a message it may have {parts.max_bytes:,}.",
            param="messages",
        )
    return parts.keep(tenant_id, part.type, files.read(file), file.name)
