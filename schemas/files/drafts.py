"""What is being written, in a file of this machine, whatever the storage is."""

import hashlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import IO

#: Enough to tell any type by.
_HEAD_BYTES = 4096


class FileDraft(ABC):
    """Bytes in a file that nobody else knows; see `Draft`. Storages add `publish`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self.head = b""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of what is written so far."""
        return self._hash.digest()

    def write(self, data: bytes) -> None:
        """Append. Raises `StorageUnavailable`."""
        with self._translated():
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        self.head += data[: _HEAD_BYTES - len(self.head)]

    @abstractmethod
    def _translated(self) -> AbstractContextManager[None]:
        """Turn errors of the disk into `StorageUnavailable`."""
