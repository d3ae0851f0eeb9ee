"""A fake engine for tests, benchmarks and first steps: it answers with the last user message.

One whitespace-separated word is one token. Magic words in the last user message make it do
what a real engine does on a bad day; they are left out of the reply:

    [[tokens=200]]      reply with 200 tokens, "w1 w2 …", instead of the message
    [[wait=1.5]]        wait 1.5 seconds before the first token
    [[fail]]            raise EngineFailure: this turn cannot be answered
    [[unavailable]]     raise EngineUnavailable: try the turn again
    [[die]]             raise EngineDied: the worker must be started again
    [[memory]]          raise MemoryError, as no engine should: the worker must survive it
    [[exit]]            raise SystemExit, likewise
    [[hang]]            never answer and never let go, not even when told to stop
    [[crash]]           end the process at once, as the kernel's memory killer does
    [[call=NAME {…}]]   call the offered tool of this name; without arguments, with the shortest

Asked for a format, it replies with the shortest value that it writes of it, four characters a
token, whatever the message says.

Images, if it takes them, are named by their type and the length of their base64.

The result of a tool is repeated like a message of the user.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Event

from turnmill.schemas.capabilities import ALL_FORMATS, Capabilities
from turnmill.schemas.content import MediaPart, TextPart, parts_of
from turnmill.schemas.errors import (
    ContextOverflow,
    EngineDied,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
)
from turnmill.schemas.formats.checking import check_format
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.formats.values import shortest_reply
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import FinishReason, GenerationParams, Message, Role
from turnmill.workers.engines.base import (
    Chunk,
    Prompt,
    ToolCallPiece,
    refuse_template_kwargs,
)
from turnmill.workers.engines.text.stops import StopFilter
from turnmill.workers.engines.text.tools import new_call_id
from turnmill.workers.turn.abort import Abort

DEFAULT_CONTEXT_WINDOW = 8192

#: Exit status of a crash on purpose (EX_SOFTWARE).
CRASH_STATUS = 70

MAGIC = re.compile(
    r"\[\[(tokens|wait|fail|unavailable|die|memory|exit|hang|crash)(?:=(\d+(?:\.\d+)?))?\]\]"
)
CALL = re.compile(r"\[\[call=([\w.-]+)(?: (\{.*?\}))?\]\]", re.DOTALL)
_NO_ARGUMENTS = {"type": "object", "additionalProperties": False}
WORD = re.compile(r"\s*\S+")


class EchoEngine:
    """Repeats the user; `echo_*` settings say how slowly and how reliably."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._is_closed = False
        self._capabilities = Capabilities(
            continues=settings.echo_can_continue,
            continues_formats=settings.echo_can_continue,
            formats=ALL_FORMATS,
            tools=settings.echo_can_call_tools,
            tool_choice=settings.echo_can_call_tools,
            accepts=frozenset({"text", "image"} if settings.echo_can_see else {"text"}),
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def context_window(self) -> int:
        return self._settings.context_window or DEFAULT_CONTEXT_WINDOW

    @property
    def held(self) -> Mapping[str, float]:
        """Nothing: each turn has all it needs in its own thread."""
        return {}

    def start(self) -> None:
        """There is nothing to load."""

    def check(self) -> None:
        """Always ready."""

    def count_tokens(self, prompt: Prompt) -> int:
        refuse_template_kwargs(prompt.template_kwargs)
        texts = [*(message.text for message in prompt.messages), prompt.prefix]
        return sum(len(text.split()) for text in texts)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        if self._is_closed:
            raise EngineUnavailable("The engine is closed.")
        prompt_tokens = self.count_tokens(prompt)
        room = self.context_window - prompt_tokens
        if room < 1:
            raise ContextOverflow(
                f"The prompt has {prompt_tokens} tokens; the context window is "
                f"{self.context_window}.",
                param="messages",
            )
        text = _last_text(prompt.messages)
        calls = _calls(text, params)
        text = CALL.sub("", text)
        magic = dict(MAGIC.findall(text))
        _misbehave(magic)
        self._misbehave_at_random(text, params.seed)
        if abort.wait(float(magic.get("wait") or 0)):
            return
        if params.response_format is None:
            words = _reply_words(text, magic, prompt.prefix)
        else:
            words = _pieces(shortest_reply(params.response_format), prompt.prefix)
        limit = min(params.max_tokens or room, room)
        stops = StopFilter(params.stop, prompt.prefix)
        for chunk in self._speak(words, limit, stops, abort, prompt_tokens):
            if calls and chunk.finish_reason == "stop":
                chunk = replace(chunk, finish_reason="tool_calls", tool_calls=calls)
            yield chunk

    def close(self) -> None:
        self._is_closed = True

    def _speak(
        self,
        words: list[str],
        limit: int,
        stops: StopFilter,
        abort: Abort,
        prompt_tokens: int,
    ) -> Iterator[Chunk]:
        finish: FinishReason = "length" if len(words) > limit else "stop"
        for word in words[:limit]:
            if abort.wait(self._settings.echo_token_s):
                return
            chunk = stops.push(word)
            if stops.is_stopped:
                yield Chunk(chunk.text, chunk.token_count, "stop", prompt_tokens)
                return
            if chunk.text:
                yield chunk
        rest = stops.push("", 0, is_last=True)
        yield Chunk(rest.text, rest.token_count, finish, prompt_tokens)

    def _misbehave_at_random(self, text: str, seed: int | None) -> None:
        """With a seed, the same message always meets the same fate; without, chance decides."""
        settings = self._settings
        if not (settings.echo_crash_rate or settings.echo_failure_rate):
            return
        material = os.urandom(16) if seed is None else f"{seed}:{text}".encode()
        chance = random.Random(hashlib.sha256(material).digest())
        if chance.random() < settings.echo_crash_rate:
            os._exit(CRASH_STATUS)
        if chance.random() < settings.echo_failure_rate:
            raise EngineUnavailable("The echo engine fails this time, as `echo_failure_rate` asks.")


def _last_text(messages: Sequence[Message]) -> str:
    """Of the user, or of a tool; images are named by their type and length."""
    asked = (Role.USER, Role.TOOL)
    content = next((m.content for m in reversed(messages) if m.role in asked), "")
    parts = (_shown(part) for part in parts_of(content))
    return "\n".join(parts)


def _shown(part: TextPart | MediaPart) -> str:
    if isinstance(part, TextPart):
        return part.text
    head, _, data = (part.url or "").partition(";base64,")
    return f"[{head.removeprefix('data:')}, {len(data)} characters]" if data else f"[{part.type}]"


def _calls(text: str, params: GenerationParams) -> tuple[ToolCallPiece, ...]:
    """Calls that the text asks for, as far as the turn offers their tools; or the one that the
    turn demands.
    """
    names = {tool.name for tool in params.tools}
    demanded = None if params.tool_choice in (None, "auto") else params.tool_choice
    if demanded not in (None, "required"):
        names &= {demanded}
    called = [call for call in CALL.findall(text) if call[0] in names]
    if demanded and not called:
        called = [(min(names), "")]
    if params.parallel_tool_calls is False:
        called = called[:1]
    return tuple(
        ToolCallPiece(index, new_call_id(), name, arguments or _shortest_arguments(name, params))
        for index, (name, arguments) in enumerate(called)
    )


def _shortest_arguments(name: str, params: GenerationParams) -> str:
    """None, where the schema is not one that replies can be held to."""
    schema = next(tool.parameters for tool in params.tools if tool.name == name)
    wanted = ResponseFormat(type="json_schema", schema_text=json.dumps(schema or _NO_ARGUMENTS))
    try:
        check_format(wanted)
    except InvalidInput:
        return "{}"
    return shortest_reply(wanted)


def _misbehave(magic: dict[str, str]) -> None:
    if "crash" in magic:
        os._exit(CRASH_STATUS)
    if "memory" in magic:
        raise MemoryError("[[memory]]")
    if "exit" in magic:
        raise SystemExit("[[exit]]")
    if "hang" in magic:
        Event().wait()
    if "unavailable" in magic:
        raise EngineUnavailable("The message says [[unavailable]].")
    if "die" in magic:
        raise EngineDied("The message says [[die]].")
    if "fail" in magic:
        raise EngineFailure("The message says [[fail]].")


def _pieces(text: str, prefix: str) -> list[str]:
    """What is left of a text after its beginning, four characters each."""
    left = text[len(prefix) :]
    return [left[at : at + 4] for at in range(0, len(left), 4)]


def _reply_words(text: str, magic: dict[str, str], prefix: str) -> list[str]:
    """The words still to be said, each with the space before it."""
    if count := magic.get("tokens"):
        text = " ".join(f"w{number}" for number in range(1, int(float(count)) + 1))
    text = MAGIC.sub("", text).strip()
    if text.startswith(prefix):
        return WORD.findall(text[len(prefix) :])
    return WORD.findall(text)[len(prefix.split()) :]
