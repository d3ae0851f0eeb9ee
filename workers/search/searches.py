"""Searches of the web, with a breaker: a server that is down costs turns nothing."""

import threading
import time
from collections.abc import Sequence

import structlog

from turnmill.schemas.citations.addresses import address_of
from turnmill.schemas.citations.sources import Source
from turnmill.schemas.content import storable
from turnmill.schemas.errors import SearchUnavailable, TurnmillError
from turnmill.schemas.observability.telemetry import counter
from turnmill.schemas.safety.invisible import visible
from turnmill.schemas.settings.engine import SearchSettings
from turnmill.workers.search.base import Found, Searcher
from turnmill.workers.search.query import query_of
from turnmill.workers.search.registry import create_searcher
from turnmill.workers.turn.claim import Claim

log = structlog.get_logger()

#: Before a server that failed is asked again, seconds; it may ask for more, and for no more than
#: `MAX_PAUSE_S`.
PAUSE_S = 30.0
MAX_PAUSE_S = 600.0

MAX_TITLE_CHARS = 200
MAX_SNIPPET_CHARS = 1000

SEARCHES = counter(
    "web_searches",
    "Questions that the step search of a bot's ladder came to: found, empty (nothing was found), "
    "failed (the server does not answer, or not with results), paused (it failed shortly before "
    "and was not asked), private (nothing was left of the question that may leave), off (no server "
    "is configured here).",
    "outcome",
)


class Searches:
    """Searches of one process. Threads may share it."""

    def __init__(self, settings: SearchSettings) -> None:
        """
        Raises:
            SettingsError: there is no such connector.
        """
        self._limit = settings.results
        self._searcher: Searcher | None = create_searcher(settings) if settings.url else None
        self._lock = threading.Lock()
        #: Until when the server is left alone, after it failed.
        self._paused_until: float | None = None

    def find(self, claim: Claim, question: str) -> tuple[Source, ...]:
        """Search for a question; return the pages that its turn is shown. Empty, for whatever
        reason: the bot takes its next step. The server's faults raise nothing.

        No transaction should be open meanwhile.
        """
        found: tuple[Source, ...] = ()
        if self._searcher is None:
            outcome = "off"
        elif not (query := query_of(claim, question)):
            outcome = "private"
        elif not self._may_ask():
            outcome = "paused"
        else:
            outcome, found = self._ask(self._searcher, query)
        SEARCHES.labels(outcome).inc()
        return found

    def _ask(self, searcher: Searcher, query: str) -> tuple[str, tuple[Source, ...]]:
        try:
            found = pages(searcher.search(query), self._limit)
        except Exception as error:  # also what a connector lets through
            self._pause(error)
            return "failed", ()
        self._paused_until = None
        return ("found" if found else "empty"), found

    def _may_ask(self) -> bool:
        """After a pause one thread asks; until its answer is there, the others search nothing."""
        with self._lock:
            if self._paused_until is None:
                return True
            if time.monotonic() < self._paused_until:
                return False
            self._paused_until = time.monotonic() + PAUSE_S
            return True

    def _pause(self, error: Exception) -> None:
        asked_s = error.retry_after_s if isinstance(error, SearchUnavailable) else None
        pause_s = min(max(asked_s or 0.0, PAUSE_S), MAX_PAUSE_S)
        with self._lock:
            self._paused_until = time.monotonic() + pause_s
        # What a library says may quote the question.
        reason = error.message if isinstance(error, TurnmillError) else type(error).__name__
        remedy = error.remedy if isinstance(error, SearchUnavailable) else None
        log.warning("search.unavailable", reason=reason, remedy=remedy, pause_s=pause_s)


def pages(found: Sequence[Found], limit: int) -> tuple[Source, ...]:
    """The first pages that people can be sent to, each once, as sources of a turn."""
    kept: dict[str, Source] = {}
    for each in found:
        source = _source(each)
        if source is not None:
            kept.setdefault(source.uri, source)
        if len(kept) == limit:
            break
    return tuple(kept.values())


def _source(found: Found) -> Source | None:
    """None: it says nothing, or has no address of http or https."""
    url = address_of(storable(found.url))
    title, snippet = _text(found.title, MAX_TITLE_CHARS), _text(found.snippet, MAX_SNIPPET_CHARS)
    if url is None or not (title or snippet):
        return None
    return Source(uri=url, title=title or url, content=snippet or title, score=0.0, url=url)


def _text(text: str, most: int) -> str:
    """Words in one line, without what nobody sees."""
    words = " ".join(visible(storable(text[: 4 * most])).split())
    return words if len(words) <= most else f"{words[: most - 1]}…"
