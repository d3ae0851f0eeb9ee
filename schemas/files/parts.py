"""Parts of messages: their bytes are checked, stored once and referred to.

The same bytes of a tenant are one file, with an id made of them: a call that is repeated with its
idempotency key asks for the same turn, and a client that sends a whole history with each call
stores its images once.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from turnmill.schemas.content import MAX_MESSAGE_CHARS, MediaPart, TextPart, storable
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.files.files import File, Files, Purpose, shown_name
from turnmill.schemas.files.images import clean_image
from turnmill.schemas.files.sniffing import IMAGES, SOUNDS, is_disguised, sniff
from turnmill.schemas.files.storage import Storage
from turnmill.schemas.ids import derived_id
from turnmill.schemas.settings import Settings

Kind = Literal["image", "audio", "file"]


class PartKeeper:
    """Makes parts of bytes."""

    def __init__(self, files: Files, storage: Storage, settings: Settings) -> None:
        self._files = files
        self._storage = storage
        self._limits = settings.media
        self._days = settings.retention.kept_media_days

    @property
    def max_bytes(self) -> int:
        """Of the largest part that there may be."""
        return max(self._limits.max_image_bytes, self._limits.max_audio_bytes)

    def keep(
        self, tenant_id: UUID, kind: Kind, data: bytes, name: str = ""
    ) -> MediaPart | TextPart:
        """Check bytes, store them, and return the part of a message that refers to them.

        A file is what its content is: an image, a sound, or text, which becomes a part's text.

        Raises:
            InvalidInput: the bytes are not what they should be, or too many.
            StorageFull: the tenant's files together would be too large.
            StorageUnavailable: the bytes cannot be stored.
            DatabaseUnavailable: likewise.
        """
        if kind == "file" and sniff(data[:4096]) == "text/plain":
            return _text(data, name)
        found = self._check(kind, data)
        return MediaPart(type=found, file_id=self._store(tenant_id, found, data, name).shown_id)

    def fill(self, tenant_id: UUID, file_id: UUID, kind: Kind, name: str, data: bytes) -> None:
        """Store the bytes of a file that was still to be fetched. Raises as `keep` does, and
        `NotFound` if it was deleted meanwhile.
        """
        found = self._check(kind, data)
        self._write(tenant_id, file_id, found, data, name, is_owed=True)

    def _check(self, kind: Kind, data: bytes) -> Kind:
        """Return what the bytes are: an image or a sound. Raises `InvalidInput`."""
        found = refuse_other(kind, data[:4096])
        most = self._limits.max_image_bytes if found == "image" else self._limits.max_audio_bytes
        if len(data) > most:
            raise InvalidInput(
                f"The {found} has {len(data):,} bytes; it may have {most:,}. Send a smaller one.",
                param="messages",
            )
        refuse_disguised(found, data)
        return found

    def _store(self, tenant_id: UUID, kind: Kind, data: bytes, name: str) -> File:
        file_id = derived_id(tenant_id, "part", kind, hashlib.sha256(data).hexdigest())
        expires_at = datetime.now(UTC) + timedelta(days=self._days)
        try:
            known = self._files.prolong(tenant_id, file_id, expires_at)
            if self._storage.has(known.key):
                return known
        except NotFound:
            pass
        return self._write(tenant_id, file_id, kind, data, name)

    def _write(
        self,
        tenant_id: UUID,
        file_id: UUID,
        kind: Kind,
        data: bytes,
        name: str,
        *,
        is_owed: bool = False,
    ) -> File:
        if kind == "image":
            data = clean_image(data, self._limits).data
        with self._storage.draft() as draft:
            draft.write(data)
            return self._files.save(
                draft,
                tenant_id=tenant_id,
                name=name or kind,
                purpose=Purpose.MESSAGE,
                expires_at=datetime.now(UTC) + timedelta(days=self._days),
                file_id=file_id,
                is_owed=is_owed,
            )


def refuse_other(kind: Kind, head: bytes, *, param: str = "messages") -> Kind:
    """Return what begins like this: an image or a sound. Raises `InvalidInput`, also for one that
    is not the kind that is wanted.
    """
    if not head:
        shown = {"image": "image", "audio": "sound", "file": "file"}[kind]
        raise InvalidInput(f"The {shown} is empty: it has no bytes.", param=param)
    mime = sniff(head)
    found: Kind = "image" if mime in IMAGES else "audio" if mime in SOUNDS else "file"
    if found == "file" or kind not in (found, "file"):
        raise _refused(kind, mime, param)
    return found


def refuse_disguised(kind: Kind, data: bytes, *, param: str = "messages") -> None:
    """Raise `InvalidInput` for an image or a sound that is another kind of file as well."""
    if is_disguised(data):
        raise InvalidInput(
            f"The {kind} is another kind of file as well, and is refused. Export it anew, as PNG, "
            "JPEG, WAV or OGG.",
            param=param,
        )


def _text(data: bytes, name: str) -> TextPart:
    """The text of a file, under its name. Both are the user's words."""
    text = storable(data.decode("utf-8", "replace"))
    if len(text) > MAX_MESSAGE_CHARS // 2:
        raise InvalidInput(
            f"The file has {len(text):,} characters; a message takes {MAX_MESSAGE_CHARS // 2:,}.",
            param="messages",
        )
    return TextPart(text=f"{shown_name(name)}:\n{text}" if name else text)


def _refused(kind: Kind, mime: str, param: str) -> InvalidInput:
    wanted = {
        "image": f"An image must be {_listed(IMAGES)}",
        "audio": f"A sound must be {_listed(SOUNDS)}",
        "file": "A file in a message must be text, an image or a sound",
    }
    return InvalidInput(
        f"{wanted[kind]}; the content is {mime}, whatever it is called.", param=param
    )


def _listed(mimes: frozenset[str]) -> str:
    return ", ".join(sorted(mime.partition("/")[2].upper() for mime in mimes))
