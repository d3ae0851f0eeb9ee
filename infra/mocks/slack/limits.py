"""Slack's rate limits: https://docs.slack.dev/apis/web-api/rate-limits"""

import math
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from threading import Lock

MINUTE_S = 60.0

#: Calls a minute, for one method in one workspace.
TIER_2, TIER_3, TIER_4 = 20, 50, 100
PER_MINUTE = {
    "chat.startStream": TIER_2,
    "chat.stopStream": TIER_2,
    "chat.appendStream": TIER_4,
    "chat.update": TIER_3,
    "conversations.replies": TIER_3,
    "conversations.history": TIER_3,
    "assistant.threads.setStatus": 600,
}

#: `chat.postMessage` takes about one message a second in each channel, and short bursts.
POST_BURST, POST_BURST_S = 5, 4.0


@dataclass
class Limits:
    """Counts calls; off, it lets all of them through."""

    are_on: bool = True
    _calls: dict[tuple[str, str], deque[float]] = field(default_factory=lambda: defaultdict(deque))
    _lock: Lock = field(default_factory=Lock)

    def retry_after_s(self, method: str, channel: str) -> int | None:
        """Count a call; or say in how many whole seconds it may be made."""
        if not self.are_on:
            return None
        if method == "chat.postMessage":
            return self._count((method, channel), POST_BURST, POST_BURST_S)
        if (limit := PER_MINUTE.get(method)) is None:
            return None
        return self._count((method, ""), limit, MINUTE_S)

    def _count(self, key: tuple[str, str], limit: int, span_s: float) -> int | None:
        now = time.monotonic()
        with self._lock:
            calls = self._calls[key]
            while calls and calls[0] <= now - span_s:
                calls.popleft()
            if len(calls) >= limit:
                return max(1, math.ceil(calls[0] + span_s - now))
            calls.append(now)
        return None
