"""Types of the fields of requests: what clients send, read as what it means."""

from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

#: Mistakes that an error message tells.
MAX_SHOWN_MISTAKES = 3

#: Characters of a field's name that an error message repeats.
MAX_SHOWN_NAME = 100


def as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


def as_integer(number: object) -> object:
    """JSON does not tell 16.0 from 16, and some clients have floats only."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def as_seed(number: object) -> object:
    """OpenAI's seeds are signed; engines take the same 64 bits without the sign."""
    number = as_integer(number)
    is_signed = isinstance(number, int) and -(2**63) <= number < 0
    return number % 2**63 if is_signed else number  # type: ignore[operator]


class Unless:
    """Refuse a field, unless its value asks for nothing that Turnmill does not do."""

    def __init__(self, *harmless: object) -> None:
        self._harmless = (None, *harmless)

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._refuse, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return {"enum": [*self._harmless]}

    def _refuse(self, value: object) -> object:
        # In Python False == 0 and True == 1.
        if any(
            value == item and isinstance(value, bool) == isinstance(item, bool)
            for item in self._harmless
        ):
            return value
        raise PydanticCustomError("not_supported", "Not supported")


Tokens = Annotated[int, BeforeValidator(as_integer), Field(ge=1, le=131_072)]


class Body(BaseModel):
    """An object of a request. A field it does not know is one mistake, however many there are."""

    model_config = ConfigDict(
        frozen=True, strict=True, json_schema_extra={"additionalProperties": False}
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, body: object) -> object:
        if isinstance(body, dict) and not cls._is_open(body):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = [name for name in body if name not in known]
            if unknown:
                names = [shown(name) for name in unknown[:MAX_SHOWN_MISTAKES]]
                context = {"names": names, "more": len(unknown) - len(names)}
                raise PydanticCustomError("unknown_field", "Unknown", context)
        return body

    @classmethod
    def _is_open(cls, body: dict[str, object]) -> bool:
        return False


def shown(name: str) -> str:
    return name[:MAX_SHOWN_NAME]
