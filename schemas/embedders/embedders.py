"""The embedders that a process has loaded, and questions as their vectors."""

import threading
import time
from collections.abc import Callable
from uuid import UUID

import structlog

from turnmill.schemas.embedders.base import Embedder, require_fitting
from turnmill.schemas.embedders.registry import create_embedder
from turnmill.schemas.errors import (
    DatabaseUnavailable,
    InvalidInput,
    SettingsError,
    TurnmillError,
)
from turnmill.schemas.observability.telemetry import counter
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings.engine import EmbedderSettings
from turnmill.schemas.store.knowledge.dense import require_comparable
from turnmill.schemas.store.knowledge.spaces import Asked, Space, live_space

log = structlog.get_logger()

#: Returns a question as a server may read it.
Hide = Callable[[str], str]

#: Before an embedder that could not be loaded, or did not answer, is asked again, seconds.
PAUSE_S = 30.0

#: Of a question's end has a vector, bytes of UTF-8: 500 Chinese characters, or 250 English words.
#: Models of this kind learn from no more, and what they take grows with the square of it.
MAX_ASKED_BYTES = 1500

SEARCHES = counter(
    "knowledge_searches",
    "Searches of collections that have vectors: fused (by words and vectors), or by words alone, "
    "because the embedder is missing (not installed, or of another version; or the vectors cannot "
    "be compared) or failing, refused the question, or had too many before it (busy).",
    "by",
)


class Embedders:
    """Loads each embedder when it is first needed. Threads may share it."""

    def __init__(self, settings: EmbedderSettings) -> None:
        self._settings = settings
        self._loaded: dict[str, Embedder] = {}
        #: Until when an embedder, by name, or a space is left alone, and why.
        self._failed: dict[str | UUID, tuple[float, Exception]] = {}
        #: Of each embedder: held while it is loaded.
        self._locks: dict[str, threading.Lock] = {}

    def load(self, name: str) -> Embedder:
        """Return a loaded embedder.

        Raises:
            SettingsError: there is none of this name, or its library or a setting is missing.
            TurnmillError: it cannot be loaded now.
        """
        with self._locks.setdefault(name, threading.Lock()):
            if name not in self._loaded:
                # Another thread may have failed while this one waited.
                if failed := self._failure(name):
                    raise failed
                try:
                    self._loaded[name] = create_embedder(name, self._settings)
                except Exception as error:
                    self._leave_alone(name, error)
                    raise
            return self._loaded[name]

    def of_space(self, space: Space) -> Embedder:
        """The embedder whose vectors fit a space.

        Raises:
            SettingsError: it is not here, or in another version.
            TurnmillError: it cannot be loaded now.
        """
        embedder = self.load(space.embedder)
        if not embedder.identity.fits(space):
            raise SettingsError(
                f"The vectors are of {space.embedder} {space.version}, and here is "
                f"{embedder.identity.version}. Embed the collection again, or install the former."
            )
        return embedder

    def ask(
        self,
        database: Database,
        tenant_id: UUID,
        collection: str,
        question: str,
        hide: Hide | None = None,
        begin_before: float | None = None,
    ) -> Asked | None:
        """The question in the space of a tenant's collection. None: search by words alone.

        `hide`: what a server may read of the question. Embedders of this machine read all of it.
        `begin_before`: a vector that is not begun by then is not made, seconds, monotonic. No
        transaction is open while the vector is computed. No fault of an embedder is an error of
        whoever asks.

        Raises:
            DatabaseUnavailable: it does not answer.
        """
        space = live_space(database, tenant_id, collection)
        if space is None or not question.strip():
            return None
        if begin_before is not None and time.monotonic() > begin_before:
            SEARCHES.labels("words_busy").inc()
            return None
        failed = self._failure(space.embedder) or self._failure(space.id)
        if failed is None:
            try:
                asked = self._asked(database, space, question, hide)
            except DatabaseUnavailable:
                raise
            except InvalidInput as error:  # says nothing about other questions
                SEARCHES.labels("words_refused").inc()
                log.warning("question.not_embedded", of=space.embedder, reason=error.message)
                return None
            except Exception as error:  # also what libraries raise
                failed = error
                if self._failure(space.embedder) is None:
                    is_of_space = isinstance(error, SettingsError)
                    self._leave_alone(space.id if is_of_space else space.embedder, error)
            else:
                SEARCHES.labels("fused").inc()
                return asked
        is_missing = isinstance(failed, SettingsError)
        SEARCHES.labels("words_missing" if is_missing else "words_failing").inc()
        return None

    def close(self) -> None:
        for embedder in self._loaded.values():
            embedder.close()

    def _asked(self, database: Database, space: Space, question: str, hide: Hide | None) -> Asked:
        embedder = self.of_space(space)
        require_comparable(database, space)
        if hide is not None and embedder.is_remote:
            question = hide(question)
        # Hidden first: half a phone number looks like none.
        end = question.encode(errors="ignore")[-MAX_ASKED_BYTES:].decode(errors="ignore")
        vector = embedder.embed_question(end)
        require_fitting(space, [vector])
        return Asked(space, vector)

    def _failure(self, key: str | UUID) -> Exception | None:
        """Why an embedder or a space is left alone now."""
        until, error = self._failed.get(key, (0.0, None))
        return error if time.monotonic() < until else None

    def _leave_alone(self, key: str | UUID, error: Exception) -> None:
        self._failed[key] = (time.monotonic() + PAUSE_S, error)
        # What a library says may quote the question.
        reason = error.message if isinstance(error, TurnmillError) else type(error).__name__
        log.warning("embedder.unavailable", of=str(key), reason=reason)
