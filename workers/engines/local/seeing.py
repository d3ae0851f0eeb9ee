"""Images of a prompt, for models in this process that see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from turnmill.schemas.content import MediaPart, TextPart, parts_of
from turnmill.schemas.turns import Message


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
    kept = []
    for message in messages:
        parts: list[TextPart | MediaPart] = []
        for part in parts_of(message.content):
            if surplus > 0 and isinstance(part, MediaPart) and part.is_shown:
                surplus -= 1
                part = TextPart(text=f"[{part.type}]")
            parts.append(part)
        content = message.content if isinstance(message.content, str) else tuple(parts)
        kept.append(message.model_copy(update={"content": content}))
    return kept
