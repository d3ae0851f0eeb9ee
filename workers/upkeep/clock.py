"""The database's clock, held against this process's monotonic clock.

Leases, hints and deadlines are times of the database's clock. That clock steps when somebody sets
it, or when a server takes over whose clock differs. A process that reads it regularly sees by how
much it stepped, because `time.monotonic` never does. A step just before its first reading it cannot
see.
"""

import math
import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from turnmill.schemas.postgres.clock import TOLERANCE_S

_STARTED_AT, _STARTED = datetime.now(UTC), time.monotonic()


class _Step(NamedTuple):
    #: The Unix time that the clock showed before it.
    at_s: float
    #: Negative: back.
    by_s: float
    #: When it was observed (`time.monotonic`).
    observed_at: float


def steady_now() -> datetime:
    """What this machine's clock shows unless it has stepped since the process started."""
    return _STARTED_AT + timedelta(seconds=time.monotonic() - _STARTED)


class DatabaseClock:
    """What one process knows of the database's clock. One thread observes, any thread asks."""

    def __init__(self, read_since: float | None = None) -> None:
        """`read_since`: since when it is read (`time.monotonic`); None: from the first reading."""
        self._read_since = read_since
        #: Bounds of the database's Unix time less `time.monotonic`, and the steps. One value, so
        #: that all are of one moment.
        self._known: tuple[float, float, tuple[_Step, ...]] = (-math.inf, math.inf, ())

    def observe(self, there_s: float, asked_at: float) -> float:
        """Compare a reading with the one before. Return the seconds of the step between; mostly 0.

        `there_s` is the database's Unix time, read some time after `asked_at` (`time.monotonic`).
        """
        low, high = there_s - time.monotonic(), there_s - asked_at
        if self._read_since is None:
            self._read_since = time.monotonic()
        before_low, before_high, steps = self._known
        step_s = max(0.0, low - before_high) or min(0.0, high - before_low)
        if abs(step_s) > TOLERANCE_S:
            steps += (_Step(there_s - step_s, step_s, time.monotonic()),)
        elif high - low > TOLERANCE_S / 2:
            return 0.0  # a slow answer says little: the reading before is the better reference
        self._known = (low, high, steps)
        return step_s if abs(step_s) > TOLERANCE_S else 0.0

    @property
    def latest_s(self) -> float:
        """The database's Unix time now, at the latest, unless its clock has stepped forward."""
        return self._known[1] + time.monotonic() + TOLERANCE_S

    def judging_s(self, lease_s: float) -> float:
        """Return the Unix time by which to judge leases of `lease_s` seconds.

        It does not know of a step forward until each lease of before has ended or was renewed: of
        the clocks that leases may have been written by, it is the one that is furthest behind.

        0 until the clock has been read for `lease_s` seconds: it may have stepped forward just
        before, and then every lease looks ended. Those that were ended (`to_timestamp(0)`) are.
        """
        if self._read_since is not None and time.monotonic() < self._read_since + lease_s:
            return 0.0
        since = [step.by_s for step in self._last(lease_s)]
        forward_s = max(sum(since[first:]) for first in range(len(since) + 1))
        return self.latest_s - TOLERANCE_S - forward_s

    def has_stepped_back(self, within_s: float) -> bool:
        """Whether the clock has stepped back in the last `within_s` seconds."""
        return any(step.by_s < 0 for step in self._last(within_s))

    def _last(self, within_s: float) -> list[_Step]:
        since = time.monotonic() - within_s
        return [step for step in self._known[2] if step.observed_at >= since]

    def forward_between(self, then_s: float, now_s: float) -> float:
        """The seconds by which the clock has stepped forward between two Unix times it showed.

        `now_s` was read just now; it may tell of a step that was not observed yet.
        """
        _, high, steps = self._known
        unseen_s = now_s - (high + time.monotonic())
        if unseen_s > TOLERANCE_S:
            steps += (_Step(now_s - unseen_s, unseen_s, time.monotonic()),)
        return sum(step.by_s for step in steps if step.by_s > 0 and then_s <= step.at_s)
