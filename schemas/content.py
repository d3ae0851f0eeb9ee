"""What a message consists of: text, or parts in order; and the tools that a model asks for.

Pictures, sound and files are named by the id of a stored file or by a URL, never by their bytes: a
turn's row stays small, and whoever reads it decides what to fetch.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

#: Characters of one message. The engine's context window is the real limit; this one
#: only keeps a hostile body from reaching the database.
MAX_MESSAGE_CHARS = 400_000
MAX_PARTS = 128
MAX_TOOL_CALLS = 128
MAX_DOCUMENTS = 64
#: Images of a prompt, at most; the newest ones.
MAX_IMAGES = 8
#: Tokens that a turn makes likelier or less likely.
MAX_BIASES = 1024
MAX_URL_CHARS = 8_192
#: Of the names and ids that others make up: of tools, calls and files.
MAX_NAME_CHARS = 256

PartKind = Literal["text", "image", "audio", "file"]


#: PostgreSQL stores no U+0000, and UTF-8 encodes no surrogate.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """Replace U+0000 and lone surrogates by U+FFFD; join the halves of a surrogate pair.

    JSON can escape all of them (RFC 8259, section 8.2), so any server may send them.
    """
    if not _UNSTORABLE.search(text):
        return text
    paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return paired.replace("\0", "\ufffd")


def storable_json(value: object) -> object:
    """Replace what PostgreSQL cannot store in all strings of a JSON value.

    Raises:
        RecursionError: it is nested too deeply, though a decoder may have read it.
    """
    match value:
        case str():
            return storable(value)
        case dict():
            return {storable(key): storable_json(each) for key, each in value.items()}
        case list():
            return [storable_json(each) for each in value]
    return value


def refuse_nul(text: str) -> str:
    """PostgreSQL cannot store U+0000, which JSON can escape."""
    if "\0" in text:
        raise PydanticCustomError("nul", "contains a NUL character")
    return text


Text = Annotated[str, StringConstraints(max_length=MAX_MESSAGE_CHARS), AfterValidator(refuse_nul)]
Name = Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS), AfterValidator(refuse_nul)]
URL = Annotated[
    str,
    StringConstraints(max_length=MAX_URL_CHARS, pattern=r"^https?://[^\s\x00-\x1f]+$"),
]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextPart(_Value):
    type: Literal["text"] = "text"
    text: Text


class MediaPart(_Value):
    """A picture, a sound or a file: by the id of a stored file, or by a URL."""

    type: Literal["image", "audio", "file"]
    file_id: Name | None = None
    url: URL | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.file_id is None) == (self.url is None):
            raise PydanticCustomError("source", "needs either file_id or url")
        return self

    @property
    def is_shown(self) -> bool:
        """Whether it is an image with its bytes, as a worker gives them to a model that sees."""
        return self.type == "image" and (self.url or "").startswith("data:")


class InlinePart(_Value):
    """A picture, a sound or a file with its bytes, as a call brings it. No turn has one: whoever
    accepts the call stores the bytes and refers to them."""

    type: Literal["image", "audio", "file"]
    data: bytes = Field(repr=False)
    name: str = ""


Part = Annotated[TextPart | MediaPart, Field(discriminator="type")]

_PARTS: TypeAdapter[tuple[TextPart | MediaPart, ...]] = TypeAdapter(
    Annotated[tuple[Part, ...], Field(min_length=1, max_length=MAX_PARTS)]
)


def read_content(value: object) -> str | tuple[TextPart | MediaPart, ...]:
    """Validate text or parts. By hand, for a union's mistakes would name its branches."""
    if isinstance(value, list | tuple):
        return _read_parts(value)
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    _refuse_long(len(value))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticKnownError("string_unicode") from None
    return refuse_nul(value)


def _read_parts(value: object) -> tuple[TextPart | MediaPart, ...]:
    try:
        parts = _PARTS.validate_python(value)
    except ValidationError:
        # Its own message would repeat the content.
        raise PydanticCustomError(
            "parts",
            "A part looks like {'type': 'text', 'text': '…'} or "
            "{'type': 'image', 'url': 'https://…'}",
        ) from None
    _refuse_long(sum(len(part.text) for part in parts if isinstance(part, TextPart)))
    return parts


def _refuse_long(length: int) -> None:
    if length > MAX_MESSAGE_CHARS:
        raise PydanticKnownError("string_too_long", {"max_length": MAX_MESSAGE_CHARS})


Content = Annotated[
    str | tuple[Part, ...],
    WrapValidator(lambda value, _: read_content(value)),
]


def text_of(content: str | tuple[TextPart | MediaPart, ...]) -> str:
    """The text for those who read nothing else: other parts are named by their kind."""
    if isinstance(content, str):
        return content
    return "\n".join(p.text if isinstance(p, TextPart) else f"[{p.type}]" for p in content)


def parts_of(content: str | tuple[TextPart | MediaPart, ...]) -> tuple[TextPart | MediaPart, ...]:
    """Give the content as parts."""
    # The content was validated with its message.
    return (TextPart.model_construct(text=content),) if isinstance(content, str) else content


class Document(_Value):
    """A passage that belongs to one turn alone, as a search found it."""

    text: Text
    title: Name = ""


class ToolCall(_Value):
    """A model's wish that a tool be called. Whoever runs the tool sends its result as a message."""

    id: Name
    name: Name
    #: JSON as the model wrote it, which need not be valid.
    arguments: Text = ""


Bias = Annotated[float, Field(ge=-100, le=100)]
#: By the ids of tokens.
Biases = Annotated[dict[Annotated[int, Field(ge=0, lt=2**31)], Bias], Field(max_length=MAX_BIASES)]


#: A token that is a part of a character, as OpenAI's API writes it too.
_AS_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


def token_text(raw: bytes) -> str:
    """A token's text; of one that is a part of a character its bytes: `bytes:\\xe5\\xa5`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def token_bytes(text: str) -> bytes | None:
    """Return the bytes of a token, of its text; None: the text does not tell them."""
    if found := _AS_BYTES.fullmatch(text):
        return bytes.fromhex(found[1].replace("\\x", ""))
    return None if not text or "\ufffd" in text else text.encode()


class TokenLogprob(_Value):
    """A token of a reply with its natural log-probability, and those of the likeliest tokens; their
    texts are those of `token_text`.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
