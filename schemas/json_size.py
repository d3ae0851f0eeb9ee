"""How much work a JSON document is to parse, seen without parsing it.

Bytes say little: 4 MiB of text are parsed in 5 ms, 4 MiB of empty lists in 300 ms, and the parser
holds the GIL all the while. So the values are counted first, in small steps between which other
threads run, and no further than a limit.
"""

_BACKSLASH = ord("\\")


def has_more_values(body: bytes, limit: int) -> bool:
    """Tell whether a JSON document has more than `limit` values, counting keys as values.

    What is not JSON is counted as if it were.
    """
    count = start = 0
    while count <= limit and (opening := body.find(b'"', start)) >= 0:
        count += 1 + _count_between(body, start, opening)
        start = _end_of_string(body, opening)
    return count + _count_between(body, start, len(body)) > limit


def _count_between(body: bytes, start: int, end: int) -> int:
    """Lists, objects and items outside of strings."""
    return sum(body.count(mark, start, end) for mark in (b"[", b"{", b","))


def _end_of_string(body: bytes, opening: int) -> int:
    """The position after a string's closing quote, or of the document's end."""
    end = body.find(b'"', opening + 1)
    while end >= 0 and _is_escaped(body, end):
        end = body.find(b'"', end + 1)
    return end + 1 or len(body)


def _is_escaped(body: bytes, position: int) -> bool:
    start = position
    while body[start - 1] == _BACKSLASH:
        start -= 1
    return (position - start) % 2 == 1
