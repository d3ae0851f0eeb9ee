"""Tools that a client offers, and calls of them in the history."""

from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from turnmill.schemas.content import (
    Name,
    ToolCall,
)
from turnmill.schemas.openai.fields import Body
from turnmill.schemas.openai.mistakes import invalid_input
from turnmill.schemas.turns import (
    MAX_TOOLS,
    Tool,
)


class _OpenBody(Body):
    """An object of an assistant's message, which may have any field, as the message itself may."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})

    @classmethod
    def _is_open(cls, body: dict[str, object]) -> bool:
        return True


class CalledFunction(_OpenBody):
    name: Name
    arguments: str | None = ""


class ChatToolCall(_OpenBody):
    """A call that a model asked for, as its reply had it.

    SDKs append what they know of it: `parsed_arguments`, `extra_content`, `index`, …
    """

    id: Name
    type: Literal["function"] | None = "function"
    function: CalledFunction

    def call(self) -> ToolCall:
        function = self.function
        return ToolCall(id=self.id, name=function.name, arguments=function.arguments or "")


class OfferedFunction(Body):
    #: As OpenAI has it, in any script: it may stand in a prompt as it is.
    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class OfferedTool(Body):
    type: Literal["function"]
    function: OfferedFunction


_TOOLS: TypeAdapter[list[OfferedTool]] = TypeAdapter(
    Annotated[list[OfferedTool], Field(max_length=MAX_TOOLS)]
)


def read_tools(value: object) -> tuple[Tool, ...]:
    try:
        offered = _TOOLS.validate_python(value)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        raise invalid_input(
            [{**each, "loc": ("tools", *each["loc"])} for each in mistakes]
        ) from None
    return tuple(Tool(**tool.function.model_dump()) for tool in offered)
