"""Batches of files that are added to a vector store together."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends

from turnmill.producer.api.auth import AdministeredTenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.parameters import FileBatchId, VectorStoreId, wanted_id
from turnmill.producer.api.resources.vector_stores.shown import PageQuery, State, shown_files
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.knowledge import file_batches, stores
from turnmill.producer.knowledge.file_batches import FileBatch
from turnmill.schemas.ids import Prefix, show_id, time_of
from turnmill.schemas.openai.vector_stores import (
    FileBatchBody,
    FileCounts,
    VectorStoreFileBatch,
    VectorStoreFileList,
)


class _BatchRoute(BodyRoute):
    #: Of 2,000 files with 16 attributes each.
    max_values = 120_000


router = APIRouter(prefix="/v1/vector_stores", route_class=_BatchRoute)


@router.post("/{vector_store_id}/file_batches")
async def add_vector_store_files(
    vector_store_id: VectorStoreId,
    body: FileBatchBody,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFileBatch:
    """Let workers read files into the vector store: all of them, or none if one cannot be read."""
    wanted = {
        wanted_id(file_id, Prefix.FILE, param="file_ids"): attributes
        for file_id, attributes in body.wanted.items()
    }
    stock = services.stock
    place = (stock.database, stock.files, tenant_id, vector_store_id)
    return _shown(await stock.call(file_batches.add_batch, *place, wanted))


@router.get("/{vector_store_id}/file_batches/{batch_id}")
async def get_vector_store_file_batch(
    vector_store_id: VectorStoreId,
    batch_id: FileBatchId,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFileBatch:
    """One batch, with how far its files are."""
    place = (services.database, tenant_id, vector_store_id)
    return _shown(await services.call(file_batches.find_batch, *place, batch_id))


@router.post("/{vector_store_id}/file_batches/{batch_id}/cancel")
async def cancel_vector_store_file_batch(
    vector_store_id: VectorStoreId,
    batch_id: FileBatchId,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFileBatch:
    """Take out those of its files that no worker has read yet. The files themselves stay."""
    place = (services.stock.database, tenant_id, vector_store_id)
    return _shown(await services.stock.call(file_batches.cancel_batch, *place, batch_id))


@router.get("/{vector_store_id}/file_batches/{batch_id}/files")
async def list_vector_store_file_batch(
    vector_store_id: VectorStoreId,
    batch_id: FileBatchId,
    query: Annotated[PageQuery, Depends()],
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
    filter: State | None = None,
) -> VectorStoreFileList:
    """List its files that the vector store has."""
    span = query.span(Prefix.FILE, Prefix.DOCUMENT)
    place = (services.database, tenant_id, vector_store_id)
    await services.call(file_batches.find_batch, *place, batch_id)
    found = await services.call(stores.list_files, *place, span, filter, batch_id)
    return shown_files(*found)


def _shown(batch: FileBatch) -> VectorStoreFileBatch:
    status: Literal["in_progress", "completed", "cancelled"] = "completed"
    if batch.in_progress:
        status = "in_progress"
    elif batch.cancelled:
        status = "cancelled"
    return VectorStoreFileBatch(
        id=show_id(Prefix.FILE_BATCH, batch.id),
        created_at=int(time_of(batch.id).timestamp()),
        vector_store_id=show_id(Prefix.VECTOR_STORE, batch.collection_id),
        status=status,
        file_counts=FileCounts(
            in_progress=batch.in_progress,
            completed=batch.completed,
            failed=batch.failed,
            cancelled=batch.cancelled,
            total=batch.kept + batch.cancelled,
        ),
    )
