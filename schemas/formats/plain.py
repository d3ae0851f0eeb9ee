"""The plain form of JSON Schemas, which engines compile.

The plain form describes a part of what the schema allows, so that a reply in it is valid:

* an object has the properties that are named, and no others; one that names none is a map;
* an optional property may be left out, and the order is the schema's;
* `format` is a `pattern`, `oneOf` is `anyOf`, `const` is `enum`, a reference leads to `$defs`.

`null`, `boolean`, `integer`, `number`, `string`, `array` and `object` are the types left, each with
its own keywords alone; `{}` is any value.
"""

import json
import math
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

Schema = dict[str, Any]


def read_json(text: str) -> Any:
    """Parse JSON as RFC 8259 has it: without Python's NaN and Infinity. Raises `ValueError`.

    A number too large for a double would become an infinity, which cannot be written again.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)


def _finite(number: str) -> float:
    if math.isinf(found := float(number)):
        raise ValueError(f"{number[:20]} is too large")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def bounds(plain: Schema) -> tuple[float, float]:
    """The least and the greatest number of a plain schema, whole ones where it wants integers."""
    low = max(plain.get("minimum", -math.inf), plain.get("exclusiveMinimum", -math.inf))
    high = min(plain.get("maximum", math.inf), plain.get("exclusiveMaximum", math.inf))
    if plain["type"] != "integer":
        return low, high
    if math.isfinite(low):
        is_open = plain.get("exclusiveMinimum", -math.inf) == low
        low = math.floor(low) + 1 if is_open else math.ceil(low)
    if math.isfinite(high):
        is_open = plain.get("exclusiveMaximum", math.inf) == high
        high = math.ceil(high) - 1 if is_open else math.floor(high)
    return low, high


def depths(whole: Schema) -> dict[str, float]:
    """How deep the shallowest value of each definition is; infinite where there is none."""
    found = dict.fromkeys(whole["$defs"], math.inf)
    while True:
        before = dict(found)
        for name, plain in whole["$defs"].items():
            found[name] = depth_of(plain, found)
        if found == before:
            return found


def depth_of(plain: Schema, known: dict[str, float]) -> float:
    """How deep the shallowest value of a plain schema is."""
    match plain:
        case {"$ref": pointer}:
            return 1 + known[pointer.rpartition("/")[2]]
        case {"anyOf": options}:
            return 1 + min(depth_of(each, known) for each in options)
        case {"properties": properties, "required": required}:
            return 1 + max((depth_of(properties[name], known) for name in required), default=0)
        case {"type": "array", "minItems": least, "items": items}:
            first = plain.get("prefixItems", [])[:least]
            needed = [*first, items] if least > len(first) else first
            return 1 + max((depth_of(each, known) for each in needed), default=0)
    return 1


def is_left_recursive(whole: Schema) -> bool:
    """Whether a definition leads to itself before any array or object begins: that never ends."""
    try:
        inner_first(whole)
    except CycleError:
        return True
    return False


def inner_first(whole: Schema) -> list[str]:
    """The definitions, each after those that it refers to for the very same value.

    Raises `CycleError`: one leads to itself.
    """
    leads_to = {name: set(_same_value(plain)) for name, plain in whole["$defs"].items()}
    return list(TopologicalSorter(leads_to).static_order())


def _same_value(plain: Schema) -> Iterator[str]:
    """The definitions that a plain schema refers to for the very same value."""
    match plain:
        case {"$ref": pointer}:
            yield str(pointer).rpartition("/")[2]
        case {"anyOf": options}:
            for option in options:
                yield from _same_value(option)
