"""`/conversations`: the turns of one conversation."""

from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.parameters import ConversationId
from turnmill.producer.api.resources.turns import TurnBody
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.tenants import set_conversation_training
from turnmill.producer.turns import read_conversation
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database

_EXISTS = "SELECT 1 FROM conversations WHERE id = %s AND tenant_id = %s"

router = APIRouter(tags=["turns"])


class ConversationBody(BaseModel):
    """A conversation: its turns in order."""

    conversation_id: str
    turns: list[TurnBody]


@router.get("/conversations/{conversation_id}", response_model=ConversationBody)
async def get_conversation(
    conversation_id: ConversationId, services: ServicesOf, tenant_id: TenantOf
) -> Response:
    """All turns of a conversation, in order."""
    return await services.show(_read, services.database, tenant_id, conversation_id)


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


def _read(database: Database, tenant_id: UUID, conversation_id: UUID) -> ConversationBody:
    turns = read_conversation(database, tenant_id, conversation_id)
    return ConversationBody(
        conversation_id=show_id(Prefix.CONVERSATION, conversation_id),
        turns=[TurnBody.of(turn) for turn in turns],
    )


def require_conversation(database: Database, tenant_id: UUID, conversation_id: UUID) -> None:
    """Raises `NotFound`: an id that we never gave out must not start a conversation."""
    if not database.run(_EXISTS, (conversation_id, tenant_id)):
        raise NotFound("There is no such conversation.", param="X-Turnmill-Conversation")
