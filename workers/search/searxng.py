"""SearXNG, a metasearch engine on one's own server.

https://docs.searxng.org/dev/search_api.html
"""

import json
from base64 import b64encode
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from turnmill.schemas.errors import (
    ChannelUnavailable,
    DeliveryRefused,
    SearchUnavailable,
    SettingsError,
)
from turnmill.schemas.settings.engine import SearchSettings
from turnmill.workers.delivery.calls.posting import Answer, request
from turnmill.workers.search.base import Found

#: Of an answer. A page of results has some ten kilobytes.
MAX_BODY_BYTES = 1 << 20
#: Results that are looked at.
MAX_RESULTS = 100

#: What begins a word that SearXNG takes for a command: an engine, another site, a language, a
#: timeout. `!!g` answers with a redirect to that site.
#: https://docs.searxng.org/user/search-syntax.html
_COMMANDS = "!:<?"

#: By status: what is wrong, and what to do.
_REMEDIES = {
    400: "Set TURNMILL_SEARCH__LANGUAGE to a code that the server lists.",
    401: "Write its login into TURNMILL_SEARCH__URL: https://user:password@host.",
    403: "Add 'json' to 'formats' in the section 'search' of its settings.yml, and restart it.",
    404: "Does TURNMILL_SEARCH__URL name its whole address, with the path before /search?",
    405: "Let the proxy before it pass POST to /search. Questions are not sent in addresses, which "
    "access logs keep.",
    429: "Let this machine pass its limiter: 'pass_ip' in its limiter.toml.",
}
_NO_RESULTS = "Is TURNMILL_SEARCH__URL the address of a SearXNG?"


class SearXNG:
    def __init__(self, settings: SearchSettings) -> None:
        if settings.url is None:
            raise SettingsError("The search connector 'searxng' needs TURNMILL_SEARCH__URL.")
        self._url = settings.url.get_secret_value().rstrip("/")
        self._timeout_s = settings.timeout_s
        parameters = {
            "format": "json",
            "safesearch": str(settings.safesearch),
            "language": settings.language,
            "engines": ",".join(settings.engines),
        }
        self._parameters = {name: value for name, value in parameters.items() if value}
        #: Compressed answers are asked for by nobody: their size would say nothing.
        self._headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": "turnmill",
        } | _login(self._url)

    def search(self, query: str) -> list[Found]:
        words = (word.lstrip(_COMMANDS) for word in query.split())
        parameters = urlencode({"q": " ".join(words), **self._parameters})
        # Posted: servers and proxies write addresses, with their parameters, into logs.
        body = parameters.encode()
        try:
            answer = request(
                "POST",
                f"{self._url}/search",
                body,
                self._headers,
                self._timeout_s,
                max_body=MAX_BODY_BYTES + 1,
            )
        except DeliveryRefused as error:
            raise SearchUnavailable(error.message, "Change TURNMILL_SEARCH__URL.") from None
        except ChannelUnavailable as error:
            raise SearchUnavailable(
                f"The search server {error.message}",
                "Does it run, and does TURNMILL_SEARCH__URL lead to it?",
            ) from None
        return _results(answer)


def _login(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}


def _results(answer: Answer) -> list[Found]:
    """The results in an answer, none of whose own words are part of an error."""
    if answer.status != 200:
        if 300 <= answer.status < 400:
            raise SearchUnavailable(
                f"The search server redirects ({answer.status}), which is not followed.",
                "Set TURNMILL_SEARCH__URL to the address that it leads to.",
            )
        raise SearchUnavailable(
            f"The search server answers {answer.status}.",
            _REMEDIES.get(answer.status, "Its log says why."),
            retry_after_s=answer.retry_after_s,
        )
    if len(answer.body) > MAX_BODY_BYTES:
        raise SearchUnavailable(
            f"The search server answers with more than {MAX_BODY_BYTES >> 20} MiB.", _NO_RESULTS
        )
    try:
        rows = json.loads(answer.body)["results"]
        return [_found(row) for row in rows[:MAX_RESULTS]]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SearchUnavailable(
            "The search server answers no results in JSON.", _NO_RESULTS
        ) from None


def _found(row: Any) -> Found:
    """Read a result; those of some kinds lack a field. Raises `TypeError`: it is no object."""
    fields = dict[str, object](row)
    url, title, snippet = (fields.get(name) or "" for name in ("url", "title", "content"))
    return Found(str(url), str(title), str(snippet))
