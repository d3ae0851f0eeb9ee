"""JSON that stays on its line."""

#: JSON leaves these as they are inside strings, and readers that split text at every Unicode line
#: end (Python's `str.splitlines`, JavaScript before ES2019) cut the document there. The other line
#: ends are control characters, which JSON always escapes.
_LINE_ENDS = {end: f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}


def one_line(json: str) -> str:
    """Escape the line ends of Unicode in a JSON document without indentation."""
    for end, escaped in _LINE_ENDS.items():
        json = json.replace(end, escaped)
    return json
