"""A turn as a request to OpenVINO GenAI's pipeline."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from turnmill.schemas.turns import FinishReason, GenerationParams
from turnmill.workers.engines.local.ranking import Ranked
from turnmill.workers.engines.local.scheduling import Generation, Token
from turnmill.workers.engines.openvino.grammars import grammar_of
from turnmill.workers.vendor.openvino import openvino_genai

#: OpenVINO refuses a `min_p` of 1.
MOST_MIN_P = 0.9999


@dataclass(eq=False, slots=True)
class Request(Ranked):
    """One turn, with a slot or on its way to one."""

    #: What was generated before the turn was paused, and since.
    tokens: list[int] = field(default_factory=list)
    #: The pipeline's handle; None while the pipeline does not have the turn.
    handle: Any = None
    #: What the pipeline was given: all tokens so far, or a piece of the prompt.
    ids: list[int] = field(default_factory=list)
    is_piece: bool = False
    #: Whether the turn has no token since it got its slot.
    is_in_prompt: bool = True
    #: How many tokens the pipeline has yet to compute before the next one, about.
    left: int = 1
    #: Equal prompts have equal numbers.
    prompt: int = 0
    #: Until its next token: which computed text it continues in the middle of a block
    #: (`BlockRecord.open_end`).
    end: int | None = None

    @property
    def draws_from_seed(self) -> bool:
        params = self.generation.params
        return bool(params.temperature) and params.seed is not None


def sampling_config(
    generation: Generation, generated: int, defaults: openvino_genai.GenerationConfig
) -> openvino_genai.GenerationConfig:
    """How the next tokens are chosen, where some were generated before."""
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
    config.eos_token_id = defaults.eos_token_id
    config.stop_token_ids = defaults.stop_token_ids
    return config


def piece_config() -> openvino_genai.GenerationConfig:
    """For a piece of a prompt: the pipeline ends no request without a token."""
    return openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)


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
