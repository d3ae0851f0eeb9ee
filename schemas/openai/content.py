"""The content of a message: text, or parts of several kinds."""

import base64
import binascii
from typing import Annotated, Literal

from pydantic import (
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from turnmill.schemas.content import (
    MAX_PARTS,
    InlinePart,
    MediaPart,
    Name,
    Part,
    Text,
    TextPart,
    read_content,
)
from turnmill.schemas.ids import Prefix
from turnmill.schemas.openai.fields import Body

Kind = Literal["image", "audio", "file"]


def _read_content(content: object) -> str | tuple[Part | InlinePart, ...]:
    """Text, or parts in OpenAI's shapes. Parts that are all text are joined."""
    if not isinstance(content, list):
        return read_content(content)
    parts = [_part(each) for each in content]
    if all(isinstance(part, TextPart) for part in parts):
        return read_content("\n".join(part.text for part in parts if isinstance(part, TextPart)))
    if any(isinstance(part, InlinePart) for part in parts):
        if others := [part for part in parts if not isinstance(part, InlinePart)]:
            read_content(others)
        if len(parts) > MAX_PARTS:
            raise PydanticCustomError("parts", "A message has too many parts")
        return tuple(parts)
    return read_content(parts)


def _part(part: object) -> TextPart | MediaPart | InlinePart:
    match part:
        case {"type": "text", "text": str(text)}:
            return TextPart.model_construct(text=text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return _image(url)
        case {"type": "input_audio", "input_audio": {"data": str(data)}}:
            return InlinePart(type="audio", data=_decoded(data.rpartition(",")[2]))
        case {"type": "file", "file": {"file_id": str(file_id)}}:
            return _stored("file", file_id)
        case {"type": "file", "file": {"file_data": str(data), **rest}}:
            name = rest.get("filename")
            bytes_ = _decoded(data.rpartition(",")[2])
            return InlinePart(type="file", data=bytes_, name=name if isinstance(name, str) else "")
        case {"type": str(kind)} if kind != "text":
            raise PydanticCustomError(
                "not_supported",
                "Only parts of type 'text', 'image_url', 'input_audio', and 'file' with a file_id "
                "or file_data are supported",
            )
    raise PydanticCustomError("part", "A part looks like {'type': 'text', 'text': '…'}")


def _image(url: str) -> MediaPart | InlinePart:
    if url.startswith("data:"):
        head, _, data = url.partition(",")
        if head.endswith(";base64"):
            return InlinePart(type="image", data=_decoded(data))
    elif url.startswith(Prefix.FILE + "_"):
        return _stored("image", url)
    raise PydanticCustomError(
        "not_supported",
        "Images at other addresses are not supported: nobody fetches them. Send 'image_url' as "
        "a data: URL (data:image/png;base64,…), or upload the image to /v1/files and send its id",
    )


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise PydanticCustomError("base64", "The data of a part must be base64") from None


def _stored(kind: Kind, file_id: str) -> MediaPart:
    try:
        return MediaPart(type=kind, file_id=file_id)
    except ValidationError:
        raise PydanticCustomError("file_id", "A file is named by its id, file_…") from None


Content = Annotated[
    str | tuple[Part | InlinePart, ...],
    WrapValidator(
        lambda value, _: _read_content(value), json_schema_input_type=str | list[dict[str, object]]
    ),
]


class ChatDocument(Body):
    """A passage for this turn alone."""

    text: Text
    title: Name = ""
