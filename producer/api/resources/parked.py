"""`/parked`: turns that ran out of attempts, and the two ways out."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from turnmill.producer.api.auth import AdministeredTenantOf
from turnmill.producer.api.errors import Problem
from turnmill.producer.api.parameters import TurnId, id_schema
from turnmill.producer.api.resources.turns import TurnBody
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.parked.listing import list_parked, read_parked
from turnmill.producer.parked.replay import Change, drop, replay
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.parked import ParkedDetails, ParkedFilter, ParkedPage
from turnmill.schemas.turns import Lane

router = APIRouter(tags=["parked"])


class PageQuery(ParkedFilter):
    """A filter, and which page of what it lets through."""

    limit: int = Field(default=50, ge=1, le=1000)
    #: `next` of the page before.
    after: str | None = Field(default=None, json_schema_extra=id_schema(Prefix.TURN))


@router.get("/parked")
async def list_parked_turns(
    query: Annotated[PageQuery, Query()], services: ServicesOf, tenant_id: AdministeredTenantOf
) -> ParkedPage:
    """Parked turns, the latest accepted first, and how many there are of each error."""
    return await services.call(
        list_parked,
        services.database,
        tenant_id,
        ParkedFilter(**query.model_dump(exclude={"limit", "after"})),
        limit=query.limit,
        after=None if query.after is None else parse_id(Prefix.TURN, query.after),
    )


@router.get("/parked/{turn_id}", response_model=ParkedDetails)
async def get_parked_turn(
    turn_id: TurnId, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> Response:
    """Everything about a parked turn: messages, attempts, and what a replay would do."""
    return await services.show(read_parked, services.database, tenant_id, turn_id)


@router.post("/parked/{turn_id}/replay", response_model=TurnBody)
async def replay_parked_turn(
    turn_id: TurnId, services: ServicesOf, tenant_id: AdministeredTenantOf, into: Lane | None = None
) -> TurnBody | Response:
    """Put a parked turn back into its place in its conversation: it is answered as if for the
    first time, `into` this lane if one is named. 409 says why that cannot be."""
    changes = await services.call(replay, services.database, tenant_id, [turn_id], into=into)
    return await _response(services, tenant_id, changes)


@router.delete("/parked/{turn_id}", response_model=TurnBody)
async def drop_parked_turn(
    turn_id: TurnId, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> TurnBody | Response:
    """Give a parked turn up: it has failed, with the error that it had."""
    changes = await services.call(drop, services.database, tenant_id, [turn_id])
    return await _response(services, tenant_id, changes)


async def _response(
    services: Services, tenant_id: UUID, changes: list[Change]
) -> TurnBody | Response:
    if not changes:
        # It was too old to be kept, and has just been deleted.
        raise NotFound("There is no such turn.")
    (change,) = changes
    if (refusal := change.refusal) is not None:
        return Problem(refusal.code, refusal.message, turn_id=change.turn_id).response()
    turn = await services.call(read_turn, services.database, tenant_id, change.turn_id)
    return TurnBody.of(turn)
