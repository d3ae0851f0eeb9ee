"""The indexer: reads the documents that are queued, and gives them their passages.

Every worker process runs one. A document belongs to one indexer at a time, by a lease that it
renews; what a dead or paused one leaves is due again when its lease ends. A child process does the
reading, so that a document that takes too much harms nobody's turns. Where its collection is
searched by meaning, its passages have their vectors next.
"""

import math
import threading
import time
from functools import partial

import structlog

from turnmill.schemas.embedders.embedders import PAUSE_S, Embedders
from turnmill.schemas.embedders.filling import fill
from turnmill.schemas.errors import (
    DatabaseUnavailable,
    InvalidInput,
    NotFound,
    PermanentError,
    SettingsError,
    StorageUnavailable,
    TurnmillError,
)
from turnmill.schemas.files.files import Files
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.indexing import (
    MAX_ATTEMPTS,
    Task,
    claim,
    content_of,
    due,
    fail,
    renew,
    settle,
    try_again,
)
from turnmill.schemas.store.knowledge.spaces import space_of
from turnmill.workers.readers.cutting import Read
from turnmill.workers.readers.reading import forget_leftovers, read_isolated
from turnmill.workers.upkeep.clock import DatabaseClock
from turnmill.workers.upkeep.isolated import Resting, first_isolated
from turnmill.workers.upkeep.keeping import kept

log = structlog.get_logger()

#: How often an indexer looks for documents while there are none, seconds.
POLL_S = 0.5
#: Before another attempt at a document, seconds.
RETRY_S = 2.0


def index_next(
    database: Database,
    files: Files,
    lease_s: float,
    latest_s: float = math.inf,
    resting: Resting | None = None,
) -> Task | None:
    """Index the document that has waited longest. None: no document is due.

    `latest_s`: the Unix time by which leases are judged. `resting`: the documents that PostgreSQL
    refused to change in earlier calls; this call keeps it up to date.

    Raises:
        DatabaseUnavailable: the document is due again when its lease ends.
    """
    resting = Resting() if resting is None else resting
    first = due(database, latest_s, resting.ids)
    task = first_isolated(partial(claim, database, lease_s, latest_s), first, "document", resting)
    if task is None:
        return None
    if task.attempt > MAX_ATTEMPTS:
        _end(database, task, "no_result", f"Indexing ended {MAX_ATTEMPTS} times without a result.")
        return task
    try:
        with kept(lambda: renew(database, task, lease_s), lease_s):
            read = _read(database, files, task)
            passages = [each._asdict() for each in read.passages]
            is_mine = settle(database, task, read.title, passages, read.url)
        log.info("document.indexed" if is_mine else "document.fenced", **_of(task))
    except InvalidInput as error:
        _end(database, task, error.code, error.message)
    except SettingsError as error:
        _end(database, task, "reader_missing", error.message)
    except NotFound:
        _end(database, task, "file_gone", "Its file was deleted.")
    except (PermanentError, StorageUnavailable) as error:
        _again(database, task, error)
    return task


def _read(database: Database, files: Files, task: Task) -> Read:
    content = content_of(database, task.document_id)
    if content is None:
        if task.file_id is None:
            raise NotFound
        content = files.read(files.find(task.tenant_id, task.file_id))
    return read_isolated(task.uri, content)


def _again(database: Database, task: Task, error: PermanentError | StorageUnavailable) -> None:
    """The child died, or its file cannot be read now: this says little about the document."""
    log.warning("document.not_read", error=error.message, **_of(task))
    if task.attempt < MAX_ATTEMPTS:
        try_again(database, task, RETRY_S)
    elif isinstance(error, StorageUnavailable):
        _end(database, task, error.code, error.public_message)
    else:
        _end(database, task, "reader_died", "The process that read it died each time.")


def _end(database: Database, task: Task, code: str, message: str) -> None:
    if fail(database, task, code, message):
        log.warning("document.failed", code=code, **_of(task))


def _of(task: Task) -> dict[str, object]:
    return {"document_id": task.document_id.hex, "attempt": task.attempt}


class Indexer:
    """The thread that indexes."""

    def __init__(
        self,
        database: Database,
        files: Files,
        lease_s: float,
        embedders: Embedders | None = None,
        clock: DatabaseClock | None = None,
    ) -> None:
        """Without embedders, no passage has its vector here. `clock`: what this process knows of
        the database's.
        """
        self._database = database
        self._files = files
        self._lease_s = lease_s
        self._embedders = embedders
        self._clock = clock or DatabaseClock()
        self._resting = Resting()
        #: No vectors are made before then, monotonic.
        self._embeds_from = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Begin no further document. The one that is being read is due again in other workers."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def _run(self) -> None:
        forget_leftovers()
        while not self._stopping.is_set():
            try:
                latest_s = self._clock.judging_s(self._lease_s)
                if task := index_next(
                    self._database, self._files, self._lease_s, latest_s, self._resting
                ):
                    self._embed(task)
                    continue
            except DatabaseUnavailable as error:
                log.warning("indexer.stalled", error=error.message)
            except Exception:
                # One document must not end the indexing of all others.
                log.exception("indexer.failed")
            self._stopping.wait(POLL_S)

    def _embed(self, task: Task) -> None:
        """Make the vectors of a document's passages. Without them it is found by its words, until
        `turnmill knowledge sync` or `embed` makes them.
        """
        if self._embedders is None or time.monotonic() < self._embeds_from:
            return
        if (space := space_of(self._database, task.collection_id)) is None:
            return
        try:
            embedder = self._embedders.of_space(space)
            refused = 0
            for progress in fill(self._database, space, embedder, task.document_id):
                refused = progress.refused
                if self._stopping.is_set():
                    return
            if refused:
                log.warning("document.partly_embedded", refused=refused, **_of(task))
        except DatabaseUnavailable:
            raise
        except Exception as error:  # also what libraries raise, which may quote a passage
            self._embeds_from = time.monotonic() + PAUSE_S
            reason = error.message if isinstance(error, TurnmillError) else type(error).__name__
            log.warning("document.not_embedded", reason=reason, **_of(task))
