"""Files in a folder: `<tenant>/<last two digits of the file's id>/<file's id>`.

Each file is written beside its place and then moved there, so that nobody reads half of one.
Several machines share the folder by a network file system, or one machine has all processes.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from turnmill.schemas.errors import NotFound, StorageUnavailable
from turnmill.schemas.files.drafts import FileDraft
from turnmill.schemas.files.storage import Doubt, Key, anothers
from turnmill.schemas.settings import Settings

#: Names the deployment whose files the folder has.
_OWNER = "owner"
#: What is being written; drafts of processes that died stay until they are this old.
_DRAFTS = "drafts"
DRAFT_MAX_AGE_S = 24 * 3600.0

#: With less left on the disk, doctor warns: a few files of the largest size fill it.
FEW_BYTES = 256 * 2**20

_REMEDY = (
    "the account of the API, the workers and the delivery processes must own the folder and all in "
    "it, on a disk that is mounted, writable and not full"
)


class LocalDraft(FileDraft):
    """A file that is being written; see `Draft`."""

    def __init__(self, storage: "LocalStorage", file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._storage = storage
        self._path = path

    def publish(self, key: Key) -> None:
        """Move it to its place. The disk has it when this returns. Raises `StorageUnavailable`."""
        place = self._storage.path(key)
        with _translated():
            self._file.flush()
            os.fsync(self._file.fileno())
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.replace(place)
            _sync_folder(place.parent)

    def _translated(self) -> AbstractContextManager[None]:
        return _translated()


class LocalStorage:
    """A folder of files; see `Storage`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def of(cls, settings: Settings) -> "LocalStorage":
        """The folder that the settings name."""
        return cls(settings.files_dir)

    @property
    def place(self) -> str:
        """Where the files are, for people."""
        return f"the folder {self._root}"

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
        file = os.fdopen(number, "wb")
        try:
            yield LocalDraft(self, file, path)
        finally:
            # What a full disk did not take is still in the buffer, and fails once more.
            with suppress(OSError):
                file.close()
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
        """Whether there are bytes under this key. Raises `StorageUnavailable`."""
        with _translated(), suppress(FileNotFoundError, NotADirectoryError):
            # Opened, since NFS asks its server then: `stat` may answer from what the client cached,
            # for a file that another machine has just deleted (`man 5 nfs`, close-to-open).
            number = os.open(self.path(key), os.O_RDONLY | os.O_NONBLOCK)
            try:
                return stat.S_ISREG(os.fstat(number).st_mode)
            finally:
                os.close(number)
        return False

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Those of some keys, in the order of their files' ids, that there are no bytes under.
        One that cannot be looked at is not missing.
        """
        return [key for key in keys if self._is_missing(key)]

    def _is_missing(self, key: Key) -> bool:
        try:
            return not self.has(key)
        except StorageUnavailable:
            return False

    def delete(self, key: Key) -> None:
        """Delete the bytes, if there are any. Raises `StorageUnavailable`."""
        with _translated():
            self.path(key).unlink(missing_ok=True)

    def keys(self, min_age_s: float) -> Iterator[Key]:
        """All keys of files so old; on the way, drafts that nobody will publish are deleted.

        Raises:
            StorageUnavailable: at the end, if a folder could not be read.
        """
        before = time.time() - min_age_s
        unread: list[OSError] = []
        for folder, folders, names in os.walk(self._root, onerror=unread.append):
            if Path(folder) == self._root:
                # Others at the root of a volume may be root's, such as `lost+found`.
                folders[:] = [each for each in folders if _id_of(each)]
            for path in (Path(folder, name) for name in names):
                key = _key_of(path)
                if key and self.path(key) == path and _modified_at(path) < before:
                    yield key
        for draft in (self._root / _DRAFTS).glob("*"):
            if _modified_at(draft) < time.time() - DRAFT_MAX_AGE_S:
                with suppress(OSError):
                    draft.unlink()
        for error in unread:
            with _translated(), suppress(FileNotFoundError):  # deleted meanwhile
                raise error

    def claim(self, owner: str) -> None:
        """Note whose files these are, if nobody's were here before. Raises as `refuse_other`."""
        with suppress(FileExistsError), _translated():
            number = os.open(self._root / _OWNER, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(number, "w") as file:
                file.write(owner)
        self.refuse_other(owner)

    def refuse_other(self, owner: str) -> None:
        """Look whether the folder is another deployment's. Raises `StorageUnavailable`."""
        with _translated(), suppress(FileNotFoundError):
            noted = (self._root / _OWNER).read_text(errors="replace")
            # One that is just being written is empty.
            if noted not in ("", owner):
                raise anothers(noted, self.place, "TURNMILL_DATA")

    def owned_since(self, owner: str) -> datetime | None:
        """Since when the files are this deployment's; no folder is nobody's. Raises
        `StorageUnavailable`.
        """
        mark = self._root / _OWNER
        with _translated(), suppress(FileNotFoundError):
            if mark.read_text(errors="replace") == owner:
                return datetime.fromtimestamp(mark.stat().st_mtime, UTC)
        return None

    def check(self) -> list[Doubt]:
        """Look whether the folder may be used, if it is there: the doctor may be somebody else, and
        writes nothing. Raises `StorageUnavailable`.
        """
        if self._root.exists() and not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise StorageUnavailable(
                f"The folder {self._root} cannot be read and written by this account.",
                remedy="give it to the account of the API, the workers and the delivery processes",
            )
        free = shutil.disk_usage(self._root).free if self._root.exists() else FEW_BYTES
        if free < FEW_BYTES:
            return [
                Doubt(
                    f"the disk of the folder {self._root} has {free // 2**20} MiB left: uploads "
                    "will be refused",
                    "make room there, or let the pruner delete old files "
                    "(TURNMILL_RETENTION__FILES_DAYS)",
                )
            ]
        return []


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageUnavailable(
            f"The folder of files: {error.strerror or error}", _REMEDY
        ) from error


def _key_of(path: Path) -> Key | None:
    tenant_id, file_id = _id_of(path.parent.parent.name), _id_of(path.name)
    return Key(tenant_id, file_id) if tenant_id and file_id else None


def _id_of(name: str) -> UUID | None:
    try:
        return UUID(hex=name)
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
