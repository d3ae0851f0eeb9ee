"""Leases of work that a thread does beside the turns: documents, sounds and deliveries."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.clock import HAS_STEPPED_BACK, outlasts
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.files.transcriptions import IS_LEASED
from turnmill.workers.upkeep.isolated import isolated

log = structlog.get_logger()


class _Work(NamedTuple):
    """The statements about one table's leases."""

    what: str
    find: str
    cut: str

    @classmethod
    def of(cls, what: str, table: str, key: str, held: str) -> "_Work":
        is_long = f"{held} AND {outlasts('due_at', '%(lease_s)s')} AND {HAS_STEPPED_BACK}"
        find = f"SELECT {key} AS id FROM {table} WHERE {is_long}"
        cut = f"""
UPDATE {table} SET due_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE {key} IN ({find} AND {key} = ANY(%(ids)s) FOR NO KEY UPDATE SKIP LOCKED) RETURNING {key} AS id
"""
        return cls(what, find, cut)


#: They do not name the worker that holds them. One that lives renews its lease in time; one that
#: died before a step back was last seen in the future.
_WORK = (
    _Work.of("document", "documents", "id", "state = 'indexing'"),
    _Work.of("transcription", "transcriptions", "file_id", IS_LEASED),
)


def cut_leases(database: Database, lease_s: float) -> None:
    """Cut leases of before a step back of the clock to `lease_s` seconds, so that the dead do not
    keep them until it shows their times again. Raises `DatabaseUnavailable`.
    """
    for work in _WORK:
        cut_isolated(database, work.what, work.find, work.cut, {"lease_s": lease_s})


def cut_isolated(
    database: Database, what: str, find: str, cut: str, params: dict[str, object]
) -> None:
    """Cut the leases that one statement finds and another cuts. A row that PostgreSQL refuses to
    change fails alone. `what`: whose ids they are, for the log. Raises `DatabaseUnavailable`.
    """

    def run(ids: list[UUID]) -> list[Id]:
        return database.fetch(Id, cut, params | {"ids": ids})

    if done := isolated(run, [row.id for row in database.fetch(Id, find, params)], what):
        log.warning("clock.stepped_back", what=what, lease_count=len(done))


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
