"""A reply with what is known of it: what every measurement of replies reads."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

By = Literal["none", "bot", "model", "tenant", "day", "week", "month"]
#: What replies can be told apart by.
BY: tuple[By, ...] = get_args(By)


@dataclass(frozen=True, slots=True)
class Said:
    """A reply."""

    text: str
    #: Replies of one conversation resemble each other: intervals resample whole conversations.
    conversation: str
    reference: str | None = None
    bot: str = ""
    model: str = ""
    tenant: str = ""
    said_at: datetime | None = None
    #: Whether `max_tokens` cut it; None where nobody knows.
    is_cut: bool | None = None


def group_of(said: Said, by: By) -> str:
    """Return the name of the group that a reply belongs to."""
    return _GROUPS[by](said)


def _period(pattern: str) -> Callable[[Said], str]:
    return lambda said: said.said_at.strftime(pattern) if said.said_at else "unknown"


_GROUPS: dict[By, Callable[[Said], str]] = {
    "none": lambda said: "all",
    "bot": lambda said: said.bot or "unknown",
    "model": lambda said: said.model or "unknown",
    "tenant": lambda said: said.tenant or "unknown",
    "day": _period("%Y-%m-%d"),
    "week": _period("%G-W%V"),
    "month": _period("%Y-%m"),
}
