"""Keep the lease of work that a thread does beside the turns."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from turnmill.schemas.errors import DatabaseUnavailable

log = structlog.get_logger()


@contextmanager
def kept(
    renew: Callable[[], bool], lease_s: float, lost: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Renew a lease three times in its length during the block.

    `renew` returns false once the work is no longer ours: `lost` is told then, in another thread.
    """
    done = threading.Event()

    def renewing() -> None:
        while not done.wait(lease_s / 3):
            try:
                if not renew():
                    lost()
                    return
            except DatabaseUnavailable as error:
                log.warning("lease.not_renewed", error=error.message)

    thread = threading.Thread(target=renewing, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
