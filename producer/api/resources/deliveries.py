"""`/deliveries`: replies and notices on their way to channels, and the two ways out of failure."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from turnmill.producer.api.auth import AdministeredTenantOf
from turnmill.producer.api.parameters import DeliveryId, id_schema
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.channels.deliveries import (
    DeliveryPage,
    DeliveryView,
    drop_deliveries,
    list_deliveries,
    read_delivery,
    retry_deliveries,
)
from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.ids import Prefix, parse_id

router = APIRouter(tags=["deliveries"])


class DeliveriesQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    channel: str | None = Field(default=None, max_length=255)
    state: DeliveryState | None = None
    limit: int = Field(default=50, ge=1, le=1000)
    #: `next` of the page before.
    after: str | None = Field(default=None, json_schema_extra=id_schema(Prefix.DELIVERY))


@router.get("/deliveries")
async def list_tenants_deliveries(
    query: Annotated[DeliveriesQuery, Query()],
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> DeliveryPage:
    """Deliveries, the latest first."""
    return await services.call(
        list_deliveries,
        services.database,
        tenant_id,
        channel=query.channel,
        state=query.state,
        limit=query.limit,
        after=None if query.after is None else parse_id(Prefix.DELIVERY, query.after),
    )


@router.get("/deliveries/{delivery_id}")
async def get_delivery(
    delivery_id: DeliveryId, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> DeliveryView:
    """One delivery: its state, its attempts and its last error, without what it says."""
    return await services.call(read_delivery, services.database, tenant_id, delivery_id)


@router.post("/deliveries/{delivery_id}/retry")
async def retry_delivery(
    delivery_id: DeliveryId, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> DeliveryView:
    """Queue a failed delivery again. One in any other state stays as it is."""
    await services.call(retry_deliveries, services.database, tenant_id, [delivery_id])
    return await services.call(read_delivery, services.database, tenant_id, delivery_id)


@router.delete("/deliveries/{delivery_id}")
async def drop_delivery(
    delivery_id: DeliveryId, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> DeliveryView:
    """Give a queued or failed delivery up. One in any other state stays as it is."""
    await services.call(drop_deliveries, services.database, tenant_id, [delivery_id])
    return await services.call(read_delivery, services.database, tenant_id, delivery_id)
