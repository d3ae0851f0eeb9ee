"""The rate of a batch, over a window that is long enough to be believed."""

from collections.abc import Sequence
from typing import NamedTuple

from turnmill.schemas.store.batches.moves import EndedBin

#: A rate is that of the last so many turns, or of all that ended in the last minutes. Arrivals of
#: as many vary by an eighth, and after a change of load as many are soon there.
WINDOW_TURNS = 60
#: And of at least so many seconds: workers settle in bursts.
WINDOW_S = 30.0

#: Before a rate is said: so many turns within so many seconds, or fewer within a longer time. The
#: first turns of a batch wait for a worker that is just starting.
_KNOWN = ((20, 5.0), (5, 60.0))


class Pace(NamedTuple):
    """How fast turns end."""

    turns_per_s: float
    tokens_per_s: float


def pace_of(bins: Sequence[EndedBin]) -> Pace | None:
    """Compute the rate from when turns ended, the latest first; None while it cannot be told.

    The window lasts from the ending before its first turn until now, so the rate sinks slowly
    when nothing ends any more. At the start of a batch its first turn only starts the clock.
    """
    turns, tokens, since_s = 0.0, 0.0, 0.0
    for number, each in enumerate(bins, start=1):
        is_first = number == len(bins)
        counted = each.turn_count - is_first
        until_s = each.first_age_s if is_first else bins[number].last_age_s
        share = _share(WINDOW_TURNS - turns, counted, WINDOW_S - since_s, until_s - since_s)
        turns += share * counted
        tokens += share * each.token_count * counted / each.turn_count
        since_s += share * (until_s - since_s)
        if share < 1:
            break
    if since_s <= 0 or not any(turns >= n and since_s >= s for n, s in _KNOWN):
        return None
    return Pace(turns / since_s, tokens / since_s)


def _share(wanted_turns: float, turns: int, wanted_s: float, lasted_s: float) -> float:
    """How much of a bin belongs to the window: so the rate does not jump from bin to bin, and a
    bin from before a change of load does not come in as a whole.
    """
    by_turns = wanted_turns / turns if turns else 1.0
    by_time = wanted_s / lasted_s if lasted_s > 0 else 1.0
    return min(1.0, max(0.0, by_turns, by_time))
