"""Formats as llguidance reads them: called by `transformers` itself, and one of vLLM's backends.

https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llguidance import LLTokenizer

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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Small models fill a reply with white space.
COMPACT = {"whitespace_flexible": False}
_GUIDED = {"x-guidance": COMPACT}

NO_TOKENS: Mapping[str, int] = MappingProxyType({})


def guidance_schema(format: ResponseFormat) -> Schema:
    """Return the JSON Schema of a checked format that is not a choice."""
    text = format.schema_text if format.type == "json_schema" else '{"type": "object"}'
    schema: Schema = _with_expressions(plain_schema(text or "{}"))
    return schema


def special_tokens(tokenizer: "PreTrainedTokenizerFast", reader: LLTokenizer) -> dict[str, int]:
    """Tokens that a grammar names, because none of its texts spells them, by their content; without
    those that end a reply.

    Args:
        tokenizer: a fast one of transformers.
        reader: what llguidance made of it.
    """
    return {
        token.content: id
        for id, token in tokenizer.added_tokens_decoder.items()
        if id not in reader.eos_tokens and reader.is_special_token(id)
    }


def calls_grammar(form: CallForm, special: Mapping[str, int] = NO_TOKENS) -> str:
    """Return the grammar of a reply with calls, in Lark. `special`: as `special_tokens`."""
    lines, end = [], _spelled(form.end, special)
    for rule, calls in (("first", form.first), ("next", form.calls)):
        options = []
        for number, (before, format) in enumerate(calls):
            options.append(f"{_spelled(before, special)} arguments_{number} {end}")
            if rule == "first":
                schema = _GUIDED | guidance_schema(format) if format else {"type": "object"}
                lines.append(f"arguments_{number}: %json {json.dumps(schema)}")
        lines.append(f"{rule}: {' | '.join(options)}")
    parts = ["first"]
    if form.between is not None:
        parts.append(f"({_spelled(form.between, special)} next){{0,{MOST_CALLS - 1}}}")
    if form.after:
        parts.append(_spelled(form.after, special))
    if form.trigger is None:
        return "\n".join([f"start: {' '.join(parts)}", *lines])
    lines.append(f"calls: {' '.join(parts)}")
    start = "called* text" if form.repeats else "text | called"
    return "\n".join([f"start: {start}", *_text_before(form.trigger, special), *lines])


def _text_before(trigger: str, special: Mapping[str, int]) -> list[str]:
    """The rules `text`, without a trigger in it, and `called`: text, a trigger, and calls.

    A lazy rule matches as soon as it can: whoever writes the trigger has begun a call.
    https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md#tool-calling
    """
    others = [id for text, id in special.items() if text != trigger]
    # The model may write its other tokens, such as those around thoughts.
    free = f"(TEXT <[{','.join(map(str, others))}]>)*" if others else '""'
    lines = [f"free: {free}", "text: free TEXT", "TEXT: /(.|\\n)*/"]
    if trigger in special:
        return [*lines, f"called: text {_spelled(trigger, special)} calls"]
    return [*lines, f"trigger[lazy]: TEXT {json.dumps(trigger)}", "called: free trigger calls"]


def _spelled(text: str, special: Mapping[str, int]) -> str:
    """A text as what a rule has for it, with its special tokens as tokens."""
    marks = [mark for mark in special if mark in text]
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
    return " ".join(
        f"<[{special[each]}]>" if each in special else json.dumps(each, ensure_ascii=False)
        for each in pieces
        if each
    )


def _with_expressions(plain: object) -> Any:
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
