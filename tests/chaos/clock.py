"""`python -m turnmill.chaos.clock SECONDS worker …`: the command line, in a process whose wall
clock is wrong by so many seconds (a negative number: behind). SIGUSR1 sets it right, and wrong
again: a jump.

It is wrapped from outside before anything else is imported; monotonic clocks stay as they are.
"""

import datetime
import signal
import sys
import time
from importlib import import_module

_read = time.time
_offset_s = 0.0


def _wrong_time() -> float:
    return _read() + _offset_s


class _WrongDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "_WrongDatetime":
        return cls.fromtimestamp(_wrong_time(), tz)


def shift(seconds: float) -> None:
    """Make `time.time` and `datetime.now` wrong from now on, and jump at each SIGUSR1."""
    global _offset_s
    _offset_s = seconds
    time.time = _wrong_time
    datetime.datetime = _WrongDatetime  # type: ignore[misc]

    def jump(number: int, frame: object) -> None:
        global _offset_s
        _offset_s = 0.0 if _offset_s else seconds

    signal.signal(signal.SIGUSR1, jump)


if __name__ == "__main__":
    shift(float(sys.argv.pop(1)))
    import_module("turnmill.chaos.program").main()
