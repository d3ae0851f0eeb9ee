"""`/v1/files`: files that messages and collections refer to, in OpenAI's shapes."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Literal
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.forms import Form, FormPart
from turnmill.producer.api.parameters import FileId, wanted_id
from turnmill.producer.api.pointers import pointer
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.schemas.errors import InvalidInput, TooLarge
from turnmill.schemas.files.files import UPLOADED, File, Purpose
from turnmill.schemas.files.storage import Draft
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.openai.files import DeletedFile, FileList, FileObject

router = APIRouter(tags=["files"])

#: Of the form around a file.
_FORM_BYTES = 64 * 1024
#: Written, and read, at once.
_PIECE_BYTES = 1024 * 1024

#: OpenAI's bounds of `expires_after[seconds]`.
MIN_EXPIRY_S = 3600
MAX_EXPIRY_S = 30 * 24 * 3600

_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(UPLOADED)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": MIN_EXPIRY_S,
            "maximum": MAX_EXPIRY_S,
        },
    },
}

Limit = Annotated[int, Query(ge=1, le=10_000)]


@router.post(
    "/v1/files",
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    },
)
async def create_file(request: Request, services: ServicesOf, tenant_id: TenantOf) -> FileObject:
    """Upload a file. Its name is only shown, and its type is that of its content."""
    max_bytes = services.settings.files.max_bytes
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes + _FORM_BYTES:
        raise _too_large(max_bytes)
    form = Form(request.headers.get("content-type", ""), request.stream(), max_bytes + _FORM_BYTES)
    fields: dict[str, str] = {}
    name = None
    with services.storage.draft() as draft:
        async for part in form.parts():
            if part.filename is None and part.name != "file":
                fields[part.name] = await part.text()
            elif part.name == "file" and name is None:
                name = part.filename or ""
                await _store(part, draft, services, max_bytes)
        if name is None:
            raise InvalidInput(
                "'file' is missing: send the file as a part of this name.", param="file"
            )
        save = partial(
            services.transfers.files.save,
            draft,
            tenant_id=tenant_id,
            name=name,
            purpose=_purpose(fields),
            expires_at=_expiry(fields, services.settings.retention.files_days),
        )
        return FileObject.of(await services.transfers.call(save))


async def _store(part: FormPart, draft: Draft, services: Services, max_bytes: int) -> None:
    """Write the content in large pieces: each costs a change of threads."""
    async for piece in _joined(part.content):
        if draft.size + len(piece) > max_bytes:
            raise _too_large(max_bytes)
        await services.call(draft.write, piece)
    if not draft.size:
        raise InvalidInput("The file is empty.", param="file")


async def _joined(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    joined = bytearray()
    async for piece in pieces:
        joined += piece
        if len(joined) >= _PIECE_BYTES:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"The file is larger than {max_bytes} bytes. TURNMILL_FILES__MAX_BYTES allows more.",
        param="file",
    )


def _purpose(fields: dict[str, str]) -> Purpose:
    given = fields.get("purpose", "")
    if given not in UPLOADED:
        instead = pointer("/v1/batches") if given == "batch" else f"Send {', '.join(UPLOADED)}."
        raise InvalidInput(
            f"'purpose' is not supported with this value. {instead}", param="purpose"
        )
    return Purpose(given)


def _expiry(fields: dict[str, str], days: int | None) -> datetime | None:
    """The end of the file: as the call asks, and never later than retention's."""
    asked = fields.get("expires_after[seconds]")
    longest = None if days is None else timedelta(days=days)
    if asked is not None or "expires_after[anchor]" in fields:
        seconds = int(asked) if asked and asked.isascii() and asked.isdecimal() else 0
        anchor = fields.get("expires_after[anchor]", "created_at")
        if anchor != "created_at" or not MIN_EXPIRY_S <= seconds <= MAX_EXPIRY_S:
            raise InvalidInput(
                f"'expires_after' needs the anchor 'created_at' and {MIN_EXPIRY_S} to "
                f"{MAX_EXPIRY_S} seconds.",
                param="expires_after",
            )
        wanted = timedelta(seconds=seconds)
        longest = wanted if longest is None else min(wanted, longest)
    return None if longest is None else datetime.now(UTC) + longest


@router.get("/v1/files")
async def list_files(
    services: ServicesOf,
    tenant_id: TenantOf,
    purpose: str | None = None,
    after: str | None = None,
    limit: Limit = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """List uploaded files by the time of their upload. Parts of messages are not listed."""
    listed = partial(
        services.files.page,
        tenant_id,
        purposes=UPLOADED if purpose is None else (_purpose({"purpose": purpose}),),
        after=None if after is None else parse_id(Prefix.FILE, after),
        limit=limit + 1,
        newest_first=order == "desc",
    )
    found = await services.call(listed)
    shown = [FileObject.of(file) for file in found[:limit]]
    return FileList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/files/{file_id}")
async def get_file(file_id: FileId, services: ServicesOf, tenant_id: TenantOf) -> FileObject:
    """One file."""
    return FileObject.of(await _find(services, tenant_id, file_id))


@router.get("/v1/files/{file_id}/content", response_class=StreamingResponse)
async def get_file_content(
    file_id: FileId, services: ServicesOf, tenant_id: TenantOf
) -> StreamingResponse:
    """The bytes of a file, as they were uploaded."""
    file = await _find(services, tenant_id, file_id)
    content = await services.transfers.call(services.transfers.files.open, file)

    def pieces() -> Iterator[bytes]:
        with content:
            while piece := content.read(_PIECE_BYTES):
                yield piece

    headers = {
        "Content-Length": str(file.size),
        # It is somebody's upload: no browser shows or runs it in our name.
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(pieces(), headers=headers, media_type=file.mime)


@router.delete("/v1/files/{file_id}")
async def delete_file(file_id: FileId, services: ServicesOf, tenant_id: TenantOf) -> DeletedFile:
    """Delete a file for good. Turns that refer to it show from then on that it is gone."""
    wanted = wanted_id(file_id, Prefix.FILE, param="file_id")
    # Its documents go with it.
    await services.stock.call(services.stock.files.delete, tenant_id, wanted)
    return DeletedFile(id=file_id)


async def _find(services: Services, tenant_id: UUID, file_id: str) -> File:
    wanted = wanted_id(file_id, Prefix.FILE, param="file_id")
    return await services.call(services.files.find, tenant_id, wanted)
