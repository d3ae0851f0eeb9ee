"""Connections to the API as hostile, slow and odd clients make them. No database is needed."""

import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import httpx
import pytest
from structlog.testing import capture_logs
from uvicorn.protocols.http.h11_impl import H11Protocol

from turnmill.producer.api.app import Server
from turnmill.producer.api.resources.metrics import APIMetrics
from turnmill.producer.api.server.connections import MAX_TINY_CHUNKS, Connection, Crowd
from turnmill.producer.api.server.file_limit import (
    MIN_CONNECTIONS,
    accept_backlog,
    connection_capacity,
    raise_file_limit,
)
from turnmill.producer.api.server.rare_log import RareLog
from turnmill.schemas.settings import APISettings, Settings, load_settings

#: Nobody listens there.
NO_DATABASE = "postgresql://turnmill@127.0.0.1:1/turnmill"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


class Site:
    """A running API, and sockets to it."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self.port = port
        self._stack = stack

    def connect(self, sent: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
        link = socket.create_connection(
            ("127.0.0.1", self.port), timeout=20, source_address=(source, 0)
        )
        self._stack.enter_context(link)
        link.sendall(sent)
        return link

    def say(self, sent: bytes) -> bytes:
        """Everything the server answers until it closes the connection."""
        return read_all(self.connect(sent))

    def is_answering(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=20).status_code == 200


def read_all(link: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while data := link.recv(65536):
            answer += data
    return answer


def is_open(link: socket.socket) -> bool:
    link.setblocking(False)
    try:
        return link.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@pytest.fixture
def make_site(eventually: Callable[..., None]) -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:

        def make(**api: Any) -> Site:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server = Server(load_settings(database={"url": NO_DATABASE}, api=api))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            eventually(lambda: server.started)
            return Site(listener.getsockname()[1], stack)

        yield make


# Slow clients


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: x", b"HTTP/1.1 408 "),
        (POST + b"Content-Length: 100\r\n\r\nhalf", b"HTTP/1.1 408 "),
    ],
)
def test_a_request_that_does_not_arrive_is_given_up(
    make_site: Callable[..., Site], sent: bytes, status: bytes
) -> None:
    site = make_site(header_timeout_s=0.3, body_timeout_s=0.3)
    answer = site.say(sent)
    assert answer.startswith(status)
    assert bool(answer) == bool(status)


def test_a_body_may_take_longer_if_it_keeps_coming(make_site: Callable[..., Site]) -> None:
    site = make_site(body_timeout_s=0.1)
    link = site.connect(POST + b"Connection: close\r\nContent-Length: 200000\r\n\r\n")
    link.sendall(b"x" * 199_999)
    link.settimeout(0.5)
    with pytest.raises(TimeoutError):
        link.recv(1)
    link.settimeout(20)
    link.sendall(b"x")
    assert read_all(link).startswith(b"HTTP/1.1 401 ")


def test_a_client_that_reads_nothing_is_given_up() -> None:
    class Loop:
        timers: ClassVar[list[Any]] = []

        def call_later(self, after_s: float, function: Callable[[], None]) -> Mock:
            self.timers.append((after_s, function, Mock()))
            timer: Mock = self.timers[-1][2]
            return timer

    connection: Any = Connection.__new__(Connection)
    connection._crowd = Crowd(APISettings(send_timeout_s=7), 10, APIMetrics())
    connection.loop, connection.transport, connection.flow = Loop(), Mock(), Mock()
    connection._write_timer = None
    connection.pause_writing()
    ((after_s, give_up, timer),) = connection.loop.timers
    assert (after_s, give_up) == (7, connection.transport.abort)
    timer.cancel.assert_not_called()
    connection.resume_writing()
    timer.cancel.assert_called_once()


# Many clients


def test_half_sent_requests_do_not_keep_others_out(
    make_site: Callable[..., Site], eventually: Callable[..., None]
) -> None:
    site = make_site(max_connections=20)
    half_sent = []
    with capture_logs() as logs:
        for number in range(200):
            half_sent.append(site.connect(GET))
            if number % 20 == 0:
                assert site.is_answering()
        eventually(lambda: sum(is_open(link) for link in half_sent) <= 20)
    refused = [entry for entry in logs if entry["event"] == "api.connections_refused"]
    assert 1 <= len(refused) < 20


def test_the_address_with_most_half_sent_requests_gives_way(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(max_connections=20)
    slow = site.connect(GET)
    for _ in range(100):
        site.connect(GET, source="127.0.0.2")
    assert is_open(slow)
    slow.setblocking(True)
    slow.sendall(b"Connection: close\r\n\r\n")
    assert read_all(slow).startswith(b"HTTP/1.1 200 ")


def test_a_process_without_files_stays_reachable_and_quiet(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "TURNMILL_DATA": str(tmp_path),
        "TURNMILL_DATABASE__URL": NO_DATABASE,
        "TURNMILL_API__PORT": str(port),
        "TURNMILL_LOG__FORMAT": "json",
    }
    log = tmp_path / "log"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))

    with ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "turnmill.producer.cli", "api"],
            env=os.environ | environment,
            stdout=stack.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
            preexec_fn=limit,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        eventually(lambda: b"api.started" in log.read_bytes() or process.poll() is not None, 30)
        site = Site(port, stack)
        for _ in range(5):
            for _ in range(100):
                site.connect(GET)
            assert site.is_answering()
    assert len(log.read_text().splitlines()) < 100


def test_a_server_takes_the_files_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    for limits, wanted in (
        ((1024, 4096), (4096, 4096)),
        ((1024, 2**30), (65_536, 2**30)),
        ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY)),
        ((100_000, 2**30), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        raise_file_limit()
        assert given == ([wanted] if wanted else [])
        given.clear()


@pytest.mark.parametrize("files", [100, 256, 1024, 20_000, 10**9])
def test_connections_leave_files_for_the_database(
    monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    settings = Settings.model_construct(api=APISettings(), database=load_settings().database)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    capacity = connection_capacity(settings)
    assert MIN_CONNECTIONS <= capacity <= settings.api.max_connections
    if files >= 256:
        assert capacity + accept_backlog() + settings.database.pool_size + 50 < files


def test_what_happens_all_the_time_is_logged_once_a_second() -> None:
    log = RareLog("api.accept_failed", every_s=1000)
    with capture_logs() as logs:
        for _ in range(5):
            log.note("EMFILE")
        log._next = 0
        log.note("ENFILE")
    assert [(entry.get("EMFILE"), entry.get("ENFILE")) for entry in logs] == [(1, None), (4, 1)]


# Odd requests


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET + b"\r\n",
        POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n12345",
        POST.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: x\n\n",
        GET + b"A: b\n\r\n",
        GET + b"A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (MAX_TINY_CHUNKS + 2),
        GET + b"A: " + b"b" * 100_000,
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(
    make_site: Callable[..., Site], request_: bytes
) -> None:
    answer = make_site().say(request_)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'{"error":{"message":' in answer


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_an_upgrade_is_passed_over(make_site: Callable[..., Site], protocol: bytes) -> None:
    body = b'{"model":"echo"}'
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\n"
    site = make_site()
    link = site.connect(GET + upgrade + b"HTTP2-Settings: AAEAAEAAAAIAAAAA\r\n\r\n")
    assert link.recv(100).startswith(b"HTTP/1.1 200 ")
    link = site.connect(POST + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert link.recv(100).startswith(b"HTTP/1.1 401 ")


def test_what_else_is_installed_or_set_does_not_change_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "many")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    config = Server(load_settings()).config
    config.load()
    protocol: Any = config.http_protocol_class
    assert issubclass(protocol.func, H11Protocol)
    assert config.ws_protocol_class is None
    assert config.loop == "asyncio"
    assert config.workers == 1
    assert config.forwarded_allow_ips == "127.0.0.1"


def test_requests_on_one_connection_are_answered_in_turn(make_site: Callable[..., Site]) -> None:
    answer = make_site().say((GET + b"\r\n") * 5 + GET + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 6
