"""What operators ask: `/healthz`, `/readyz`, `/metrics`."""

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from turnmill.producer.api.auth import ObservingTenantOf
from turnmill.producer.api.resources.metrics import APIMetrics
from turnmill.producer.api.services import ServicesOf
from turnmill.schemas.errors import DatabaseOutdated, DatabaseUnavailable, TransientError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.fleet.release import refuse_older_database

#: A database that takes longer to say one word is not there.
READY_TIMEOUT_S = 5.0

router = APIRouter(tags=["operation"])


class Status(BaseModel):
    status: str = "ok"


@router.get("/health", include_in_schema=False)
@router.get("/healthz")
async def get_health() -> Status:
    """The process is alive. Asks nobody: a database that is away is no reason to restart."""
    return Status()


@router.get("/readyz")
async def get_readiness(services: ServicesOf) -> Status:
    """Turns can be accepted; otherwise 503 with the reason."""
    if services.is_stopping:
        raise TransientError("The server is stopping.")
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await services.lookout.share(_look)
    except TimeoutError:
        raise DatabaseUnavailable(f"No answer within {READY_TIMEOUT_S:g} s.") from None
    return Status()


@router.get("/metrics", response_class=Response)
async def get_metrics(
    request: Request, services: ServicesOf, tenant_id: ObservingTenantOf
) -> Response:
    """Prometheus' text format, for keys with the scope `metrics`: it covers all tenants."""
    metrics: APIMetrics = request.app.state.metrics
    text = await services.lookout.call(metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _look(database: Database) -> None:
    try:
        refuse_older_database(database.fetch)
    except DatabaseOutdated as error:
        # Not what callers read of a database that is away: this says what to do.
        raise TransientError(error.message) from None
