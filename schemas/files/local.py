"""Files in a folder: `<tenant>/<last two digits of the file's id>/<file's id>`.

Each file is written beside its place and then moved there, so that nobody reads half of one.
Several machines share the folder by a network file system, or one machine has all processes.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from turnmill.schemas.errors import NotFound, StorageUnavailable
from turnmill.schemas.files.storage import Key

#: Names the deployment whose files the folder has.
_OWNER = "owner"
#: What is being written; drafts of processes that died stay until they are this old.
_DRAFTS = "drafts"
DRAFT_MAX_AGE_S = 24 * 3600.0

#: Enough to tell any type by.
_HEAD_BYTES = 4096


class LocalDraft:
    """A file that is being written; see `Draft`."""

    def __init__(self, storage: "LocalStorage", file: BinaryIO, path: Path) -> None:
        self._storage = storage
        self._file = file
        self._path = path
        self._hash = hashlib.sha256()
        self.size = 0
        self.head = b""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of what is written so far."""
        return self._hash.digest()

    def write(self, data: bytes) -> None:
        """Append. Raises `StorageUnavailable`."""
        with _translated():
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        self.head += data[: _HEAD_BYTES - len(self.head)]

    def publish(self, key: Key) -> None:
        """Move it to its place. The disk has it when this returns. Raises `StorageUnavailable`."""
        place = self._storage.path(key)
        with _translated():
            self._file.flush()
            os.fsync(self._file.fileno())
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.replace(place)
            _sync_folder(place.parent)


class LocalStorage:
    """A folder of files; see `Storage`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: Key) -> Path:
        """Where the bytes of a key are."""
        digits = key.file_id.hex
        return self._root / key.tenant_id.hex / digits[-2:] / digits

    @contextmanager
    def draft(self) -> Iterator[LocalDraft]:
        """Begin to write. Raises `StorageUnavailable`."""
        with _translated():
            (self._root / _DRAFTS).mkdir(parents=True, exist_ok=True, mode=0o700)
            number, name = tempfile.mkstemp(dir=self._root / _DRAFTS)
        path = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                yield LocalDraft(self, file, path)
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def open(self, key: Key) -> BinaryIO:
        """Open for reading. Raises `NotFound` and `StorageUnavailable`."""
        with _translated():
            try:
                return self.path(key).open("rb")
            except FileNotFoundError:
                raise NotFound("The content of the file is gone.", param="file_id") from None

    def has(self, key: Key) -> bool:
        """Whether there are bytes under this key."""
        return self.path(key).is_file()

    def delete(self, key: Key) -> None:
        """Delete the bytes, if there are any. Raises `StorageUnavailable`."""
        with _translated():
            self.path(key).unlink(missing_ok=True)

    def keys(self, min_age_s: float) -> Iterator[Key]:
        """All keys of files so old; on the way, drafts that nobody will publish are deleted."""
        before = time.time() - min_age_s
        for path in self._root.glob("*/*/*"):
            key = _key_of(path)
            if key and self.path(key) == path and _modified_at(path) < before:
                yield key
        for draft in (self._root / _DRAFTS).glob("*"):
            if _modified_at(draft) < time.time() - DRAFT_MAX_AGE_S:
                with suppress(OSError):
                    draft.unlink()

    def claim(self, owner: str) -> None:
        """Note whose files these are, if nobody's were here before."""
        with suppress(FileExistsError), _translated():
            number = os.open(self._root / _OWNER, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(number, "w") as file:
                file.write(owner)

    def belongs_to(self, owner: str) -> bool:
        """Whether the files are this deployment's; no folder is nobody's."""
        try:
            return (self._root / _OWNER).read_text() == owner
        except OSError:
            return False


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageUnavailable(f"The folder of files: {error.strerror or error}") from error


def _key_of(path: Path) -> Key | None:
    try:
        return Key(UUID(hex=path.parent.parent.name), UUID(hex=path.name))
    except ValueError:
        return None


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # somebody deleted it meanwhile
        return float("inf")


def _sync_folder(folder: Path) -> None:
    """A new name is only safe when its folder is: `man 2 fsync`."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
