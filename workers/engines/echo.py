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
"""

import hashlib
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from threading import Event

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import ContextOverflow, EngineDied, EngineFailure, EngineUnavailable
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import FinishReason, GenerationParams, Message, Role
from turnmill.workers.engines.base import (
    NO_VALUES,
    Chunk,
    Prompt,
    TemplateValues,
    refuse_template_kwargs,
)
from turnmill.workers.engines.text.stops import StopFilter
from turnmill.workers.turn.abort import Abort

DEFAULT_CONTEXT_WINDOW = 8192

#: Exit status of a crash on purpose (EX_SOFTWARE).
CRASH_STATUS = 70

MAGIC = re.compile(
    r"\[\[(tokens|wait|fail|unavailable|die|memory|exit|hang|crash)(?:=(\d+(?:\.\d+)?))?\]\]"
)
WORD = re.compile(r"\s*\S+")


class EchoEngine:
    """Repeats the user; `echo_*` settings say how slowly and how reliably."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._is_closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(continues=self._settings.echo_can_continue)

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

    def count_tokens(
        self, messages: Sequence[Message], template_kwargs: TemplateValues = NO_VALUES
    ) -> int:
        refuse_template_kwargs(template_kwargs)
        return sum(len(message.text.split()) for message in messages)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        if self._is_closed:
            raise EngineUnavailable("The engine is closed.")
        counted = self.count_tokens(prompt.messages, prompt.template_kwargs)
        prompt_tokens = counted + len(prompt.prefix.split())
        room = self.context_window - prompt_tokens
        if room < 1:
            raise ContextOverflow(
                f"The prompt has {prompt_tokens} tokens; the context window is "
                f"{self.context_window}.",
                param="messages",
            )
        text = _last_user_text(prompt.messages)
        magic = dict(MAGIC.findall(text))
        _misbehave(magic)
        self._misbehave_at_random(text, params.seed)
        if abort.wait(float(magic.get("wait") or 0)):
            return
        words = _reply_words(text, magic, prompt.prefix)
        limit = min(params.max_tokens or room, room)
        stops = StopFilter(params.stop, prompt.prefix)
        yield from self._speak(words, limit, stops, abort, prompt_tokens)

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
        material = os.urandom(16) if seed is None else f"{seed}:{text}".encode()
        chance = random.Random(hashlib.sha256(material).digest())
        if chance.random() < self._settings.echo_crash_rate:
            os._exit(CRASH_STATUS)
        if chance.random() < self._settings.echo_failure_rate:
            raise EngineUnavailable("The echo engine fails this time, as `echo_failure_rate` asks.")


def _last_user_text(messages: Sequence[Message]) -> str:
    return next((m.text for m in reversed(messages) if m.role is Role.USER), "")


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


def _reply_words(text: str, magic: dict[str, str], prefix: str) -> list[str]:
    """The words still to be said, each with the space before it."""
    if count := magic.get("tokens"):
        text = " ".join(f"w{number}" for number in range(1, int(float(count)) + 1))
    text = MAGIC.sub("", text).strip()
    if text.startswith(prefix):
        return WORD.findall(text[len(prefix) :])
    return WORD.findall(text)[len(prefix.split()) :]
