"""`/turns`: looking at a turn, cancelling it, and rating its reply."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.errors import Problem
from turnmill.producer.api.parameters import TurnId
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.cancel import cancel
from turnmill.producer.ratings import Score, rate
from turnmill.producer.turns import read_turn
from turnmill.schemas.content import refuse_nul
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.store.memory.remembered import Remembered
from turnmill.schemas.turns import Lane, Message, Reply, Turn, TurnState

router = APIRouter(tags=["turns"], route_class=BodyRoute)

_STORABLE = AfterValidator(refuse_nul)


class TurnBody(BaseModel):
    """A turn. `reply` is there once it is completed, `error_code` once it has failed."""

    turn_id: str
    conversation_id: str
    #: Its number within the conversation, from 1.
    seq: int
    bot: str
    #: The bot's version when the turn was accepted; null in turns of releases that did not count.
    bot_version: int | None
    model: str
    lane: Lane
    state: TurnState
    messages: tuple[Message, ...]
    attempt: int
    accepted_at: datetime
    started_at: datetime | None
    settled_at: datetime | None
    reply: Reply | None
    error_code: str | None
    error_message: str | None
    #: Who wrote it: on a channel, and where a call says so.
    author: str | None
    #: What it was told of its user, and where that comes from.
    remembered: Remembered | None = None

    @classmethod
    def of(cls, turn: Turn) -> "TurnBody":
        fields = {name: getattr(turn, name) for name in cls.model_fields}
        return cls(
            **fields
            | {
                "turn_id": show_id(Prefix.TURN, turn.turn_id),
                "conversation_id": show_id(Prefix.CONVERSATION, turn.conversation_id),
            }
        )


@router.get("/turns/{turn_id}", response_model=TurnBody)
async def get_turn(turn_id: TurnId, services: ServicesOf, tenant_id: TenantOf) -> Response:
    """The turn as it stands, with its reply once it is completed."""
    return await services.show(
        lambda: TurnBody.of(read_turn(services.database, tenant_id, turn_id))
    )


class RatingBody(BaseModel):
    """What somebody says of a reply."""

    model_config = ConfigDict(extra="forbid")

    #: 1: good, -1: bad, 0: take an earlier rating back.
    score: Score
    #: Who rates, in your words; one who rates again changes the rating.
    author: Annotated[str, StringConstraints(min_length=1, max_length=255), _STORABLE] = "anonymous"
    comment: Annotated[str, StringConstraints(max_length=2000), _STORABLE] | None = None


@router.post("/turns/{turn_id}/rating", status_code=204)
async def rate_turn(
    turn_id: TurnId, body: RatingBody, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Rate a turn's reply."""
    await services.call(
        rate, services.database, tenant_id, turn_id, body.author, body.score, body.comment
    )


@router.delete("/turns/{turn_id}", response_model=TurnBody)
async def cancel_turn(
    turn_id: TurnId, services: ServicesOf, tenant_id: TenantOf
) -> TurnBody | Response:
    """Cancel a turn that is still open. Cancelling twice is fine; a turn that has ended
    otherwise stays as it is: 409, code `already_settled`."""

    def cancel_and_read(services: Services) -> Turn:
        cancel(services.database, tenant_id, turn_id)
        return read_turn(services.database, tenant_id, turn_id)

    turn = await services.call(cancel_and_read, services)
    if turn.state is TurnState.CANCELLED:
        return TurnBody.of(turn)
    message = f"The turn had ended before: {turn.state}."
    return Problem("already_settled", message, turn_id=turn_id).response()
