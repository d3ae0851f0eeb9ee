"""Erasures: users who are to be forgotten are, and again after a restore of an older backup.

Each worker process runs an eraser, whose first act is to compare the list of erasures with its copy
outside the database (`ledger.py`). A job that ends half-way resumes: what is erased is not found
again.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psycopg
import structlog

from turnmill.schemas.errors import TransientError
from turnmill.schemas.files.storage import Storage
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.memory.erasing import erase_conversation, erase_person
from turnmill.schemas.store.memory.erasures import (
    Asked,
    Erasure,
    finish_erasure,
    list_erasures,
    list_searched,
)
from turnmill.schemas.store.memory.finding import (
    Person,
    find_conversations,
    find_keys,
    find_late,
)
from turnmill.schemas.store.memory.ledger import merge_ledger
from turnmill.schemas.store.memory.orphans import delete_orphans

log = structlog.get_logger()

#: How often a worker looks for erasures, and compares the list with its copy, seconds.
LOOK_EVERY_S, MERGE_EVERY_S = 5.0, 600.0

#: So long a round searches for files, seconds: the next users are not kept waiting.
SEARCH_S = 30.0

#: The longest wait for replies that others were promised in the user's conversations.
MOST_WAIT = timedelta(hours=1)


class Erased(NamedTuple):
    """What one pass over a user's conversations did."""

    erasure: Erasure
    #: Rows emptied or deleted, by table.
    counts: Counter[str]
    #: Conversations in which something is still being answered or sent.
    waiting: int
    #: An earlier pass looked for what the user said, and this one did not.
    only_files: bool = False


def erase(
    database: Database,
    storage: Storage,
    erasure: Erasure,
    on_progress: Callable[[Counter[str]], None] = lambda counts: None,
) -> Erased:
    """Erase what a user said until the erasure, as far as nothing of it is open, and the files.

    Raises:
        DatabaseUnavailable, StorageUnavailable: what was erased until then stays so.
    """
    erased = _erase_said(database, erasure, on_progress)
    _erase_files(database, storage, [erased])
    return erased


def erase_all(
    database: Database,
    storage: Storage,
    *,
    search_s: float = math.inf,
    said: set[Asked] | None = None,
) -> list[Erased]:
    """Do what is not done of all erasures. Files are searched for last, `search_s` long, of which
    each tenant has an equal share, and one slice at least. Raises as `erase`, once all were tried.

    `said`: erasures of which an earlier call has left nothing but files, which may take days to be
    deleted; this call keeps it up to date. Once their files are gone, what was said is looked for
    again before they are done: a failover or a restore may have brought it back meanwhile.
    """
    said = set() if said is None else said
    pending = list_erasures(database, is_open=True)
    said.intersection_update(list_searched(database) if said else ())
    erased = [Erased(each, Counter(), 0, only_files=True) for each in pending if each.asked in said]
    failed: list[Exception] = []
    for each in find_keys(database, [each for each in pending if each.asked not in said]):
        with _kept(failed):
            erased.append(_erase_said(database, each))
            if not erased[-1].waiting:
                said.add(each.asked)
    ends = time.monotonic() + search_s
    tenants = list(dict.fromkeys(each.erasure.tenant_id for each in erased))
    for done, tenant_id in enumerate(tenants):
        mine = [each for each in erased if each.erasure.tenant_id == tenant_id]
        share_s = (ends - time.monotonic()) / (len(tenants) - done)
        with _kept(failed):
            _erase_files(database, storage, mine, share_s)
    if failed:
        raise failed[0]
    return erased


def _erase_said(
    database: Database,
    erasure: Erasure,
    on_progress: Callable[[Counter[str]], None] = lambda counts: None,
) -> Erased:
    """Erase all but files. Without the user's key (`find_keys`) nothing is known of the user."""
    counts: Counter[str] = Counter()
    waiting: set[UUID] = set()
    failed: list[Exception] = []
    if erasure.key is not None:
        person = Person(erasure.tenant_id, erasure.key, erasure)
        waits = datetime.now(UTC) - erasure.at < MOST_WAIT
        for conversation_id in chain(
            find_conversations(database, person), find_late(database, person, waiting)
        ):
            changed = None
            with _kept(failed, psycopg.Error):  # what ails PostgreSQL as a whole is another
                changed = erase_conversation(database, person, conversation_id, waits=waits)
            if changed is None:
                waiting.add(conversation_id)
            counts += changed or Counter()
            on_progress(counts)
        counts += erase_person(database, person)
    if failed:
        raise failed[0]
    erased = Erased(erasure, counts, len(waiting))
    _finish(database, erased)
    return erased


def _erase_files(
    database: Database, storage: Storage, erased: Sequence[Erased], within_s: float = math.inf
) -> None:
    """Delete files that users of one tenant sent, and finish the erasures that waited for it, if
    this pass looked for what was said.
    """
    counts = erased[0].counts
    counts += delete_orphans(database, storage, erased[0].erasure.tenant_id, within_s=within_s)
    for each in erased:
        _finish(database, each)


def _finish(database: Database, erased: Erased) -> None:
    is_open = erased.waiting or erased.only_files
    if not is_open and finish_erasure(database, erased.erasure):
        key_hash = erased.erasure.key_hash.hex()[:12]
        log.info("user.erased", key_hash=key_hash, **erased.counts)


@contextmanager
def _kept(failed: list[Exception], kind: type[Exception] = Exception) -> Iterator[None]:
    """Keep an error until all others were tried."""
    try:
        yield
    except kind as error:
        log.warning("erasure.failed", error=type(error).__name__)
        failed.append(error)


class Eraser:
    """The thread that erases."""

    def __init__(self, database: Database, storage: Storage, ledger: Path) -> None:
        self._database = database
        self._storage = storage
        self._ledger = ledger
        self._merged_at = -MERGE_EVERY_S
        #: Erasures that the copy has, and those of which only files are left.
        self._merged: set[Asked] = set()
        self._said: set[Asked] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eraser", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            # What is half done is rolled back.
            self._thread.join(timeout=1)

    def _run(self) -> None:
        while True:
            try:
                self._round()
            except TransientError as error:
                if not self._stopping.is_set():
                    log.warning("erasures.stalled", error=error.message)
            except Exception:
                log.exception("erasures.failed")
            if self._stopping.wait(LOOK_EVERY_S):
                return

    def _round(self) -> None:
        pending = {each.asked for each in list_erasures(self._database, is_open=True)}
        if pending - self._merged or time.monotonic() - self._merged_at >= MERGE_EVERY_S:
            self._merge(pending)
        for each in erase_all(self._database, self._storage, search_s=SEARCH_S, said=self._said):
            if each.waiting:
                log.info("user.erasure_waits", conversations=each.waiting)

    def _merge(self, pending: set[Asked]) -> None:
        try:
            merged = merge_ledger(self._database, self._ledger)
        except OSError as error:
            log.warning("erasures.not_copied", reason=error.strerror, path=str(self._ledger))
        else:
            if merged.to_database:
                log.warning("erasures.reapplied", users=merged.to_database)
        # Whether it was copied or not: a folder that cannot be written stays so for a while.
        self._merged_at = time.monotonic()
        self._merged = pending
        # Should a backup have been restored meanwhile, what was said is there again.
        self._said.clear()
