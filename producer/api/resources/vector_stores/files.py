"""Files of vector stores."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from turnmill.producer.api.auth import AdministeredTenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.parameters import StoreFileId, VectorStoreId, wanted_id
from turnmill.producer.api.resources.vector_stores.shown import (
    PageQuery,
    State,
    shown_file,
    shown_files,
)
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.knowledge import stores
from turnmill.schemas.ids import Prefix
from turnmill.schemas.openai.vector_stores import (
    Content,
    ContentPage,
    DeletedVectorStoreFile,
    StoreFileBody,
    StoreFileChange,
    VectorStoreFile,
    VectorStoreFileList,
)

router = APIRouter(prefix="/v1/vector_stores", route_class=BodyRoute)


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
    file_id = wanted_id(body.file_id, Prefix.FILE, param="file_id")
    file = await services.call(services.files.find, tenant_id, file_id)
    stock = services.stock
    own = (stock.database, tenant_id, vector_store_id)
    await stock.call(stores.add_file, *own, file, body.attributes)
    return shown_file(await services.call(stores.find_file, *place, file_id))


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
    return shown_files(found, has_more)


@router.get("/{vector_store_id}/files/{file_id}")
async def get_vector_store_file(
    vector_store_id: VectorStoreId,
    file_id: StoreFileId,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFile:
    """One file, with how far it is, and what went wrong."""
    id_ = wanted_id(file_id, Prefix.FILE, Prefix.DOCUMENT, param="file_id")
    place = (services.database, tenant_id, vector_store_id)
    return shown_file(await services.call(stores.find_file, *place, id_))


@router.get("/{vector_store_id}/files/{file_id}/content", response_model=ContentPage)
async def get_vector_store_file_content(
    vector_store_id: VectorStoreId,
    file_id: StoreFileId,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> Response:
    """The text of a file as it is searched, passage by passage."""
    id_ = wanted_id(file_id, Prefix.FILE, Prefix.DOCUMENT, param="file_id")
    place = (services.stock.database, tenant_id, vector_store_id)

    def read() -> str:
        texts = stores.read_passages(*place, id_)
        return ContentPage(data=[Content(text=text) for text in texts]).model_dump_json()

    # There may be tens of thousands.
    return Response(await services.stock.call(read), media_type="application/json")


@router.post("/{vector_store_id}/files/{file_id}")
async def change_vector_store_file(
    vector_store_id: VectorStoreId,
    file_id: StoreFileId,
    body: StoreFileChange,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> VectorStoreFile:
    """Give a file other attributes."""
    id_ = wanted_id(file_id, Prefix.FILE, Prefix.DOCUMENT, param="file_id")
    place = (services.database, tenant_id, vector_store_id)
    return shown_file(await services.call(stores.describe_file, *place, id_, body.attributes))


@router.delete("/{vector_store_id}/files/{file_id}")
async def remove_vector_store_file(
    vector_store_id: VectorStoreId,
    file_id: StoreFileId,
    services: ServicesOf,
    tenant_id: AdministeredTenantOf,
) -> DeletedVectorStoreFile:
    """Take a file out of the vector store, with its passages. The file itself stays."""
    id_ = wanted_id(file_id, Prefix.FILE, Prefix.DOCUMENT, param="file_id")
    place = (services.stock.database, tenant_id, vector_store_id)
    await services.stock.call(stores.remove_file, *place, id_)
    return DeletedVectorStoreFile(id=file_id)
