"""How long to wait before trying again, and for how long that costs nothing."""

import random
from typing import NamedTuple

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.outcomes import Snoozed
from turnmill.schemas.postgres.database import Database
from turnmill.workers.turn.claim import Claim

#: What an attempt ends with at an engine that is too busy for this turn and answers others.
POSTPONED = "The engine has no room for this turn, and answers others."
#: How many of these count nothing: an hour and a half. Where many turns share a rate that has room
#: for few, each is postponed often by mere chance.
FREE_POSTPONEMENTS = 240


class _Count(NamedTuple):
    tries: int


_COUNT = "SELECT count(*)::int AS tries FROM attempts WHERE turn_id = %s AND error = %s"


def backoff_s(tries: int, *, base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Exponential backoff with full jitter, in seconds, after `tries` tries (from 1).

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(tries - 1, 32))
    return random.uniform(ceiling / 2, ceiling)


def postponed(database: Database, claim: Claim, asked_s: float = 0.0) -> Snoozed:
    """The outcome of an attempt for which a busy engine has no room, and which it asks to wait for
    `asked_s` seconds. Settling bounds the wait (`MAX_DELAY_S`).

    It counts once the turn was postponed `FREE_POSTPONEMENTS` times: an engine that always has
    room for others will never have room for this one.
    """
    try:
        (row,) = database.fetch(_Count, _COUNT, (claim.turn_id, POSTPONED))
    except DatabaseUnavailable:
        return Snoozed(asked_s + backoff_s(claim.attempt), POSTPONED, counts=False)
    counts = row.tries >= FREE_POSTPONEMENTS
    # Beyond what it asks for: turns that were asked for the same pause do not all return at once.
    return Snoozed(asked_s + backoff_s(row.tries + 1), POSTPONED, counts=counts)
