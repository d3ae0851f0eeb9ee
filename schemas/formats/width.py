"""How many things may come next in a reply that is held to a schema."""

from collections.abc import Iterator, Mapping
from functools import lru_cache

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.plain import Schema, inner_first
from turnmill.schemas.formats.reading import plain_schema

#: Optional properties of one object, or of all options of an `anyOf` together. llguidance errs, in
#: the middle of a reply, where more than 2000 items may come next: each of them is four, and an
#: array among options six. Its users can raise that; vLLM 0.32 does not.
MOST_NEXT = 300


@lru_cache(maxsize=256)
def width_of(text: str) -> int:
    """Return the most properties and options that may come next anywhere in a value of a schema.

    `MOST_NEXT + 1` for all that is more; zero for a schema that accept refuses.
    """
    try:
        plain = plain_schema(text)
    except InvalidInput:
        return 0
    known: dict[str, int] = {}
    for name in inner_first(plain):
        known[name] = min(_next_count(plain["$defs"][name], known), MOST_NEXT + 1)
    return min(max(_next_count(each, known) for each in _schemas(plain)), MOST_NEXT + 1)


def _schemas(plain: object) -> Iterator[Schema]:
    """All objects of a plain schema, whichever are schemas; the others count nothing."""
    if isinstance(plain, list):
        for each in plain:
            yield from _schemas(each)
    elif isinstance(plain, dict):
        yield plain
        for name, each in plain.items():
            if not (name == "enum" and isinstance(each, list)):  # values
                yield from _schemas(each)


def _next_count(plain: object, known: Mapping[str, int]) -> int:
    """How many may come next at the beginning of a value, or behind a property of it.

    `known`: what that is for the definitions that it refers to.
    """
    match plain:
        case {"$ref": str(pointer)}:
            return known.get(pointer.rpartition("/")[2], 1)
        case {"anyOf": [*options]}:
            return sum(_next_count(each, known) for each in options)
        case {"properties": {**properties}, "required": [*required]}:
            return max(1, len(properties.keys() - set(required)))
        case {"properties": {**properties}}:
            return max(1, len(properties))
        case _:
            return 1
