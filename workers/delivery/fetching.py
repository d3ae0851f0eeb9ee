"""Fetch images and sounds that users sent on channels: the turns that they belong to wait.

The webhook only notes what a message came with. This process has the channel's credentials.
"""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Literal, NamedTuple, cast
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
from turnmill.schemas.postgres.clock import is_due
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.workers.delivery.base import MAX_PAUSE_S, Delivery, FetchesFiles
from turnmill.workers.delivery.calls.posting import ending
from turnmill.workers.upkeep.isolated import Resting, first_isolated

log = structlog.get_logger()

#: Pause between two looks, seconds.
EVERY_S = 0.3
#: How long all requests for a file may take: a token or an address, then the download
#: (`DOWNLOAD_S`).
FETCH_S = 75.0
#: A fetch that did not end by then is begun again by anybody: it may take so much longer to store.
LEASE_S = FETCH_S + 15.0
MAX_FETCHES = 5
#: Files that are fetched at the same time, each of another channel.
MAX_AT_ONCE = 8

#: After a step of the clock, a file that is being fetched may be fetched twice, which changes
#: nothing; one that was never tried does not wait for any clock. Others wait longer by a step back,
#: which is an hour at most: no platform is obeyed for longer.
_IS_DUE = f"""
source IS NOT NULL AND (fetches = 0 OR {is_due("fetch_at", MAX_PAUSE_S)})
"""

_DUE = f"""
SELECT id FROM files WHERE {_IS_DUE} AND source ->> 'channel' = ANY(%(channels)s)
  AND id <> ALL(%(resting)s::uuid[])
ORDER BY fetch_at LIMIT {MAX_AT_ONCE}
"""

_TAKE = f"""
UPDATE files SET fetches = fetches + 1,
    fetch_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE id = (SELECT id FROM files WHERE id = %(file)s AND {_IS_DUE} FOR UPDATE SKIP LOCKED)
RETURNING id, tenant_id, name, source, fetches, fetch_at AS leased_until
"""

#: All that ends a fetch is fenced by its lease.
_HELD = "id = %s AND fetch_at = %s AND source IS NOT NULL"

_LATER = f"""
UPDATE files SET fetch_at = clock_timestamp() + make_interval(secs => %s) WHERE {_HELD}
"""

#: This process ends: the fetch does not count.
_GIVE_BACK = f"""
UPDATE files SET fetch_at = clock_timestamp(), fetches = fetches - 1 WHERE {_HELD}
"""

#: Its turn is then answered without it, or fails where it has nothing else.
_GIVE_UP = f"DELETE FROM files WHERE {_HELD}"


class _Owed(NamedTuple):
    id: UUID
    tenant_id: UUID
    name: str
    source: dict[str, str]
    fetches: int
    leased_until: datetime

    @property
    def channel(self) -> str:
        return str(self.source["channel"])

    @property
    def kind(self) -> Literal["image", "audio"]:
        return "image" if self.source["kind"] == "image" else "audio"


class Fetcher:
    """A few threads that fetch, for each channel one file at a time: a platform that is slow holds
    up its own files alone.
    """

    def __init__(
        self, database: Database, parts: PartKeeper, channels: Mapping[str, Delivery]
    ) -> None:
        self._database = database
        self._parts = parts
        self._deliveries = channels
        self._channels = {name for name, each in channels.items() if isinstance(each, FetchesFiles)}
        #: The file that is being fetched of each channel. The looking thread alone adds to it.
        self._busy: dict[str, _Owed] = {}
        self._resting = Resting()
        self._stopping = threading.Event()
        #: Set when a channel is free again.
        self._freed = threading.Event()
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="fetch")
        self._looking = threading.Thread(target=self._look, name="fetcher", daemon=True)

    def start(self) -> None:
        if self._channels:
            self._looking.start()

    def close(self) -> None:
        """Begin no further file, and give back those in work: others begin at once."""
        self._stopping.set()
        self._freed.set()
        if self._looking.is_alive():
            self._looking.join(timeout=5)
        self._threads.shutdown(wait=False, cancel_futures=True)
        with suppress(DatabaseUnavailable):
            for owed in list(self._busy.values()):
                self._database.run(_GIVE_BACK, (owed.id, owed.leased_until))

    def fetch_next(self) -> bool:
        """Fetch the file that waits longest; False: none does. Raises `DatabaseUnavailable`."""
        owed = self._take(self._channels)
        if owed is not None:
            self._fetch(owed)
        return owed is not None

    def _take(self, channels: Iterable[str]) -> _Owed | None:
        given = {"channels": list(channels), "resting": self._resting.ids}
        due = [row.id for row in self._database.fetch(Id, _DUE, given)]
        return first_isolated(self._take_one, due, "file", self._resting)

    def _take_one(self, file_id: UUID) -> _Owed | None:
        rows = self._database.fetch(_Owed, _TAKE, {"file": file_id, "lease_s": LEASE_S})
        return rows[0] if rows else None

    def _fetch(self, owed: _Owed) -> None:
        if owed.fetches > MAX_FETCHES:
            # Each try ended without a word: with the process, perhaps.
            self._give_up(owed, PermanentError("No try ended."))
            return
        try:
            with ending(FETCH_S):
                delivery = cast(FetchesFiles, self._deliveries[owed.channel])
                data = delivery.fetch(owed.source["ref"], self._parts.max_bytes)
            self._parts.fill(owed.tenant_id, owed.id, owed.kind, owed.name, data)
        except (ChannelUnavailable, StorageUnavailable) as error:
            self._again(owed, error)
        except PermanentError as error:
            self._give_up(owed, error)

    def _again(self, owed: _Owed, error: TransientError) -> None:
        if owed.fetches >= MAX_FETCHES:
            self._give_up(owed, error)
            return
        asked_s = error.retry_after_s if isinstance(error, ChannelUnavailable) else None
        wait_s = min(asked_s or 2.0**owed.fetches, MAX_PAUSE_S)
        self._database.run(_LATER, (wait_s, owed.id, owed.leased_until))

    def _give_up(self, owed: _Owed, error: PermanentError | TransientError) -> None:
        log.warning(
            "file.not_fetched",
            file_id=owed.id.hex,
            channel=owed.channel,
            error=error.code,
            # Names the remedy, where there is one: a permission that the app lacks, say.
            reason=error.message,
            tries=owed.fetches,
        )
        self._database.run(_GIVE_UP, (owed.id, owed.leased_until))

    def _look(self) -> None:
        while not self._stopping.is_set():
            try:
                self._begin_all()
            except DatabaseUnavailable as error:
                log.warning("fetcher.stalled", error=error.message)
            except Exception:
                # The turns of all files wait for this thread.
                log.exception("fetcher.failed")
            self._freed.wait(EVERY_S)
            self._freed.clear()

    def _begin_all(self) -> None:
        """Begin to fetch a file of each channel that has one and is free."""
        while not self._stopping.is_set() and len(self._busy) < MAX_AT_ONCE:
            owed = self._take(self._channels - self._busy.keys())
            if owed is None:
                return
            self._busy[owed.channel] = owed
            self._threads.submit(self._work, owed)

    def _work(self, owed: _Owed) -> None:
        try:
            self._fetch(owed)
        except DatabaseUnavailable as error:
            log.warning("fetcher.stalled", error=error.message)
        except Exception:
            # The next try is that of the lease's end.
            log.exception("fetcher.failed", channel=owed.channel)
        finally:
            self._busy.pop(owed.channel, None)
            self._freed.set()
