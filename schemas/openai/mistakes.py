"""What is wrong with a body, as one error that names the fields."""

import re
from collections.abc import Iterable, Sequence

from pydantic_core import ErrorDetails

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.openai.fields import MAX_SHOWN_MISTAKES, shown


def invalid_input(mistakes: list[ErrorDetails]) -> InvalidInput:
    sentences = [_sentence(mistake) for mistake in mistakes[:MAX_SHOWN_MISTAKES]]
    if (more := len(mistakes) - len(sentences)) > 0:
        sentences.append(f"There are {more} more mistakes.")
    return InvalidInput(" ".join(sentences), param=_param(mistakes[0]))


def refused(mistakes: Sequence[ErrorDetails]) -> InvalidInput:
    """Of FastAPI's mistakes, whose places begin with a part of the call (`body`, `query`, `path`),
    the first: what each kind of value that its field may have says of it.
    """
    places = [_field(mistake["loc"]) for mistake in mistakes]
    reasons = [
        mistake["msg"].removeprefix("Value error, ")
        for mistake, place in zip(mistakes, places, strict=True)
        if place == places[0]
    ]
    param = _path(places[0])
    match mistakes[0]["type"]:
        case "missing" if param is None:
            return InvalidInput("The body is missing: send a JSON object.")
        case "missing":
            return InvalidInput(f"Missing required parameter: '{param}'.", param=param)
        case "extra_forbidden":
            message = f"Unrecognized request argument supplied: {param}."
            return InvalidInput(message, param=param)
        case "unsupported":
            return InvalidInput(f"'{param}' {reasons[0]}", param=param)
    reason = "; or: ".join(dict.fromkeys(reasons)).removesuffix(".")
    return InvalidInput(f"Invalid '{param}': {reason}." if param else f"{reason}.", param=param)


#: How pydantic calls the kinds of value of a field that may have several.
_KIND = re.compile(r"bool|float|int|str|none|constrained-\w+|.*\[.*")


def _field(location: Sequence[int | str]) -> list[int | str]:
    return [p for p in location[1:] if isinstance(p, int) or not _KIND.fullmatch(p)]


def _sentence(mistake: ErrorDetails) -> str:
    param = _param(mistake)
    match mistake["type"]:
        case "json_invalid":
            reason = mistake["msg"].removeprefix("Invalid JSON: ")
            return f"The body is not valid JSON: {reason}."
        case "unknown_field":
            more = f" and {mistake['ctx']['more']} more" if mistake["ctx"]["more"] else ""
            names = ", ".join(_unknown(mistake))
            return f"Unrecognized request argument supplied: {names}{more}."
        case "missing":
            return f"Missing required parameter: '{param}'."
        case "not_supported" if mistake["msg"] == "Not supported":
            return f"'{param}' is not supported with this value."
    if param is None:
        return "The body must be a JSON object."
    return f"Invalid '{param}': {mistake['msg']}."


def _param(mistake: ErrorDetails) -> str | None:
    """The field at fault, `messages[0].content`."""
    return _unknown(mistake)[0] if mistake["type"] == "unknown_field" else _path(mistake["loc"])


def _unknown(mistake: ErrorDetails) -> list[str]:
    return [_path([*mistake["loc"], name]) or "" for name in mistake["ctx"]["names"]]


def _path(location: Iterable[int | str]) -> str | None:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{shown(part)}"
    return path.lstrip(".") or None
