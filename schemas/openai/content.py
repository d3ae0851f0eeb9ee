"""The content of a message: text, or parts of several kinds."""

from typing import Annotated, Any, Literal

from pydantic import (
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from turnmill.schemas.content import (
    MediaPart,
    Name,
    Part,
    Text,
    TextPart,
    read_content,
)
from turnmill.schemas.openai.fields import Body


def _read_content(content: object) -> str | tuple[Part, ...]:
    """Text, or parts in OpenAI's shapes. Parts that are all text are joined."""
    if not isinstance(content, list):
        return read_content(content)
    parts = [_part(each) for each in content]
    if all(isinstance(part, TextPart) for part in parts):
        return read_content("\n".join(part.text for part in parts if isinstance(part, TextPart)))
    return read_content(parts)


def _part(part: object) -> TextPart | MediaPart:
    match part:
        case {"type": "text", "text": str(text)}:
            return TextPart.model_construct(text=text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return _media("image", url=url)
        case {"type": "file", "file": {"file_id": str(file_id)}}:
            return _media("file", file_id=file_id)
        case {"type": str(kind)} if kind != "text":
            raise PydanticCustomError(
                "not_supported",
                "Only parts of type 'text', 'image_url' with a URL, and 'file' with a file_id are "
                "supported",
            )
    raise PydanticCustomError("part", "A part looks like {{'type': 'text', 'text': '…'}}")


def _media(kind: Literal["image", "file"], **source: str) -> MediaPart:
    try:
        return MediaPart(type=kind, **source)
    except ValidationError:
        raise PydanticCustomError(
            "not_supported", "A picture is supported by its URL (https://…), a file by its id"
        ) from None


Content = Annotated[
    str | tuple[Part, ...],
    WrapValidator(
        lambda value, _: _read_content(value), json_schema_input_type=str | list[dict[str, Any]]
    ),
]


class ChatDocument(Body):
    """A passage for this turn alone."""

    text: Text
    title: Name = ""
