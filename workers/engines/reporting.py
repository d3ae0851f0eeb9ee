"""Signs of life from steps that take minutes on a slow machine."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger(__name__)

#: Between two lines of the log, seconds.
EVERY_S = 5.0


@contextmanager
def reporting(event: str, **facts: object) -> Iterator[None]:
    """Log the event every few seconds, with the seconds so far, until the block ends."""
    ended = threading.Event()
    began_at = time.monotonic()

    def report() -> None:
        while not ended.wait(EVERY_S):
            log.info(event, seconds=round(time.monotonic() - began_at), **facts)

    thread = threading.Thread(target=report, name="reporting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
