"""The engine for CPUs: OpenVINO GenAI's continuous batching, without torch.

It opens GGUF files (rewritten to weights that it reads exactly, `workers/engines/models.py`) and
folders that hold an exported OpenVINO model.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import structlog

from turnmill.schemas.errors import EngineBrokeOff, EngineFailure, InvalidInput
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import FinishReason, GenerationParams, Lane
from turnmill.workers.engines.local.batching import BatchingEngine, TextSide
from turnmill.workers.engines.local.blocks import BlockRecord
from turnmill.workers.engines.local.child import ChildScheduler
from turnmill.workers.engines.local.scheduling import (
    CPU_PREFILL_TOKENS,
    Batch,
    Facts,
    Generation,
    Token,
)
from turnmill.workers.engines.openvino.namespaces import Namespaces, have_second_ids
from turnmill.workers.engines.openvino.setup import (
    block_record,
    context_window,
    device,
    embedding_rows,
    openvino_path,
    properties,
)
from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.engines.text.stops import REPLACEMENT
from turnmill.workers.vendor.openvino import openvino_genai

log = structlog.get_logger(__name__)

STATUS = openvino_genai.GenerationStatus

#: OpenVINO refuses a `min_p` of 1.
MOST_MIN_P = 0.9999

#: So long after an interactive turn came, more of them are expected, seconds.
EXPECTED_S = 10.0
#: Meanwhile the batch lane gets all slots but one in so many: an interactive turn waits for the end
#: of one step and for another of its own, and each running turn makes both of them longer.
RESERVED_SHARE = 3


class OpenVINOEngine(BatchingEngine):
    """A model on the CPU; `max_batch_size` turns at once."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings, load_text, partial(ChildScheduler, f"{__name__}:load_batch"))


def load_text(settings: EngineSettings) -> TextSide:
    tokenizer = openvino_genai.Tokenizer(str(openvino_path(settings)))
    control_tokens = _control_tokens(tokenizer)
    return TextSide(
        template=ChatTemplate(
            tokenizer.get_original_chat_template(),
            bos_token=tokenizer.get_bos_token(),
            eos_token=tokenizer.get_eos_token(),
            control_tokens=control_tokens,
        ),
        encode=lambda text: _encode(tokenizer, text),
        decode=_decoder(tokenizer, control_tokens),
    )


def load_batch(settings: EngineSettings) -> tuple[Batch, Facts]:
    path = openvino_path(settings)
    pipeline = _pipeline(path, settings)
    vocabulary_size = max(pipeline.get_tokenizer().get_vocab().values()) + 1
    rows = embedding_rows(path, vocabulary_size)
    if settings.prefix_cache and not have_second_ids(rows, partial(_greedy, pipeline)):
        # Without namespaces tenants would find out what others asked.
        log.warning("engine.prefix_cache_off", model=settings.model)
        settings = settings.model_copy(update={"prefix_cache": False})
        del pipeline
        pipeline = _pipeline(path, settings)
    facts = Facts(
        context_window=context_window(path, settings),
        vocabulary_size=vocabulary_size,
        dtype=settings.dtype,
    )
    namespaces = Namespaces(rows) if settings.prefix_cache else None
    blocks = block_record(path, settings)
    return OpenVINOBatch(pipeline, settings.max_batch_size, blocks, namespaces), facts


def _pipeline(path: Path, settings: EngineSettings) -> Any:
    return openvino_genai.ContinuousBatchingPipeline(
        str(path), _scheduler_config(settings), device(settings), properties(settings)
    )


def _greedy(pipeline: Any, ids: list[int]) -> list[int]:
    """The four likeliest tokens after a prompt."""
    config = openvino_genai.GenerationConfig(max_new_tokens=4, ignore_eos=True)
    handle = pipeline.add_request(0, _tensor(ids), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [token.id for token in _new_tokens(handle)]


@dataclass(eq=False, slots=True)
class Request:
    """One turn, in the pipeline or on its way there."""

    generation: Generation
    #: When the turn came, by count.
    order: int
    #: What was generated before the turn was paused, and since.
    tokens: list[int] = field(default_factory=list)
    #: The pipeline's handle.
    handle: Any = None
    #: Whether the pipeline still computes its prompt.
    is_in_prompt: bool = True

    @property
    def is_interactive(self) -> bool:
        return self.generation.lane is Lane.INTERACTIVE

    @property
    def rank(self) -> tuple[bool, int]:
        """The lowest joins first, the highest is paused first."""
        return not self.is_interactive, self.order


RANK = attrgetter("rank")


class OpenVINOBatch:
    """The turns in a continuous batching pipeline.

    Interactive turns go first: where all slots are taken, the newest turn of the batch lane
    leaves and comes back later, with what it has generated as the end of its prompt.

    A prompt that the pipeline has begun is computed to its end, even if nobody waits for it any
    more. Where prefixes are kept, the pipeline knows a block by all tokens that it is to hold as
    soon as it is allocated (`BlockManager::allocate` in
    https://github.com/openvinotoolkit/openvino.genai/blob/2026.3.0.0/src/cpp/src/continuous_batching/cache/block_manager.hpp):
    a turn that left in the middle of a block would leave it as whole, and the next prompt that
    begins the same would be answered from what is missing there.
    """

    def __init__(
        self,
        pipeline: Any,
        max_slots: int,
        blocks: BlockRecord,
        namespaces: Namespaces | None = None,
    ) -> None:
        """`namespaces`: None where no prefixes are kept."""
        self._pipeline = pipeline
        self._max_slots = max_slots
        self._blocks = blocks
        self._namespaces = namespaces
        self._defaults = pipeline.get_config()
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        #: Unwanted ones in the middle of their prompts.
        self._leaving: list[Request] = []
        self._arrivals = 0
        self._last_interactive_at = float("-inf")
        # Never the turn's own id: the same turn may come again while it is still here.
        self._ids = itertools.count()

    @property
    def is_busy(self) -> bool:
        open_turns = self._waiting or self._running or self._leaving
        return bool(open_turns or self._pipeline.has_non_finished_requests())

    @property
    def held(self) -> Mapping[str, float]:
        turns = len(self._waiting) + len(self._running) + len(self._leaving)
        return {"turns": turns, "pipeline": self._pipeline.has_non_finished_requests()}

    def admit(self, generation: Generation) -> None:
        if generation.namespace and self._namespaces and _penalizes(generation.params):
            raise InvalidInput(
                "'repetition_penalty' is not supported by this model: OpenVINO cannot penalize "
                "tokens while it keeps the prompts of several tenants apart. Leave it out.",
                param="repetition_penalty",
            )
        request = Request(generation, self._arrivals)
        self._arrivals += 1
        if request.is_interactive:
            self._last_interactive_at = time.monotonic()
        self._wait(request)

    def step(self) -> None:
        self._join_waiting()
        self._pipeline.step()
        for request in list(self._running):
            self._pass_on(request)
        for request in list(self._leaving):
            self._let_go(request)

    def _wait(self, request: Request) -> None:
        self._waiting.append(request)
        self._waiting.sort(key=RANK)

    def drop_unwanted(self) -> None:
        for request in [each for each in self._running if each.generation.is_unwanted]:
            if self._may_leave(request):
                self._leave(request).cancel()
            else:
                self._running.remove(request)
                self._leaving.append(request)
            request.generation.events.put(None)
        for request in [each for each in self._waiting if each.generation.is_unwanted]:
            self._waiting.remove(request)
            request.generation.events.put(None)

    def _join_waiting(self) -> None:
        """All interactive turns that fit, or else one of the batch lane: what a step computes of
        its prompt, the next interactive turn waits for.
        """
        has_joined = False
        while self._waiting:
            first = self._waiting[0]
            if not first.is_interactive and (has_joined or not self._has_batch_room()):
                return
            if len(self._leaving) >= self._max_slots:
                return
            if len(self._running) >= self._max_slots:
                last = max(filter(self._may_leave, self._running), key=RANK, default=None)
                if last is None or last.is_interactive or not first.is_interactive:
                    return
                self._leave(last).cancel()
                self._wait(last)
            self._waiting.remove(first)
            try:
                self._join(first)
            except Exception as error:
                failure = EngineFailure(f"The engine refuses the turn: {error}")
                first.generation.events.put(failure)
            has_joined = True

    def _has_batch_room(self) -> bool:
        expects_others = time.monotonic() - self._last_interactive_at < EXPECTED_S
        reserved = self._max_slots // RESERVED_SHARE if expects_others else 0
        running = sum(not each.is_interactive for each in self._running)
        return running < self._max_slots - reserved

    def _join(self, request: Request) -> None:
        generation = request.generation
        ids = self._ids_of(request, request.tokens)
        if not request.tokens:
            generation.cached_tokens = self._blocks.known_tokens(ids)
        config = self._config(generation, len(request.tokens))
        request.handle = self._pipeline.add_request(next(self._ids), _tensor(ids), config)
        request.is_in_prompt = True
        self._running.append(request)

    def _pass_on(self, request: Request) -> None:
        generation = request.generation
        for token in _new_tokens(request.handle):
            if not request.tokens:
                self._blocks.add(self._ids_of(request, ()))
            request.is_in_prompt = False
            request.tokens.append(token.id)
            generation.events.put(token)
            if token.finish_reason:
                self._leave(request)
                return
        if request.handle.get_status() != STATUS.RUNNING:
            self._leave(request)
            generation.events.put(EngineBrokeOff("The engine's KV cache is full."))

    def _may_leave(self, request: Request) -> bool:
        return not (request.is_in_prompt and self._namespaces)

    def _let_go(self, request: Request) -> None:
        """Cancel a turn that is unwanted if its prompt has come to its end."""
        has_token = request.handle.can_read()
        if has_token:
            self._blocks.add(self._ids_of(request, request.tokens))
        if has_token or request.handle.get_status() != STATUS.RUNNING:
            self._leaving.remove(request)
            request.handle.cancel()

    def _leave(self, request: Request) -> Any:
        """Its handle; the last token was never fed back."""
        self._running.remove(request)
        if request.tokens:
            self._blocks.add(self._ids_of(request, request.tokens[:-1]))
        return request.handle

    def _ids_of(self, request: Request, tokens: Sequence[int]) -> list[int]:
        """Its prompt and these tokens, as the cache is to know them."""
        ids = [*request.generation.prompt_ids, *tokens]
        return self._namespaces.ids(ids, request.generation.namespace) if self._namespaces else ids

    def _config(self, generation: Generation, generated: int) -> Any:
        params: GenerationParams = generation.params
        config = openvino_genai.GenerationConfig(
            max_new_tokens=generation.limit - generated,
            do_sample=bool(params.temperature),
            # The default seed is the same for every turn; one that was paused draws others.
            rng_seed=random.getrandbits(62) if params.seed is None else params.seed + generated,
        )
        if params.temperature:
            config.temperature = params.temperature
            config.top_p = params.top_p
            config.min_p = min(params.min_p or 0.0, MOST_MIN_P)
            if params.top_k:
                config.top_k = params.top_k
        config.repetition_penalty = params.repetition_penalty or 1.0
        config.eos_token_id = self._defaults.eos_token_id
        config.stop_token_ids = self._defaults.stop_token_ids
        return config


def _penalizes(params: GenerationParams) -> bool:
    return "repetition_penalty" in params.sampling


def _new_tokens(handle: Any) -> Iterator[Token]:
    reasons = openvino_genai.GenerationFinishReason
    while handle.can_read():
        for output in handle.read().values():
            reason: FinishReason | None = None
            if output.finish_reason != reasons.NONE:
                reason = "length" if output.finish_reason == reasons.LENGTH else "stop"
            ids = list(output.generated_ids)
            yield from (Token(token) for token in ids[:-1])
            yield from (Token(token, reason) for token in ids[-1:])


def _scheduler_config(settings: EngineSettings) -> Any:
    config = openvino_genai.SchedulerConfig()
    config.cache_size = math.ceil(settings.kv_cache_gib)
    # Turns that were told to leave are still counted until the next step.
    config.max_num_seqs = 2 * settings.max_batch_size
    config.enable_prefix_caching = settings.prefix_cache
    config.dynamic_split_fuse = True
    # The next token of each running turn, and pieces of prompts.
    prefill_tokens = settings.prefill_tokens or CPU_PREFILL_TOKENS
    config.max_num_batched_tokens = settings.max_batch_size + prefill_tokens
    return config


def _control_tokens(tokenizer: Any) -> list[str]:
    """Tokens that look like control tokens and decode to nothing."""
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    return [
        word.decode()
        for word, token in vocabulary.items()
        if len(word) > 2
        and word[:1] + word[-1:] in (b"<>", b"[]")
        and not tokenizer.decode([token], skip_special_tokens=True)
    ]


def _decoder(tokenizer: Any, control_tokens: Sequence[str]) -> Callable[[list[int]], str]:
    """Tokens as text: by a table of their bytes, if that says what the tokenizer says.

    The tokenizer's own way is the inference of a small model, on all cores, for each token.
    """
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    table = {token: word for word, token in vocabulary.items()}
    table |= {vocabulary[word.encode()]: b"" for word in control_tokens}

    def by_table(ids: list[int]) -> str:
        return b"".join(map(table.__getitem__, ids)).decode(errors="replace")

    def by_model(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    chance = random.Random(0)
    samples = [chance.choices(list(table), k=length) for length in (1, 2, 20) for _ in range(100)]
    is_same = all(_whole(by_table(ids)) == _whole(by_model(ids)) for ids in samples)
    return by_table if is_same else by_model


def _whole(text: str) -> str:
    """Without what stands for missing bytes, of which each decoder writes as many as it likes."""
    return text.replace(REPLACEMENT, "")


def _encode(tokenizer: Any, text: str) -> list[int]:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = encoded.input_ids.data[0].tolist()
    return ids


def _tensor(ids: list[int]) -> Any:
    import numpy

    import openvino

    return openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
