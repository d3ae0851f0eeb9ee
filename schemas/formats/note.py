"""What a model reads about the format that its reply is held to.

A grammar only takes away what would not meet a schema. Of what is left, a model that never saw the
schema writes what seems likeliest: any of the languages allowed, and nothing that a `description`
asks for. OpenAI shows its models the schema as well, and counts its tokens.
https://platform.openai.com/docs/guides/structured-outputs
"""

import json

from turnmill.schemas.formats.response import ResponseFormat

_SCHEMA = "Reply with JSON that meets this JSON Schema, and with nothing else:"
_CHOICES = "Reply with one of these texts, and with nothing else:"


def format_note(format: ResponseFormat | None) -> str:
    """The note below the instructions; empty for `json_object`, which says nothing."""
    if format is None:
        return ""
    if format.type == "json_schema" and format.schema_text:
        schema = json.loads(format.schema_text)
        return f"{_SCHEMA}\n{json.dumps(schema, ensure_ascii=False, separators=(',', ':'))}"
    return "\n".join((_CHOICES, *format.choices)) if format.type == "choice" else ""
