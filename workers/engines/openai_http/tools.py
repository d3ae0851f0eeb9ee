"""Tools as servers that speak OpenAI's chat completions are told of them, and as they call them.

What servers were seen to send in `delta.tool_calls`, and what becomes of it:

    every call with the index 0      another id begins another call: Gemini, older Ollama
    no index                         an id begins a call, without one it goes on: Mistral, Cohere
    no id                            gets one of ours: llama.cpp of 2024
    the name with every piece        counts once: some proxies
    arguments as an object           written as JSON: Ollama

https://platform.openai.com/docs/guides/function-calling
"""

import json
from collections.abc import Iterable
from typing import Any

from turnmill.schemas.content import MAX_TOOL_CALLS, MediaPart, TextPart, parts_of
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.turns import GenerationParams, Message
from turnmill.workers.engines.base import ToolCallPiece
from turnmill.workers.engines.text.tools import new_call_id


def message_body(message: Message) -> dict[str, object]:
    """A message as the protocol has it."""
    body: dict[str, object] = {"role": message.role.value, "content": _content(message)}
    if message.tool_calls:
        body["content"] = message.text or None
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    return body


def _content(message: Message) -> str | list[dict[str, object]]:
    """The text, or parts where there are images, which then have their bytes in their URL."""
    if not any(isinstance(part, MediaPart) and part.url for part in message.content):
        return message.text
    return [
        {"type": "image_url", "image_url": {"url": part.url}}
        if isinstance(part, MediaPart) and part.url
        else {"type": "text", "text": part.text if isinstance(part, TextPart) else f"[{part.type}]"}
        for part in parts_of(message.content)
    ]


def choice_body(params: GenerationParams) -> dict[str, object]:
    """The fields that say which tool is to be called; none, where the model decides."""
    body: dict[str, object] = {}
    if params.tool_choice == "required":
        body["tool_choice"] = "required"
    elif params.tool_choice not in (None, "auto"):
        body["tool_choice"] = {"type": "function", "function": {"name": params.tool_choice}}
    if params.parallel_tool_calls is False:
        body["parallel_tool_calls"] = False
    return body


class CalledTools:
    """The calls of one reply, as their pieces come in."""

    def __init__(self) -> None:
        #: The server's id of each call so far.
        self._ids: list[str] = []
        #: By the server's index, the latest call that had it.
        self._at: dict[int, int] = {}
        self._named: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._ids)

    def read(self, pieces: Iterable[Any]) -> tuple[ToolCallPiece, ...]:
        """What they add to the calls.

        Raises:
            EngineFailure: there are too many calls.
            LookupError, TypeError, ValueError: they are no pieces of calls.
        """
        return tuple(self._read(piece) for piece in pieces)

    def _read(self, piece: dict[str, Any]) -> ToolCallPiece:
        said = str(piece.get("id") or "")
        index, is_new = self._place(said, piece.get("index"))
        function = piece.get("function") or {}
        arguments = function.get("arguments")
        if arguments is None:
            arguments = ""
        elif not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        name = str(function.get("name") or "") if index not in self._named else ""
        if name:
            self._named.add(index)
        return ToolCallPiece(index, (said or new_call_id()) if is_new else "", name, arguments)

    def _place(self, said: str, index: Any) -> tuple[int, bool]:
        """Which call of ours it belongs to, and whether that begins here."""
        theirs = len(self._ids) - (0 if said else 1) if index is None else int(index)
        known = self._at.get(theirs)
        if known is not None and said in ("", self._ids[known]):
            return known, False
        if len(self._ids) == MAX_TOOL_CALLS:
            raise EngineFailure(f"The reply calls more than {MAX_TOOL_CALLS} tools.")
        self._ids.append(said)
        self._at[theirs] = len(self._ids) - 1
        return len(self._ids) - 1, True
