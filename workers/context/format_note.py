"""Which models read the note about the format that their reply is held to."""

from turnmill.schemas.formats.note import format_note
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.base import Engine


def note_of(format: ResponseFormat | None, engine: Engine) -> str:
    """The note below the instructions; empty for an engine whose servers show formats themselves,
    and for a format that would take too much of the window.
    """
    if format is None or engine.capabilities.remote:
        return ""
    note = format_note(format)
    # A token of English or JSON has about four characters: at most a quarter of the window.
    return note if len(note) <= engine.context_window else ""
