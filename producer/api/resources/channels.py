"""`/channels/{name}`: where platforms send what happens there.

No API key: each request is signed by its platform. A platform waits a few seconds (Slack three) and
sends again unless it gets 2xx, which it gets when its events are committed.
"""

import asyncio
import time
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Request, Response

from turnmill.producer.api.errors import Problem
from turnmill.producer.api.headers import read_body
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.channels import base
from turnmill.producer.channels.base import KeysNeeded, Parsed
from turnmill.producer.channels.pipeline import Pipeline
from turnmill.schemas.channels.sections.base import NAME_PATTERN
from turnmill.schemas.errors import NotFound

log = structlog.get_logger()

router = APIRouter(tags=["channels"])


@router.get("/channels/{name}", include_in_schema=False)
@router.post("/channels/{name}", response_class=Response)
async def receive_events(
    request: Request,
    services: ServicesOf,
    name: Annotated[str, Path(description="Its name in turnmill.toml.", pattern=NAME_PATTERN)],
) -> Response:
    """Take events of the platform that a channel is configured for."""
    pipelines: dict[str, Pipeline] = request.app.state.channels
    pipeline = pipelines.get(name)
    if pipeline is None:
        log.warning("channel.unknown", channel=name)
        raise NotFound(
            "There is no channel of this name. Channels are configured in turnmill.toml."
        )
    channel, metrics = pipeline.channel, request.app.state.metrics
    if request.method not in channel.methods:
        allowed = ", ".join(sorted(channel.methods))
        message = f"This channel takes {allowed}, not {request.method}."
        return Problem("method_not_allowed", message, headers={"Allow": allowed}).response()

    def understand(body: bytes) -> Parsed:
        received = base.Request(
            request.method, request.headers, body, time.time(), request.query_params
        )
        return pipeline.understand(received, metrics.count_event)

    body = await read_body(request, channel.max_body_bytes)
    try:
        parsed = await services.parse(understand, body)
    except KeysNeeded as needed:
        # Others wait for the same keys, also when this request is given up.
        await asyncio.shield(asyncio.wrap_future(needed.fetching))
        parsed = await services.parse(understand, body)
    answer = parsed.answer
    if parsed.events:
        count = metrics.count_event
        answer = await services.call(pipeline.receive, services.database, parsed, count)
    return Response(answer.body, media_type=answer.media_type)
