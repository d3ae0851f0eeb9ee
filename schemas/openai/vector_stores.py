"""Vector stores, their files and their search in OpenAI's shapes: collections and documents."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from turnmill.schemas.content import refuse_nul

MAX_RESULTS = 50
MAX_BATCH_FILES = 2000
MAX_QUERY_CHARS = 4096


def _refuse(why: str) -> BeforeValidator:
    """Refuse a parameter by name, unless it is null."""

    def refuse(value: object) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported", "is not supported: {why}", {"why": why})

    return BeforeValidator(refuse)


def _only(expected: object, why: str) -> BeforeValidator:
    """Refuse a parameter by name, unless it is null or says what happens anyway."""

    def check(value: object) -> object:
        if value is not None and value != expected:
            raise PydanticCustomError("unsupported", "is not supported: {why}", {"why": why})
        return value

    return BeforeValidator(check)


def _few(pairs: dict[str, object] | None) -> dict[str, object] | None:
    """OpenAI's bounds: 16 pairs, keys of 64 characters, texts of 512."""
    found = pairs or {}
    too_long = any(
        len(key) > 64 or (isinstance(value, str) and len(value) > 512)
        for key, value in found.items()
    )
    if len(found) > 16 or too_long:
        raise PydanticCustomError(
            "bounds", "has up to 16 pairs, keys of 64 characters and texts of 512"
        )
    for text in (*found, *found.values()):
        if isinstance(text, str):
            refuse_nul(text)
    return pairs


def _own_ranking(value: object) -> None:
    """Refuse `ranking_options`, unless they say what happens anyway."""
    options = {} if value is None else value
    is_own = (
        isinstance(options, dict)
        and set(options) <= {"ranker", "score_threshold"}
        and options.get("ranker") in (None, "auto", "none")
        and options.get("score_threshold") in (None, 0)
    )
    if not is_own:
        raise PydanticCustomError(
            "unsupported",
            "is not supported: there is one ranker, 'auto', and scores are comparable within one "
            "search only, so that a 'score_threshold' has no meaning. Leave them out.",
        )


Text = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(refuse_nul)]
Metadata = Annotated[dict[str, str], AfterValidator(_few)]
Attributes = Annotated[dict[str, bool | float | str], AfterValidator(_few)]
NoExpiry = Annotated[None, _refuse("vector stores do not expire. Delete them.")]
OwnChunking = Annotated[
    object, _only({"type": "auto"}, "documents are cut by headings and sentences. Leave it out.")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StoreBody(_Body):
    """What to make: a collection."""

    #: Bots read it by this name; its id when left out.
    name: Text | None = None
    metadata: Metadata | None = None
    file_ids: Annotated[list[str], Field(max_length=100)] | None = None
    chunking_strategy: OwnChunking = None
    expires_after: NoExpiry = None
    description: Annotated[None, _refuse("put it into 'metadata'.")] = None


class StoreChange(_Body):
    """What to change; what is left out stays."""

    name: Text | None = None
    metadata: Metadata | None = None
    expires_after: NoExpiry = None


class StoreFileBody(_Body):
    """A file that the collection is to have."""

    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: OwnChunking = None


class StoreFileChange(_Body):
    attributes: Attributes


class FileBatchBody(_Body):
    """Files that the collection is to have."""

    file_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_BATCH_FILES)] | None = None
    files: (
        Annotated[list[StoreFileBody], Field(min_length=1, max_length=MAX_BATCH_FILES)] | None
    ) = None
    #: Of those in `file_ids`.
    attributes: Attributes | None = None
    chunking_strategy: OwnChunking = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.file_ids is None) == (self.files is None):
            raise PydanticCustomError("one_of", "Send either 'file_ids' or 'files'.")
        return self

    @property
    def wanted(self) -> dict[str, Attributes | None]:
        """Files, each once, and their attributes."""
        if self.files is not None:
            return {each.file_id: each.attributes for each in self.files}
        return dict.fromkeys(self.file_ids or (), self.attributes)


class SearchBody(_Body):
    """A question."""

    query: (
        Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]
        | Annotated[
            list[Annotated[str, Field(max_length=MAX_QUERY_CHARS)]],
            Field(min_length=1, max_length=16),
        ]
    )
    max_num_results: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 10
    rewrite_query: Annotated[object, _only(False, "questions are searched for as they are.")] = None
    filters: Annotated[None, _refuse("make a vector store for each part of your documents.")] = None
    ranking_options: Annotated[None, BeforeValidator(_own_ranking)] = None

    @field_validator("query")
    @classmethod
    def _bounded(cls, query: str | list[str]) -> str | list[str]:
        if sum(map(len, query)) > MAX_QUERY_CHARS:
            raise PydanticCustomError(
                "too_long", f"All queries together have up to {MAX_QUERY_CHARS:,} characters."
            )
        return query

    @property
    def queries(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else self.query


class FileCounts(BaseModel):
    in_progress: int
    completed: int
    failed: int
    cancelled: int = 0
    total: int


class VectorStore(BaseModel):
    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    #: Of the files that it was made of.
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["in_progress", "completed"]
    expires_after: None = None
    expires_at: None = None
    last_active_at: None = None
    metadata: dict[str, str]


class LastError(BaseModel):
    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class VectorStoreFile(BaseModel):
    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "failed"]
    last_error: LastError | None
    usage_bytes: int
    attributes: dict[str, bool | float | str]
    chunking_strategy: dict[str, str] = {"type": "other"}
    #: Its name. OpenAI's clients keep fields that they do not know.
    filename: str


class VectorStoreFileBatch(BaseModel):
    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled"]
    file_counts: FileCounts


class Page(BaseModel):
    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class VectorStoreList(Page):
    data: list[VectorStore]


class VectorStoreFileList(Page):
    data: list[VectorStoreFile]


class DeletedVectorStore(BaseModel):
    id: str
    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: Literal[True] = True


class DeletedVectorStoreFile(BaseModel):
    id: str
    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: Literal[True] = True


class Content(BaseModel):
    type: Literal["text"] = "text"
    text: str


class ContentPage(BaseModel):
    """The passages of a file."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[Content]
    has_more: Literal[False] = False
    next_page: None = None


class SearchResult(BaseModel):
    file_id: str
    filename: str
    score: float
    attributes: dict[str, bool | float | str]
    content: list[Content]


class SearchPage(BaseModel):
    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchResult]
    has_more: Literal[False] = False
    next_page: None = None
