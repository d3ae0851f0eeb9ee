"""The turns that this process has ended lately, by lane.

The heartbeat writes them into the worker's row, which it updates twice a second anyway: so the rate
of the whole fleet costs no statement, no index and no scan.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from threading import Lock

from turnmill.schemas.store.fleet.liveness import ENDED_WINDOWS_S

#: Turns are counted together that ended within so many seconds.
_BIN_S = 5.0


class Ended:
    """Counts turns in bins. Threads share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        #: The bins that a window still reaches, the oldest first: when each began, and its turns.
        self._bins: deque[tuple[float, Counter[str]]] = deque()

    def note(self, lane: str) -> None:
        """Count a turn that has just ended."""
        with self._lock:
            now = self._clock()
            if not self._bins or now - self._bins[-1][0] >= _BIN_S:
                self._bins.append((now, Counter()))
            self._bins[-1][1][lane] += 1

    def lately(self) -> dict[str, list[int]]:
        """Count the turns of each lane that ended within each of `ENDED_WINDOWS_S`."""
        with self._lock:
            now = self._clock()
            while self._bins and now - self._bins[0][0] > max(ENDED_WINDOWS_S):
                self._bins.popleft()
            counts = [_sum(self._bins, now - window_s) for window_s in ENDED_WINDOWS_S]
        return {lane: [count[lane] for count in counts] for lane in counts[-1]}


def _sum(bins: deque[tuple[float, Counter[str]]], since: float) -> Counter[str]:
    return sum((turns for began_at, turns in bins if began_at >= since), Counter())
