"""Files in a bucket of S3, or of a server with its API: `<prefix><file's id>.<tenant's id>`.

One `PutObject` stores a file whole or not at all, and overwrites nothing that somebody reads. The
names begin with the file's id, so that a listing has them in the order of PostgreSQL's rows.

Where the bucket keeps versions, `DeleteObject` only hides an object behind a delete marker, and
its answer says so; then all versions of it are deleted, the markers last:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/DeletingObjectVersions.html
"""

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import IO, BinaryIO, NamedTuple, cast
from uuid import UUID

from turnmill.schemas.errors import NotFound, SettingsError, StorageUnavailable
from turnmill.schemas.files.drafts import FileDraft
from turnmill.schemas.files.s3.calls import (
    DENIED,
    GRANT,
    TAKEN,
    UNKNOWN,
    Body,
    Calls,
    Listed,
    Version,
)
from turnmill.schemas.files.storage import Doubt, Key, anothers
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings import S3Settings, Settings
from turnmill.schemas.urls import is_loopback

#: Names the deployment whose files have the prefix.
_OWNER = "owner"
#: What one `PutObject` takes: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_BYTES = 5 * 1024**3
#: Drafts that are larger go to the disk.
_MEMORY_BYTES = 1024 * 1024
_BUFFER_BYTES = 256 * 1024
#: Objects of one listing, at most.
PAGE_KEYS = 1000


class _Noted(NamedTuple):
    """What the bucket says of its owner."""

    owner: str
    at: datetime


class S3Draft(FileDraft):
    """A file of this machine that is still to be uploaded; see `Draft`."""

    def __init__(self, storage: "S3Storage", file: IO[bytes]) -> None:
        super().__init__(file)
        self._storage = storage

    def publish(self, key: Key) -> None:
        """Upload it. The bucket has it when this returns. Raises `StorageUnavailable`."""
        with self._translated():
            self._file.seek(0)
        self._storage.put(key, self._file)

    def _translated(self) -> AbstractContextManager[None]:
        return _of_the_disk()


class S3Storage:
    """Objects of a bucket; see `Storage`."""

    def __init__(self, settings: S3Settings) -> None:
        if settings.bucket is None:
            raise SettingsError("TURNMILL_FILES__STORAGE=s3 needs TURNMILL_S3__BUCKET.")
        self._settings = settings
        self._calls = Calls(settings, settings.bucket)

    @classmethod
    def of(cls, settings: Settings) -> "S3Storage":
        """The bucket that the settings name. Raises `SettingsError`."""
        if settings.files.max_bytes > MAX_BYTES:
            raise SettingsError(
                f"TURNMILL_FILES__MAX_BYTES is above {MAX_BYTES}, which S3 takes at once, at most."
            )
        return cls(settings.s3)

    @property
    def place(self) -> str:
        """Where the files are, for people."""
        server = f" at {self._settings.endpoint}" if self._settings.endpoint else ""
        prefix = f", prefix {self._settings.prefix}" if self._settings.prefix else ""
        return f"the bucket {self._settings.bucket}{server}{prefix}"

    @contextmanager
    def draft(self) -> Iterator[S3Draft]:
        """Begin to write, into a file that has no name. Raises `StorageUnavailable`."""
        with _of_the_disk():
            file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115
        try:
            yield S3Draft(self, cast("IO[bytes]", file))
        finally:
            # What a full disk did not take is still in the buffer, and fails once more.
            with suppress(OSError):
                file.close()

    def put(self, key: Key, content: IO[bytes]) -> None:
        """Upload what a file has from where it stands. Raises `StorageUnavailable`."""
        self._calls.call("put_object", Key=self._name(key), Body=content)

    def open(self, key: Key) -> BinaryIO:
        """Open for reading. Raises `NotFound` and `StorageUnavailable`."""
        answer = self._calls.find("get_object", Key=self._name(key))
        if answer is None:
            raise NotFound("The content of the file is gone.", param="file_id")
        return cast("BinaryIO", io.BufferedReader(Body(answer["Body"]), _BUFFER_BYTES))

    def has(self, key: Key) -> bool:
        """Whether there are bytes under this key. Raises `StorageUnavailable`."""
        return self._calls.find("head_object", Key=self._name(key)) is not None

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Those of some keys, in the order of their files' ids, that there are no bytes under.
        Raises `StorageUnavailable`.
        """
        left = {self._name(key): key for key in keys}
        first, last = min(left, default=""), max(left, default="")
        # What a listing starts after is not in it.
        for each in self._listed(first[:-1]) if left else ():
            if each["Key"] > last:
                break
            left.pop(each["Key"], None)
        return list(left.values())

    def delete(self, key: Key) -> None:
        """Delete the bytes, if there are any, and all versions of them. Raises
        `StorageUnavailable`.
        """
        name = self._name(key)
        answer = self._calls.call("delete_object", Key=name)
        if answer.get("DeleteMarker") or answer.get("VersionId"):
            # Without its markers an object would be there again until its last version is gone.
            for each in sorted(self._versions(name), key=lambda each: "Size" not in each):
                self._calls.call("delete_object", Key=name, VersionId=each["VersionId"])

    def keys(self, min_age_s: float) -> Iterator[Key]:
        """All keys of objects so old. Raises `StorageUnavailable`."""
        before = datetime.now(UTC) - timedelta(seconds=min_age_s)
        for each in self._listed():
            key = self._key(each["Key"])
            if key is not None and each["LastModified"] < before:
                yield key

    def claim(self, owner: str) -> None:
        """Note whose files these are, if nobody's were here before. Raises as `refuse_other`."""
        if self._owner() is None:
            given = {"Key": self._settings.prefix + _OWNER, "Body": owner.encode()}
            if (
                self._calls.attempt("put_object", UNKNOWN + TAKEN, **given, IfNoneMatch="*")
                in UNKNOWN
            ):
                self._calls.call("put_object", **given)
        self.refuse_other(owner)

    def refuse_other(self, owner: str) -> None:
        """Look whether the prefix is another deployment's. Raises `StorageUnavailable`."""
        noted = self._owner()
        if noted is not None and noted.owner != owner:
            raise anothers(noted.owner, self.place, "TURNMILL_S3__PREFIX")

    def owned_since(self, owner: str) -> datetime | None:
        """Since when the files are this deployment's; an empty prefix is nobody's. Raises
        `StorageUnavailable`.
        """
        noted = self._owner()
        return noted.at if noted is not None and noted.owner == owner else None

    def check(self) -> list[Doubt]:
        """Write, read, list and delete an object that is no file's. Raises `StorageUnavailable`."""
        probe, content = Key(new_id(), new_id()), os.urandom(32)
        for _ in range(2):  # so that there are two versions, where versions are kept
            self.put(probe, io.BytesIO(content))
        with self.open(probe) as stored:
            if stored.read() != content:
                raise StorageUnavailable("The bucket returns other bytes than it was given.")
        if self.missing([probe]):
            raise StorageUnavailable("The bucket does not list what it has.")
        self.delete(probe)
        if self.has(probe):
            raise StorageUnavailable("The bucket still has what was deleted.", GRANT)
        return [*self._doubts(self._name(probe))]

    def _doubts(self, deleted: str) -> Iterator[Doubt]:
        refused = self._calls.attempt("list_object_versions", UNKNOWN + DENIED, Prefix=deleted)
        if refused in DENIED:
            yield Doubt(
                "whether it keeps versions of deleted files cannot be seen",
                "grant s3:ListBucketVersions, and s3:DeleteObjectVersion if it keeps versions",
            )
        elif refused is None and any("Size" in each for each in self._versions(deleted)):
            yield Doubt(
                "it keeps versions of what was deleted, and does not say so when it deletes: "
                "nothing is deleted for good",
                "turn versions off, or delete old versions by a lifecycle rule of the bucket",
            )
        endpoint = self._settings.endpoint
        if endpoint is not None and not _is_private(endpoint.get_secret_value()):
            yield Doubt("files go there unencrypted", "use https:// in TURNMILL_S3__ENDPOINT")

    def _name(self, key: Key) -> str:
        return f"{self._settings.prefix}{key.file_id.hex}.{key.tenant_id.hex}"

    def _key(self, name: str) -> Key | None:
        file_id, _, tenant_id = name.removeprefix(self._settings.prefix).partition(".")
        try:
            key = Key(UUID(hex=tenant_id), UUID(hex=file_id))
        except ValueError:
            return None
        return key if self._name(key) == name else None

    def _owner(self) -> _Noted | None:
        answer = self._calls.find("get_object", Key=self._settings.prefix + _OWNER)
        if answer is None:
            return None
        with Body(answer["Body"]) as body:
            return _Noted(body.readall().decode("utf-8", "replace"), answer["LastModified"])

    def _listed(self, after: str = "") -> Iterator[Listed]:
        """Objects in the order of their names."""
        given: dict[str, str] = {"StartAfter": after} if after else {}
        prefix = self._settings.prefix
        while True:
            answer = self._calls.call("list_objects_v2", Prefix=prefix, MaxKeys=PAGE_KEYS, **given)
            yield from answer.get("Contents", [])
            if not answer.get("IsTruncated"):
                return
            given = {"ContinuationToken": answer["NextContinuationToken"]}

    def _versions(self, name: str) -> Iterator[Version]:
        """All versions of one object, and the markers of its deletion, which have no size."""
        given: dict[str, str] = {}
        while True:
            answer = self._calls.call(
                "list_object_versions", Prefix=name, MaxKeys=PAGE_KEYS, **given
            )
            found = answer.get("Versions", []) + answer.get("DeleteMarkers", [])
            yield from (each for each in found if each["Key"] == name)
            if not answer.get("IsTruncated"):
                return
            given = {"KeyMarker": answer["NextKeyMarker"]}
            if answer.get("NextVersionIdMarker"):
                given["VersionIdMarker"] = answer["NextVersionIdMarker"]


def _is_private(url: str) -> bool:
    return url.startswith("https:") or is_loopback(url)


@contextmanager
def _of_the_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"The temporary file of an upload: {error.strerror or error}"
        raise StorageUnavailable(message, "TMPDIR names another folder") from error
