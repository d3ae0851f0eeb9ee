"""What a reader of sound or of images does."""

from typing import Protocol

from pydantic import BaseModel, ConfigDict


class Reading(BaseModel):
    """What was read of a file. Pinned with the turn that asks, so each attempt reads the same."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file_id: str
    #: `audio` or `image`.
    kind: str
    text: str
    #: 0 to 1; for images 1, where there is text.
    confidence: float = 1.0
    language: str = ""


class Transcript(BaseModel):
    """What somebody says in a sound."""

    text: str
    #: The probability that the words are right, as far as the reader can tell; 0 to 1.
    confidence: float
    language: str = ""


class Transcriber(Protocol):
    """Turns speech into text. Threads share it; it may let one in at a time."""

    def transcribe(self, sound: bytes, language: str | None) -> Transcript:
        """Transcribe a sound in one of the formats that messages may have.

        Raises:
            InvalidInput: it is damaged, too long, or no sound.
            TransientError: try again later.
        """


class ImageReader(Protocol):
    """Reads the text of images. Threads share it; it may let one in at a time."""

    def read(self, image: bytes) -> str:
        """Return the text of a PNG or JPEG, line by line; empty where there is none.

        Raises:
            InvalidInput: it cannot be decoded.
        """
