"""Pages, and files as they are shown."""

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from turnmill.producer.knowledge.stores import Span, StoreFile
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.openai.vector_stores import LastError, VectorStoreFile, VectorStoreFileList
from turnmill.schemas.store.knowledge.indexing import DocumentState

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
            None if each is None else parse_any(each, *prefixes)
            for each in (self.after, self.before)
        )
        return Span(self.limit, self.order, after, before)


def parse_any(text: str, *prefixes: Prefix) -> UUID:
    """Read an id with one of these prefixes. Raises `InvalidInput`."""
    fitting = [prefix for prefix in prefixes if text.startswith(f"{prefix}_")]
    return parse_id((fitting or list(prefixes))[0], text)


def shown_file(file: StoreFile) -> VectorStoreFile:
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


def shown_files(found: list[StoreFile], has_more: bool) -> VectorStoreFileList:
    shown = [shown_file(each) for each in found]
    first, last = ends([each.id for each in shown])
    return VectorStoreFileList(data=shown, has_more=has_more, first_id=first, last_id=last)


def ends(ids: list[str]) -> tuple[str | None, str | None]:
    return (ids[0], ids[-1]) if ids else (None, None)
