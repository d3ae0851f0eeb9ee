"""Tools that a client offers, and calls of them in the history."""

from typing import Annotated, Literal

from pydantic import (
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


class CalledFunction(Body):
    name: Name
    arguments: str = ""


class ChatToolCall(Body):
    """A call that a model asked for, as its reply had it."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction
    index: object = None

    def call(self) -> ToolCall:
        return ToolCall(id=self.id, name=self.function.name, arguments=self.function.arguments)


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
