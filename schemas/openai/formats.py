"""How clients ask for a format: as OpenAI has it, or as vLLM does.

https://platform.openai.com/docs/guides/structured-outputs
https://docs.vllm.ai/en/latest/features/structured_outputs.html
"""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from turnmill.schemas.content import refuse_nul
from turnmill.schemas.formats.response import MAX_CHOICES, ResponseFormat
from turnmill.schemas.openai.fields import Body

Schema = dict[str, object]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_CHOICES)]


class NamedSchema(Body):
    name: Annotated[str | None, Field(max_length=64), AfterValidator(refuse_nul)] = None
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class AskedFormat(Body):
    """`response_format`."""

    @classmethod
    def of(cls, format: ResponseFormat) -> dict[str, object]:
        """A format as a client would ask for it."""
        if format.type != "json_schema":
            return {"type": format.type}
        schema = json.loads(format.schema_text or "{}")
        named = {"name": format.name or "reply", "schema": schema, "strict": format.strict}
        return {"type": "json_schema", "json_schema": named}

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def read(self) -> ResponseFormat:
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        named = self.json_schema or NamedSchema()
        return ResponseFormat(
            type="json_schema",
            schema_text=None if named.schema_ is None else schema_text(named.schema_),
            name=named.name,
            strict=bool(named.strict),
        )


class StructuredOutputs(Body):
    """vLLM's wishes; what is not among them here is refused by its name."""

    choice: Choices | None = None
    json_: Schema | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    disable_any_whitespace: object = None

    def read(self) -> ResponseFormat | None:
        if self.choice:
            return ResponseFormat(type="choice", choices=tuple(self.choice))
        if self.json_ is not None:
            return ResponseFormat(type="json_schema", schema_text=schema_text(self.json_))
        return ResponseFormat(type="json_object") if self.json_object else None


def schema_text(schema: Schema | str) -> str:
    """A schema as the text that is stored, its properties in their order."""
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
