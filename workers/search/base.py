"""What a search connector is."""

from typing import NamedTuple, Protocol

from turnmill.schemas.settings.engine import SearchSettings


class Found(NamedTuple):
    """A page as a server names it: nothing of it has been checked."""

    url: str
    title: str
    snippet: str


class Searcher(Protocol):
    """A connector to one server. Many threads may call one."""

    def __init__(self, settings: SearchSettings) -> None: ...

    def search(self, query: str) -> list[Found]:
        """Return what is found, the best first; empty: the server works, and found nothing.

        It takes about `SearchSettings.timeout_s` at most, and bounds what it reads.

        Raises:
            SearchUnavailable: the server does not answer in time, or not with results.
        """
        ...
