"""Check what a turn asks of its reply's form, and a reply against it."""

import json
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from turnmill.schemas.content import storable
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.named import NAMED
from turnmill.schemas.formats.patterns import matches, parse_pattern, size_of
from turnmill.schemas.formats.plain import read_json
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import MAX_FORMAT_BYTES, ResponseFormat

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

#: Where a turn asks for a schema.
SCHEMA_FIELD = "response_format.json_schema.schema"

#: Keywords, and their members, that are compared with values of one reply.
MAX_STEPS = 500_000


class TooMuchWork(Exception):
    """The validation of a reply takes more than `MAX_STEPS`."""


@dataclass(slots=True)
class _Work:
    """What the validation of one reply has done."""

    steps: int = 0
    #: By a reference and the value it stands for: the keyword that the value does not meet, if
    #: any. All values live as long as the reply, so that each has an id of its own.
    judged: dict[tuple[str, int], str | None] = field(default_factory=dict)

    def add(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TooMuchWork


_work: ContextVar[_Work] = ContextVar("_work")


def check_format(format: ResponseFormat) -> None:
    """Raise `InvalidInput`, whose `param` is the place, for a format that cannot be kept."""
    if format.type == "json_schema":
        if format.schema_text is None:
            raise InvalidInput(f"Missing required parameter: '{SCHEMA_FIELD}'.", param=SCHEMA_FIELD)
        plain_schema(format.schema_text, SCHEMA_FIELD, is_strict=format.strict)
    if format.type == "choice":
        _check_choices(format.choices)


def _check_choices(choices: tuple[str, ...]) -> None:
    if not choices or len(set(choices)) < len(choices):
        raise InvalidInput(
            "'response_format.choice' must be different texts, at least one.",
            param="response_format.choice",
        )
    if sum(len(choice.encode()) for choice in choices) > MAX_FORMAT_BYTES:
        raise InvalidInput(
            f"'response_format.choice' is larger than {MAX_FORMAT_BYTES // 1024} KiB.",
            param="response_format.choice",
        )


def find_fault(format: ResponseFormat, text: str) -> str | None:
    """Say why a whole reply does not meet its format, without repeating it; None: it does."""
    if format.type == "choice":
        return None if text in format.choices else "it is none of the choices"
    try:
        value = read_json(text)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if format.type == "json_object":
        return None if isinstance(value, dict) else "it is not a JSON object"
    assert format.schema_text is not None
    _work.set(_Work())
    try:
        mistake = next(_validator(format.schema_text).iter_errors(value), None)
    except RecursionError:
        return "it is too deep"
    except TooMuchWork:
        return "it takes too many steps to compare with the schema"
    if mistake is None:
        return None
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p[:80]}" for p in mistake.absolute_path)
    place = storable(place.lstrip("."))
    return f"at '{place or 'the root'}' it does not meet '{mistake.validator}'"


@lru_cache(maxsize=256)
def _validator(schema_text: str) -> "Draft202012Validator":
    # Not every process reads replies, and it takes a while to import.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    schema = json.loads(schema_text)
    if isinstance(schema, dict):
        # No other draft, and no name that references would be resolved against.
        schema = {name: each for name, each in schema.items() if name not in ("$schema", "$id")}
    judges = Draft202012Validator.VALIDATORS | {
        "pattern": _pattern,
        "multipleOf": _multiple_of,
        "format": _format,
        # As engines have it: a number and an integer are both met by 1.
        "oneOf": Draft202012Validator.VALIDATORS["anyOf"],
    }
    judges["$ref"] = _once(judges["$ref"])
    judge = extend(Draft202012Validator, {name: _counted(each) for name, each in judges.items()})
    return judge(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


#: Given a validator, what the keyword asks for (a number of `multipleOf`, a text of `pattern`), the
#: value, and the schema.
_Judge = Callable[[object, Any, object, object], "Iterator[ValidationError] | None"]


def _counted(judge: _Judge) -> _Judge:
    def count(
        validator: object, wanted: object, instance: object, schema: object
    ) -> "Iterator[ValidationError]":
        _work.get().add(1 + (len(wanted) if isinstance(wanted, list | dict) else 0))
        yield from judge(validator, wanted, instance, schema) or ()

    return count


def _once(judge: _Judge) -> _Judge:
    """Follow each reference once for each value: options that share one would double the work."""
    from jsonschema import ValidationError

    def follow(
        validator: object, pointer: str, instance: object, schema: object
    ) -> "Iterator[ValidationError]":
        judged, key = _work.get().judged, (pointer, id(instance))
        if key not in judged:
            mistake = next(iter(judge(validator, pointer, instance, schema) or ()), None)
            judged[key] = None if mistake is None else str(mistake.validator)
            if mistake is not None:
                yield mistake
        elif fault := judged[key]:
            yield ValidationError("is judged already", validator=fault)

    return follow


def _pattern(_: object, pattern: str, instance: object, __: object) -> "Iterator[ValidationError]":
    """In linear time, whatever the pattern."""
    from jsonschema import ValidationError

    if not isinstance(instance, str):
        return
    node = parse_pattern(pattern)
    _work.get().add(len(instance) * size_of(node) // 10)
    if not matches(node, instance):
        yield ValidationError("does not match")


def _format(
    validator: object, name: str, instance: object, schema: object
) -> "Iterator[ValidationError]":
    from jsonschema import Draft202012Validator, ValidationError

    if name not in NAMED:
        yield from Draft202012Validator.VALIDATORS["format"](validator, name, instance, schema)
    elif isinstance(instance, str) and not NAMED[name](instance):
        yield ValidationError("is not of the format")


def _multiple_of(
    _: object, step: float, instance: object, __: object
) -> "Iterator[ValidationError]":
    """As written in decimal: in binary, 0.3 is no multiple of 0.1."""
    from jsonschema import ValidationError

    if isinstance(instance, bool) or not isinstance(instance, int | float):
        return
    if instance in (math.inf, -math.inf) or _exact(instance) % _exact(step) != 0:
        yield ValidationError("is no multiple")


def _exact(number: float) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))
