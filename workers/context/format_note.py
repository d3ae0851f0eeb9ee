"""What a model is told of the format that its reply is held to.

A grammar lets through only what meets a schema, and of that the model writes what seems likeliest:
one that was never told of the schema takes a "language" that is none, and reads no `description`.
OpenAI shows its models the schema as well, and counts its tokens.
https://platform.openai.com/docs/guides/structured-outputs
"""

import json

from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.base import Engine

_SCHEMA = "Reply with JSON that meets this JSON Schema, and with nothing else:"
_CHOICES = "Reply with one of these texts, and with nothing else:"

#: Characters of a note for each token of the context window, at most: about a quarter of it.
_MOST_CHARACTERS = 1


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
    return note if len(note) <= _MOST_CHARACTERS * engine.context_window else ""
