"""Which tokens may come next in a reply with a format, by llguidance.

https://github.com/guidance-ai/llguidance
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import llguidance.hf
import numpy
from llguidance import LLMatcher, LLParserLimits

import torch
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.local.guidance import (
    COMPACT,
    NO_TOKENS,
    calls_grammar,
    guidance_schema,
    special_tokens,
)
from turnmill.workers.engines.text.call_form import CallForm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: So that a schema of `MAX_FORMAT_BYTES` fits: each optional property that may come next is four
#: items of a row, each array among options six, and 2000 are llguidance's default.
LIMITS = LLParserLimits(max_items_in_row=50_000, step_max_items=500_000)


class Matcher:
    """What a reply has been so far, and what may follow."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        #: What was before is no beginning of a value: the reply ends at once.
        self._is_lost = matcher.is_error()

    def allowed(self, width: int, device: torch.device) -> torch.Tensor:
        """The tokens that may come next, as booleans [width]."""
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        flags = numpy.zeros(width, dtype=bool)
        known = numpy.unpackbits(bits, bitorder="little")[:width]
        flags[: len(known)] = known
        return torch.from_numpy(flags).to(device)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def failure(self) -> EngineFailure | None:
        """Why nothing that this matcher allows means anything: it met a limit of llguidance."""
        if self._is_lost or not self._matcher.is_error():
            return None
        reason = self._matcher.get_error().partition("\n")[0]
        return EngineFailure(f"The engine cannot hold the reply to its format: {reason}")


class Grammars:
    """Compiles formats in a thread, so that no step waits: a large schema takes a second."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", vocabulary_size: int, end_tokens: Iterable[int]
    ) -> None:
        """`tokenizer`: a fast one of transformers. Raises `ValueError` for another one."""
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=vocabulary_size, eos_token=sorted(end_tokens)
        )
        self._special = special_tokens(tokenizer, self._tokenizer)
        self._thread = ThreadPoolExecutor(1, "grammars")

    def compile(self, held_to: ResponseFormat | CallForm, prefix: str) -> "Future[Matcher]":
        """A matcher that has read the prefix. The future may raise `EngineFailure`."""
        return self._thread.submit(self._compile, held_to, prefix)

    def _compile(self, held_to: ResponseFormat | CallForm, prefix: str) -> Matcher:
        grammar = grammar_of(held_to, self._special)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise EngineFailure(f"The engine cannot compile the format: {reason}")
        if prefix:
            matcher.consume_tokens(self._tokenizer.tokenize_str(prefix))
        return Matcher(matcher)


def grammar_of(held_to: ResponseFormat | CallForm, special: Mapping[str, int] = NO_TOKENS) -> str:
    """The grammar of a checked format, or of calls, as llguidance reads it.

    `special`: as `special_tokens`.
    """
    if isinstance(held_to, CallForm):
        return str(LLMatcher.grammar_from_lark(calls_grammar(held_to, special)))
    if held_to.type == "choice":
        texts = (json.dumps(choice, ensure_ascii=False) for choice in held_to.choices)
        return str(LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}"))
    return str(LLMatcher.grammar_from_json_schema(guidance_schema(held_to), defaults=COMPACT))
