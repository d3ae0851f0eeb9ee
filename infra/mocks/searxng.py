"""SearXNG, as far as a search asks it: what it answers, and how it refuses.

https://docs.searxng.org/dev/search_api.html. The shapes are those of a server of August 2026.
"""

import re
from typing import NamedTuple

from turnmill.infra.mocks.serving import Call, MockAPI, Reply

HTML = {"Content-Type": "text/html; charset=utf-8"}
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-zA-Z]{2})?|all|auto")
_WORD = re.compile(r"[a-z0-9]{3,}|[\u4e00-\u9fff]{2}")


class Page(NamedTuple):
    """A page of the web that its engine knows."""

    url: object
    title: object
    content: object


class SearXNG(MockAPI):
    """Finds pages that share a word with the query."""

    def __init__(self, *pages: Page) -> None:
        super().__init__()
        self.pages = list(pages)
        #: `search.formats` of its settings.yml. JSON is none of the formats that it comes with.
        self.formats = {"html", "json"}
        #: A proxy before it may refuse some; the server itself takes both.
        self.verbs = {"GET", "POST"}
        #: The parameters of all searches, those in their addresses, and their headers, in their
        #: order.
        self.queries: list[dict[str, str]] = []
        self.addresses: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        #: What stands in the place of a search's answer.
        self.body: bytes | None = None

    def name(self, call: Call) -> str:
        """`search`, `healthz`."""
        return call.path.rpartition("/")[2]

    def limited(self, retry_after_s: float) -> Reply:
        return Reply(429, b"Too Many Requests", HTML)

    def refused(self, error: str) -> Reply:
        """`html`: an instance's own page, as behind a login; `redirect`: to another host."""
        if error == "html":
            return Reply(200, b"<!doctype html>\n<title>Sign in</title>", HTML)
        if error == "redirect":
            return Reply(302, b"", {**HTML, "Location": "http://127.0.0.1:1/search"})
        return super().refused(error)

    def answer(self, call: Call) -> Reply:
        if self.name(call) != "search":
            return Reply(200, b"OK", {"Content-Type": "text/plain"})
        if call.verb not in self.verbs:
            return Reply(405, b"<html><title>405 Not Allowed</title></html>", HTML)
        # Its form is posted or an address: it reads both.
        given = {**call.query, **call.given}
        self.queries.append(given)
        self.addresses.append(call.query)
        self.headers.append(call.headers)
        asked = given.get("format", "html")
        if asked not in self.formats:
            return Reply(403, b"<!doctype html>\n<title>403 Forbidden</title>", HTML)
        if self.body is not None:
            return Reply(200, self.body)
        if not (query := given.get("q")):
            return Reply(400, {"error": "No query"})
        language = given.get("language", "all")
        if not _LANGUAGE.fullmatch(language):
            return Reply(400, {"error": f"Invalid value {language} for parameter language"})
        if any(word.startswith("!!") for word in query.split()):
            # An external bang: https://docs.searxng.org/user/search-syntax.html
            return Reply(302, b"", {**HTML, "Location": "https://www.example.com/"})
        return Reply(200, self._found(query))

    def _found(self, query: str) -> dict[str, object]:
        asked = set(_WORD.findall(query.lower()))
        near = [
            page for page in self.pages
            if asked & set(_WORD.findall(f"{page.title} {page.content}".lower()))
        ]  # fmt: skip
        return {
            "query": query,
            "results": [_result(page, place) for place, page in enumerate(near, start=1)],
            "answers": [],
            "corrections": [],
            "infoboxes": [],
            "suggestions": [],
            "unresponsive_engines": [] if near else [["brave", "timeout"]],
        }


def _result(page: Page, place: int) -> dict[str, object]:
    return {
        "template": "default.html", "title": page.title, "content": page.content, "img_src": "",
        "iframe_src": "", "audio_src": "", "thumbnail": "", "publishedDate": None, "pubdate": "",
        "length": None, "views": "", "author": "", "metadata": "", "priority": "",
        "engines": ["wikipedia"], "open_group": False, "close_group": False, "positions": [place],
        "score": 1.0 / place, "category": "general", "url": page.url, "engine": "wikipedia",
        "parsed_url": ["https", "en.example", "/", "", "", ""],
    }  # fmt: skip
