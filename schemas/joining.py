"""Messages of one side, made one."""

from collections.abc import Iterable

from turnmill.schemas.content import MAX_MESSAGE_CHARS, MAX_PARTS, Content, parts_of
from turnmill.schemas.turns import MAX_MESSAGES, Message, Role, TurnRequest


def joined(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Put what one side says in several messages into one: many chat templates want the user and
    the assistant to take turns."""
    result: list[Message] = []
    for message in messages:
        if result and (content := _joined(result[-1], message)) is not None:
            # What was valid in two is valid in one. An image's bytes, which a worker gives it for a
            # prompt, are valid in no message.
            result[-1] = Message.model_construct(role=message.role, content=content)
        else:
            result.append(message)
    return tuple(result)


def _joined(first: Message, second: Message) -> Content | None:
    """None where they have to stay two messages."""
    plain = (Role.USER, Role.ASSISTANT)
    if first.role is not second.role or first.role not in plain:
        return None
    if first.tool_calls or second.tool_calls:
        return None
    if len(first.text) + len(second.text) >= MAX_MESSAGE_CHARS:
        return None
    if isinstance(first.content, str) and isinstance(second.content, str):
        return f"{first.content}\n{second.content}"
    parts = (*parts_of(first.content), *parts_of(second.content))
    return parts if len(parts) <= MAX_PARTS else None


def all_asked(request: TurnRequest) -> tuple[Message, ...]:
    """All that a turn answers, oldest first: its own messages, and those that it carries on."""
    if not request.carried:
        return request.messages
    return joined((*request.carried, *request.messages))[-MAX_MESSAGES:]
