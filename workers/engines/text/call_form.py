"""What calls of tools in a reply are held to: text around arguments, and their schemas."""

from dataclasses import dataclass

from turnmill.schemas.formats.response import ResponseFormat

#: Calls of one reply that was made to call: a small model would go on calling.
MOST_CALLS = 8


@dataclass(frozen=True, slots=True)
class CallForm:
    """The rest of a reply that must call, after its beginning (`OfferedTools.begun`), which is not
    generated. With a `trigger`, a reply that may call: text, and calls behind the trigger.
    """

    #: For each tool: the text before its arguments, and their format (None: any object, with white
    #: space as the model writes it).
    calls: tuple[tuple[str, ResponseFormat | None], ...]
    #: What of that the reply begins with already.
    begun: str
    #: The text between two calls; None: there is one.
    between: str | None
    #: The text after the last call.
    after: str = ""
    #: The text after arguments.
    end: str = "}"
    #: The text that calls begin with; None: the reply is calls and nothing else.
    trigger: str | None = None
    #: The text between the trigger and the first call.
    lead: str = ""
    #: Whether text, and other calls, may follow those behind a trigger.
    repeats: bool = False

    @property
    def first(self) -> tuple[tuple[str, ResponseFormat | None], ...]:
        """As `calls`, of the first call."""
        return tuple(
            (self.lead + text.removeprefix(self.begun), format) for text, format in self.calls
        )
