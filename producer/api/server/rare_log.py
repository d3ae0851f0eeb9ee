"""Log lines for what may happen thousands of times a second."""

import time
from collections import Counter

import structlog

log = structlog.get_logger()


class RareLog:
    """One warning a second at most, with how often each reason came since the last one."""

    def __init__(self, event: str, every_s: float = 1.0) -> None:
        self._event = event
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._next = 0.0

    def note(self, reason: str) -> None:
        self._counts[reason] += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            log.warning(self._event, **self._counts)
            self._counts.clear()
