"""`/bots`: the tenant's bots, as whoever runs them sees and changes them."""

from datetime import datetime
from typing import Self

from fastapi import APIRouter
from pydantic import BaseModel

from turnmill.producer.api.auth import AdministeredTenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.bots import BotChange, change_bot, delete_bot, read_bot
from turnmill.producer.tenants import Bot, list_bots
from turnmill.schemas.content import Name
from turnmill.schemas.openai.formats import AskedFormat
from turnmill.schemas.turns import GenerationParams

router = APIRouter(tags=["bots"], route_class=BodyRoute)


class BotBody(BaseModel):
    """A bot: its parameters are those that it sets, by name."""

    name: str
    #: Counts its changes.
    version: int
    model: str
    instructions: str
    params: dict[str, object]
    ignores_tools: bool
    policies: dict[str, object]
    created_at: datetime

    @classmethod
    def of(cls, bot: Bot) -> Self:
        """Show a bot."""
        return cls(
            name=bot.name,
            version=bot.version,
            model=bot.model,
            instructions=bot.instructions,
            params=_shown(bot.params),
            ignores_tools=bot.ignores_tools,
            policies=bot.policies.stored,
            created_at=bot.created_at,
        )


def _shown(params: GenerationParams) -> dict[str, object]:
    """The parameters that are set, as a change has them."""
    shown = params.model_dump(mode="json", exclude_defaults=True)
    if params.response_format is not None:
        shown["response_format"] = AskedFormat.of(params.response_format)
    return shown


@router.get("/bots")
async def list_all_bots(services: ServicesOf, tenant_id: AdministeredTenantOf) -> list[BotBody]:
    """All bots, by name."""
    bots = await services.call(list_bots, services.database, tenant_id)
    return [BotBody.of(bot) for bot in bots]


@router.get("/bots/{name:path}")
async def get_bot(name: Name, services: ServicesOf, tenant_id: AdministeredTenantOf) -> BotBody:
    """One bot."""
    return BotBody.of(await services.call(read_bot, services.database, tenant_id, name))


@router.patch("/bots/{name:path}")
async def change_one_bot(
    name: Name, body: BotChange, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> BotBody:
    """Change a bot from its next turn on. What is left out stays; a parameter that is null is
    taken back to its default."""
    return BotBody.of(await services.call(change_bot, services.database, tenant_id, name, body))


@router.delete("/bots/{name:path}", status_code=204)
async def delete_one_bot(name: Name, services: ServicesOf, tenant_id: AdministeredTenantOf) -> None:
    """Delete a bot: it answers no new turns. What was accepted is answered, and its conversations
    stay."""
    await services.call(delete_bot, services.database, tenant_id, name)
