"""Files in OpenAI's shapes."""

from typing import Literal, Self

from pydantic import BaseModel

from turnmill.schemas.files.files import File


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    #: A file is there as soon as it has an id.
    status: Literal["processed"] = "processed"
    #: Its type by its content. OpenAI's clients keep fields that they do not know.
    mime_type: str

    @classmethod
    def of(cls, file: File) -> Self:
        """Show a file."""
        expires_at = file.expires_at
        return cls(
            id=file.shown_id,
            bytes=file.size,
            created_at=int(file.created_at.timestamp()),
            expires_at=None if expires_at is None else int(expires_at.timestamp()),
            filename=file.name,
            purpose=file.purpose,
            mime_type=file.mime,
        )


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
