"""A reply out of the events of streamed chat completions, as servers really send them.

What they were seen to do, and what becomes of it:

    finish_reason left out or ""     not ended: LiteLLM (BerriAI/liteLLM-proxy#19), Ollama
                                     (ollama/ollama#4357), SGLang (sgl-project/sglang#3912)
    no finish_reason before [DONE]   ended: proxies before Gemini
    a finish_reason of another name  TGI's `eos_token` (huggingface/text-generation-inference#2344),
                                     Mistral's `model_length`, Anthropic's `end_turn`, Gemini's
                                     `MAX_TOKENS`; unknown ones end the reply, and are logged once
    no choices                       Azure's annotations (`prompt_filter_results`), the usage
    content null, or a list of parts role-only deltas; Mistral's models that think
    an error in a stream of 200      vLLM, SGLang, OpenRouter; as a text: Ollama; as `error_code`:
                                     FastChat
    usage null, late or as a string  taken as far as it is a number
    a whole completion, no stream    read as the only chunk
"""

import json
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from turnmill.schemas.content import TokenLogprob, token_text
from turnmill.schemas.errors import EngineBrokeOff, EngineFailure, EngineUnavailable
from turnmill.schemas.turns import FinishReason
from turnmill.workers.engines.base import Chunk, ToolCallPiece
from turnmill.workers.engines.openai_http.errors import in_stream
from turnmill.workers.engines.openai_http.tools import CalledTools
from turnmill.workers.engines.text.stops import StopFilter

log = structlog.get_logger(__name__)

#: In lower case. https://docs.mistral.ai/api, https://platform.claude.com/docs/en/api/messages,
#: https://ai.google.dev/api/generate-content#FinishReason
FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "completed": "stop",
    # Together with calls, however the server names it, the reply ends for them.
    "tool_calls": "stop",
    "function_call": "stop",
    "tool_use": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "sensitive": "content_filter",
}

#: The server gave the reply up: OpenRouter and Mistral, vLLM and SGLang, DeepSeek, Zhipu.
#: https://api-docs.deepseek.com/api/create-chat-completion
BROKEN_OFF = frozenset({"error", "abort", "insufficient_system_resource", "network_error"})

#: Unknown reasons that have been logged, by server.
_reported: set[tuple[str, str]] = set()
MAX_REPORTED = 100


class _Piece(NamedTuple):
    """What one event says."""

    text: str = ""
    reason: str | None = None
    called: tuple[ToolCallPiece, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class StreamedReply:
    """A reply as its events come in."""

    def __init__(self, server: str, stops: StopFilter, *, wants_logprobs: bool = False) -> None:
        self.stops = stops
        self._wants_logprobs = wants_logprobs
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = 0
        self._server = server
        self._has_begun = False
        self._cached_tokens = 0
        self._token_count = 0
        #: What the server counted; None while it does not say.
        self._counted: int | None = None
        self._end = Chunk("")
        self._calls = CalledTools()
        self._has_logprobs = False

    def read(self, event: bytes) -> Chunk | None:
        """What an event adds that may be shown.

        Raises:
            EngineBrokeOff: the server gave the reply up.
            EngineUnavailable: it sends something else.
            TurnmillError: what an error in the stream means.
        """
        text, reason, called, logprobs = self._parse(event)
        count = self._new_tokens(text or called)
        chunk = None
        if text or count:
            chunk = self.stops.push(text, count)
            if self.stops.is_stopped:
                self._end, self.finish_reason = chunk, "stop"
                return None
        if called or logprobs:
            chunk = replace(chunk or Chunk(""), tool_calls=called, logprobs=logprobs)
        if reason:
            self.finish_reason = self._known(reason)
        if chunk is None or not (chunk.text or chunk.token_count or called or logprobs):
            return None
        return chunk

    def end(self) -> None:
        """The server says that no more comes.

        Raises:
            EngineBrokeOff: nothing came at all.
        """
        if not self.finish_reason and not self._has_begun:
            raise EngineBrokeOff("it ended the stream without a reply")
        self.finish_reason = self.finish_reason or "stop"

    def last(self) -> Chunk:
        """The last chunk, with the text held back so far, and the usage."""
        if self._wants_logprobs and self._token_count and not (self._has_logprobs or self._calls):
            raise EngineFailure("The server tells no log-probabilities.")
        if not self.stops.is_stopped:
            missing = max(0, (self._counted or 0) - self._token_count)
            self._end = self.stops.push("", missing, is_last=True)
        called = self._calls and self.finish_reason == "stop" and not self.stops.is_stopped
        return Chunk(
            self._end.text,
            self._end.token_count,
            "tool_calls" if called else self.finish_reason,
            self.prompt_tokens,
            min(self._cached_tokens, self.prompt_tokens),
        )

    def _parse(self, event: bytes) -> _Piece:
        try:
            body = json.loads(event)
            if error := body.get("error") or body.get("error_code"):
                raise in_stream(error)
            self._keep_usage(_dict(body.get("usage")), _dict(body.get("timings")))
            if not body.get("choices"):
                return _Piece()
            choice = body["choices"][0]
            self._has_begun = True
            delta = choice.get("delta") or choice.get("message") or {}
            reason = choice.get("finish_reason")
            called = self._calls.read(delta.get("tool_calls") or ())
            logprobs = self._logprobs(choice) if self._wants_logprobs else ()
            return _Piece(_content(delta), str(reason) if reason else None, called, logprobs)
        except (ValueError, TypeError, AttributeError, LookupError):
            raise EngineUnavailable("it sent an event that is not a chunk of a reply") from None

    def _logprobs(self, choice: dict[str, object]) -> tuple[TokenLogprob, ...]:
        """Of the tokens of one event. https://platform.openai.com/docs/api-reference/chat-streaming"""
        tokens = _dict(choice.get("logprobs")).get("content") or ()
        found = tuple(
            TokenLogprob(
                text=_token(token),
                logprob=float(token["logprob"]),
                top=tuple((_token(t), float(t["logprob"])) for t in token["top_logprobs"]),
            )
            for token in tokens
        )
        self._has_logprobs = self._has_logprobs or bool(found)
        return found

    def _known(self, reason: str) -> FinishReason:
        if reason.lower() in BROKEN_OFF:
            raise EngineBrokeOff(f"it gave the reply up: '{reason.lower()}'")
        known = FINISH_REASONS.get(reason.lower())
        if known is None and (self._server, reason) not in _reported:
            if len(_reported) < MAX_REPORTED:
                _reported.add((self._server, reason))
            log.warning("replica.unknown_finish_reason", replica=self._server, reason=reason[:50])
        return known or "stop"

    def _keep_usage(self, usage: dict[str, object], timings: dict[str, object]) -> None:
        self.prompt_tokens = _count(usage.get("prompt_tokens")) or self.prompt_tokens
        for counted in (timings.get("predicted_n"), usage.get("completion_tokens")):
            if (count := _count(counted)) is not None:
                self._counted = count
        details = _dict(usage.get("prompt_tokens_details"))
        self._cached_tokens = _count(details.get("cached_tokens")) or self._cached_tokens

    def _new_tokens(self, said: str | tuple[ToolCallPiece, ...]) -> int:
        """The server's count; one for each piece while it does not count."""
        count = 1 if said else 0
        if self._counted is not None:
            count = max(0, self._counted - self._token_count)
        self._token_count += count
        return count


def _content(delta: dict[str, object]) -> str:
    """The text of a delta; of a list of parts, that of the text parts."""
    content = delta.get("content") or ""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        content = "".join(str(part.get("text") or "") for part in parts)
    return str(content)


def _count(value: Any) -> int | None:
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _token(told: dict[str, object]) -> str:
    """A token's text. Servers write a part of a character in their own ways, and its bytes.

    Some write other things under that name, or signed numbers: the text is taken then.
    """
    raw = told.get("bytes")
    if raw and isinstance(raw, list) and all(type(n) is int and 0 <= n < 256 for n in raw):
        return token_text(bytes(raw))
    return str(told["token"])
