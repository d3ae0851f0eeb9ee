"""The interface of storages: where the bytes of files lie.

A key is a tenant's id and a file's: no name that people give becomes a part of a path.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import BinaryIO, NamedTuple, Protocol
from uuid import UUID

from turnmill.schemas.errors import StorageUnavailable


class Key(NamedTuple):
    """What bytes are stored under."""

    tenant_id: UUID
    file_id: UUID


class Doubt(NamedTuple):
    """What works today, and may hurt one day."""

    detail: str
    #: What to do about it.
    remedy: str


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
    """Bytes by key. Threads and processes may share it, and several machines what is behind it."""

    @property
    def place(self) -> str:
        """Where the files are, for people: no secret is in it."""

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
        """Whether there are bytes under this key. Raises `StorageUnavailable`."""

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Return those of some keys that there are no bytes under. They are given in the order of
        their files' ids. Raises `StorageUnavailable`.
        """

    def delete(self, key: Key) -> None:
        """Delete the bytes, if there are any, and all that the storage keeps of earlier ones.

        Raises:
            StorageUnavailable: some of them may be left, and the call is to be repeated.
        """

    def keys(self, min_age_s: float) -> Iterator[Key]:
        """All keys whose bytes were published so long ago, in no order. Raises
        `StorageUnavailable`.
        """

    def claim(self, owner: str) -> None:
        """Note whose files these are, if nobody's were here before. Raises as `refuse_other`."""

    def refuse_other(self, owner: str) -> None:
        """Look whether the files are another deployment's, whose pruner would delete this one's.

        Raises:
            StorageUnavailable: they are, or this cannot be seen.
        """

    def owned_since(self, owner: str) -> datetime | None:
        """Since when the files are this deployment's, by the storage's clock; None: they are not,
        and nothing here is swept. Raises `StorageUnavailable`.
        """

    def check(self) -> list[Doubt]:
        """Try what files need of it, for the doctor. Raises `StorageUnavailable`, with a remedy."""


def anothers(owner: str, place: str, setting: str) -> StorageUnavailable:
    """Build the error for a storage that has the files of another deployment."""
    return StorageUnavailable(
        f"The files there are those of another deployment, {owner}, whose pruner would delete "
        f"this one's ({place}).",
        f"name another place in {setting}; if that deployment is gone for good, delete 'owner' "
        "there",
    )
