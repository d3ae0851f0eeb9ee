"""Which keywords of JSON Schema are accepted, and what their values must be.

All engines enforce these, or validation does afterwards. Whatever else a schema says would be
ignored in silence by one engine or the other: it is refused by its name.
"""

from collections.abc import Callable
from typing import TypeGuard

from turnmill.schemas.formats.patterns import BadPattern, parse_pattern

#: They do not restrict a value.
ANNOTATIONS = frozenset(
    (
        "title", "description", "default", "example", "examples", "deprecated", "readOnly",
        "writeOnly", "$comment", "discriminator",
    )
)  # fmt: skip

#: Only at the root. No schema is ever fetched.
OF_THE_ROOT = frozenset(("$schema", "$id", "$defs", "definitions"))

#: Keywords of each type, besides `type`, `enum` and `const`.
BY_TYPE = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "number": frozenset(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    ),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
BY_TYPE["integer"] = BY_TYPE["number"]

#: Each stands alone: `anyOf` beside `properties` would have to be intersected.
ALONE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")

KNOWN = ANNOTATIONS | OF_THE_ROOT | {"type", *ALONE}.union(*BY_TYPE.values())

_DAY = "(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31"
_DATE = f"[12][0-9]{{3}}-({_DAY})"
_MINUTE = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_MINUTE}:[0-5][0-9](\\.[0-9]{{1,6}})?(Z|[+-]{_MINUTE})"
_LABEL = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

#: Formats as the expressions that engines enforce: a part of what each allows, all of it valid.
FORMATS = {
    # RFC 3339. Without 29 February, whose years no short expression counts.
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": "^P([0-9]{1,4}D(T[0-9]{1,2}H)?|T[0-9]{1,4}[HMS]|[0-9]{1,3}[YMW])$",
    "email": f"^[a-z0-9_+-]{{1,30}}(\\.[a-z0-9_+-]{{1,30}})?@({_LABEL}\\.){{1,3}}[a-z]{{2,10}}$",
    "hostname": f"^({_LABEL}\\.){{0,3}}{_LABEL}$",
    "ipv4": f"^({_BYTE}\\.){{3}}{_BYTE}$",
    "ipv6": "^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$",
    "uri": f"^https?://({_LABEL}\\.){{1,3}}[a-z]{{2,10}}(/[A-Za-z0-9._~-]{{0,30}}){{0,4}}$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def _is_pattern(value: object) -> str | bool:
    if not isinstance(value, str):
        return False
    try:
        parse_pattern(value)
    except BadPattern as error:
        return str(error)
    return True


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_type(value: object) -> bool:
    types = value if isinstance(value, list) else [value]
    return bool(types) and all(isinstance(each, str) and each in BY_TYPE for each in types)


#: The check of a keyword's value (true, or what is wrong with it), and what the value must be.
VALUES: dict[str, tuple[Callable[[object], str | bool], str]] = {
    "type": (_is_type, f"must be one or several of {', '.join(BY_TYPE)}"),
    "required": (_is_names, "must be a list of names"),
    "properties": (lambda value: isinstance(value, dict), "must be an object"),
    "$ref": (lambda value: isinstance(value, str), "must be a text"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "must be a list of values"),
    "pattern": (_is_pattern, "must be a regular expression"),
    "format": (
        lambda value: isinstance(value, str) and value in FORMATS,
        f"must be one of {', '.join(FORMATS)}",
    ),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "must be a number above 0"),
    **dict.fromkeys(
        ("minItems", "maxItems", "minLength", "maxLength"),
        (_is_count, "must be a whole number from 0"),
    ),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        (_is_number, "must be a number between -1e15 and 1e15"),
    ),
    **dict.fromkeys(
        ("anyOf", "oneOf", "allOf", "prefixItems"),
        (lambda value: isinstance(value, list) and bool(value), "must be a list of schemas"),
    ),
}
