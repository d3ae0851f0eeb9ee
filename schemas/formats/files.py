"""Schemas in files."""

from pathlib import Path

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat


def read_schema(path: Path) -> str:
    """Read a schema's file, and check it.

    Raises:
        InvalidInput: there is none, or it is no schema that is accepted.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInput(f"'{path}' cannot be read: {reason}.") from None
    try:
        plain_schema(text)
    except InvalidInput as error:
        raise InvalidInput(f"'{path.name}': {error.message}") from None
    return text


def schema_format(text: str) -> ResponseFormat:
    """The format of a schema's text."""
    return ResponseFormat(type="json_schema", schema_text=text)
