"""How many things may come next in a reply that is held to a schema."""

from collections.abc import Iterator
from functools import lru_cache

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.plain import Schema
from turnmill.schemas.formats.reading import plain_schema

#: Optional properties of one object, or of all options of an `anyOf` together. llguidance errs, in
#: the middle of a reply, where more than 2000 items may come next: each of them is four, and an
#: array among options six. Its users can raise that; vLLM 0.32 does not.
MOST_NEXT = 300
#: A shorter schema is not that wide: no property takes fewer characters than `"a1":{},`.
_NARROW_CHARS = 8 * MOST_NEXT


@lru_cache(maxsize=64)
def width_of(text: str) -> int:
    """Return the most properties and options that may come next anywhere in a value of a schema.

    Zero for a schema that is too short for more than `MOST_NEXT`, and for one that accept refuses.
    """
    if len(text) <= _NARROW_CHARS:
        return 0
    try:
        plain = plain_schema(text)
    except InvalidInput:
        return 0
    definitions = plain.get("$defs", {})
    return max(_next_count(each, definitions, frozenset()) for each in _schemas(plain))


def _schemas(plain: object) -> Iterator[Schema]:
    """All objects of a plain schema, whichever are schemas; the others count nothing."""
    if isinstance(plain, list):
        for each in plain:
            yield from _schemas(each)
    elif isinstance(plain, dict):
        yield plain
        for each in plain.values():
            yield from _schemas(each)


def _next_count(plain: object, definitions: Schema, within: frozenset[str]) -> int:
    """How many may come next at the beginning of a value, or behind a property of it."""
    match plain:
        case {"$ref": str(pointer)} if pointer not in within:
            target = definitions.get(pointer.rpartition("/")[2])
            return _next_count(target, definitions, within | {pointer})
        case {"anyOf": [*options]}:
            return sum(_next_count(each, definitions, within) for each in options)
        case {"properties": {**properties}, "required": [*required]}:
            return max(1, len(properties.keys() - set(required)))
        case {"properties": {**properties}}:
            return max(1, len(properties))
        case _:
            return 1
