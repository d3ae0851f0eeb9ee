"""What a turn asks of its reply's form."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from turnmill.schemas.content import refuse_nul

#: `text` is no format: a turn takes its bot's back.
FormatType = Literal["text", "json_object", "json_schema", "choice"]

#: Bytes of a schema, and of all choices together.
MAX_FORMAT_BYTES = 64 * 1024
MAX_CHOICES = 1000

_Choice = Annotated[str, StringConstraints(min_length=1), AfterValidator(refuse_nul)]


class ResponseFormat(BaseModel):
    """What a reply's text is made to be: a JSON object, JSON of a schema, or one of some texts.

    No turn has the type `text`: see `GenerationParams.over`.

    `producer/accept.py` checks it (`check_format`), so that a worker need not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: FormatType
    #: The JSON Schema as text: the order of its properties is that of the reply, and JSONB keeps
    #: no order.
    schema_text: str | None = None
    #: Of the schema; servers want to be told one.
    name: str | None = Field(default=None, max_length=64)
    #: As OpenAI's: every object lists all of its properties as required, and allows no others.
    strict: bool = False
    choices: tuple[_Choice, ...] = Field(default=(), max_length=MAX_CHOICES)
