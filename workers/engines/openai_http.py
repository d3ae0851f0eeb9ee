"""The engine for servers that speak OpenAI's chat completions: vLLM, SGLang and others.

What they add to it differs; which one answers is told by `owned_by` in its list of models.
https://platform.openai.com/docs/api-reference/chat-streaming
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

from turnmill.schemas.errors import (
    ContextOverflow,
    EngineFailure,
    EngineUnavailable,
    SettingsError,
    TurnmillError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import NEUTRAL, FinishReason, GenerationParams, Message, Role
from turnmill.workers.abort import Abort
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.http_front import HTTPFront
from turnmill.workers.engines.remote import CHARACTERS_PER_TOKEN, RemoteEngine
from turnmill.workers.engines.sse import EventReader
from turnmill.workers.engines.text import StopFilter

COMPLETIONS = "/v1/chat/completions"

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
}

#: Tokens that a template puts around a message, at most.
TEMPLATE_TOKENS = 64

#: Statuses that say something about the server and nothing about the turn.
BUSY = frozenset({408, 409, 425, 429})
REMEDIES = {
    401: "set TURNMILL_ENGINE__ENDPOINT_KEY",
    403: "set TURNMILL_ENGINE__ENDPOINT_KEY",
    404: "check TURNMILL_ENGINE__ENDPOINTS and TURNMILL_ENGINE__REMOTE_MODEL",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server knows beyond the protocol."""

    #: Goes on after a last message of the assistant (`continue_final_message`).
    continues: bool = False
    #: What says with every chunk how many tokens the reply has: its usage, if it is asked for
    #: (`continuous_usage_stats`), or llama.cpp's timings (`timings_per_token`).
    counts_by: Literal["usage", "timings"] | None = None
    #: Where messages are counted, and what the count is called in the answer.
    tokenize: str | None = None
    count: str = "count"
    #: Refuses a turn whose `max_tokens` do not fit; others end its reply where the window ends.
    is_strict: bool = False
    #: Where a prompt is shown as the model reads it.
    render: str | None = None
    #: Has defaults of its own where a sampling parameter is left out, often the model's
    #: (generation_config.json), and takes every neutral value.
    has_own_defaults: bool = False
    #: What it calls the repetition penalty.
    penalty: str = "repetition_penalty"


PLAIN = Dialect()
DIALECTS = {
    "vllm": Dialect(
        continues=True,
        counts_by="usage",
        tokenize="/tokenize",
        is_strict=True,
        has_own_defaults=True,
    ),
    "sglang": Dialect(continues=True, counts_by="usage", has_own_defaults=True),
    "llamacpp": Dialect(
        continues=True,
        counts_by="timings",
        tokenize="/v1/chat/completions/input_tokens",
        count="input_tokens",
        render="/apply-template",
        has_own_defaults=True,
        penalty="repeat_penalty",
    ),
    # LM Studio
    "organization_owner": Dialect(has_own_defaults=True, penalty="repeat_penalty"),
}


class NotServed(EngineUnavailable):
    """The server has nothing at that path, or no such model."""


class OpenAIEngine(RemoteEngine):
    """Replicas of one model behind OpenAI-compatible endpoints."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings, OpenAIServer)

    @property
    def can_continue(self) -> bool:  # type: ignore[override]
        """Whether all servers that have answered so far can."""
        servers = [one for one in self._servers if isinstance(one, OpenAIServer)]
        dialects = [server.dialect for server in servers if server.dialect]
        return bool(dialects) and all(dialect.continues for dialect in dialects)


class OpenAIServer:
    """One endpoint; its address may end in `/v1` or not."""

    def __init__(self, endpoint: str, settings: EngineSettings) -> None:
        self.name = endpoint
        #: None before it was ready for the first time.
        self.dialect: Dialect | None = None
        self._model = settings.model_at_endpoints
        self._setting = settings.context_window
        self._window: int | None = None
        self._takes_stream_options = True
        url = endpoint.rstrip("/").removesuffix("/v1")
        key = settings.endpoint_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._http = HTTPFront(url, headers, settings.silence_s, translated)

    def check(self) -> None:
        models = _entries(self._http.get("/v1/models"))
        if self._model not in models:
            raise EngineUnavailable(
                f"it serves {', '.join(models) or 'nothing'} and not {self._model}: "
                "set TURNMILL_ENGINE__REMOTE_MODEL"
            )
        card = models[self._model]
        self._window = _window(card)
        if self.dialect is None:
            self.dialect = self._known_here(DIALECTS.get(str(card.get("owned_by")), PLAIN))

    def context_window(self) -> int:
        limits = [limit for limit in (self._window, self._setting) if limit]
        if not limits:
            raise SettingsError(
                f"{self.name} does not say how long a prompt may be: "
                "set TURNMILL_ENGINE__CONTEXT_WINDOW."
            )
        return min(limits)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact where the server counts for others (vLLM, llama.cpp); else guessed by the
        characters.
        """
        return self._count(Prompt(tuple(messages)), self._dialect)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        if prompt.prefix and not self._dialect.continues:
            raise EngineUnavailable("it cannot go on after the beginning of a reply")
        if abort.is_set():
            return
        body = self._body(prompt, params)
        reply = _Reply(StopFilter(params.stop, prompt.prefix))
        for event in self._events(body, abort):
            # One read of the network may bring many events.
            if event == b"[DONE]" or abort.is_set():
                break
            yield from reply.read(event)
            if reply.stops.is_stopped:
                break
        if reply.finish_reason and not abort.is_set():
            if not reply.prompt_tokens:
                reply.prompt_tokens = self._count(prompt, self._dialect)
            yield reply.last()

    def close(self) -> None:
        self._http.close()

    @property
    def _dialect(self) -> Dialect:
        return self.dialect or PLAIN

    def _known_here(self, dialect: Dialect) -> Dialect:
        """What this version of the server knows of it."""
        prompt = Prompt((Message(role=Role.USER, content="Hello"),), "Hel")
        if dialect.tokenize:
            try:
                self._count(prompt, dialect)
            except NotServed:
                dialect = replace(dialect, tokenize=None)
        if dialect.render:
            try:
                answer = self._http.post(dialect.render, self._rendered(prompt))
            except NotServed:
                answer = None
            shown = str(answer.get("prompt")) if isinstance(answer, dict) else ""
            dialect = replace(dialect, continues=shown.endswith(prompt.prefix))
        return dialect

    def _body(self, prompt: Prompt, params: GenerationParams) -> dict[str, Any]:
        body = {
            "model": self._model,
            "stream": True,
            **self._sampling(params),
            "max_tokens": self._room(prompt, params),
            **self._rendered(prompt),
        }
        if params.seed is not None:
            body["seed"] = params.seed
        if self._dialect.counts_by == "timings":
            body["timings_per_token"] = True
        return body

    def _sampling(self, params: GenerationParams) -> dict[str, Any]:
        """Leave out what changes nothing: TGI refuses a `top_p` of 1, and strict servers refuse
        names that OpenAI does not have (https://github.com/huggingface/text-generation-inference).
        """
        values: dict[str, Any] = params.sampling
        if self._dialect.has_own_defaults:
            values = params.model_dump(include={*NEUTRAL}, exclude_none=True)
        if penalty := values.pop("repetition_penalty", None):
            values[self._dialect.penalty] = penalty
            if self._dialect.penalty == "repeat_penalty":
                # Else only the last 64 tokens count.
                values["repeat_last_n"] = self.context_window()
        return values

    def _room(self, prompt: Prompt, params: GenerationParams) -> int | None:
        """`max_tokens` that fit, where that matters.

        A token takes a byte at least, so that most prompts need not be counted.
        """
        window, limit = self.context_window(), params.max_tokens or 1
        text = "".join(each.content for each in prompt.messages) + prompt.prefix
        most = len(text) * 4 + TEMPLATE_TOKENS * (len(prompt.messages) + 2)
        if most + limit <= window or not (self._dialect.is_strict and self._dialect.tokenize):
            return params.max_tokens
        count = self._count(prompt, self._dialect)
        if count >= window:
            raise ContextOverflow(
                f"The prompt has {count} tokens; the context window is {window}.",
                param="messages",
            )
        return min(params.max_tokens or window, window - count)

    def _rendered(self, prompt: Prompt) -> dict[str, Any]:
        messages = [{"role": each.role.value, "content": each.content} for each in prompt.messages]
        if not prompt.prefix:
            return {"messages": messages}
        messages.append({"role": "assistant", "content": prompt.prefix})
        return {
            "messages": messages,
            "continue_final_message": True,
            "add_generation_prompt": False,
        }

    def _count(self, prompt: Prompt, dialect: Dialect) -> int:
        if path := dialect.tokenize:
            body = {"model": self._model, **self._rendered(prompt)}
            answer = self._http.post(path, body)
            if isinstance(answer, dict) and isinstance(answer.get(dialect.count), int):
                return int(answer[dialect.count])
            raise EngineUnavailable(f"its answer at {path} has no {dialect.count}")
        text = sum(len(each.content) for each in prompt.messages) + len(prompt.prefix)
        return max(1, text // CHARACTERS_PER_TOKEN)

    def _events(self, body: dict[str, Any], abort: Abort) -> Iterator[bytes]:
        if self._takes_stream_options:
            options = {"include_usage": True}
            if self._dialect.counts_by == "usage":
                options["continuous_usage_stats"] = True
            try:
                yield from self._stream({**body, "stream_options": options}, abort)
                return
            except EngineFailure as error:
                if "stream_options" not in error.message:
                    raise
            self._takes_stream_options = False
        yield from self._stream(body, abort)

    def _stream(self, body: dict[str, Any], abort: Abort) -> Iterator[bytes]:
        reader = EventReader()
        for data in self._http.stream(COMPLETIONS, body, abort):
            yield from reader.push(data)


class _Reply:
    """A reply as its events come in."""

    def __init__(self, stops: StopFilter) -> None:
        self.stops = stops
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = 0
        self._cached_tokens = 0
        self._token_count = 0
        #: What the server counted; None while it does not say.
        self._counted: int | None = None

    def read(self, event: bytes) -> Iterator[Chunk]:
        """Raises `EngineUnavailable` or what an error in the stream means."""
        text, reason = self._parse(event)
        count = self._new_tokens(text)
        if text or count:
            chunk = self.stops.push(text, count)
            if self.stops.is_stopped:
                self._end, self.finish_reason = chunk, "stop"
            elif chunk.text or chunk.token_count:
                yield chunk
        if reason is not None and not self.stops.is_stopped:
            if reason not in FINISH_REASONS:
                raise EngineUnavailable(f"it ended the reply with '{reason}'")
            self.finish_reason = FINISH_REASONS[reason]

    def last(self) -> Chunk:
        """The last chunk, with what was held back, and the usage."""
        if not self.stops.is_stopped:
            missing = max(0, (self._counted or 0) - self._token_count)
            self._end = self.stops.push("", missing, is_last=True)
        return Chunk(
            self._end.text,
            self._end.token_count,
            self.finish_reason,
            self.prompt_tokens,
            min(self._cached_tokens, self.prompt_tokens),
        )

    def _parse(self, event: bytes) -> tuple[str, str | None]:
        try:
            body = json.loads(event)
            if error := body.get("error"):
                raise _in_stream(error)
            self._keep_usage(body.get("usage") or {}, body.get("timings") or {})
            if not body.get("choices"):
                return "", None
            choice = body["choices"][0]
            return str((choice.get("delta") or {}).get("content") or ""), choice["finish_reason"]
        except (ValueError, TypeError, AttributeError, LookupError):
            raise EngineUnavailable("it sent an event that is not a chunk of a reply") from None

    def _keep_usage(self, usage: dict[str, Any], timings: dict[str, Any]) -> None:
        self.prompt_tokens = int(usage.get("prompt_tokens") or self.prompt_tokens)
        for counted in (timings.get("predicted_n"), usage.get("completion_tokens")):
            if counted is not None:
                self._counted = int(counted)
        details = usage.get("prompt_tokens_details") or {}
        self._cached_tokens = int(details.get("cached_tokens") or self._cached_tokens)

    def _new_tokens(self, text: str) -> int:
        """What the server counts; one for each piece of text as long as it does not."""
        count = 1 if text else 0
        if self._counted is not None:
            count = max(0, self._counted - self._token_count)
        self._token_count += count
        return count


def translated(status: int, text: str) -> TurnmillError:
    """What a status other than 200 means, of an answer that begins with `text`."""
    said = _message(text)
    if status in REMEDIES:
        kind = NotServed if status == httpx.codes.NOT_FOUND else EngineUnavailable
        return kind(f"it answers {status} ({said}): {REMEDIES[status]}")
    if status in BUSY or not 400 <= status < 500:
        return EngineUnavailable(f"it answers {status} ({said})")
    return _refused(said)


def _refused(said: str) -> TurnmillError:
    lowered = said.lower()
    if "context" in lowered and any(word in lowered for word in ("length", "size", "window")):
        return ContextOverflow(f"The prompt is too long: {said}", param="messages")
    return EngineFailure(f"The server refuses the turn: {said}")


def _in_stream(error: Any) -> TurnmillError:
    said = _message(json.dumps({"error": error}))
    code = error.get("code") if isinstance(error, dict) else None
    return (
        translated(code, said) if isinstance(code, int) else EngineUnavailable(f"it says: {said}")
    )


def _message(text: str) -> str:
    """What an error body says, in whichever of the usual forms; at most a few lines of it."""
    try:
        body = json.loads(text)
        error = body.get("error", body)
        said = error.get("message", error.get("detail", text)) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        said = text
    return str(said)[:300]


def _window(card: dict[str, Any]) -> int | None:
    """Where vLLM and SGLang say it, or where llama.cpp does."""
    meta = card.get("meta")
    said = card.get("max_model_len", meta.get("n_ctx") if isinstance(meta, dict) else None)
    return said if isinstance(said, int) else None


def _entries(answer: Any) -> dict[str, dict[str, Any]]:
    try:
        return {str(card["id"]): card for card in answer["data"]}
    except (TypeError, LookupError):
        raise EngineUnavailable("its list of models cannot be read") from None
