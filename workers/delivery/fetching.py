"""Fetch images and sounds that users sent on channels: the turns that they belong to wait.

The webhook only notes what a message came with. This process has the channel's credentials.
"""

import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.errors import (
    ChannelUnavailable,
    DatabaseUnavailable,
    PermanentError,
    StorageUnavailable,
    TransientError,
)
from turnmill.schemas.files.parts import PartKeeper
from turnmill.schemas.postgres.database import Database
from turnmill.workers.delivery.base import Delivery, FetchesFiles

log = structlog.get_logger()

#: Pause between two looks, seconds.
EVERY_S = 0.3
#: A fetch that did not end by then is begun again by anybody.
LEASE_S = 60.0
MAX_FETCHES = 5

_TAKE = """
UPDATE files SET fetches = fetches + 1,
    fetch_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE id = (
    SELECT id FROM files WHERE source IS NOT NULL AND fetch_at <= clock_timestamp()
      AND source ->> 'channel' = ANY(%(channels)s)
    ORDER BY fetch_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, tenant_id, name, source, fetches
"""

_LATER = """
UPDATE files SET fetch_at = clock_timestamp() + make_interval(secs => %s)
WHERE id = %s AND source IS NOT NULL
"""

#: Its turn then says that the file is gone.
_GIVE_UP = "DELETE FROM files WHERE id = %s AND source IS NOT NULL"


class _Owed(NamedTuple):
    id: UUID
    tenant_id: UUID
    name: str
    source: dict[str, Any]
    fetches: int

    @property
    def kind(self) -> Literal["image", "audio"]:
        return "image" if self.source["kind"] == "image" else "audio"


class Fetcher:
    """The thread that fetches."""

    def __init__(
        self, database: Database, parts: PartKeeper, channels: Mapping[str, Delivery]
    ) -> None:
        self._database = database
        self._parts = parts
        self._channels = {
            name: each for name, each in channels.items() if isinstance(each, FetchesFiles)
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fetcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def fetch_next(self) -> bool:
        """Fetch the file that waits longest; False: none does. Raises `DatabaseUnavailable`."""
        given = {"lease_s": LEASE_S, "channels": list(self._channels)}
        rows = self._database.fetch(_Owed, _TAKE, given)
        if not rows:
            return False
        owed = rows[0]
        if owed.fetches > MAX_FETCHES:
            # Each try ended without a word: with the process, perhaps.
            self._give_up(owed, PermanentError("No try ended."))
            return True
        try:
            data = self._channels[owed.source["channel"]].fetch(
                owed.source["ref"], self._parts.max_bytes
            )
            self._parts.fill(owed.tenant_id, owed.id, owed.kind, owed.name, data)
        except (ChannelUnavailable, StorageUnavailable) as error:
            self._again(owed, error)
        except PermanentError as error:
            self._give_up(owed, error)
        return True

    def _again(self, owed: _Owed, error: TransientError) -> None:
        if owed.fetches >= MAX_FETCHES:
            self._give_up(owed, error)
            return
        asked_s = error.retry_after_s if isinstance(error, ChannelUnavailable) else None
        self._database.run(_LATER, (asked_s or 2.0**owed.fetches, owed.id))

    def _give_up(self, owed: _Owed, error: PermanentError | TransientError) -> None:
        log.warning(
            "file.not_fetched",
            file_id=owed.id.hex,
            channel=owed.source["channel"],
            error=error.code,
            tries=owed.fetches,
        )
        self._database.run(_GIVE_UP, (owed.id,))

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                while self._channels and not self._stopping.is_set() and self.fetch_next():
                    pass
            except DatabaseUnavailable as error:
                log.warning("fetcher.stalled", error=error.message)
            except Exception:
                # The turns of all other files wait for this thread too.
                log.exception("fetcher.failed")
