"""The interface of storages: where the bytes of files lie.

A key is a tenant's id and a file's: no name that people give becomes a part of a path.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol
from uuid import UUID


class Key(NamedTuple):
    """What bytes are stored under."""

    tenant_id: UUID
    file_id: UUID


class Draft(Protocol):
    """Bytes that nobody sees before they are published."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of what is written so far."""

    @property
    def head(self) -> bytes:
        """What it begins with, for sniffing."""

    def write(self, data: bytes) -> None:
        """Append. Raises `StorageUnavailable`."""

    def publish(self, key: Key) -> None:
        """Store it under this key, whole and for good. Raises `StorageUnavailable`."""


class Storage(Protocol):
    """Bytes by key. Threads and processes may share it."""

    def draft(self) -> AbstractContextManager[Draft]:
        """Begin to write. What is not published is gone at the end.

        Raises:
            StorageUnavailable: it cannot be written.
        """

    def open(self, key: Key) -> BinaryIO:
        """Open for reading.

        Raises:
            NotFound: there are no bytes under this key.
            StorageUnavailable: they cannot be read.
        """

    def has(self, key: Key) -> bool:
        """Whether there are bytes under this key."""

    def delete(self, key: Key) -> None:
        """Delete the bytes, if there are any. Raises `StorageUnavailable`."""

    def keys(self, min_age_s: float) -> Iterator[Key]:
        """All keys whose bytes were published so long ago, in no order."""

    def claim(self, owner: str) -> None:
        """Note whose files these are, if nobody's were here before."""

    def belongs_to(self, owner: str) -> bool:
        """Whether the files are this deployment's. What is not is not swept."""
