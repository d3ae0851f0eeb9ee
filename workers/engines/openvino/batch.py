"""The turns in OpenVINO GenAI's continuous batching pipeline."""

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnmill.schemas.errors import EngineBrokeOff, EngineFailure, InvalidInput
from turnmill.schemas.turns import FinishReason, GenerationParams
from turnmill.workers.engines.local.blocks import BlockRecord
from turnmill.workers.engines.local.ranking import RANK, Line, Ranked, may_replace
from turnmill.workers.engines.local.scheduling import Generation, Token
from turnmill.workers.engines.openvino.grammars import grammar_of
from turnmill.workers.engines.openvino.namespaces import Namespaces
from turnmill.workers.vendor.openvino import openvino_genai

STATUS = openvino_genai.GenerationStatus

#: OpenVINO refuses a `min_p` of 1.
MOST_MIN_P = 0.9999

#: So long after an interactive turn came, more of them are expected, seconds.
EXPECTED_S = 10.0
#: Meanwhile the batch lane gets all slots but one in so many: an interactive turn waits for the end
#: of one step and for another of its own, and each running turn makes both of them longer.
RESERVED_SHARE = 3


@dataclass(eq=False, slots=True)
class Request(Ranked):
    """One turn, in the pipeline or on its way there."""

    #: What was generated before the turn was paused, and since.
    tokens: list[int] = field(default_factory=list)
    #: The pipeline's handle.
    handle: Any = None
    #: Whether the pipeline still computes its prompt.
    is_in_prompt: bool = True


class OpenVINOBatch:
    """The turns in a continuous batching pipeline.

    A turn that is paused (`ranking.py`) comes back with what it has generated as the end of its
    prompt.

    A prompt that the pipeline has begun is computed to its end, even if nobody waits for it any
    more. Where prefixes are kept, the pipeline knows a block by all tokens that it is to hold as
    soon as it is allocated (`BlockManager::allocate` in
    https://github.com/openvinotoolkit/openvino.genai/blob/2026.3.0.0/src/cpp/src/continuous_batching/cache/block_manager.hpp):
    a turn that left in the middle of a block would leave it as whole, and the next prompt that
    begins the same would be answered from what is missing there.
    """

    def __init__(
        self,
        pipeline: openvino_genai.ContinuousBatchingPipeline,
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
        self._waiting: Line[Request] = Line()
        self._running: list[Request] = []
        #: Unwanted ones in the middle of their prompts.
        self._leaving: list[Request] = []
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
        request = Request(generation, self._waiting.next_order())
        if request.is_interactive:
            self._last_interactive_at = time.monotonic()
        self._waiting.add(request)

    def step(self) -> None:
        self._join_waiting()
        self._pipeline.step()
        for request in list(self._running):
            self._pass_on(request)
        for request in list(self._leaving):
            self._let_go(request)

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
        while first := self._waiting.first:
            if not first.is_interactive and (has_joined or not self._has_batch_room()):
                return
            if len(self._leaving) >= self._max_slots:
                return
            if len(self._running) >= self._max_slots:
                last = max(filter(self._may_pause, self._running), key=RANK, default=None)
                if last is None or not may_replace(first, last):
                    return
                self._leave(last).cancel()
                self._waiting.add(last)
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
        request.handle = self._pipeline.add_request(next(self._ids), tensor(ids), config)
        request.is_in_prompt = True
        self._running.append(request)

    def _pass_on(self, request: Request) -> None:
        generation = request.generation
        for token in new_tokens(request.handle):
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

    def _may_pause(self, request: Request) -> bool:
        """A grammar begins at the first new token, and penalties are for tokens since then: such
        a reply runs to its end.
        """
        wants_all = request.generation.held_to or request.generation.params.penalizes_replies
        return self._may_leave(request) and not wants_all

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

    def _config(self, generation: Generation, generated: int) -> openvino_genai.GenerationConfig:
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
        if generation.held_to is not None:
            grammar = grammar_of(generation.held_to)
            config.structured_output_config = openvino_genai.StructuredOutputConfig(grammar=grammar)
        config.frequency_penalty = params.frequency_penalty or 0.0
        config.presence_penalty = params.presence_penalty or 0.0
        config.repetition_penalty = params.repetition_penalty or 1.0
        config.eos_token_id = self._defaults.eos_token_id
        config.stop_token_ids = self._defaults.stop_token_ids
        return config


def _penalizes(params: GenerationParams) -> bool:
    return "repetition_penalty" in params.sampling


def new_tokens(handle: Any) -> Iterator[Token]:
    reasons = openvino_genai.GenerationFinishReason
    while handle.can_read():
        for output in handle.read().values():
            reason: FinishReason | None = None
            if output.finish_reason != reasons.NONE:
                reason = "length" if output.finish_reason == reasons.LENGTH else "stop"
            ids = list(output.generated_ids)
            yield from (Token(token) for token in ids[:-1])
            yield from (Token(token, reason) for token in ids[-1:])


def tensor(ids: list[int]) -> object:
    import numpy

    import openvino

    return openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
