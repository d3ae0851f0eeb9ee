"""Access tokens that a platform lends for some hours: fetched once, and shared by threads."""

import threading
import time
from collections.abc import Callable

#: A token is fetched anew so long before it ends, seconds.
_MARGIN_S = 300.0

#: Returns a token, and for how many seconds it is good. Raises as `Delivery` says.
Fetch = Callable[[], tuple[str, float]]


class Token:
    """One token. A thread that needs a new one waits for the thread that fetches it."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._value = ""
        self._good_until = 0.0

    def get(self) -> str:
        """Return a token that is good now. Raises as `Delivery` says."""
        with self._lock:
            if time.monotonic() >= self._good_until:
                self._value, good_for_s = self._fetch()
                margin_s = min(_MARGIN_S, good_for_s / 2)
                self._good_until = time.monotonic() + good_for_s - margin_s
            return self._value

    def forget(self, value: str) -> None:
        """The platform does not take this token any more."""
        with self._lock:
            if self._value == value:
                self._good_until = 0.0
