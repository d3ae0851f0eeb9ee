"""What people read while they wait. Slack puts the app's name before it."""

import math

from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.base import Look


def status_of(look: Look) -> str:
    """Say what the turn waits for, and for how long where that is known."""
    if look.state is TurnState.RUNNING:
        return "is thinking…"
    if look.state is TurnState.WAITING:
        return "is still answering your earlier message…"
    if not look.place:
        return "is about to begin…"
    before = "1 message" if look.place == 1 else f"{look.place} messages"
    return f"is busy: {before} before yours{_expected(look.estimate_s)}…"


def _expected(estimate_s: float | None) -> str:
    """Coarse, for it is a guess, and so that it does not change at every look."""
    if estimate_s is None:
        return ""
    if estimate_s < 60:
        return ", less than a minute"
    minutes = math.ceil(estimate_s / 60)
    return f", about {minutes} minutes" if minutes > 1 else ", about a minute"
