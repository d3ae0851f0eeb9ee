"""`/v1/vector_stores`: collections of documents that bots read, in OpenAI's shapes."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from turnmill.producer.api.auth import AdministeredTenantOf
from turnmill.producer.api.parameters import StoreFileId, VectorStoreId
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.knowledge import stores
from turnmill.producer.knowledge.lookup import delete_collection
from turnmill.producer.knowledge.stores import Span, Store, StoreFile
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.openai.vector_stores import (
    Content,
    DeletedVectorStore,
    DeletedVectorStoreFile,
    FileCounts,
    LastError,
    SearchBody,
    SearchPage,
    SearchResult,
    StoreBody,
    StoreChange,
    StoreFileBody,
    StoreFileChange,
    VectorStore,
    VectorStoreFile,
    VectorStoreFileList,
    VectorStoreList,
)
from turnmill.schemas.store.knowledge.indexing import DocumentState

router = APIRouter(tags=["vector stores"], prefix="/v1/vector_stores")

State = Literal["in_progress", "completed", "failed", "cancelled"]

#: Codes of errors that are the file's fault.
_OF_THE_FILE = frozenset({"invalid_input", "file_gone"})


class PageQuery(BaseModel):
    """Which page of a list."""

    limit: int = Field(default=20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None

    def span(self, *prefixes: Prefix) -> Span:
        """Raises `InvalidInput`."""
        after, before = (
            None if each is None else _parse(each, *prefixes) for each in (self.after, self.before)
        )
        return Span(self.limit, self.order, after, before)


@router.post("")
async def create_vector_store(
    body: StoreBody, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> VectorStore:
    """Make a vector store: a collection, which bots read by its name."""
    files = [
        await services.call(services.files.find, tenant_id, parse_id(Prefix.FILE, each))
        for each in body.file_ids or ()
    ]
    for file in files:
        stores.require_readable(file)
    place = (services.database, tenant_id)
    store_id = await services.call(stores.create_store, *place, body.name, body.metadata)
    for file in files:
        await services.call(stores.add_file, *place, store_id, file, None)
    return await _store(services, tenant_id, store_id)


@router.get("")
async def list_vector_stores(
    query: Annotated[PageQuery, Query()], services: ServicesOf, tenant_id: AdministeredTenantOf
) -> VectorStoreList:
    """List vector stores by the time of their making."""
    span = query.span(Prefix.VECTOR_STORE)
    found, has_more = await services.call(stores.list_stores, services.database, tenant_id, span)
    shown = [_shown(each) for each in found]
    first, last = _ends([each.id for each in shown])
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
    await services.call(delete_collection, services.database, vector_store_id)
    return DeletedVectorStore(id=show_id(Prefix.VECTOR_STORE, vector_store_id))


@router.post("/{vector_store_id}/search")
async def search_vector_store(
    vector_store_id: VectorStoreId,
    body: SearchBody,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> SearchPage:
    """The passages that are likeliest to answer a question, the best first."""
    place = (services.database, tenant_id, vector_store_id)
    asked = " ".join(body.queries)
    found = await services.call(stores.search_store, *place, asked, body.max_num_results)
    return SearchPage(
        search_query=body.queries,
        data=[
            SearchResult(
                file_id=each.shown_id,
                filename=each.passage.uri,
                score=each.passage.score,
                attributes=each.attributes,
                content=[Content(text=each.passage.content)],
            )
            for each in found
        ],
    )


@router.post("/{vector_store_id}/files")
async def add_vector_store_file(
    vector_store_id: VectorStoreId,
    body: StoreFileBody,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFile:
    """Let workers read a file into the vector store. Its status says when they have."""
    place = (services.database, tenant_id, vector_store_id)
    await services.call(stores.find_store, *place)
    file_id = parse_id(Prefix.FILE, body.file_id)
    file = await services.call(services.files.find, tenant_id, file_id)
    await services.call(stores.add_file, *place, file, body.attributes)
    return _shown_file(await services.call(stores.find_file, *place, file_id))


@router.get("/{vector_store_id}/files")
async def list_vector_store_files(
    vector_store_id: VectorStoreId,
    query: Annotated[PageQuery, Depends()],
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
    filter: State | None = None,
) -> VectorStoreFileList:
    """List its files, those that `turnmill knowledge sync` brought too."""
    span = query.span(Prefix.FILE, Prefix.DOCUMENT)
    found, has_more = await services.call(
        stores.list_files, services.database, tenant_id, vector_store_id, span, filter
    )
    shown = [_shown_file(each) for each in found]
    first, last = _ends([each.id for each in shown])
    return VectorStoreFileList(data=shown, has_more=has_more, first_id=first, last_id=last)


@router.get("/{vector_store_id}/files/{file_id}")
async def get_vector_store_file(
    vector_store_id: VectorStoreId,
    file_id: StoreFileId,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFile:
    """One file, with how far it is, and what went wrong."""
    id_ = _parse(file_id, Prefix.FILE, Prefix.DOCUMENT)
    place = (services.database, tenant_id, vector_store_id)
    return _shown_file(await services.call(stores.find_file, *place, id_))


@router.post("/{vector_store_id}/files/{file_id}")
async def change_vector_store_file(
    vector_store_id: VectorStoreId,
    file_id: StoreFileId,
    body: StoreFileChange,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFile:
    """Give a file other attributes."""
    id_ = _parse(file_id, Prefix.FILE, Prefix.DOCUMENT)
    place = (services.database, tenant_id, vector_store_id)
    return _shown_file(await services.call(stores.describe_file, *place, id_, body.attributes))


@router.delete("/{vector_store_id}/files/{file_id}")
async def remove_vector_store_file(
    vector_store_id: VectorStoreId,
    file_id: StoreFileId,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> DeletedVectorStoreFile:
    """Take a file out of the vector store, with its passages. The file itself stays."""
    id_ = _parse(file_id, Prefix.FILE, Prefix.DOCUMENT)
    place = (services.database, tenant_id, vector_store_id)
    await services.call(stores.remove_file, *place, id_)
    return DeletedVectorStoreFile(id=file_id)


async def _store(services: Services, tenant_id: UUID, store_id: UUID) -> VectorStore:
    return _shown(await services.call(stores.find_store, services.database, tenant_id, store_id))


def _parse(text: str, *prefixes: Prefix) -> UUID:
    """Read an id with one of these prefixes. Raises `InvalidInput`."""
    fitting = [prefix for prefix in prefixes if text.startswith(f"{prefix}_")]
    return parse_id((fitting or list(prefixes))[0], text)


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


def _shown_file(file: StoreFile) -> VectorStoreFile:
    error = None
    status: Literal["in_progress", "completed", "failed"] = "in_progress"
    if file.state == DocumentState.READY:
        status = "completed"
    elif file.state == DocumentState.FAILED:
        status = "failed"
        is_invalid = file.error_code in _OF_THE_FILE
        error = LastError(
            code="invalid_file" if is_invalid else "server_error",
            message=file.error_message or "",
        )
    return VectorStoreFile(
        id=file.shown_id,
        created_at=int(file.created_at.timestamp()),
        vector_store_id=show_id(Prefix.VECTOR_STORE, file.collection_id),
        status=status,
        last_error=error,
        usage_bytes=file.usage_bytes,
        attributes=file.attributes,
        filename=file.uri,
    )


def _ends(ids: list[str]) -> tuple[str | None, str | None]:
    return (ids[0], ids[-1]) if ids else (None, None)
