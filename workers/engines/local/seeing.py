"""Images of a prompt, for models in this process that see."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Protocol

from turnmill.schemas.content import MediaPart, TextPart, parts_of
from turnmill.schemas.turns import Message, Role

#: Images that are known to be unreadable.
REMEMBERED_UNREADABLE = 4096


@dataclass(frozen=True, slots=True)
class Seen:
    """A prompt with what its model reads of the images."""

    #: With all tokens of the images.
    prompt_ids: Sequence[int]
    #: As the scheduler takes it.
    inputs: object


class Eyes(Protocol):
    """How a model sees. Many threads ask at once.

    Images are `data:` URLs, in the order of the prompt. `namespace`: as `Prompt.cache_namespace`.
    """

    @property
    def limit(self) -> int:
        """Images of one prompt, at most."""
        ...

    def mark(self, number: int) -> str | None:
        """What stands in a text for the nth image of a prompt, from 1 on; None: not known."""
        ...

    def count(self, prompt_ids: Sequence[int], images: Sequence[str], namespace: str) -> int:
        """Count the tokens of a prompt, those of its images included. Raises as `look` does."""
        ...

    def look(self, prompt_ids: Sequence[int], images: Sequence[str], namespace: str) -> Seen:
        """Prepare a prompt in whose tokens each image has its mark.

        Raises:
            InvalidInput: an image cannot be decoded.
            EngineFailure: the model cannot read the images.
        """
        ...


def images_of(messages: Sequence[Message]) -> list[str]:
    """Return the images that have their bytes with them, as `data:` URLs."""
    parts = (part for message in messages for part in parts_of(message.content))
    return [str(part.url) for part in parts if isinstance(part, MediaPart) and part.is_shown]


def with_newest(messages: Sequence[Message], limit: int) -> Sequence[Message]:
    """Return the messages with their newest images, at most `limit`; the others are named."""
    surplus = len(images_of(messages)) - limit
    if surplus <= 0:
        return messages
    numbers = count()
    return [_named(message, lambda _: next(numbers) < surplus) for message in messages]


def split_past(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """Return the messages before the last one of the user, and those from it on."""
    asked = [number for number, each in enumerate(messages) if each.role is Role.USER]
    at = asked[-1] if asked else len(messages)
    return messages[:at], messages[at:]


class Unreadable:
    """Images that a model could not read, by their hash. In a conversation's past they are named,
    or no later turn of it would be answered.
    """

    def __init__(self) -> None:
        self._hashes: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, image: str) -> bool:
        with self._lock:
            return _hash(image) in self._hashes

    def add(self, image: str) -> None:
        with self._lock:
            self._hashes[_hash(image)] = None
            if len(self._hashes) > REMEMBERED_UNREADABLE:
                self._hashes.popitem(last=False)

    def without(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages with those of the past's images named."""
        past, rest = split_past(messages)
        if not self._hashes or not images_of(past):
            return messages
        return [*(_named(message, self.__contains__) for message in past), *rest]


def _hash(image: str) -> bytes:
    return hashlib.sha256(image.encode()).digest()


def _named(message: Message, is_named: Callable[[str], bool]) -> Message:
    """The message with those of its images named whose URL is one of these."""
    if isinstance(message.content, str):
        return message
    parts: list[TextPart | MediaPart] = []
    for part in parts_of(message.content):
        if isinstance(part, MediaPart) and part.is_shown and is_named(str(part.url)):
            part = TextPart(text=f"[{part.type}]")
        parts.append(part)
    return message.model_copy(update={"content": tuple(parts)})
