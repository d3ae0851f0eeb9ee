"""Many threads ask, one process generates: what the engines that batch turns have in common.

The scheduler alone touches the model. It hands every token to the thread that waits for it,
which turns tokens into text: a turn that cannot be decoded harms itself only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TypeVar

import structlog

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.content import MediaPart
from turnmill.schemas.errors import (
    ContextOverflow,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    TurnmillError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import FinishReason, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.local.scheduling import Facts, Generation, Scheduler, Token
from turnmill.workers.engines.local.seeing import (
    Seen,
    Unreadable,
    images_of,
    split_past,
    with_newest,
)
from turnmill.workers.engines.local.telling import Telling
from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.engines.text.pieces import by_pieces
from turnmill.workers.engines.text.stops import Detokenizer, StopFilter
from turnmill.workers.engines.text.tools import OfferedTools
from turnmill.workers.turn.abort import Abort

log = structlog.get_logger(__name__)

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class TextSide:
    """How a model's tokens are made of text, and text of them."""

    template: ChatTemplate
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    #: The bytes of a token; None: not known.
    bytes_of: Callable[[int], bytes | None] = lambda _: None


class BatchingEngine:
    """An engine around two functions: one loads the text side, one starts the scheduler.

    The scheduler may go on loading the model while the text side is loaded.
    """

    def __init__(
        self,
        settings: EngineSettings,
        load_text: Callable[[EngineSettings], TextSide],
        schedule: Callable[[EngineSettings], Scheduler],
    ) -> None:
        self._settings = settings
        self._load_text = load_text
        self._schedule = schedule
        self._model: _Model | None = None

    @property
    def capabilities(self) -> Capabilities:
        if self._model is None:
            return Capabilities(continues=True)
        facts, template = self._model.facts, self._model.text.template
        return Capabilities(
            continues=True,
            formats=facts.formats,
            wide_formats=facts.wide_formats,
            continues_formats=facts.continues_formats,
            tools=bool(template.tool_format),
            tool_choice=bool(template.tool_format) and "json_schema" in facts.formats,
            logprobs=facts.logprobs,
            logit_bias=facts.logit_bias,
            penalties=facts.penalties,
            accepts=frozenset({"text"} if facts.eyes is None else {"text", "image"}),
        )

    @property
    def context_window(self) -> int:
        return self._loaded().facts.context_window

    @property
    def held(self) -> Mapping[str, float]:
        return {} if self._model is None else self._model.scheduler.held

    def start(self) -> None:
        scheduler: Scheduler | None = None
        try:
            scheduler = self._schedule(self._settings)
            text = _with_one_tokenizer(self._load_text(self._settings))
            self._model = _Model(text, scheduler, _seeing(scheduler.facts, text.template))
        except BaseException as error:
            if scheduler is not None:
                scheduler.close()
            if isinstance(error, TurnmillError) or not isinstance(error, Exception):
                raise
            raise cannot_load(self._settings, error) from error
        self._report(self._model.facts)

    def check(self) -> None:
        self._loaded().scheduler.check()

    def count_tokens(self, prompt: Prompt) -> int:
        model = self._loaded()

        def count(prompt_ids: list[int], images: list[str]) -> int:
            if model.facts.eyes is None or not images:
                return len(prompt_ids)
            return model.facts.eyes.count(prompt_ids, images, prompt.cache_namespace)

        return _read(model, prompt, "", count)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        model = self._loaded()
        can_hold = self.capabilities.tool_choice
        tools = OfferedTools.of(model.text.template.tool_format, params, can_hold=can_hold)
        seen = _see(model, prompt, tools.begun if tools else "")
        prompt_ids = seen.prompt_ids
        window = model.facts.context_window
        room = window - len(prompt_ids)
        if room < 1:
            raise ContextOverflow(
                f"The prompt has {len(prompt_ids)} tokens; with room for a reply, "
                f"{window - 1} fit.",
                param="messages",
            )
        limit = min(params.max_tokens or room, room)
        called = tools.held if tools else None
        generation = Generation(
            prompt_ids,
            limit,
            params,
            prompt.lane,
            prompt.cache_namespace,
            held_to=called or params.response_format,
            prefix="" if called else prompt.prefix,
            inputs=seen.inputs,
        )
        del seen  # the scheduler lets go of the images before the reply ends
        model.scheduler.submit(generation)
        # A text that goes on is decoded after what was there; a new one begins without a space.
        detokenizer = Detokenizer(model.text.decode, prompt_ids[-1:] if prompt.prefix else ())
        stops = StopFilter(params.stop, prompt.prefix)
        try:
            with abort.telling(lambda: generation.events.put(None)):
                tokens = Telling(_tokens(generation, abort), model.text, generation)
                chunks = _read_chunks(generation, tokens, detokenizer, stops)
                yield from tools.read(chunks) if tools else chunks
        finally:
            model.scheduler.give_up(generation)

    def close(self) -> None:
        if self._model is not None:
            self._model.scheduler.close()
        self._model = None

    def _report(self, facts: Facts) -> None:
        log.info(
            "engine.started",
            engine=type(self).__name__,
            model=self._settings.model,
            device=facts.device,
            dtype=facts.dtype,
            context_window=facts.context_window,
            accepts=sorted(self.capabilities.accepts),
            max_batch_size=self._settings.max_batch_size,
            kv_cache_gib=self._settings.kv_cache_gib,
        )

    def _loaded(self) -> "_Model":
        if self._model is None:
            raise EngineUnavailable("The engine is not running.")
        return self._model


@dataclass(frozen=True, slots=True)
class _Model:
    text: TextSide
    scheduler: Scheduler
    facts: Facts
    unreadable: Unreadable = field(default_factory=Unreadable)


def cannot_load(settings: EngineSettings, error: Exception) -> EngineFailure:
    """The error for what a library says of a model."""
    return EngineFailure(f"The model '{settings.model}' cannot be loaded: {error}")


def _with_one_tokenizer(text: TextSide) -> TextSide:
    """One thread at a time: tokenizers share state, and OpenVINO's may stand still for ever when
    two threads begin with it at once.
    """
    lock = Lock()

    def encode(words: str) -> Sequence[int]:
        with lock:
            return text.encode(words)

    def decode(ids: list[int]) -> str:
        with lock:
            return text.decode(ids)

    def bytes_of(id: int) -> bytes | None:
        with lock:
            return text.bytes_of(id)

    encode_all = by_pieces(encode, text.template.control_tokens)
    return replace(text, encode=encode_all, decode=decode, bytes_of=bytes_of)


def _seeing(facts: Facts, template: ChatTemplate) -> Facts:
    """The facts without eyes, where no image can be put into a prompt."""
    if facts.eyes is None or template.show_images(facts.eyes.mark):
        return facts
    log.warning("engine.sees_nothing", reason="its chat template has no place for images")
    return replace(facts, eyes=None)


def _see(model: _Model, prompt: Prompt, begun: str) -> Seen:
    """The prompt's tokens, with those of its images."""

    def look(prompt_ids: list[int], images: list[str]) -> Seen:
        if model.facts.eyes is None or not images:
            return Seen(prompt_ids, None)
        return model.facts.eyes.look(prompt_ids, images, prompt.cache_namespace)

    return _read(model, prompt, begun, look)


def _read(
    model: _Model, prompt: Prompt, begun: str, use: Callable[[list[int], list[str]], Read]
) -> Read:
    """What `use` makes of the prompt's tokens and images; images of past turns that the model
    cannot read are named.
    """
    while True:
        prompt_ids, images = _encode(model, prompt, begun)
        try:
            return use(prompt_ids, images)
        except InvalidInput:
            if not _find_unreadable(model, prompt, images):
                raise


def _find_unreadable(model: _Model, prompt: Prompt, images: Sequence[str]) -> bool:
    """Whether one of these images, of past turns only, cannot be read: from now on it is named."""
    past, own = (set(images_of(each)) for each in split_past(prompt.messages))
    unreadable = [
        image
        for image in (past - own).intersection(images)
        # Another thread may have found out meanwhile.
        if image in model.unreadable or not _is_readable(model, image, prompt.cache_namespace)
    ]
    for image in unreadable:
        model.unreadable.add(image)
    return bool(unreadable)


def _is_readable(model: _Model, image: str, namespace: str) -> bool:
    part = MediaPart.model_construct(type="image", file_id="", url=image)
    message = Message.model_construct(role=Role.USER, content=(part,))
    prompt_ids, images = _encode(model, Prompt((message,)))
    try:
        if model.facts.eyes is not None:
            model.facts.eyes.look(prompt_ids, images, namespace)
    except InvalidInput:
        return False
    return True


def _encode(model: _Model, prompt: Prompt, begun: str = "") -> tuple[list[int], list[str]]:
    """The prompt's tokens, with what the reply is made to begin with and a mark for each image; and
    the images.
    """
    limit = 0 if model.facts.eyes is None else model.facts.eyes.limit
    messages = with_newest(model.unreadable.without(prompt.messages), limit)
    text = model.text.template.render(messages, prompt.prefix, prompt.template_kwargs, prompt.tools)
    try:
        ids = model.text.encode(text + begun)
    except Exception as error:
        raise EngineFailure(f"The prompt cannot be tokenized: {error}") from error
    # One token outside the vocabulary would end the batch for everyone.
    if not ids or max(ids) >= model.facts.vocabulary_size or min(ids) < 0:
        raise EngineFailure("The prompt cannot be tokenized for this model.")
    return ids, images_of(messages)


def _read_chunks(
    generation: Generation, tokens: Telling, detokenizer: Detokenizer, stops: StopFilter
) -> Iterator[Chunk]:
    """The generation's tokens as text, until it ends or is aborted."""
    for chunk in to_chunks(tokens, detokenizer, stops):
        if told := tokens.told():
            chunk = replace(chunk, logprobs=told)
        if chunk.finish_reason:
            chunk = replace(
                chunk,
                prompt_tokens=len(generation.prompt_ids),
                cached_tokens=generation.cached_tokens,
            )
        yield chunk


def _tokens(generation: Generation, abort: Abort) -> Iterator[Token]:
    while not abort.is_set():
        token = generation.events.get()
        if token is None or abort.is_set():
            return
        if isinstance(token, TurnmillError):
            raise token
        yield token


def to_chunks(
    tokens: Iterable[Token], detokenizer: Detokenizer, stops: StopFilter
) -> Iterator[Chunk]:
    """Tokens as text, up to a stop string; the last chunk says no more than why it is the last."""
    held_count = 0
    for token in tokens:
        held_count += 1
        text, is_last = _text_of(token, detokenizer), token.finish_reason is not None
        if not text and not is_last:
            continue
        chunk, held_count = stops.push(text, held_count, is_last=is_last), 0
        reason: FinishReason | None = "stop" if stops.is_stopped else token.finish_reason
        if reason:
            yield replace(chunk, finish_reason=reason)
            return
        if chunk.text:
            yield chunk


def _text_of(token: Token, detokenizer: Detokenizer) -> str:
    text = "" if token.finish_reason == "stop" else detokenizer.push(token.id)
    return text + detokenizer.flush() if token.finish_reason else text
