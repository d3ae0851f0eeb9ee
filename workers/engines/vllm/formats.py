"""A format as vLLM's structured outputs have it.

https://docs.vllm.ai/en/latest/features/structured_outputs.html
"""

from typing import Any

from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat


def structured_fields(format: ResponseFormat) -> dict[str, Any]:
    """The arguments of `StructuredOutputsParams` for a checked format.

    Always compact: small models fill a reply with white space.
    """
    if format.type == "choice":
        return {"choice": list(format.choices)}
    text = format.schema_text if format.type == "json_schema" else '{"type": "object"}'
    return {"json": plain_schema(text or "{}"), "disable_any_whitespace": True}
