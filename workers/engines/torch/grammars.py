"""Which tokens may come next in a reply with a format, by llguidance.

https://github.com/guidance-ai/llguidance
"""

import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import llguidance.hf
import numpy
from llguidance import LLMatcher

import torch
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.formats.patterns import (
    Chars,
    Node,
    Options,
    Repeat,
    Sequence_,
    parse_pattern,
)
from turnmill.schemas.formats.plain import Schema
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.text.call_form import MOST_CALLS, CallForm

#: Small models fill a reply with white space.
_COMPACT = {"whitespace_flexible": False}
_GUIDED = {"x-guidance": _COMPACT}


class Matcher:
    """What a reply has been so far, and what may follow."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, width: int, device: Any) -> Any:
        """The tokens that may come next, as booleans [width]."""
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        flags = numpy.zeros(width, dtype=bool)
        known = numpy.unpackbits(bits, bitorder="little")[:width]
        flags[: len(known)] = known
        return torch.from_numpy(flags).to(device)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def is_done(self) -> bool:
        """Nothing may follow: the value is whole, or what was before is no beginning of one."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles formats in a thread, so that no step waits: a large schema takes a second."""

    def __init__(self, tokenizer: Any, vocabulary_size: int, end_tokens: Iterable[int]) -> None:
        """`tokenizer`: a fast one of transformers. Raises `ValueError` for another one."""
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=vocabulary_size, eos_token=sorted(end_tokens)
        )
        self._thread = ThreadPoolExecutor(1, "grammars")

    def compile(self, held_to: ResponseFormat | CallForm, prefix: str) -> "Future[Matcher]":
        """A matcher that has read the prefix. The future may raise `EngineFailure`."""
        return self._thread.submit(self._compile, held_to, prefix)

    def _compile(self, held_to: ResponseFormat | CallForm, prefix: str) -> Matcher:
        matcher = LLMatcher(self._tokenizer, grammar_of(held_to), log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise EngineFailure(f"The engine cannot compile the format: {reason}")
        if prefix:
            matcher.consume_tokens(self._tokenizer.tokenize_str(prefix))
        return Matcher(matcher)


def grammar_of(held_to: ResponseFormat | CallForm) -> str:
    """The grammar of a checked format, or of calls, as llguidance reads it."""
    if isinstance(held_to, CallForm):
        return str(LLMatcher.grammar_from_lark(_of_calls(held_to)))
    format = held_to
    if format.type == "choice":
        texts = (json.dumps(choice, ensure_ascii=False) for choice in format.choices)
        return str(LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}"))
    text = format.schema_text if format.type == "json_schema" else '{"type": "object"}'
    schema = _with_expressions(plain_schema(text or "{}"))
    return str(LLMatcher.grammar_from_json_schema(schema, defaults=_COMPACT))


def _of_calls(form: CallForm) -> str:
    """https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md"""
    lines, end = [], json.dumps(form.end)
    for rule, calls in (("first", form.first), ("next", form.calls)):
        options = []
        for number, (before, format) in enumerate(calls):
            options.append(f"{json.dumps(before, ensure_ascii=False)} arguments_{number} {end}")
            if rule == "first":
                schema = _with_expressions(plain_schema(format.schema_text or "{}"))
                lines.append(f"arguments_{number}: %json {json.dumps(_GUIDED | schema)}")
        lines.append(f"{rule}: {' | '.join(options)}")
    start = "start: first"
    if form.between is not None:
        start += f" ({json.dumps(form.between)} next){{0,{MOST_CALLS - 1}}}"
    if form.after:
        start += f" {json.dumps(form.after)}"
    return "\n".join([start, *lines])


def _with_expressions(plain: Any) -> Any:
    """The schema, with its patterns as Rust's regular expressions."""
    if isinstance(plain, list):
        return [_with_expressions(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    schema: Schema = {
        name: each if name == "enum" and isinstance(each, list) else _with_expressions(each)
        for name, each in plain.items()
    }
    if plain.get("type") == "string" and isinstance(plain.get("pattern"), str):
        schema["pattern"] = f"^(?:{_expression(parse_pattern(plain['pattern']))})$"
    return schema


def _expression(node: Node) -> str:
    match node:
        case Chars(ranges):
            return f"[{''.join(f'{_point(low)}-{_point(high)}' for low, high in ranges)}]"
        case Sequence_(parts):
            return "".join(map(_expression, parts))
        case Options(options):
            return f"(?:{'|'.join(map(_expression, options))})"
        case Repeat(part, least, most):
            return f"(?:{_expression(part)}){{{least},{'' if most is None else most}}}"


def _point(point: int) -> str:
    return f"\\u{{{point:x}}}"
