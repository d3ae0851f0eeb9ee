"""What a channel is: the way in for the events of one platform."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from turnmill.producer.converse import Received
from turnmill.schemas.channels.events import (
    MAX_FILES,
    MAX_REF_CHARS,
    MAX_TEXT,
    Event,
    RemoteFile,
)
from turnmill.schemas.content import MAX_PARTS, Content, TextPart, storable_json
from turnmill.schemas.errors import InvalidInput

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Request:
    """What a platform sent, unread."""

    method: str
    #: Their names in lower case, or a mapping that does not mind.
    headers: Mapping[str, str]
    body: bytes
    #: When it arrived, Unix seconds.
    arrived_at: float
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the platform is answered, with status 200."""

    body: bytes = b""
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a request says."""

    events: tuple[Event, ...] = ()
    #: A word for the metrics, where there is no event: `own`, `bot`, `edit`, `unknown` and so on.
    ignored: str = "unknown"
    #: Where the platform waits for more than 2xx.
    answer: Answer = Answer()


#: Python's own table of types lacks half of them where the system has none.
_IMAGE_ENDS = frozenset({"png", "jpg", "jpeg", "gif", "webp"})
_SOUND_ENDS = frozenset({"wav", "ogg", "oga", "opus", "mp3", "flac", "m4a", "amr"})


class KeysNeeded(Exception):
    """The platform's keys, which a request is verified with, are being fetched.

    When `fetching` is done the request is to be verified again.
    """

    def __init__(self, fetching: Future[None]) -> None:
        super().__init__()
        self.fetching = fetching


class Channel(Protocol):
    """One platform, as one section of the configuration wants it. Thread-safe, and never waits.

    Made with its name in the configuration and its section. Raises `SettingsError` then, if a
    secret is missing.
    """

    #: Larger requests are refused with 413.
    max_body_bytes: int
    #: Others are refused with 415.
    media_types: frozenset[str]
    #: Platforms that verify an address by GET need it here too.
    methods: frozenset[str]

    def verify(self, request: Request) -> None:
        """Check that the platform sent it, and just now.

        Raises:
            BadSignature: the signature is missing, wrong or out of its time.
            KeysNeeded: the platform signs with keys of its own, and they are not here yet.
        """

    def parse(self, request: Request) -> Parsed:
        """Read a verified request. What is well-formed and unknown has no events.

        Raises:
            InvalidInput: the body cannot be read.
        """

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        """Answer a request whose events are committed."""


def read_json(body: bytes | str) -> dict[str, object]:
    """Read a JSON object with strings that PostgreSQL can store. Raises `InvalidInput`."""
    try:
        payload = storable_json(json.loads(body))
    except (ValueError, RecursionError):
        raise InvalidInput("The body is not valid JSON.") from None
    if not isinstance(payload, dict):
        raise InvalidInput("The body is not a JSON object.")
    return payload


def remote_files(found: Iterable[tuple[str, str, str]]) -> tuple[RemoteFile, ...]:
    """The images and sounds among files of a message: each by its media type, what its platform
    calls it, and its name. What has no readable type or reference is left out.
    """
    files = []
    for mime, ref, name in found:
        kind = mime.partition("/")[0]
        if kind in ("image", "audio") and 0 < len(ref) <= MAX_REF_CHARS:
            files.append(
                RemoteFile(kind="image" if kind == "image" else "audio", ref=ref, name=name)
            )
    return tuple(files[:MAX_FILES])


def type_of_name(name: str) -> str:
    """The media type that the end of a file's name stands for, as far as `remote_files` needs it;
    empty where that is no image and no sound. What it is in truth its first bytes say later.
    """
    end = name.rpartition(".")[2].lower()
    return "image/" if end in _IMAGE_ENDS else "audio/" if end in _SOUND_ENDS else ""


def content_of(text: str, files: Iterable[tuple[str | None, str | None]]) -> Content:
    """The text, and the names and types of the files that came with it; of files alone nothing is
    read."""
    named = [f"[file: {name or 'unnamed'}, {kind or 'unknown type'}]" for name, kind in files]
    if not text or not named:
        return text
    # One character more than is taken says that there were more.
    return tuple(TextPart(text=part) for part in (text[: MAX_TEXT + 1], *named))[:MAX_PARTS]
