"""What a check finds in a text."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """A place in a text, and what stands there."""

    start: int
    end: int
    #: `email`, `phone`, `private_key`, …: all that logs and metrics may tell of it.
    category: str


def apart(found: Iterable[Finding]) -> list[Finding]:
    """Return the findings that do not overlap an earlier one, in the order of the text."""
    kept: list[Finding] = []
    for each in found:
        at = bisect_left(kept, each)
        beside = kept[max(at - 1, 0) : at + 1]
        if all(each.end <= other.start or other.end <= each.start for other in beside):
            insort(kept, each)
    return kept


def masked(text: str, found: Sequence[Finding]) -> str:
    """Return the text with each finding replaced by its category, such as `<email>`."""
    pieces, done = [], 0
    for each in found:
        pieces += [text[done : each.start], f"<{each.category}>"]
        done = each.end
    return "".join([*pieces, text[done:]])
