"""What a reply is held to that must call a tool: text around arguments, and their schemas."""

from dataclasses import dataclass

from turnmill.schemas.formats.response import ResponseFormat

#: Calls of one reply that was made to call: a small model would go on calling.
MOST_CALLS = 8


@dataclass(frozen=True, slots=True)
class CallForm:
    """The rest of a reply after its beginning (`OfferedTools.begun`), which is not generated."""

    #: For each tool: the text before its arguments, and their format.
    calls: tuple[tuple[str, ResponseFormat], ...]
    #: What of that the reply begins with already.
    begun: str
    #: The text between two calls; None: there is one.
    between: str | None
    #: The text after the last call.
    after: str = ""
    #: The text after arguments.
    end: str = "}"

    @property
    def first(self) -> tuple[tuple[str, ResponseFormat], ...]:
        """As `calls`, of the first call."""
        return tuple((text.removeprefix(self.begun), format) for text, format in self.calls)
