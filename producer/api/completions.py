"""`POST /v1/chat/completions`: OpenAI's call, answered through the queue.

The turn is accepted before anything is awaited, and nothing that happens to the call
afterwards (a client that leaves, a wait that ends, this process being stopped) takes it back:
it is answered and kept, and readable under `/turns/{id}`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from turnmill.producer.accept import accept
from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.conversations import require_conversation
from turnmill.producer.api.errors import (
    CONVERSATION_HEADER,
    TURN_HEADER,
    Problem,
    problem_of_turn,
    stopping,
    wait_timeout,
)
from turnmill.producer.api.headers import CallHeaders, read_body, read_headers
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.api.shapes import CompletionShape
from turnmill.producer.api.stream import events
from turnmill.producer.api.watch import Interrupt, Watch
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.openai import ChatCompletion, ChatCompletionRequest, parse_chat_request
from turnmill.schemas.turns import AcceptedTurn, Turn, TurnRequest

router = APIRouter(tags=["chat"])

_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    # nginx would otherwise hold the events back until its buffer is full.
    "X-Accel-Buffering": "no",
}


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}
                }
            },
        }
    },
)
async def create_chat_completion(
    request: Request, services: ServicesOf, tenant_id: TenantOf
) -> Response:
    """Accept one turn and answer with its reply, at once or as a stream of server-sent events.

    Without `X-Turnmill-Conversation` the messages are the whole prompt. With it (a key of your
    own, or a `conv_…` id) Turnmill keeps the history and the messages are the new ones.
    `Idempotency-Key` makes repeating the call safe; `X-Turnmill-Timeout` is the number of
    seconds after which nobody wants the reply.
    """
    headers = read_headers(request)
    body = parse_chat_request(await read_body(request, services.settings.api.max_body_bytes))
    accepted = await services.call(_accept, services, tenant_id, body, headers)
    may_repeat = headers.idempotency_key is not None
    shape = CompletionShape(accepted.turn_id, body.model, may_repeat, body.wants_usage)
    answer = _stream if body.stream else _answer
    return await answer(request, services, tenant_id, accepted, shape)


def _accept(
    services: Services, tenant_id: UUID, body: ChatCompletionRequest, headers: CallHeaders
) -> AcceptedTurn:
    if (given := headers.given_conversation_id) is not None:
        require_conversation(services.database, tenant_id, given)
    return accept(
        services.database,
        TurnRequest(
            tenant_id=tenant_id,
            bot=body.model,
            messages=body.turn_messages(),
            params=body.params(),
            conversation_id=headers.conversation_id(tenant_id, body.model),
            idempotency_key=headers.idempotency_key,
            timeout_s=headers.timeout_s,
        ),
    )


async def _answer(
    request: Request,
    services: Services,
    tenant_id: UUID,
    accepted: AcceptedTurn,
    shape: CompletionShape,
) -> Response:
    wait_s = services.settings.api.wait_s
    async with services.watch(tenant_id, accepted.turn_id) as watch, _noticing(request, watch):
        end = await watch.settled(wait_s)
    match end:
        case Turn(reply=reply) if reply is not None:
            body = shape.completion(reply).model_dump_json()
            return Response(body, headers=_headers(accepted), media_type="application/json")
        case Turn():
            problem = problem_of_turn(end)
        case _:
            problem = _interrupted(end, shape, wait_s)
    return problem.response(_headers(accepted))


async def _stream(
    request: Request,
    services: Services,
    tenant_id: UUID,
    accepted: AcceptedTurn,
    shape: CompletionShape,
) -> Response:
    api = services.settings.api
    async with AsyncExitStack() as stack:
        watch = await stack.enter_async_context(services.watch(tenant_id, accepted.turn_id))
        # An early end can still have its own status: the headers wait for the first text.
        async with _noticing(request, watch):
            opening = await watch.opening(api.stream_headers_s)
        if isinstance(opening, Turn) and opening.reply is None:
            return problem_of_turn(opening).response(_headers(accepted))
        if isinstance(opening, Interrupt):
            return _interrupted(opening, shape, api.stream_headers_s).response(_headers(accepted))
        return _TurnStream(
            events(watch, opening, shape), _headers(accepted) | _STREAM_HEADERS, stack.pop_all()
        )


class _TurnStream(StreamingResponse):
    """Server-sent events; the watch ends with them, however they end."""

    def __init__(
        self, content: AsyncIterator[str], headers: Mapping[str, str], watching: AsyncExitStack
    ) -> None:
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._watching = watching

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._watching:
            await super().__call__(scope, receive, send)


@contextlib.asynccontextmanager
async def _noticing(request: Request, watch: Watch) -> AsyncIterator[None]:
    """End the watch when the client hangs up, so that nobody polls for a reader that left."""

    async def wait_until_left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        watch.interrupt(Interrupt.LEFT)

    task = asyncio.create_task(wait_until_left())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _interrupted(reason: Interrupt, shape: CompletionShape, wait_s: float) -> Problem:
    match reason:
        case Interrupt.LEFT:
            raise ClientDisconnect
        case Interrupt.TIMEOUT:
            return wait_timeout(shape.turn_id, wait_s, may_repeat=shape.may_repeat)
        case Interrupt.STOPPING:
            return stopping(shape.turn_id, may_repeat=shape.may_repeat)


def _headers(accepted: AcceptedTurn) -> dict[str, str]:
    return {
        TURN_HEADER: show_id(Prefix.TURN, accepted.turn_id),
        CONVERSATION_HEADER: show_id(Prefix.CONVERSATION, accepted.conversation_id),
    }
