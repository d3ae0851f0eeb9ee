"""Formats as llguidance reads them: called by `transformers` itself, and one of vLLM's backends.

https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from typing import Any

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
COMPACT = {"whitespace_flexible": False}
_GUIDED = {"x-guidance": COMPACT}


def guidance_schema(format: ResponseFormat) -> Schema:
    """Return the JSON Schema of a checked format that is not a choice."""
    text = format.schema_text if format.type == "json_schema" else '{"type": "object"}'
    schema: Schema = _with_expressions(plain_schema(text or "{}"))
    return schema


def calls_grammar(form: CallForm) -> str:
    """Return the grammar of calls of tools, in Lark."""
    lines, end = [], json.dumps(form.end)
    for rule, calls in (("first", form.first), ("next", form.calls)):
        options = []
        for number, (before, format) in enumerate(calls):
            options.append(f"{json.dumps(before, ensure_ascii=False)} arguments_{number} {end}")
            if rule == "first":
                schema = _GUIDED | guidance_schema(format)
                lines.append(f"arguments_{number}: %json {json.dumps(schema)}")
        lines.append(f"{rule}: {' | '.join(options)}")
    start = "start: first"
    if form.between is not None:
        start += f" ({json.dumps(form.between)} next){{0,{MOST_CALLS - 1}}}"
    if form.after:
        start += f" {json.dumps(form.after)}"
    return "\n".join([start, *lines])


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
