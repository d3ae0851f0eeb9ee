"""A check: finds what a policy may act on."""

from collections.abc import Sequence
from typing import Protocol

from turnmill.schemas.safety.findings import Finding
from turnmill.schemas.safety.policy import Safety


class Check(Protocol):
    """One kind of thing to look for. It is made for one bot, and may be asked by many threads."""

    def __init__(self, safety: Safety) -> None:
        """Read what the bot's policy says of it."""

    def examine(self, text: str) -> Sequence[Finding]:
        """Find what there is, in the order of the text and without overlaps; the same each time.

        Raises:
            TurnmillError: it cannot be looked for.
        """
        ...

    def open_at(self, text: str, end: int) -> int:
        """Return where something begins that goes on past a sentence's end; else that end."""
        return end
