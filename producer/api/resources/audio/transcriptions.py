"""`POST /v1/audio/transcriptions`: OpenAI's call, answered by a worker.

The sound is stored, a worker takes it as leased work, and the call waits, as one for a reply does.
However the call ends, the sound and its transcript are deleted: unlike a turn, it has no id by
which anybody could ask again.

https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.errors import Problem
from turnmill.producer.api.forms import Form, FormPart
from turnmill.producer.api.resources.audio.fields import FORM, WHISPER, Asked, Format, read_fields
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.schemas.errors import (
    DatabaseUnavailable,
    InvalidInput,
    ModelUnavailable,
    NotFound,
    TooLarge,
    TransientError,
)
from turnmill.schemas.files.files import File, Purpose
from turnmill.schemas.files.parts import refuse_disguised, refuse_other
from turnmill.schemas.files.sniffing import TAIL_BYTES
from turnmill.schemas.files.storage import Draft
from turnmill.schemas.store.files.transcriptions import (
    WANT_EVERY_S,
    Ended,
    can_transcribe,
    ended,
    want,
    want_still,
)

router = APIRouter(tags=["audio"])

#: Of the form around a sound.
_FORM_BYTES = 64 * 1024
#: Of a sound whose call was cut off with its process: the pruner deletes it then.
_KEPT = timedelta(hours=1)
#: How often a waiting call looks whether its client is still there, seconds.
_LOOK_S = 1.0


@router.post(
    "/v1/audio/transcriptions",
    response_model=None,
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
    },
)
async def create_transcription(
    request: Request, services: ServicesOf, tenant_id: TenantOf
) -> Response:
    """Transcribe a sound. It is not kept.

    `prompt` helps with names that occur in the sound. `verbose_json` has the segments, as far as
    the workers' transcriber tells them.
    """
    media = services.settings.media
    until = asyncio.get_running_loop().time() + services.settings.api.wait_s
    grace_s = services.settings.api.model_grace_s
    if not await services.call(can_transcribe, services.database, grace_s):
        raise ModelUnavailable(
            "No live worker transcribes sound. Try again later, or tell whoever runs this service "
            "(docs/media.md)."
        )
    async with _stored(request, services, tenant_id) as (file, asked):
        asking = partial(
            want, wait_s=services.settings.api.wait_s, max_waiting=media.max_waiting_sounds
        )
        await services.call(asking, services.database, file, asked.language, asked.prompt)
        end = await _wait(request, services, file.file_id, until)
    if isinstance(end, Problem):
        return end.response()
    if end.transcript is None:
        return _problem(end).response()
    return _answer(end.transcript, asked.format)


@asynccontextmanager
async def _stored(
    request: Request, services: Services, tenant_id: UUID
) -> AsyncIterator[tuple[File, Asked]]:
    """The call's sound as a file, for as long as the block, and what is asked of it."""
    max_bytes = services.settings.media.max_audio_bytes
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes + _FORM_BYTES:
        raise _too_large(max_bytes)
    form = Form(request.headers.get("content-type", ""), request.stream(), max_bytes + _FORM_BYTES)
    fields: list[tuple[str, str]] = []
    name = None
    with services.storage.draft() as draft:
        async for part in form.parts():
            if part.name != "file":
                fields.append((part.name, await part.text()))
            elif name is None:
                name = part.filename or ""
                await _receive(part, draft, services, max_bytes)
        if name is None:
            raise InvalidInput("'file' is missing: send the sound as a part of it.", param="file")
        asked = read_fields(fields, (WHISPER, services.settings.media.transcriber_model))
        save = partial(
            services.transfers.files.save,
            draft,
            tenant_id=tenant_id,
            name=name,
            purpose=Purpose.MESSAGE,
            expires_at=datetime.now(UTC) + _KEPT,
        )
        file = await services.transfers.call(save)
    try:
        yield file, asked
    finally:
        await asyncio.shield(_forget(services, file))


async def _receive(part: FormPart, draft: Draft, services: Services, max_bytes: int) -> None:
    """Write the sound. Raises `InvalidInput` if it is none."""
    tail = b""
    async for piece in part.content:
        if draft.size + len(piece) > max_bytes:
            raise _too_large(max_bytes)
        await services.call(draft.write, piece)
        tail = (tail + piece)[-TAIL_BYTES:]
    refuse_other("audio", draft.head, param="file")
    refuse_disguised("audio", draft.head + tail, param="file")


async def _forget(services: Services, file: File) -> None:
    """Delete the sound, and with it what a worker heard in it. What cannot be deleted now, the
    pruner deletes within hours."""
    transfers = services.transfers
    with suppress(NotFound, TransientError):
        await transfers.call(transfers.files.delete, file.tenant_id, file.file_id)


async def _wait(
    request: Request, services: Services, file_id: UUID, until: float
) -> Ended | Problem:
    """Wait for the end of a transcription, until a time of the event loop."""
    loop = asyncio.get_running_loop()
    told_at = loop.time()
    async with services.follower.reading(file_id) as reader:
        while True:
            reader.wake.clear()
            try:
                end = await services.call(ended, services.database, file_id)
            except DatabaseUnavailable:
                end = None
            if end is not None:
                return end
            while not await reader.is_woken(_LOOK_S):
                if services.is_stopping:
                    return _again("stopping", "The server is stopping. Send the sound again.")
                if await request.is_disconnected():
                    raise ClientDisconnect
                if loop.time() > until:
                    return await _too_late(services, file_id)
                if loop.time() > told_at + WANT_EVERY_S:
                    told_at = loop.time()
                    with suppress(DatabaseUnavailable):
                        await services.call(want_still, services.database, file_id)


async def _too_late(services: Services, file_id: UUID) -> Ended | Problem:
    """What a call ends in that has waited as long as it may."""
    with suppress(DatabaseUnavailable):
        last = partial(ended, or_delayed=True)
        if (end := await services.call(last, services.database, file_id)) is not None:
            return end
    return _again(
        "wait_timeout",
        f"No worker finished the transcript within {services.settings.api.wait_s:g} s. Send the "
        "sound again, or a shorter one. Whoever runs this service can start more workers that "
        "transcribe (docs/media.md).",
    )


def _problem(end: Ended) -> Problem:
    """Nothing is left of the call: repeating it is safe, and helps where a part was away."""
    problem = Problem(
        end.error_code or "internal_error", end.error_message or "", end.error_param or "file"
    )
    may_help = problem.status == HTTPStatus.SERVICE_UNAVAILABLE
    return replace(problem, headers={"x-should-retry": "true" if may_help else "false"})


def _again(code: str, message: str) -> Problem:
    # Nothing is left of the call: repeating it is safe.
    return Problem(code, message, headers={"x-should-retry": "true"})


def _answer(heard: dict[str, object], kind: Format) -> Response:
    """https://platform.openai.com/docs/api-reference/audio/json-object"""
    text, duration_s = str(heard["text"]), heard.get("duration_s")
    if kind == "text":
        return Response(f"{text}\n", media_type="text/plain; charset=utf-8")
    shown: dict[str, object] = {"text": text}
    if isinstance(duration_s, int | float):
        shown["usage"] = {"type": "duration", "seconds": math.ceil(duration_s)}
    if kind == "verbose_json":
        known = {"language": heard.get("language"), "duration": duration_s}
        shown |= {"task": "transcribe", **known, "segments": heard.get("segments", [])}
    return JSONResponse(shown)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"The sound is larger than {max_bytes} bytes. TURNMILL_MEDIA__MAX_AUDIO_BYTES allows more.",
        param="file",
    )
