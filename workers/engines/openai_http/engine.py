"""The engine for servers that speak OpenAI's chat completions: vLLM, SGLang and others.

What they add to it differs (`dialects.py`), and so does what they send (`reply.py`).
https://platform.openai.com/docs/api-reference/chat-streaming
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from turnmill.schemas.capabilities import ALL_PENALTIES, Capabilities
from turnmill.schemas.content import MediaPart, parts_of
from turnmill.schemas.errors import (
    ContextOverflow,
    EngineFailure,
    EngineUnavailable,
    SettingsError,
)
from turnmill.schemas.observability.masking import masked_urls
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import NEUTRAL, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt, refuse_template_kwargs
from turnmill.workers.engines.openai_http.dialects import (
    ALMOST_ZERO,
    DIALECTS,
    PLAIN,
    Dialect,
    Habits,
    format_fields,
)
from turnmill.workers.engines.openai_http.errors import (
    Filtered,
    NotServed,
    translated,
    without_prompt,
)
from turnmill.workers.engines.openai_http.reply import StreamedReply
from turnmill.workers.engines.openai_http.tools import choice_body, message_body
from turnmill.workers.engines.remote.engine import CHARACTERS_PER_TOKEN, RemoteEngine
from turnmill.workers.engines.remote.http_front import HTTPFront
from turnmill.workers.engines.remote.sse import EventReader
from turnmill.workers.engines.text.markers import breaker, change_texts
from turnmill.workers.engines.text.stops import StopFilter
from turnmill.workers.engines.text.tools import described
from turnmill.workers.turn.abort import Abort, Interrupted

COMPLETIONS = "/chat/completions"
MODELS = "/models"

#: Tokens that a template puts around a message, at most.
TEMPLATE_TOKENS = 64

#: About what models that see spend on an image of the size that is stored; none says it before.
IMAGE_TOKENS = 1024

#: Breaks the usual marks of roles, calls and control tokens.
break_marks = breaker()

#: A path that names a version has the API below it, as Gemini's `/v1beta/openai` has.
VERSIONED = re.compile(r"/v\d\w*(/|$)")


class OpenAIEngine(RemoteEngine):
    """Replicas of one model behind OpenAI-compatible endpoints."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings, OpenAIServer)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What all servers that have answered so far can."""
        servers = [one for one in self._servers if isinstance(one, OpenAIServer)]
        dialects = [server.dialect for server in servers if server.dialect]
        continues = bool(dialects) and all(dialect.continues for dialect in dialects)
        formats = [dialect.formats for dialect in dialects] or [frozenset({"text"})]
        return Capabilities(
            continues=continues,
            formats=frozenset.intersection(*formats),
            tools=self._settings.remote_tools,
            tool_choice=self._settings.remote_tools,
            logprobs=True,
            remote=True,
            penalties=ALL_PENALTIES,
            accepts=frozenset({"text", "image"} if self._settings.remote_images else {"text"}),
        )


class OpenAIServer:
    """One endpoint; its address may end in `/v1` or not, or in another version and its folder."""

    def __init__(self, endpoint: str, settings: EngineSettings) -> None:
        self.name = masked_urls(endpoint)
        #: None before it was ready for the first time.
        self.dialect: Dialect | None = None
        self._model = settings.model_at_endpoints
        self._setting = settings.context_window
        self._window: int | None = None
        self._habits = Habits()
        url = endpoint.rstrip("/").removesuffix("/v1")
        self._api = "" if VERSIONED.search(url) else "/v1"
        key = settings.endpoint_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._http = HTTPFront(url, headers, settings.silence_s, translated)

    def check(self) -> None:
        card = self._card()
        self._window = _window(card)
        if self.dialect is None:
            self.dialect = self._known_here(DIALECTS.get(str(card.get("owned_by")), PLAIN))

    def _card(self) -> dict[str, object]:
        """The model's entry in the list of models; nothing where the server has no list."""
        try:
            models = _entries(self._http.get(self._api + MODELS))
        except NotServed:
            return {}
        for name in (self._model, f"{self._model}:latest", f"models/{self._model}"):
            if name in models or not models:  # Ollama, Gemini
                return models.get(name, {})
        raise EngineUnavailable(
            f"it serves {', '.join(models)} and not {self._model}: "
            "set TURNMILL_ENGINE__REMOTE_MODEL"
        )

    def context_window(self) -> int:
        limits = [limit for limit in (self._window, self._setting) if limit]
        if not limits:
            raise SettingsError(
                f"{self.name} does not say how long a prompt may be: "
                "set TURNMILL_ENGINE__CONTEXT_WINDOW."
            )
        return min(limits)

    def count_tokens(self, prompt: Prompt) -> int:
        """Exact where the server counts for others (vLLM, llama.cpp); else guessed by the
        characters.
        """
        return self._count(prompt, self._dialect)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        if prompt.prefix and not self._dialect.continues:
            raise EngineUnavailable("it cannot go on after the beginning of a reply")
        if not self._dialect.takes_template_kwargs:
            refuse_template_kwargs(prompt.template_kwargs)
        if abort.is_set():
            return
        stops = StopFilter(params.stop, prompt.prefix)
        reply = StreamedReply(self.name, stops, wants_logprobs=params.logprobs is not None)
        try:
            yield from self._read(reply, self._events(self._body(prompt, params), abort), abort)
        except Interrupted:  # while the prompt was counted
            return
        except Filtered:
            reply.finish_reason = "content_filter"
        except (EngineFailure, EngineUnavailable) as error:
            raise without_prompt(error, [each.text for each in prompt.messages]) from None
        if reply.finish_reason and not abort.is_set():
            if not reply.prompt_tokens:
                try:
                    reply.prompt_tokens = self._count(prompt, self._dialect)
                except Interrupted:
                    return
            yield reply.last()

    def _read(self, reply: StreamedReply, events: Iterator[bytes], abort: Abort) -> Iterator[Chunk]:
        for event in events:
            # One read of the network may bring many events.
            if abort.is_set():
                return
            if event == b"[DONE]":
                reply.end()
                return
            if chunk := reply.read(event):
                yield chunk
            if reply.stops.is_stopped:
                return

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

    def _body(self, prompt: Prompt, params: GenerationParams) -> dict[str, object]:
        body = {
            "model": self._model,
            "stream": True,
            **self._sampling(params),
            **self._rendered(prompt),
        }
        if (room := self._room(prompt, params)) is not None:
            body["max_tokens"] = room
        if params.seed is not None:
            body["seed"] = params.seed
        if prompt.tools:
            body |= choice_body(params)
        if params.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": params.logprobs}
        if params.response_format is not None:
            body |= format_fields(params.response_format)
        if prompt.cache_namespace and (way := self._dialect.isolates_by):
            body[way] = prompt.cache_namespace if way == "cache_salt" else False
        if self._dialect.counts_by == "timings":
            body["timings_per_token"] = True
        return body

    def _sampling(self, params: GenerationParams) -> dict[str, float]:
        """Leave out what changes nothing: TGI refuses a `top_p` of 1, and strict servers refuse
        names that OpenAI does not have (https://github.com/huggingface/text-generation-inference).
        """
        values: dict[str, float] = params.sampling
        if self._dialect.has_own_defaults:
            values = params.model_dump(include={*NEUTRAL}, exclude_none=True)
        for name in ALL_PENALTIES - {"repetition_penalty"}:
            if given := getattr(params, name):
                values[name] = given
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
        most = _length(prompt) * 4 + TEMPLATE_TOKENS * (len(prompt.messages) + 2)
        most += _without_images(prompt)[0] * IMAGE_TOKENS
        if most + limit <= window or not (self._dialect.is_strict and self._dialect.tokenize):
            return params.max_tokens
        count = self._count(prompt, self._dialect)
        if count >= window:
            raise ContextOverflow(
                f"The prompt has {count} tokens; the context window is {window}.",
                param="messages",
            )
        return min(params.max_tokens or window, window - count)

    def _rendered(self, prompt: Prompt) -> dict[str, object]:
        # Its template is unknown here, and many servers read control tokens in a message's text.
        messages = change_texts([message_body(each) for each in prompt.messages], break_marks)
        body: dict[str, object] = {"messages": messages}
        if prompt.tools:
            body["tools"] = change_texts(described(prompt.tools), break_marks)
        if prompt.template_kwargs:
            body["chat_template_kwargs"] = change_texts(dict(prompt.template_kwargs), break_marks)
        if prompt.prefix:
            messages.append({"role": "assistant", "content": break_marks(prompt.prefix)})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _count(self, prompt: Prompt, dialect: Dialect) -> int:
        images, prompt = _without_images(prompt)
        return images * IMAGE_TOKENS + self._count_text(prompt, dialect)

    def _count_text(self, prompt: Prompt, dialect: Dialect) -> int:
        if path := dialect.tokenize:
            body = {"model": self._model, **self._rendered(prompt)}
            answer = self._http.post(path, body)
            if isinstance(answer, dict) and isinstance(answer.get(dialect.count), int):
                return int(answer[dialect.count])
            raise EngineUnavailable(f"its answer at {path} has no {dialect.count}")
        return max(1, _length(prompt) // CHARACTERS_PER_TOKEN)

    def _events(self, body: dict[str, object], abort: Abort) -> Iterator[bytes]:
        """The events of a reply, asked for once more in the way that a refusal teaches."""
        while True:
            habits = self._habits
            try:
                yield from self._stream(self._as_wanted(body, habits), abort)
                return
            except EngineFailure as error:
                learned = habits.after(error.message)
                if learned == habits:
                    raise
                self._habits = learned

    def _as_wanted(self, body: dict[str, object], habits: Habits) -> dict[str, object]:
        asked = dict(body)
        if "max_tokens" in asked:
            asked[habits.limit] = asked.pop("max_tokens")
        if asked.get("temperature") == 0 and not habits.takes_zero_temperature:
            asked["temperature"] = ALMOST_ZERO
        if habits.takes_stream_options:
            options = {"include_usage": True}
            if self._dialect.counts_by == "usage":
                options["continuous_usage_stats"] = True
            asked["stream_options"] = options
        return asked

    def _stream(self, body: dict[str, object], abort: Abort) -> Iterator[bytes]:
        reader = EventReader()
        for data in self._http.stream(self._api + COMPLETIONS, body, abort):
            yield from reader.push(data)
        yield from reader.end()


def _without_images(prompt: Prompt) -> tuple[int, Prompt]:
    """How many images the prompt has, and the prompt with their names in their place."""
    count = sum(
        isinstance(part, MediaPart) for each in prompt.messages for part in parts_of(each.content)
    )
    if not count:
        return 0, prompt
    texts = (each.model_copy(update={"content": each.text}) for each in prompt.messages)
    return count, replace(prompt, messages=tuple(texts))


def _length(prompt: Prompt) -> int:
    """Characters of what the model is to read."""
    calls = sum(len(call.arguments) for each in prompt.messages for call in each.tool_calls)
    tools = len(json.dumps(described(prompt.tools))) if prompt.tools else 0
    return sum(len(each.text) for each in prompt.messages) + len(prompt.prefix) + calls + tools


def _window(card: dict[str, object]) -> int | None:
    """Where vLLM and SGLang say it, or where llama.cpp does."""
    meta = card.get("meta")
    said = card.get("max_model_len", meta.get("n_ctx") if isinstance(meta, dict) else None)
    return said if isinstance(said, int) else None


def _entries(answer: Any) -> dict[str, dict[str, object]]:
    try:
        return {str(card["id"]): card for card in answer["data"] or ()}
    except (TypeError, LookupError):
        raise EngineUnavailable("its list of models cannot be read") from None
