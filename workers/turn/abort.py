"""The word that stops one generation, and wakes whoever waits for its next token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Lock


class Interrupted(Exception):
    """The work was aborted: nobody waits for it any more."""


class Abort(Event):
    """An event that tells others when it is set, so that nobody asks it again and again."""

    def __init__(self) -> None:
        super().__init__()
        self._tell: list[Callable[[], None]] = []
        self._lock = Lock()

    def set(self) -> None:
        super().set()
        with self._lock:
            told = list(self._tell)
        for tell in told:
            tell()

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` if the abort is set inside the block, or is set already.

        It is called on the thread that sets it, which must not wait: heartbeats may be its next
        task. It may come twice, and once more after the block.
        """
        with self._lock:
            self._tell.append(tell)
        try:
            if self.is_set():
                tell()
            yield
        finally:
            with self._lock:
                self._tell.remove(tell)


#: See `heeding`.
_HEEDED: ContextVar[Abort | None] = ContextVar("heeded", default=None)


@contextmanager
def heeding(abort: Abort) -> Iterator[None]:
    """Let the abort end the questions that this thread asks servers beside generating: they raise
    `Interrupted` once it is set.
    """
    token = _HEEDED.set(abort)
    try:
        yield
    finally:
        _HEEDED.reset(token)


def heeded() -> Abort:
    """The abort of the block that this thread is in; one that nobody sets, if it is in none."""
    return _HEEDED.get() or Abort()
