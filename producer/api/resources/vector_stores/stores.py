"""Vector stores and their search."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from turnmill.producer.api.auth import AdministeredTenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.parameters import VectorStoreId, wanted_id
from turnmill.producer.api.resources.vector_stores.shown import PageQuery, ends
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.knowledge import stores
from turnmill.producer.knowledge.lookup import delete_collection
from turnmill.producer.knowledge.stores import Store
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.openai.vector_stores import (
    Content,
    DeletedVectorStore,
    FileCounts,
    SearchBody,
    SearchPage,
    SearchResult,
    StoreBody,
    StoreChange,
    VectorStore,
    VectorStoreList,
)

router = APIRouter(prefix="/v1/vector_stores", route_class=BodyRoute)


@router.post("")
async def create_vector_store(
    body: StoreBody, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> VectorStore:
    """Make a vector store: a collection, which bots read by its name."""
    files = [
        await services.call(
            services.files.find, tenant_id, wanted_id(each, Prefix.FILE, param="file_ids")
        )
        for each in body.file_ids or ()
    ]
    for file in files:
        stores.require_readable(file)
    place = (services.database, tenant_id)
    store_id = await services.call(stores.create_store, *place, body.name, body.metadata)
    stock = services.stock
    for file in files:
        await stock.call(stores.add_file, stock.database, tenant_id, store_id, file, None)
    return await _store(services, tenant_id, store_id)


@router.get("")
async def list_vector_stores(
    query: Annotated[PageQuery, Query()], services: ServicesOf, tenant_id: AdministeredTenantOf
) -> VectorStoreList:
    """List vector stores by the time of their making."""
    span = query.span(Prefix.VECTOR_STORE)
    found, has_more = await services.call(stores.list_stores, services.database, tenant_id, span)
    shown = [_shown(each) for each in found]
    first, last = ends([each.id for each in shown])
    return VectorStoreList(data=shown, has_more=has_more, first_id=first, last_id=last)


@router.get("/{vector_store_id}")
async def get_vector_store(
    vector_store_id: VectorStoreId, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> VectorStore:
    """One vector store."""
    return await _store(services, tenant_id, vector_store_id)


@router.post("/{vector_store_id}")
async def change_vector_store(
    vector_store_id: VectorStoreId,
    body: StoreChange,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStore:
    """Give it another name, or other metadata. Bots with the old name read nothing any more."""
    place = (services.database, tenant_id, vector_store_id)
    await services.call(stores.change_store, *place, body.name, body.metadata)
    return await _store(services, tenant_id, vector_store_id)


@router.delete("/{vector_store_id}")
async def delete_vector_store(
    vector_store_id: VectorStoreId, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> DeletedVectorStore:
    """Delete it with its passages. Its files stay."""
    await services.call(stores.find_store, services.database, tenant_id, vector_store_id)
    await services.stock.call(delete_collection, services.stock.database, vector_store_id)
    return DeletedVectorStore(id=show_id(Prefix.VECTOR_STORE, vector_store_id))


@router.post("/{vector_store_id}/search")
async def search_vector_store(
    vector_store_id: VectorStoreId,
    body: SearchBody,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> SearchPage:
    """The passages that are likeliest to answer a question, the best first."""
    asked = (tenant_id, vector_store_id, " ".join(body.queries), body.max_num_results)
    found = await services.searches.call(
        lambda database, ask: stores.search_store(database, *asked, ask)
    )
    return SearchPage(
        search_query=body.queries,
        data=[
            SearchResult(
                file_id=each.shown_id,
                filename=each.passage.uri,
                score=each.score,
                attributes=each.attributes,
                content=[Content(text=each.passage.content)],
            )
            for each in found
        ],
    )


async def _store(services: Services, tenant_id: UUID, store_id: UUID) -> VectorStore:
    return _shown(await services.call(stores.find_store, services.database, tenant_id, store_id))


def _shown(store: Store) -> VectorStore:
    waiting = store.total - store.completed - store.failed
    return VectorStore(
        id=store.shown_id,
        created_at=int(store.created_at.timestamp()),
        name=store.name,
        usage_bytes=store.usage_bytes,
        file_counts=FileCounts(
            in_progress=waiting,
            completed=store.completed,
            failed=store.failed,
            total=store.total,
        ),
        status="in_progress" if waiting else "completed",
        metadata=store.metadata,
    )
