"""How often a place is sent to, where a platform drops without a word what is more."""

import threading
import time
from collections import deque


class Pace:
    """At most so many messages within some seconds for each place, from one process."""

    def __init__(self, most: int, within_s: float) -> None:
        self._most, self._within_s = most, within_s
        #: When the last ones were sent, by place (`time.monotonic`).
        self._sent: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def take(self, place: str) -> float:
        """Count one more message; or return how long it has to wait, seconds: until there is room
        for as many again."""
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            times = self._sent.setdefault(place, deque(maxlen=self._most))
            if len(times) == self._most:
                return times[-1] + self._within_s - now
            times.append(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget what is long enough ago."""
        for place, times in list(self._sent.items()):
            while times and times[0] <= now - self._within_s:
                times.popleft()
            if not times:
                del self._sent[place]
