"""`/v1/models`: the tenant's bots are what OpenAI's clients call models."""

from fastapi import APIRouter

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.tenants import list_bots
from turnmill.schemas.errors import UnknownBot
from turnmill.schemas.openai import Model, ModelList

router = APIRouter(tags=["chat"])


@router.get("/v1/models/", include_in_schema=False)
@router.get("/v1/models")
async def list_models(services: ServicesOf, tenant_id: TenantOf) -> ModelList:
    """The bots that answer."""
    bots = await services.call(list_bots, services.database, tenant_id)
    return ModelList(
        data=[Model(id=bot.name, created=int(bot.created_at.timestamp())) for bot in bots]
    )


@router.get("/v1/models/{name:path}")
async def get_model(name: str, services: ServicesOf, tenant_id: TenantOf) -> Model:
    """One bot."""
    for model in (await list_models(services, tenant_id)).data:
        if model.id == name:
            return model
    raise UnknownBot(f"There is no bot or model '{name[:200]}'.", param="model")
