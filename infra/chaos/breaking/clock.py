"""`python -m turnmill.infra.chaos.breaking.clock SECONDS worker …`: the command line, in a process
whose wall
clock is wrong by so many seconds (a negative number: behind). Each SIGUSR2 sets it right, or wrong
again: a step.

It is wrapped from outside before anything else is imported; monotonic clocks stay as they are.
SIGUSR1 would not do: Celery's worker answers it with its stack.
"""

import datetime
import itertools
import signal
import sys
import time
from collections.abc import Iterable
from importlib import import_module

STEP = signal.SIGUSR2

_read = time.time
_offset_s = 0.0


def _wrong_time() -> float:
    return _read() + _offset_s


class _WrongDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "_WrongDatetime":
        return cls.fromtimestamp(_wrong_time(), tz)


def step_through(offsets_s: Iterable[float]) -> None:
    """Make `time.time` wrong by the first offset, and at each `STEP` by the next one, in turn."""
    global _offset_s
    offsets = itertools.cycle(offsets_s)
    _offset_s = next(offsets)
    time.time = _wrong_time

    def step(number: int, frame: object) -> None:
        global _offset_s
        _offset_s = next(offsets)

    signal.signal(STEP, step)


if __name__ == "__main__":
    step_through((float(sys.argv.pop(1)), 0.0))
    datetime.datetime = _WrongDatetime  # type: ignore[misc]
    import_module("turnmill.infra.chaos.program").main()
