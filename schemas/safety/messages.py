"""Messages with other text."""

from collections.abc import Callable, Sequence

from turnmill.schemas.content import TextPart
from turnmill.schemas.safety.findings import masked
from turnmill.schemas.safety.personal import find_personal
from turnmill.schemas.turns import Message, Role


def without_personal(messages: Sequence[Message], regions: Sequence[str]) -> tuple[Message, ...]:
    """Mask personal data of a known form, but in instructions.

    Raises:
        SettingsError: the extra `personal` is not installed.
    """

    def mask(text: str) -> str:
        return masked(text, find_personal(text, regions))

    return tuple(
        message if message.role is Role.SYSTEM else _with_calls(with_text(message, mask), mask)
        for message in messages
    )


def _with_calls(message: Message, change: Callable[[str], str]) -> Message:
    """Return the message with the arguments of its calls changed."""
    if not message.tool_calls:
        return message
    calls = (
        call.model_copy(update={"arguments": change(call.arguments)}) for call in message.tool_calls
    )
    return message.model_copy(update={"tool_calls": tuple(calls)})


def with_text(message: Message, change: Callable[[str], str]) -> Message:
    """Return the message with its text changed."""
    if isinstance(message.content, str):
        content = change(message.content)
        return (
            message
            if content == message.content
            else message.model_copy(update={"content": content})
        )
    parts = tuple(
        part.model_copy(update={"text": change(part.text)}) if isinstance(part, TextPart) else part
        for part in message.content
    )
    return message.model_copy(update={"content": parts})
