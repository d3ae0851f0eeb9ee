"""From a body's bytes to a request."""

from pydantic import (
    ValidationError,
)

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.json_size import has_more_values
from turnmill.schemas.openai.mistakes import invalid_input
from turnmill.schemas.openai.requests import ChatCompletionRequest

#: JSON values of a body, keys included. Texts count as one; a body of 512 messages and some tools
#: has a few thousand.
MAX_VALUES = 50_000

BOM = b"\xef\xbb\xbf"


def parse_chat_request(body: bytes) -> ChatCompletionRequest:
    """Read a body, which may begin with a UTF-8 byte order mark.

    Raises:
        InvalidInput: its message tells the first mistakes and `param` the first field at fault;
            neither repeats a value.
    """
    if has_more_values(body, MAX_VALUES):
        raise InvalidInput(f"The body has more than {MAX_VALUES} JSON values.")
    try:
        return ChatCompletionRequest.model_validate_json(body.removeprefix(BOM))
    except ValidationError as error:
        raise invalid_input(error.errors(include_url=False, include_input=False)) from None
