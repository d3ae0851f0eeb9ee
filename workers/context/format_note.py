"""What a model reads about the format that its reply is held to.

A grammar only takes away what would not meet a schema. Of what is left, a model that never saw the
schema writes what seems likeliest: any of the languages allowed, and nothing that a `description`
asks for. OpenAI shows its models the schema as well, and counts its tokens.
https://platform.openai.com/docs/guides/structured-outputs
"""

import json

from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.base import Engine

_SCHEMA = "Reply with JSON that meets this JSON Schema, and with nothing else:"
_CHOICES = "Reply with one of these texts, and with nothing else:"


def note_of(format: ResponseFormat | None, engine: Engine) -> str:
    """The note below the instructions; empty for an engine whose servers show formats themselves,
    for `json_object`, which says nothing, and for a format that would take too much of the window.
    """
    if format is None or engine.capabilities.remote:
        return ""
    note = ""
    if format.type == "json_schema" and format.schema_text:
        schema = json.loads(format.schema_text)
        note = f"{_SCHEMA}\n{json.dumps(schema, ensure_ascii=False, separators=(',', ':'))}"
    elif format.type == "choice":
        note = "\n".join((_CHOICES, *format.choices))
    # A token of English or JSON has about four characters: at most a quarter of the window.
    return note if len(note) <= engine.context_window else ""
