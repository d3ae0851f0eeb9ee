"""`/v1/vector_stores`: collections of documents that bots read, in OpenAI's shapes."""

from fastapi import APIRouter

from turnmill.producer.api.resources.vector_stores import batches, files, stores

router = APIRouter(tags=["vector stores"])
for _part in (stores, files, batches):
    router.include_router(_part.router)
