"""Search connectors by name. A new one is one file and one line here, and the contract suite runs
it.
"""

from importlib import import_module

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings.engine import SearchSettings
from turnmill.workers.search.base import Searcher

#: What any server finds something about.
_TRIAL = "Wikipedia"

#: name → "module:Class", imported only when chosen.
SEARCHERS = {"searxng": "turnmill.workers.search.searxng:SearXNG"}


def create_searcher(settings: SearchSettings) -> Searcher:
    """
    Raises:
        SettingsError: there is none of this name, or a setting is missing.
    """
    if settings.name not in SEARCHERS:
        raise SettingsError(
            f"There is no search connector '{settings.name}'. Choose {', '.join(SEARCHERS)} "
            "(TURNMILL_SEARCH__NAME)."
        )
    module, _, attribute = SEARCHERS[settings.name].partition(":")
    searcher: Searcher = getattr(import_module(module), attribute)(settings)
    return searcher


def try_search(settings: SearchSettings) -> int:
    """Search for something once, as turns do; return how many pages are found.

    Raises:
        SettingsError: there is no such connector.
        SearchUnavailable: the server does not answer, or not with results.
    """
    return len(create_searcher(settings).search(_TRIAL))
