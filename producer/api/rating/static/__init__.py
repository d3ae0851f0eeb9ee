"""The page's style and script, as files: its policy forbids any in the page itself."""

from pathlib import Path

_NAMES = frozenset({"rater.css", "rater.js"})


def asset(name: str) -> Path | None:
    """Return the file of this name, if there is one to serve."""
    return Path(__file__).with_name(name) if name in _NAMES else None
