"""What every search connector must do, and SearXNG's own rules."""

import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress

import pytest

from turnmill.infra.mocks.searxng import Page, SearXNG
from turnmill.schemas.errors import SearchUnavailable, SettingsError
from turnmill.schemas.settings import SearchSettings
from turnmill.workers.search.base import Found, Searcher
from turnmill.workers.search.registry import SEARCHERS, create_searcher

#: What each connector is tried against.
STAND_INS = {"searxng": SearXNG}

CUP = Page("https://cup.example/1954", "1954 World Cup", "Germany beat Hungary 3-2 in Bern.")
BERN = Page("https://bern.example/?a=1&b=2", "Bern", "The world cup of 1954 ended in Bern.")
QUESTION = "Who won the world cup in 1954?"
TIMEOUT_S = 0.4


@pytest.fixture(params=SEARCHERS)
def server(request: pytest.FixtureRequest) -> Iterator[SearXNG]:
    with STAND_INS[request.param](CUP, BERN) as server:
        yield server


def connect(url: str, **changes: object) -> Searcher:
    return create_searcher(SearchSettings(url=url, timeout_s=TIMEOUT_S, **changes))


@pytest.fixture
def searcher(server: SearXNG) -> Searcher:
    return connect(server.url)


def test_what_is_found_has_address_title_and_snippet_the_best_first(searcher: Searcher) -> None:
    assert searcher.search(QUESTION) == [Found(*CUP), Found(*BERN)]


def test_what_is_asked_in_chinese_is_found(server: SearXNG, searcher: Searcher) -> None:
    server.pages = [Page("https://cup.example/zh", "1954年世界杯", "西德队夺冠。")]
    assert searcher.search("谁赢得了1954年世界杯？")[0].title == "1954年世界杯"


def test_where_nothing_is_found_nothing_is_wrong(searcher: Searcher) -> None:
    assert searcher.search("zzzz") == []


@pytest.mark.parametrize("fault", ["429", "500", "silence", "dies", "html", "redirect"])
def test_a_server_at_fault_is_named_with_a_remedy_and_without_the_question(
    server: SearXNG, searcher: Searcher, fault: str
) -> None:
    server.order("search", fault)
    began_at = time.monotonic()
    with pytest.raises(SearchUnavailable) as caught:
        searcher.search(QUESTION)
    assert time.monotonic() - began_at < TIMEOUT_S + 2
    assert caught.value.remedy
    assert "1954" not in f"{caught.value.message} {caught.value.remedy}"
    assert searcher.search(QUESTION)  # the next call is another one


def test_a_server_that_is_not_there_is_named(searcher: Searcher, server: SearXNG) -> None:
    with pytest.raises(SearchUnavailable, match="does not answer"):
        connect("http://127.0.0.1:1").search(QUESTION)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'{"results": 7}', b'{"results": [7]}', b'{"error": "search error"}',
        b'{"results": "abc"}', b"[" * 100_000, b'{"results": []' + b" " * (1 << 21) + b"}", b"\xff",
    ],
)  # fmt: skip
def test_what_is_no_list_of_results_is_refused(
    server: SearXNG, searcher: Searcher, body: bytes
) -> None:
    server.body = body
    with pytest.raises(SearchUnavailable):
        searcher.search(QUESTION)


def test_results_that_lack_something_are_read_as_far_as_they_go(
    server: SearXNG, searcher: Searcher
) -> None:
    server.body = json.dumps(
        {"results": [{"url": "https://a.example/"}, {"title": 7, "url": None}]}
    ).encode()
    assert searcher.search(QUESTION) == [Found("https://a.example/", "", ""), Found("", "7", "")]


def test_a_server_that_answers_byte_by_byte_is_given_up_in_time() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b" " * 10_000

    def drip(listener: socket.socket) -> None:
        with listener.accept()[0] as link, suppress(OSError):
            link.recv(65_536)
            for byte in answer:
                link.sendall(bytes([byte]))
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        began_at = time.monotonic()
        with pytest.raises(SearchUnavailable):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}").search(QUESTION)
    assert time.monotonic() - began_at < TIMEOUT_S + 2


def test_a_connector_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="Choose searxng"):
        create_searcher(SearchSettings(name="altavista", url="http://localhost"))


# SearXNG's own.


def test_a_server_without_json_among_its_formats_is_told_where_to_add_it(
    server: SearXNG, searcher: Searcher
) -> None:
    server.formats.remove("json")
    with pytest.raises(SearchUnavailable, match="403") as caught:
        searcher.search(QUESTION)
    assert "'json' to 'formats'" in caught.value.remedy


@pytest.mark.parametrize("refused", ["GET", "POST"])
def test_a_proxy_that_passes_one_method_only(
    server: SearXNG, searcher: Searcher, refused: str
) -> None:
    """`server.method` of its settings.yml chooses what its own page does, and refuses neither."""
    server.verbs.remove(refused)
    if refused == "GET":
        assert searcher.search(QUESTION)
        return
    with pytest.raises(SearchUnavailable, match="405") as caught:
        searcher.search(QUESTION)
    assert "POST to /search" in caught.value.remedy
    assert server.queries == []


def test_a_language_that_the_server_does_not_know_is_told(server: SearXNG) -> None:
    with pytest.raises(SearchUnavailable, match="400") as caught:
        connect(server.url, language="english").search(QUESTION)
    assert "TURNMILL_SEARCH__LANGUAGE" in caught.value.remedy


def test_the_settings_are_parameters_and_what_is_left_out_is_the_servers_choice(
    server: SearXNG,
) -> None:
    connect(server.url).search(QUESTION)
    connect(f"{server.url}/", language="zh-CN", engines=["wikipedia", "bing"], safesearch=2).search(
        QUESTION
    )
    plain, chosen = server.queries
    assert plain == {"q": QUESTION, "format": "json", "safesearch": "1"}
    assert chosen == {
        "q": QUESTION, "format": "json", "safesearch": "2", "language": "zh-CN",
        "engines": "wikipedia,bing",
    }  # fmt: skip


def test_no_question_stands_in_an_address(server: SearXNG, searcher: Searcher) -> None:
    """Servers and proxies log addresses."""
    assert searcher.search(QUESTION)
    assert server.addresses == [{}]
    assert server.queries[0]["q"] == QUESTION


def test_words_that_are_commands_of_the_server_are_words(
    server: SearXNG, searcher: Searcher
) -> None:
    """`!!g` would redirect to another site, and `<900` change the server's timeout."""
    assert searcher.search("!!g :de <900 !images world cup ?")
    assert server.queries[0]["q"].split() == ["g", "de", "900", "images", "world", "cup"]


def test_a_login_is_sent_and_never_shown(server: SearXNG) -> None:
    url = server.url.replace("://", "://me:p%40ss@")
    connect(url).search(QUESTION)
    assert server.headers[0]["authorization"] == f"Basic {b64encode(b'me:p@ss').decode()}"
    server.order("search", "silence")
    with pytest.raises(SearchUnavailable) as caught:
        connect(url).search(QUESTION)
    assert "p%40ss" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "http://0.0.0.0:9/", "http://93.184.215.14/"]
)
def test_a_questions_way_leads_to_no_address_that_gives_secrets_away(url: str) -> None:
    with pytest.raises(SearchUnavailable, match="Nothing is sent"):
        connect(url).search(QUESTION)
