"""Slack on a bad day: the mock, failing at random as a real platform does."""

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turnmill.infra.mocks.serving import Call, Reply
from turnmill.infra.mocks.slack.api import SlackAPI

#: What becomes of a call, and of how many of a thousand. `dies`: it works, and nobody is told.
_MOODS = {"429": 15, "500": 10, "silence": 5, "dies": 10}
#: The same while the platform is out of order.
_OUTAGE_MOODS = {"500": 600, "silence": 250, "dies": 150}


class MoodySlack(SlackAPI):
    """A workspace for one run. Every call is written to a file, with what became of it."""

    def __init__(self, seed: int, calls: Path) -> None:
        super().__init__(limited=False)
        self._file = calls.open("a", buffering=1)
        self._chance = random.Random(seed)
        self._is_out = threading.Event()

    def call(self, call: Call) -> Reply | None:
        method, kind = self.name(call), self._mood()
        if kind is not None:
            self.order(method, kind)
        reply = super().call(call)
        shown = json.dumps(reply.data)[:200] if reply else None
        line = {"at": time.time(), "method": method, "given": call.given, "answer": shown}
        self._file.write(json.dumps(line) + "\n")
        return reply

    def close(self) -> None:
        super().close()
        self._file.close()

    def _mood(self) -> str | None:
        drawn = self._chance.uniform(0, 1000)
        for kind, share in (_OUTAGE_MOODS if self._is_out.is_set() else _MOODS).items():
            drawn -= share
            if drawn < 0:
                return kind
        return None

    @contextmanager
    def outage(self) -> Iterator[None]:
        """No call is answered as it should be; some work all the same."""
        self._is_out.set()
        try:
            yield
        finally:
            self._is_out.clear()
