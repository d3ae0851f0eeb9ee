"""`POST /v1/chat/completions`: OpenAI's call, answered through the queue.

The turn is accepted before anything is awaited, and nothing that happens to the call
afterwards (a client that leaves, a wait that ends, this process being stopped) takes it back:
it is answered and kept, and readable under `/turns/{id}`. A client that wants it otherwise
sends `X-Turnmill-Cancel-On-Disconnect: true`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.errors import (
    CONVERSATION_HEADER,
    TURN_HEADER,
    Problem,
    problem_of_turn,
    stopping,
    wait_timeout,
)
from turnmill.producer.api.headers import (
    CALL_HEADERS,
    TURN_HEADERS,
    CallHeaders,
    read_body,
    read_headers,
)
from turnmill.producer.api.resources.conversations import require_conversation
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.api.shapes import CompletionShape
from turnmill.producer.api.stream import events
from turnmill.producer.api.watch import Interrupt, Watch
from turnmill.producer.cancel import cancel
from turnmill.producer.media.parts import call_part
from turnmill.producer.tenants import ignores_tools
from turnmill.producer.texting import accept_call
from turnmill.schemas.channels.memory import API, user_key
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.openai import ChatCompletion, ChatCompletionRequest, parse_chat_request
from turnmill.schemas.turns import AcceptedTurn, Message, Turn, TurnRequest

router = APIRouter(tags=["chat"])

_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    # nginx would otherwise hold the events back until its buffer is full.
    "X-Accel-Buffering": "no",
}


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"headers": TURN_HEADERS}},
    openapi_extra={
        "parameters": CALL_HEADERS,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}
                }
            },
        },
    },
)
async def create_chat_completion(
    request: Request, services: ServicesOf, tenant_id: TenantOf
) -> Response:
    """Accept one turn and answer with its reply, at once or as a stream of server-sent events.

    Without `X-Turnmill-Conversation` the messages are the whole prompt. With it (a key of your
    own, or a `conv_…` id) Turnmill keeps the history and the messages are the new ones.
    `Idempotency-Key` makes repeating the call safe; `X-Turnmill-Timeout` is the number of
    seconds after which nobody wants the reply; `X-Turnmill-Cancel-On-Disconnect: true` cancels
    the turn when the client disconnects. `X-Turnmill-Double-Texting` says what becomes of the
    message while an earlier one of the conversation is being answered.
    """
    started = asyncio.get_running_loop().time()
    headers = read_headers(request)
    body = await _read(request, services)
    messages = await _messages(services, tenant_id, body)
    accepted = await services.call(_accept, services, tenant_id, body, headers, messages)
    may_repeat = headers.idempotency_key is not None
    shape = CompletionShape(accepted.turn_id, body.model, may_repeat, body.wants_usage)
    call = _Call(request, services, tenant_id, headers, accepted, shape, started)
    return await (_stream(call) if body.stream else _answer(call))


async def _read(request: Request, services: Services) -> ChatCompletionRequest:
    body = await read_body(request, services.settings.api.max_body_bytes)
    return await services.parse(parse_chat_request, body)


async def _messages(
    services: Services, tenant_id: UUID, body: ChatCompletionRequest
) -> tuple[Message, ...]:
    """The messages of the turn; their parts are checked and stored where no other call waits."""
    if not body.has_parts:
        return body.turn_messages()

    def keep() -> tuple[Message, ...]:
        services.served.require(services.database, tenant_id, body.model)
        return body.turn_messages(partial(call_part, services.files, services.parts, tenant_id))

    return await services.media.call(keep)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call whose turn is accepted."""

    request: Request
    services: Services
    tenant_id: UUID
    headers: CallHeaders
    accepted: AcceptedTurn
    shape: CompletionShape
    #: On the clock of the event loop.
    started: float

    @property
    def answer_headers(self) -> dict[str, str]:
        return {
            TURN_HEADER: show_id(Prefix.TURN, self.accepted.turn_id),
            CONVERSATION_HEADER: show_id(Prefix.CONVERSATION, self.accepted.conversation_id),
        }

    def watch(self) -> contextlib.AbstractAsyncContextManager[Watch]:
        return self.services.watch(self.tenant_id, self.accepted.turn_id)

    async def note_departure(self) -> None:
        """Cancel the turn if its client asked for that; otherwise it stays accepted.

        So it does where it answers another call too.
        """
        if self.headers.cancels_on_disconnect:
            database, turn_id = self.services.database, self.accepted.turn_id
            await self.services.call(cancel, database, self.tenant_id, turn_id, spares_shared=True)


def _accept(
    services: Services,
    tenant_id: UUID,
    body: ChatCompletionRequest,
    headers: CallHeaders,
    messages: tuple[Message, ...],
) -> AcceptedTurn:
    if (given := headers.given_conversation_id) is not None:
        require_conversation(services.database, tenant_id, given)
    services.served.require(services.database, tenant_id, body.model)
    offers_tools = body.offered_tools is not None and not _ignores_tools(services, tenant_id, body)
    return accept_call(
        services.database,
        TurnRequest(
            tenant_id=tenant_id,
            bot=body.model,
            messages=messages,
            params=body.params(offers_tools=offers_tools),
            conversation_id=headers.conversation_id(tenant_id, body.model),
            idempotency_key=headers.idempotency_key,
            timeout_s=headers.timeout_s,
            author=body.asked_by,
            user_key=user_key(API, body.asked_by) if body.asked_by else None,
        ),
        headers.double_texting,
    )


def _ignores_tools(services: Services, tenant_id: UUID, body: ChatCompletionRequest) -> bool:
    """Whether the bot answers as if no tools were offered. Others' tools are accept's to judge."""
    ignores = ignores_tools(services.database, tenant_id, body.model)
    if ignores and body.demanded_tool is not None:
        raise InvalidInput(
            "'tool_choice' is not supported with this value: the bot ignores tools.",
            param="tool_choice",
        )
    if not ignores and body.offered_tools == "functions":
        raise InvalidInput(
            "'functions' is not supported. Send 'tools' instead, leave 'functions' out, send "
            '"function_call": "none", or let the bot ignore tools: '
            "turnmill bots change NAME --ignore-tools",
            param="functions",
        )
    return ignores


async def _answer(call: _Call) -> Response:
    wait_s = call.services.settings.api.wait_s
    left_s = call.started + wait_s - asyncio.get_running_loop().time()
    async with call.watch() as watch, _noticing(call.request, watch):
        end = await watch.settled(left_s)
    match end:
        case Turn(reply=reply) if reply is not None:
            body = call.shape.completion(reply).model_dump_json()
            return Response(body, headers=call.answer_headers, media_type="application/json")
        case Turn():
            problem = problem_of_turn(end)
        case _:
            problem = await _interrupted(end, call, wait_s)
    return problem.response(call.answer_headers)


async def _stream(call: _Call) -> Response:
    headers_s = call.services.settings.api.stream_headers_s
    async with AsyncExitStack() as stack:
        watch = await stack.enter_async_context(call.watch())
        # An early end can still have its own status: the headers wait for the first text.
        async with _noticing(call.request, watch):
            opening = await watch.opening(headers_s)
        if isinstance(opening, Turn) and opening.reply is None:
            return problem_of_turn(opening).response(call.answer_headers)
        if isinstance(opening, Interrupt):
            problem = await _interrupted(opening, call, headers_s)
            return problem.response(call.answer_headers)
        return _TurnStream(events(watch, opening, call.shape), call, stack.pop_all())


class _TurnStream(StreamingResponse):
    """Server-sent events; the watch ends with them, however they end."""

    def __init__(self, content: AsyncIterator[str], call: _Call, watching: AsyncExitStack) -> None:
        super().__init__(
            self._to_the_end(content),
            headers=call.answer_headers | _STREAM_HEADERS,
            media_type="text/event-stream",
        )
        self._call = call
        self._watching = watching
        self._has_ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._watching:
            await super().__call__(scope, receive, send)
        if not self._has_ended:
            await self._call.note_departure()

    async def _to_the_end(self, content: AsyncIterator[str]) -> AsyncIterator[str]:
        async for event in content:
            yield event
        self._has_ended = True


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


async def _interrupted(reason: Interrupt, call: _Call, wait_s: float) -> Problem:
    turn_id, may_repeat = call.accepted.turn_id, call.shape.may_repeat
    match reason:
        case Interrupt.LEFT:
            await call.note_departure()
            raise ClientDisconnect
        case Interrupt.TIMEOUT:
            return wait_timeout(turn_id, wait_s, may_repeat=may_repeat)
        case Interrupt.STOPPING:
            return stopping(turn_id, may_repeat=may_repeat)
