"""What a reader of sound or of images does."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Lock
from typing import Annotated, NamedTuple, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from turnmill.schemas.content import storable
from turnmill.schemas.errors import EngineUnavailable
from turnmill.workers.turn.abort import Interrupted

T = TypeVar("T")

#: How often a thread that waits for a reader looks whether it was aborted, seconds.
_LOOK_S = 0.2


#: A text from a reader of sound or images, cleaned where it enters the worker.
Words = Annotated[str, AfterValidator(storable)]


class Reading(BaseModel):
    """What was read of a file. Pinned with the turn that asks, so each attempt reads the same."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file_id: str
    #: `audio` or `image`.
    kind: str
    text: Words
    #: 0 to 1; for images 1, where there is text.
    confidence: float = 1.0
    language: Words = ""


class Segment(BaseModel):
    """A piece of a transcript, as Whisper's models tell it; times in seconds from the beginning.

    A transcriber leaves out what it does not know.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    start: float
    end: float
    text: Words = ""
    id: int | None = None
    seek: int | None = None
    tokens: tuple[int, ...] | None = None
    temperature: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None


class Transcript(BaseModel):
    """What somebody says in a sound."""

    model_config = ConfigDict(allow_inf_nan=False)

    text: Words
    #: The probability that the words are right, as far as the reader can tell; 0 to 1.
    confidence: float
    language: Words = ""
    #: Of the sound, seconds; None: unknown.
    duration_s: float | None = None
    segments: tuple[Segment, ...] = ()


class TranscriberFailed(EngineUnavailable):
    """The transcriber's server failed at this sound, perhaps because of it."""


class TranscriberRefuses(EngineUnavailable):
    """The transcriber's server refuses this worker, whatever the sound: its operator must act."""


class Hints(NamedTuple):
    """What is known of a sound before it is heard."""

    #: ISO 639-1, as `en`; None: to be detected.
    language: str | None = None
    #: Words that may occur in it, or what was said before it.
    prompt: str | None = None


class Transcriber(Protocol):
    """Turns speech into text. Threads share it; it may let one in at a time."""

    def transcribe(self, sound: bytes, hints: Hints, abort: Event) -> Transcript:
        """Transcribe a sound in one of the formats that messages may have.

        Raises:
            InvalidInput: it is damaged, too long, or no sound; or (`param` is `language`) the
                transcriber does not know the language of the hints.
            TransientError: try again later.
            Interrupted: `abort` was set.
        """


class ImageReader(Protocol):
    """Reads the text of images. Threads share it; it may let one in at a time."""

    def read(self, image: bytes, abort: Event) -> str:
        """Return the text of a PNG or JPEG, line by line; empty where there is none.

        Raises:
            InvalidInput: it cannot be decoded.
            Interrupted: `abort` was set.
        """


class Synthesizer(Protocol):
    """Turns text into speech. Threads share it; it may let one in at a time."""

    def speak(self, text: str, until: float) -> bytes | None:
        """Speak a plain text: Opus in OGG, mono, which every platform takes as a voice message.

        None: it is in no language that this voice speaks.

        Raises:
            Interrupted: it was not spoken by `until` (`time.monotonic`), or one sentence later.
        """


@contextmanager
def taken(lock: Lock, abort: Event) -> Iterator[None]:
    """Hold the lock during the block. Raises `Interrupted` if `abort` is set before it is free."""
    while not lock.acquire(timeout=_LOOK_S):
        if abort.is_set():
            raise Interrupted
    try:
        yield
    finally:
        lock.release()


def unless_aborted(pieces: Iterable[T], abort: Event) -> Iterator[T]:
    """Yield the pieces; raise `Interrupted` before the next one once `abort` is set."""
    for piece in pieces:
        if abort.is_set():
            raise Interrupted
        yield piece
