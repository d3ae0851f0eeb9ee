"""Documents say where people find them, and citations link there."""

import pytest

from tests.integration.knowledge.conftest import Library
from turnmill.producer.knowledge.sync import Change
from turnmill.schemas.citations.addresses import MAX_URL_CHARS, address_of
from turnmill.schemas.errors import InvalidInput

BASE = "https://help.example.com/shop"
PAGE = """<html><head><title>Hours</title><link rel="CANONICAL next" href="{}">
<link rel="canonical" href="https://second.example/"></head><body>
<p>Closed on Sundays.</p></body>"""
FAQ = "question,answer,url\nDo you sell kettles?,Yes.,https://shop.example/kettles\nWhere?,Bremen.,"


def url_of(library: Library, question: str) -> str | None:
    return library.search(question)[0].url


def test_a_documents_path_is_joined_to_the_base(library: Library) -> None:
    library.write("more/sent back (1).md", "Kettles are sent back.")
    library.sync(base_url=BASE)
    found = url_of(library, "kettles back")
    assert found == f"{BASE}/more/sent%20back%20%281%29.md"
    assert library.sync(base_url=f"{BASE}/")["more/sent back (1).md"].change is Change.UNCHANGED
    assert library.sync()["more/sent back (1).md"].change is Change.CHANGED
    assert url_of(library, "kettles back") is None


def test_a_page_and_a_row_may_name_their_own_addresses(library: Library) -> None:
    library.write("hours.html", PAGE.format("https://www.example.com/hours"))
    library.write("odd.html", PAGE.format("javascript:alert(1)").replace("Sundays", "holidays"))
    library.write("faq.csv", FAQ)
    library.sync(base_url=BASE)
    assert url_of(library, "Closed on Sundays?") == "https://www.example.com/hours"
    assert url_of(library, "Closed on holidays?") == "https://second.example/"
    assert url_of(library, "Do you sell kettles?") == "https://shop.example/kettles"
    assert url_of(library, "Where, Bremen?") == f"{BASE}/faq.csv"


def test_a_row_with_an_address_that_is_none_is_named(library: Library) -> None:
    library.write("faq.csv", FAQ.replace("https://shop", "ftp://shop"))
    [synced] = library.sync().values()
    assert synced.change is Change.UNREADABLE
    assert "line 2, column 'url': is no address of http or https" in synced.reason


@pytest.mark.parametrize("url", ["help.example.com", "ftp://x/", "https://x/?a", "https://x/#a"])
def test_a_base_that_no_path_can_be_joined_to_is_refused(library: Library, url: str) -> None:
    with pytest.raises(InvalidInput, match="no address that paths can be joined to"):
        library.sync(base_url=url)


@pytest.mark.parametrize(
    "text",
    ["", "x", "//x.example/", "javascript:alert(1)", "data:text/html,x", "https://", "http:///x",
     "https://bank.example@evil.example/", "https://x.example/a b", "https://x.example/\x00",
     "https://[::1", "https:\\\\x.example", "https://x.example/" + "a" * MAX_URL_CHARS],
)  # fmt: skip
def test_what_is_no_address_of_the_web_is_none(text: str) -> None:
    assert address_of(text) is None


def test_an_address_of_the_web_is_kept_as_it_is() -> None:
    for url in ("https://x.example", "http://[::1]:8080/a?b=1#c", "https://例え.jp/帮助"):
        assert address_of(f" {url}\n") == url
