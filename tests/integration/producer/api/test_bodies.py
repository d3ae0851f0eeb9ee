"""Bodies of every call that OpenAPI describes with one: none keeps the event loop from others."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.conversing import serving
from turnmill.producer.api.app import Server, create_app
from turnmill.producer.api.services import LARGE_BODY_BYTES, Services
from turnmill.producer.tenants import create_key, ensure_defaults
from turnmill.schemas.ids import Prefix
from turnmill.schemas.openai.vector_stores import MAX_BATCH_FILES
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.tenants import Scope

Route = tuple[str, str, str]

#: CPU seconds of the event loop for a body, beyond those for one of the same length that is a
#: single text. Parsed there, each of HOSTILE takes seconds.
MOST_CPU_S = 0.25
SIZE = 2_000_000
HOSTILE = {
    "lists": b'{"x":[' + b"[]," * (SIZE // 3) + b"[]]}",
    "keys": b"{" + b",".join(b'"k%d":1' % number for number in range(SIZE // 11)) + b"}",
}
#: Longer than any body may be.
TOO_LONG = 10**12


def routes() -> Iterator[Route]:
    """Method, address and type of the body of each."""
    for path, operations in create_app(load_settings()).openapi()["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                address = re.sub(r"{[^}]+}", "turn_" + "0" * 32, path)
                (kind,) = operation["requestBody"]["content"]
                yield method.upper(), address, kind


ROUTES = list(routes())
every_route = pytest.mark.parametrize("route", ROUTES, ids=[f"{m} {a}" for m, a, _ in ROUTES])


class Site:
    """A running API, and keys for it."""

    def __init__(self, server: Server, url: str, port: int) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        settings = load_settings(database={"url": url})
        database = Database(settings.database)
        tenant_id = ensure_defaults(database, settings)
        self.key = create_key(database, tenant_id, "all", Scope)
        self.observer = create_key(database, tenant_id, "observer", [Scope.METRICS])
        database.close()

    def call(self, route: Route, body: bytes, key: str | None = None) -> httpx.Response:
        method, address, kind = route
        headers = {"Content-Type": kind}
        if kind == "multipart/form-data":
            headers["Content-Type"] += "; boundary=b"
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = self.url + address
        return httpx.request(method, url, content=body, headers=headers, timeout=60)

    def ask(self, route: Route, length: int, key: str | None) -> bytes:
        """What is answered to a client that waits with its body until it is asked for it."""
        method, address, kind = route
        head = (
            f"{method} {address} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {length}\r\nExpect: 100-continue\r\n"
        )
        if key:
            head += f"Authorization: Bearer {key}\r\n"
        with socket.create_connection(("127.0.0.1", self.port), 20) as link:
            link.sendall(head.encode() + b"\r\n")
            return link.recv(65536)

    def loop_cpu_s(self) -> float:
        """CPU seconds that the thread of the event loop has used."""

        async def look() -> float:
            return time.thread_time()

        loop = self.server.servers[0].get_loop()
        return asyncio.run_coroutine_threadsafe(look(), loop).result(60)


@pytest.fixture(scope="module")
def site(module_database_url: str, eventually: Callable[..., None]) -> Iterator[Site]:
    settings = load_settings(database={"url": module_database_url})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with serving(settings, listener, eventually) as server:
            yield Site(server, module_database_url, port)


def test_all_calls_with_a_body_are_judged() -> None:
    assert len(ROUTES) >= 18
    assert {kind for _, _, kind in ROUTES} == {"application/json", "multipart/form-data"}


@every_route
def test_a_stranger_is_refused_without_being_asked_for_the_body(site: Site, route: Route) -> None:
    for key in (None, "tm-" + "x" * 43):
        assert site.ask(route, SIZE, key).startswith(b"HTTP/1.1 401 ")
    assert site.ask(route, SIZE, site.observer).startswith(b"HTTP/1.1 403 ")


@every_route
def test_a_body_beyond_the_limit_is_refused_by_its_length(site: Site, route: Route) -> None:
    # Nobody transcribes here, which is told first.
    expected = b"HTTP/1.1 503 " if "transcriptions" in route[1] else b"HTTP/1.1 413 "
    assert site.ask(route, TOO_LONG, site.key).startswith(expected)


@every_route
def test_a_hostile_body_takes_no_time_of_the_event_loop(site: Site, route: Route) -> None:
    def cpu_s(body: bytes) -> float:
        before = site.loop_cpu_s()
        # 503: nobody transcribes here.
        assert site.call(route, body, site.key).status_code in (400, 503)
        return site.loop_cpu_s() - before

    plain_s = cpu_s(b'{"x":"' + b"x" * SIZE + b'"}')
    for body in HOSTILE.values():
        assert cpu_s(body) < plain_s + MOST_CPU_S


@dataclass
class Held:
    """The parser of large bodies: it has begun with one, and may end."""

    has_begun: threading.Event
    may_end: threading.Event


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held(threading.Event(), threading.Event())
    parse = Services.parse

    def parse_later(self: Services, function: Callable[[bytes], Any], body: bytes) -> Any:
        def wait_and_parse(body: bytes) -> Any:
            held.has_begun.set()
            assert held.may_end.wait(20), "another call waits for the body"
            return function(body)

        return parse(self, wait_and_parse if len(body) > LARGE_BODY_BYTES else function, body)

    monkeypatch.setattr(Services, "parse", parse_later)
    return held


LARGE = json.dumps({"unknown": "x" * 100_000}).encode()


# Forms are read piece by piece.
@pytest.mark.parametrize("route", [each for each in ROUTES if each[2] == "application/json"])
def test_others_are_answered_while_a_body_is_parsed(site: Site, route: Route, held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(site.call, route, LARGE, site.key)
        assert held.has_begun.wait(20)
        assert httpx.get(f"{site.url}/healthz", timeout=20).status_code == 200
        held.may_end.set()
        assert call.result().status_code == 400


CHAT = ("POST", "/v1/chat/completions", "application/json")
RATING = ("POST", "/turns/turn_" + "0" * 32 + "/rating", "application/json")


@pytest.mark.parametrize(("route", "status"), [(RATING, 404), (CHAT, 400)])
def test_a_small_body_does_not_wait_for_a_large_one(
    site: Site, held: Held, route: Route, status: int
) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(site.call, CHAT, LARGE, site.key)
        assert held.has_begun.wait(20)
        assert site.call(route, b'{"score":1}', site.key).status_code == status
        held.may_end.set()
        assert call.result().status_code == 400


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "The body is missing"),
        (b"{", "not valid JSON"),
        (b'{"score":1}{', "not valid JSON"),
        (b'{"comment":"\\ud800"}', "not valid JSON"),
        ('{"score":1}'.encode("utf-16"), "not valid JSON"),
        (b"[" * 10_000, "not valid JSON"),
        (HOSTILE["lists"], "more than 10000 JSON values"),
        (b"null", "dictionary"),
        (b'{"score":1,"' + b"x" * 100_000 + b'":1}', "Unrecognized request argument"),
    ],
)
def test_a_bad_body_is_refused_in_a_short_sentence(site: Site, body: bytes, told: str) -> None:
    response = site.call(RATING, body, site.key)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]
    assert len(response.content) < 1000


def test_the_longest_batch_of_files_is_taken(site: Site) -> None:
    attributes = {f"attribute_{number}": "a text" for number in range(16)}
    file = {"attributes": attributes, "chunking_strategy": {"type": "auto"}}
    files = [
        {"file_id": f"{Prefix.FILE}_{number:032x}", **file} for number in range(MAX_BATCH_FILES)
    ]
    address = f"/v1/vector_stores/{Prefix.VECTOR_STORE}_{'0' * 32}/file_batches"
    body = json.dumps({"files": files}).encode()
    assert site.call(("POST", address, "application/json"), body, site.key).status_code == 404


def test_json_is_told_by_its_type(site: Site) -> None:
    method, address, _ = RATING
    for kind, status in [
        ("application/json; charset=utf-8", 404),
        ("application/problem+json", 404),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
    ]:
        response = site.call((method, address, kind), b'\xef\xbb\xbf{"score":1}', site.key)
        assert response.status_code == status


def test_a_compressed_body_is_refused(site: Site) -> None:
    url = site.url + RATING[1]
    headers = {"Authorization": f"Bearer {site.key}", "Content-Encoding": "gzip"}
    assert httpx.post(url, json={"score": 1}, headers=headers).status_code == 415


def test_calls_are_counted_by_their_whole_route(site: Site) -> None:
    for method, address, _ in ROUTES:
        httpx.request(method, site.url + address)
    headers = {"Authorization": f"Bearer {site.observer}"}
    counted = httpx.get(f"{site.url}/metrics", headers=headers).text
    paths = create_app(load_settings()).openapi()["paths"]
    with_body = {
        path for path in paths if any("requestBody" in each for each in paths[path].values())
    }
    routes = {path.replace(":path}", "}") for path in re.findall(r'route="([^"]+)"', counted)}
    assert with_body <= routes
