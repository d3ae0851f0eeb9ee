"""Ten schemas that every engine keeps to: nested, enums, patterns, recursion, Chinese; and a chat
template that knows tools, for models whose own does not.
"""

from typing import Any


def _closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


#: As Qwen 2.5 and 3 show tools, calls and results.
QWEN = """{%- if tools %}<|im_start|>system
# Tools
<tools>{%- for tool in tools %}{{- '\\n' }}{{ tool | tojson }}{%- endfor %}{{- '\\n' }}</tools>
For each call return:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}
{% if m.role == 'tool' %}<tool_response>
{{ m.content }}
</tool_response>{% else %}{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_SHORT = {"type": "string", "maxLength": 20}

SCHEMAS: dict[str, dict[str, Any]] = {
    "triage": _closed(
        language={"enum": ["en", "de", "zh"]},
        topic={"enum": ["delivery", "payment", "account", "other"]},
        urgency={"type": "integer", "minimum": 1, "maximum": 5},
        is_complaint={"type": "boolean"},
        summary=_SHORT,
    ),
    "nested": _closed(
        customer=_closed(
            name=_SHORT,
            address=_closed(city=_SHORT, zip={"type": "string", "pattern": "^[0-9]{5}$"}),
        ),
        paid={"type": ["boolean", "null"]},
    ),
    "array": _closed(
        tags={
            "type": "array",
            "items": {"enum": ["red", "green", "blue"]},
            "minItems": 1,
            "maxItems": 4,
        },
        grid={
            "type": "array",
            "items": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 9},
                "maxItems": 3,
            },
            "maxItems": 2,
        },
    ),
    "patterns": _closed(
        order={"type": "string", "pattern": "^(ORD|INV)-\\d{4}[A-F]?$"},
        day={"type": "string", "format": "date"},
        id={"type": "string", "format": "uuid"},
        mail={"type": "string", "format": "email"},
    ),
    "numbers": _closed(
        confidence={"type": "number", "minimum": 0, "maximum": 1},
        balance={"type": "number", "exclusiveMinimum": -12.5, "maximum": 1000},
        year={"type": "integer", "minimum": 1990, "exclusiveMaximum": 2031},
        delta={"type": "integer", "minimum": -50, "maximum": 7},
    ),
    "recursion": {
        "$defs": {
            "Node": _closed(
                name={"enum": ["a", "b"]},
                children={"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 2},
            )
        },
        "$ref": "#/$defs/Node",
    },
    "chinese": _closed(
        语言={"enum": ["中文", "英文"]},
        情绪={"enum": ["好", "坏", "一般"]},
        摘要={"type": "string", "maxLength": 12},
    ),
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "required": ["b"],
    },
    "union": _closed(
        shape={
            "anyOf": [
                _closed(
                    kind={"const": "circle"}, radius={"type": "number", "minimum": 0, "maximum": 10}
                ),
                _closed(
                    kind={"const": "square"}, side={"type": "integer", "minimum": 1, "maximum": 10}
                ),
            ]
        }
    ),
    "tuple": {
        "type": "array",
        "prefixItems": [{"enum": ["x", 'y"\\\n']}, {"type": "boolean"}],
        "items": {"type": "string", "maxLength": 5},
        "minItems": 2,
        "maxItems": 4,
    },
}


def schemas_at_random() -> Any:
    """A strategy of hypothesis: schemas of the accepted keywords, which need not fit together."""
    from hypothesis import strategies as st

    from turnmill.schemas.formats.kinds import FORMATS

    small = st.integers(-20, 120)
    count = st.integers(0, 6)
    patterns = st.sampled_from(["^a+$", "b", "^[A-Z]{2}-\\d{1,3}$", "^(x|yz)?$", '^[^"\\s]+$', "."])
    name = st.sampled_from(["a", "b", "摘要", 'quo"te', "type", "pattern", "enum", ""])
    value = st.sampled_from([None, True, 0, 1.5, "", 'x"y\\', "摘要", [], {"k": [1]}])

    def some(**keywords: Any) -> Any:
        return st.fixed_dictionaries({}, optional=keywords)

    def typed(kind: str, **keywords: Any) -> Any:
        return some(**keywords).map(lambda found: {"type": kind, **found})

    number = {
        "minimum": small,
        "maximum": small.map(lambda n: n / 4),
        "exclusiveMinimum": small,
        "exclusiveMaximum": small,
        "multipleOf": st.sampled_from([1, 2, 5, 0.5, 0.01]),
    }
    simple = st.one_of(
        st.just({}),
        st.sampled_from(["null", "boolean"]).map(lambda kind: {"type": kind}),
        typed("string", minLength=count, maxLength=count, pattern=patterns),
        typed("string", format=st.sampled_from([*FORMATS])),
        typed("integer", **number),
        typed("number", **number),
        st.lists(value, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        value.map(lambda one: {"const": one}),
        st.just({"$ref": "#"}),
    )

    def within(inner: Any) -> Any:
        several = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(
            typed(
                "object",
                properties=st.dictionaries(name, inner, max_size=4),
                required=st.lists(name, max_size=3, unique=True),
                additionalProperties=st.booleans() | inner,
            ),
            typed("array", items=inner, prefixItems=several, minItems=count, maxItems=count),
            several.map(lambda options: {"anyOf": options}),
            several.map(lambda options: {"oneOf": options}),
            inner.map(lambda one: {"allOf": [one], "description": "x"}),
        )

    return st.recursive(simple, within, max_leaves=8)
