"""JSONL: one object a line. Arrays and objects over several lines are read too."""

import json
from collections.abc import Iterator
from dataclasses import replace

from turnmill.schemas.records import base
from turnmill.schemas.records.base import Problem, Reading, Record, Report, without_nan
from turnmill.schemas.records.encodings import find_encoding
from turnmill.schemas.records.text import read_lines

#: What is read of a request's body in a file for OpenAI's batch API, under our names, and what is
#: carried along unread: `--bot` says who answers.
_OF_BODY = {
    name: name for name in ("messages", "max_tokens", "temperature", "top_p", "stop", "seed")
}
_OF_BODY |= {"max_completion_tokens": "max_tokens"}
_CARRIED = frozenset({"metadata", "model", "store", "user"})

#: What stands between the values of an array, and after the last one.
_BETWEEN = " \t\r\n,]"


class _Refused(ValueError):
    """JSON that Python reads and we do not: the column, and why."""


def read(reading: Reading) -> Iterator[Record]:
    encoding = reading.layout.encoding or find_encoding(reading.path)
    reading.layout = replace(reading.layout, encoding=encoding)
    lines = read_lines(reading.path, encoding, reading.report)
    for line, value in _values(enumerate(lines, start=1), reading.report):
        if not isinstance(value, dict):
            reading.report(Problem(line, None, "is not a JSON object"))
            continue
        cells = {name: without_nan(cell) for name, cell in value.items()}
        if not reading.columns.is_named:
            cells = _opened(line, cells, reading.report)
        reading.note_columns(cells)
        yield line, cells


def _opened(line: int, cells: dict[str, object], report: Report) -> dict[str, object]:
    """A request of OpenAI's batch API as a row; other objects as they are.

    https://platform.openai.com/docs/guides/batch: `custom_id`, `method`, `url` and `body`.
    """
    body = cells.get("body")
    if "custom_id" not in cells or not isinstance(body, dict):
        return cells
    for name in body:
        if name not in _OF_BODY and name not in _CARRIED:
            instead = ". Give --schema instead" if name == "response_format" else ""
            report(Problem(line, f"body.{name}"[:80], f"is not read from a batch request{instead}"))
    read = {ours: body[name] for name, ours in _OF_BODY.items() if name in body}
    carried = {name: body[name] for name in body if name in _CARRIED}
    return {"id": cells["custom_id"], **read, **carried}


def _values(lines: Iterator[tuple[int, str]], report: Report) -> Iterator[tuple[int, object]]:
    is_first = True
    for number, line in lines:
        text = line.strip().removesuffix(",").rstrip()
        if not text:
            continue
        if is_first and _goes_on(text):
            yield from _spread_values(number, line, lines, report)
            return
        for value in _decode(number, text, report):
            # An array in one line is a whole file; in a file of lines it is a mistake.
            items = value if is_first and isinstance(value, list) and value else [value]
            yield from ((number, item) for item in items)
        is_first = False


def _goes_on(text: str) -> bool:
    """Whether a file's first line begins an object or an array of objects that ends later."""
    return text == "{" or (text[0] == "[" and text[1:2] in ("", "{", " ") and text[-1] != "]")


def _decode(number: int, text: str, report: Report) -> list[object]:
    """The value of a line, or nothing: what is wrong is reported."""
    try:
        return [_DECODER.decode(text)]
    except json.JSONDecodeError as error:
        report(Problem(number, None, f"is not JSON: {error.msg} (character {error.pos + 1})"))
    except _Refused as error:
        report(Problem(number, *error.args))
    except (ValueError, RecursionError):
        report(Problem(number, None, "is not JSON that can be read"))
    return []


def _spread_values(
    start: int, line: str, lines: Iterator[tuple[int, str]], report: Report
) -> Iterator[tuple[int, object]]:
    """The values of an array, or one after the other, each over as many lines as it likes.

    Nothing tells where to resume after a mistake: the first one ends the reading.
    """
    pending, number = line.lstrip().removeprefix("["), start
    while True:
        try:
            value, end = _first_value(pending)
        except _Refused as error:
            report(Problem(start, *error.args))
            return
        if end:
            yield start, value
            pending, start = pending[end:].lstrip(_BETWEEN), number
            continue
        number, line = next(lines, (number, ""))
        if not line:
            if pending:
                report(Problem(start, None, "is not JSON: the object is not closed"))
            return
        start = start if pending else number
        pending = (pending + line).lstrip(_BETWEEN)


def _first_value(pending: str) -> tuple[object, int]:
    """The value that a text begins with and its length, which is 0 while its end is missing.

    Raises:
        _Refused: it is not JSON, however it goes on.
    """
    text = pending.rstrip()
    if len(text) > base.MAX_LINE_BYTES:
        raise _Refused(None, f"is longer than {base.MAX_LINE_BYTES >> 20} MiB")
    if not text.endswith(("}", "},", "]", "],")):
        return None, 0
    try:
        return _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or error.msg.startswith("Unterminated"):
            return None, 0
        where = f"line {error.lineno} of it, character {error.colno}"
        raise _Refused(None, f"is not JSON: {error.msg} ({where})") from None
    except _Refused:
        raise
    except (ValueError, RecursionError):
        raise _Refused(None, "is not JSON that can be read") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(twice[:80], "appears twice")
    return value


def _constant(name: str) -> float | None:
    if name == "NaN":
        return None
    raise _Refused(None, f"is not JSON: {name} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
