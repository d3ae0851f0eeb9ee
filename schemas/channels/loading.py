"""Load what belongs to a kind of channel, only where one is configured."""

import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, TypeVar

import structlog

from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.errors import SettingsError

log = structlog.get_logger()

#: Seconds between two looks at the files of a channel's secrets.
LOOK_EVERY_S = 1.0

T = TypeVar("T")
#: Modification time, inode and size of each file; of a missing one None.
_State = list[tuple[int, int, int] | None]


def load_class(known: dict[str, str], name: str, section: ChannelSection) -> Any:
    """Import the class of a channel's kind; `known` maps kinds to "module:Class".

    Raises:
        SettingsError: its library is not installed.
    """
    module, _, attribute = known[section.kind].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("turnmill"):
            raise
        raise SettingsError(
            f"Channel {name!r} needs {error.name}: pip install 'turnmill[{section.kind}]'"
        ) from None


class Renewed(Generic[T]):
    """What is made of a channel's secrets, made anew when a file with one of them has changed.

    So a secret is rotated without a restart. Secrets of environment variables stay as they are:
    nobody can change those of a running process. Threads share it. Whoever has got the former one
    may use it to the end, so it is never closed.
    """

    def __init__(self, name: str, section: ChannelSection, make: Callable[[], T]) -> None:
        """Raises what `make` raises, of which `SettingsError` may come later, too."""
        self._name = name
        self._make = make
        self._files = [it.file for it in section.secrets.values() if it.file is not None]
        self._lock = threading.Lock()
        # Before the files are read: what changes meanwhile is seen at the next look.
        self._seen = self._state()
        self._made = make()
        self._looked_at = time.monotonic()

    def get(self) -> T:
        """Return the latest one; while a file is missing or empty, the one before it."""
        if self._files and time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            with self._lock:
                self._look()
        return self._made

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._made = self._make()
        except SettingsError as error:
            log.warning("channel.secrets_unusable", channel=self._name, reason=error.message)
        else:
            log.info("channel.secrets_renewed", channel=self._name)

    def _state(self) -> _State:
        state: _State = []
        for file in self._files:
            try:
                found = file.stat()
                state.append((found.st_mtime_ns, found.st_ino, found.st_size))
            except OSError:
                state.append(None)
        return state
