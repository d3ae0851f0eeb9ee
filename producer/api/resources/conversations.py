"""`/conversations`: what was said, policies, and the people who answer instead of the bot."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.headers import ANSWER_HEADERS, read_idempotency_key
from turnmill.producer.api.parameters import ConversationId, id_schema
from turnmill.producer.api.resources.turns import TurnBody
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.conversations import read_state, set_policies
from turnmill.producer.handoff import ASKED_BY_OPERATOR, answer, hand_off, resume
from turnmill.producer.operations.handed_off import (
    PLACE_PATTERN,
    HandedOffPage,
    Place,
    list_handed_off,
)
from turnmill.producer.tenants import set_conversation_training
from turnmill.producer.turns import Span, read_page, read_turn
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.content import refuse_nul
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.postgres.database import Database

_EXISTS = "SELECT 1 FROM conversations WHERE id = %s AND tenant_id = %s"

router = APIRouter(tags=["conversations"], route_class=BodyRoute)


class ConversationBody(BaseModel):
    """A conversation: its turns, or a page of them."""

    conversation_id: str
    #: Since when, and why, a person answers; null while the bot does.
    handed_off_at: datetime | None
    handed_off_because: str | None
    #: Its own, over its bot's; null without any.
    policies: dict[str, object] | None
    turns: list[TurnBody]
    #: What to send as `after` for the next page, and as `before` for the one before; null: none.
    next: str | None = None
    previous: str | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChangeBody(_Body):
    #: Over its bot's; null takes them back.
    policies: Policies | None


class HandOffBody(_Body):
    #: Why, for those who look.
    because: Annotated[
        str, StringConstraints(min_length=1, max_length=500), AfterValidator(refuse_nul)
    ] = ASKED_BY_OPERATOR


class AnswerBody(_Body):
    """What a person answers."""

    content: Annotated[
        str, StringConstraints(min_length=1, max_length=40_000), AfterValidator(refuse_nul)
    ]
    #: Who answers, in your words.
    author: Annotated[
        str, StringConstraints(min_length=1, max_length=255), AfterValidator(refuse_nul)
    ] = "operator"


class TurnsQuery(BaseModel):
    """Which page of a conversation's turns. Parameters of others are ignored, as ever."""

    limit: int | None = Field(
        default=None, ge=1, le=1000, description="Turns of a page; all turns when left out."
    )
    order: Literal["asc", "desc"] = Field(
        default="asc", description="`asc`: the first turn first. `desc`: the latest first."
    )
    after: str | None = Field(
        default=None,
        description="`next` of the page before, or a turn's id: the turns after it in this order.",
        json_schema_extra=id_schema(Prefix.TURN),
    )
    before: str | None = Field(
        default=None,
        description="`previous` of the page after, or a turn's id: the turns before it.",
        json_schema_extra=id_schema(Prefix.TURN),
    )

    def span(self) -> Span:
        """Raises `InvalidInput`."""
        return Span(
            limit=self.limit,
            is_latest_first=self.order == "desc",
            after=None if self.after is None else parse_id(Prefix.TURN, self.after),
            before=None if self.before is None else parse_id(Prefix.TURN, self.before),
        )


class PageQuery(_Body):
    state: Literal["handed_off"] = "handed_off"
    limit: int = Field(default=50, ge=1, le=1000)
    after: str | None = Field(
        default=None,
        description="`next` of the page before: a text without meaning.",
        json_schema_extra={"type": "string", "pattern": PLACE_PATTERN},
    )


@router.get("/conversations")
async def list_conversations(
    query: Annotated[PageQuery, Query()], services: ServicesOf, tenant_id: TenantOf
) -> HandedOffPage:
    """The conversations that people answer, those first that were handed off first."""
    after = None if query.after is None else Place.parse(query.after)
    return await services.call(
        list_handed_off, services.database, tenant_id, limit=query.limit, after=after
    )


@router.get("/conversations/{conversation_id}", response_model=ConversationBody)
async def get_conversation(
    conversation_id: ConversationId,
    query: Annotated[TurnsQuery, Query()],
    services: ServicesOf,
    tenant_id: TenantOf,
) -> Response:
    """A conversation's turns in order, all or a page of them, and who answers it."""
    return await services.show(_read, services.database, tenant_id, conversation_id, query.span())


@router.patch("/conversations/{conversation_id}", status_code=204)
async def change_conversation(
    conversation_id: ConversationId, body: ChangeBody, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Give a conversation policies of its own, from its next message on."""
    await services.call(set_policies, services.database, tenant_id, conversation_id, body.policies)


@router.post("/conversations/{conversation_id}/hand-off", status_code=204)
async def hand_conversation_off(
    conversation_id: ConversationId,
    services: ServicesOf,
    tenant_id: TenantOf,
    body: HandOffBody | None = None,
) -> None:
    """Let a person answer: the open turns end, and the bot sends nothing more. Doing so twice is
    fine."""
    because = (body or HandOffBody()).because
    await services.call(hand_off, services.database, tenant_id, conversation_id, because)


@router.post(
    "/conversations/{conversation_id}/messages",
    response_model=TurnBody,
    openapi_extra={"parameters": ANSWER_HEADERS},
)
async def answer_conversation(
    conversation_id: ConversationId,
    body: AnswerBody,
    request: Request,
    services: ServicesOf,
    tenant_id: TenantOf,
) -> TurnBody:
    """Answer as a person: it becomes part of what was said, and is sent to the thread that the
    user writes from; repeated with the same `Idempotency-Key`, once. 409 `not_handed_off` while the
    bot answers."""
    key = read_idempotency_key(request)

    def answer_and_read(database: Database) -> TurnBody:
        turn = answer(database, tenant_id, conversation_id, body.content, body.author, key)
        return TurnBody.of(read_turn(database, tenant_id, turn.turn_id))

    return await services.call(answer_and_read, services.database)


@router.post("/conversations/{conversation_id}/resume", status_code=204)
async def resume_conversation(
    conversation_id: ConversationId, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Let the bot answer again, from the next message on. Doing so twice is fine."""
    await services.call(resume, services.database, tenant_id, conversation_id)


@router.put("/conversations/{conversation_id}/training-refusal", status_code=204)
async def refuse_training(
    conversation_id: ConversationId, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Keep the conversation from training models, whatever its tenant agreed to. Doing so twice is
    fine."""
    await services.call(
        set_conversation_training, services.database, tenant_id, conversation_id, is_allowed=False
    )


@router.delete("/conversations/{conversation_id}/training-refusal", status_code=204)
async def withdraw_refusal(
    conversation_id: ConversationId, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Let the conversation train models again, where its tenant agreed to it."""
    await services.call(
        set_conversation_training, services.database, tenant_id, conversation_id, is_allowed=True
    )


def _read(
    database: Database, tenant_id: UUID, conversation_id: UUID, span: Span
) -> ConversationBody:
    state = read_state(database, tenant_id, conversation_id)
    page = read_page(database, tenant_id, conversation_id, span)
    return ConversationBody(
        conversation_id=show_id(Prefix.CONVERSATION, conversation_id),
        handed_off_at=state.handed_off_at,
        handed_off_because=state.handed_off_because,
        policies=state.policies,
        turns=[TurnBody.of(turn) for turn in page.turns],
        next=None if page.next is None else show_id(Prefix.TURN, page.next),
        previous=None if page.previous is None else show_id(Prefix.TURN, page.previous),
    )


def require_conversation(database: Database, tenant_id: UUID, conversation_id: UUID) -> None:
    """Raises `NotFound`: an id that we never gave out must not start a conversation."""
    if not database.run(_EXISTS, (conversation_id, tenant_id)):
        raise NotFound("There is no such conversation.", param="X-Turnmill-Conversation")
