"""Webhooks go to receivers, and to no address that gives secrets away."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.calls.downloads import DOWNLOAD_S, download
from turnmill.workers.delivery.calls.posting import ending, guarded, post, request, why_refused
from turnmill.workers.delivery.calls.rest import call
from turnmill.workers.delivery.fetching import FETCH_S


@pytest.mark.parametrize(
    ("address", "is_tls", "is_refused"),
    [
        ("169.254.169.254", True, True),
        ("169.254.169.254", False, True),
        ("fe80::1", True, True),
        ("fd00:ec2::254", True, False),
        ("0.0.0.0", False, True),
        ("224.0.0.1", True, True),
        ("240.0.0.1", True, True),
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("10.1.2.3", False, False),
        ("8.8.8.8", False, True),
        ("8.8.8.8", True, False),
    ],
)
def test_addresses_are_judged_before_they_are_connected_to(
    address: str, is_tls: bool, is_refused: bool
) -> None:
    assert (why_refused(ip_address(address), is_tls=is_tls) is not None) == is_refused


@pytest.mark.parametrize(
    "url", ["https://169.254.169.254/latest", "http://[::ffff:169.254.169.254]/", "http://0/"]
)
def test_a_refused_address_gets_no_connection(url: str) -> None:
    with pytest.raises(DeliveryRefused) as caught:
        post(url, b"{}", {}, 1.0)
    assert caught.value.reason == "address_refused"


def test_a_receiver_that_is_away_is_tried_again_without_doubt() -> None:
    with pytest.raises(ChannelUnavailable) as caught:
        post("http://127.0.0.1:1/", b"{}", {}, 1.0)
    assert not caught.value.is_doubtful


class Peer:
    """A server of one connection, which says what it is told to, a byte at a time."""

    def __init__(self, answer: bytes, pause_s: float, end: bytes) -> None:
        self.got = b""
        self._end = end
        self.is_closed = threading.Event()
        self._answer, self._pause_s = answer, pause_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/secret"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as link, suppress(OSError):
            while not self.got.endswith(self._end) and (more := link.recv(4096)):
                self.got += more
            for byte in self._answer if self.got else b"":
                link.sendall(bytes([byte]))
                time.sleep(self._pause_s)
        self.is_closed.set()


@pytest.fixture
def make_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(
        answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n", pause_s: float = 0.0, end: bytes = b"{}"
    ) -> Peer:
        peers.append(Peer(answer, pause_s, end))
        return peers[-1]

    yield make
    for peer in peers:
        assert peer.is_closed.wait(20)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 90, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 500]
)
def test_a_call_takes_no_longer_than_its_time_though_the_peer_keeps_talking(
    make_peer: Callable[..., Peer], answer: bytes
) -> None:
    peer, began_at = make_peer(answer, 0.02), time.monotonic()
    with pytest.raises(ChannelUnavailable) as caught:
        post(peer.url, b"{}", {}, 0.5)
    assert (caught.value.is_doubtful, time.monotonic() - began_at < 5) == (True, True)
    assert "secret" not in caught.value.message


def test_nothing_is_sent_where_the_delivery_is_another_attempts(
    make_peer: Callable[..., Peer],
) -> None:
    class Lost(Exception):
        """The lease."""

    def check() -> None:
        raise Lost

    peer = make_peer()
    with pytest.raises(Lost), guarded(check):
        post(peer.url, b"{}", {}, 5.0)
    assert peer.is_closed.wait(5)
    assert peer.got == b""


def test_a_process_that_was_paused_before_the_first_byte_sends_nothing(
    make_peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)

    def pause() -> None:
        nonlocal now
        now = 7.0

    peer = make_peer()
    with monkeypatch.context() as patch, pytest.raises(ChannelUnavailable) as caught:
        patch.setattr("turnmill.workers.delivery.calls.posting.time", clock)
        with guarded(pause):
            post(peer.url, b"{}", {}, 5.0)
    assert not caught.value.is_doubtful
    assert peer.is_closed.wait(5)
    assert peer.got == b""


def resolving(patch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses, and addresses themselves."""
    look_up = socket.getaddrinfo

    def found(host: str, port: int, *rest: int, **named: int) -> list[object]:
        hosts = addresses if host == "shop.test" else [host]
        return [row for each in hosts for row in look_up(each, port, *rest, **named)]

    patch.setattr("socket.getaddrinfo", found)


@pytest.mark.parametrize("first", ["::1", "127.0.0.2", "169.254.169.254"])
def test_a_host_answers_at_any_of_its_allowed_addresses(
    make_peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    peer = make_peer()
    resolving(monkeypatch, first, "127.0.0.1")
    url = peer.url.replace("127.0.0.1", "shop.test")
    assert post(url, b"{}", {}, 5.0).status == 204
    assert b"Host: shop.test:" in peer.got


def test_a_silent_address_leaves_time_for_the_next_one(
    make_peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = make_peer()
    port = int(peer.url.rsplit(":", 1)[1].partition("/")[0])
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.2", port))
        full.listen(0)
        waiting.connect(("127.0.0.2", port))  # the next one is left without an answer
        resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
        url = peer.url.replace("127.0.0.1", "shop.test")
        assert post(url, b"{}", {}, 2.0).status == 204


def test_a_resolver_that_is_silent_takes_no_longer_than_the_request_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: over.wait(30) and [])
    began_at = time.monotonic()
    with pytest.raises(ChannelUnavailable) as caught:
        post("https://shop.test/", b"{}", {}, 0.3)
    over.set()
    assert (caught.value.is_doubtful, time.monotonic() - began_at < 5) == (False, True)


def test_where_the_system_gives_no_more_threads_nothing_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ChannelUnavailable, match="start new thread") as caught:
        post("https://shop.test/", b"{}", {}, 1.0)
    assert not caught.value.is_doubtful


def test_a_handshake_takes_no_longer_than_the_request_may(
    make_peer: Callable[..., Peer],
) -> None:
    # A record of TLS that is announced and comes a byte at a time.
    peer = make_peer(b"\x16\x03\x03\x01\x00" + b"\x02" * 200, 0.02, end=b"")
    began_at = time.monotonic()
    with pytest.raises(ChannelUnavailable) as caught:
        post(peer.url.replace("http:", "https:"), b"{}", {}, 0.5)
    assert (caught.value.is_doubtful, time.monotonic() - began_at < 3) == (False, True)


def test_the_time_of_a_request_includes_its_lookup(
    make_peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo
    peer = make_peer(pause_s=0.5)

    def late(*args: object, **named: object) -> object:
        time.sleep(0.6)
        return look_up(*args, **named)  # type: ignore[call-overload]

    monkeypatch.setattr("socket.getaddrinfo", late)
    began_at = time.monotonic()
    with pytest.raises(ChannelUnavailable):
        post(peer.url, b"{}", {}, 1.0)
    assert time.monotonic() - began_at < 1.5


def test_a_name_that_is_none_is_not_found() -> None:
    with pytest.raises(ChannelUnavailable):
        post("http://a..b/", b"{}", {}, 1.0)


def test_an_answer_is_read_up_to_its_bound(make_peer: Callable[..., Peer]) -> None:
    answer = b"HTTP/1.1 200 OK\r\nRetry-After: 2\r\n\r\n" + b"x" * 50
    got = request("POST", make_peer(answer).url, b"{}", {"A": "b"}, 5.0, max_body=20)
    assert (got.status, got.retry_after_s, got.body) == (200, 2.0, b"x" * 20)


GET = b"\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "cut", [SIZED, SIZED + b"x" * 59, CHUNKED + b"3c\r\n" + b"x" * 59, CHUNKED + b"1\r\nx\r\n"]
)
def test_the_beginning_of_a_file_is_no_file(make_peer: Callable[..., Peer], cut: bytes) -> None:
    with pytest.raises(ChannelUnavailable):
        download("X", make_peer(cut, end=GET).url, {}, 5.0, 100)


@pytest.mark.parametrize(
    "whole", [SIZED + b"x" * 60, CHUNKED + b"3c\r\n" + b"x" * 60 + b"\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("max_bytes", [60, 61])
def test_a_whole_file_is_one_though_its_size_is_the_bound(
    make_peer: Callable[..., Peer], whole: bytes, max_bytes: int
) -> None:
    assert download("X", make_peer(whole, end=GET).url, {}, 5.0, max_bytes) == b"x" * 60


def test_a_file_beyond_the_bound_is_too_large_and_not_cut(make_peer: Callable[..., Peer]) -> None:
    with pytest.raises(DeliveryRefused) as refused:
        download("X", make_peer(SIZED + b"x" * 60, end=GET).url, {}, 5.0, 59)
    assert refused.value.reason == "too_large"


def test_a_file_may_take_longer_than_a_call_while_its_bytes_come(
    make_peer: Callable[..., Peer],
) -> None:
    peer = make_peer(SIZED + b"x" * 60, pause_s=0.02, end=GET)  # 2 s
    assert download("X", peer.url, {}, 0.5, 100) == b"x" * 60
    silent, began_at = make_peer(SIZED, pause_s=3.0, end=GET), time.monotonic()
    with pytest.raises(ChannelUnavailable):
        download("X", silent.url, {}, 0.5, 100)
    assert time.monotonic() - began_at < 3
    # A token that is asked for first takes nothing from it.
    assert DOWNLOAD_S + DeliverySettings().timeout_s <= FETCH_S


def test_requests_of_one_deadline_end_by_it_however_many_they_are(
    make_peer: Callable[..., Peer],
) -> None:
    slow, began_at = make_peer(SIZED + b"x" * 60, pause_s=0.1, end=GET), time.monotonic()
    with ending(0.6):
        for _ in range(3):
            with pytest.raises(ChannelUnavailable):
                download("X", slow.url, {}, 5.0, 100)
    assert time.monotonic() - began_at < 3
    assert download("X", make_peer(SIZED + b"x" * 60, end=GET).url, {}, 5.0, 100) == b"x" * 60


def test_the_beginning_of_a_list_of_messages_is_no_empty_list(
    make_peer: Callable[..., Peer],
) -> None:
    for method, is_read in (("GET", True), ("POST", False)):
        peer = make_peer(SIZED + b'{"payload": [', end=GET if is_read else b"{}")
        if is_read:
            with pytest.raises(ChannelUnavailable):
                call("X", method, peer.url, None, {}, 5.0)
        else:
            assert call("X", method, peer.url, {}, {}, 5.0).is_good
