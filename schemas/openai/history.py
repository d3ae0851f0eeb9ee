"""What SDKs send back of a reply: an assistant's message of the history."""

from collections.abc import Iterator

from pydantic_core import PydanticCustomError

from turnmill.schemas.content import MAX_NAME_CHARS

_Object = dict[str, object]

#: Types of parts with what a model thought. The openai-agents SDK, LiteLLM, LangChain and clients
#: of Anthropic and Mistral send them back; chat templates leave thoughts out of the history.
_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_content"})

#: Fields of an assistant's message alone.
_SAID = ("refusal", "audio", "function_call")


def read_message(body: _Object) -> _Object:
    """Return the body of a message with all that it says to the model in `content`, `tool_calls`
    and `tool_call_id`.

    Calls by the deprecated `function_call` have no ids: one is made of the function's name.

    Raises:
        PydanticCustomError: a user's message has what only an assistant's has, or a call or its
            result does not say of what.
    """
    match body.get("role"):
        case "assistant":
            said = {name: value for name, value in body.items() if name not in _SAID}
            return said | {"content": _content(body)} | _calls(body)
        case "function":
            return _result(body)
        case "tool" if not body.get("tool_call_id"):
            raise PydanticCustomError("tool_call", "A message of a tool needs its tool_call_id")
    if wrong := [name for name in _SAID if body.get(name)]:
        raise PydanticCustomError("unknown_field", "Unknown", {"names": wrong, "more": 0})
    return body


def _content(body: _Object) -> object:
    """The text, or parts with the refusal; of a reply that was only heard, its transcript."""
    parts: list[object]
    match body.get("content"):
        case None | "":
            parts = []
        case str(text) if not body.get("refusal"):
            # As nearly all are, and each call brings the whole history.
            return text
        case str(text):
            parts = [_text(text)]
        case list(given):
            parts = list(_without_thoughts(given))
        case wrong:
            return wrong
    match body:
        case {"refusal": str(refusal)} if refusal:
            parts.append(_text(refusal))
        case {"audio": {"transcript": str(transcript)}} if not parts:
            parts.append(_text(transcript))
    return parts


def _without_thoughts(parts: list[object]) -> Iterator[object]:
    for part in parts:
        match part:
            case {"type": "refusal", "refusal": str(refusal)}:
                yield _text(refusal)
            case {"type": str(kind)} if kind in _THOUGHTS:
                continue
            case _:
                yield part


def _text(text: str) -> _Object:
    return {"type": "text", "text": text}


def _calls(body: _Object) -> _Object:
    called = body.get("function_call")
    if not called or body.get("tool_calls"):
        return {}
    match called:
        case {"name": str(name), "arguments": str()}:
            return {"tool_calls": [{"id": _call_id(name), "function": called}]}
    raise PydanticCustomError(
        "function_call", "'function_call' looks like {'name': '…', 'arguments': '…'}"
    )


def _result(body: _Object) -> _Object:
    name = body.get("name")
    if not name or not isinstance(name, str):
        raise PydanticCustomError("function", "A message of a function needs the function's name")
    content = "" if body.get("content") is None else body["content"]
    return body | {"role": "tool", "tool_call_id": _call_id(name), "content": content}


def _call_id(name: str) -> str:
    return f"function_{name}"[:MAX_NAME_CHARS]
