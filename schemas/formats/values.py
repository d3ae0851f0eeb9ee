"""Short values that a schema allows."""

import json
import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from turnmill.schemas.formats.patterns import parse_pattern, shortest
from turnmill.schemas.formats.plain import Schema, bounds, depth_of, depths
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat


def shortest_value(whole: Schema) -> object:
    """A small value that a plain schema (`plain_schema`) allows; the same for the same schema.

    Where a pattern stands beside lengths, the pattern alone is kept.
    """
    return _Writer(whole).value(whole)


def shortest_reply(format: ResponseFormat) -> str:
    """A short reply that meets a format."""
    match format.type:
        case "choice":
            return format.choices[0]
        case "json_object":
            return "{}"
    value = shortest_value(plain_schema(format.schema_text or "{}"))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Writer:
    def __init__(self, whole: Schema) -> None:
        self._defs = whole["$defs"]
        self._depths = depths(whole)

    def value(self, plain: Schema) -> object:
        match plain:
            case {"$ref": pointer}:
                return self.value(self._defs[pointer.rpartition("/")[2]])
            case {"anyOf": options}:
                return self.value(min(options, key=lambda each: depth_of(each, self._depths)))
            case {"enum": values}:
                return values[0]
            case {"type": "object"}:
                properties = plain.get("properties", {})
                required = plain.get("required", ())
                return {
                    name: self.value(properties[name]) for name in properties if name in required
                }
            case {"type": "array", "minItems": least, "items": items}:
                first = plain.get("prefixItems", [])[:least]
                return [self.value(each) for each in [*first, *[items] * (least - len(first))]]
            case {"type": "string", "pattern": pattern}:
                return shortest(parse_pattern(pattern))
            case {"type": "string"}:
                return "a" * plain.get("minLength", 0)
            case {"type": "number" | "integer"}:
                return _number(plain)
            case {"type": "boolean"}:
                return False
        return None


def _number(plain: Schema) -> int | float:
    """The number nearest to 0 that is within the bounds, a multiple where one is wanted."""
    low, high = bounds(plain)
    is_whole = plain["type"] == "integer"
    step = Decimal(str(plain.get("multipleOf", 1)))
    if is_whole and step % 1:
        step *= step.as_integer_ratio()[1]
    if not is_whole and "multipleOf" not in plain and math.isfinite(low) and math.isfinite(high):
        step = (Decimal(str(high)) - Decimal(str(low))) / 2 or Decimal(1)
    if low <= 0 <= high and 0 not in (
        plain.get("exclusiveMinimum"), plain.get("exclusiveMaximum")
    ):  # fmt: skip
        return 0
    if low >= 0:
        found = _multiple(low, step, ROUND_CEILING)
        if found == plain.get("exclusiveMinimum"):
            found += step
    else:
        found = _multiple(high, step, ROUND_FLOOR)
        if found == plain.get("exclusiveMaximum"):
            found -= step
    return int(found) if found == int(found) else float(found)


def _multiple(bound: float, step: Decimal, rounding: str) -> Decimal:
    return (Decimal(str(bound)) / step).to_integral_value(rounding) * step
