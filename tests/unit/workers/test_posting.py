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
from turnmill.workers.delivery.calls.posting import guarded, post, request, why_refused


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

    def __init__(self, answer: bytes, pause_s: float) -> None:
        self.got = b""
        self.is_closed = threading.Event()
        self._answer, self._pause_s = answer, pause_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/secret"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as link, suppress(OSError):
            while not self.got.endswith(b"{}") and (more := link.recv(4096)):
                self.got += more
            for byte in self._answer if self.got else b"":
                link.sendall(bytes([byte]))
                time.sleep(self._pause_s)
        self.is_closed.set()


@pytest.fixture
def make_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n", pause_s: float = 0.0) -> Peer:
        peers.append(Peer(answer, pause_s))
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
    times = iter([0.0, 7.0])
    clock = SimpleNamespace(monotonic=lambda: next(times))
    peer = make_peer()
    with monkeypatch.context() as patch, pytest.raises(ChannelUnavailable):
        patch.setattr("turnmill.workers.delivery.calls.posting.time", clock)
        post(peer.url, b"{}", {}, 5.0)
    assert peer.is_closed.wait(5)
    assert peer.got == b""


def test_an_answer_is_read_up_to_its_bound(make_peer: Callable[..., Peer]) -> None:
    answer = b"HTTP/1.1 200 OK\r\nRetry-After: 2\r\n\r\n" + b"x" * 50
    got = request("POST", make_peer(answer).url, b"{}", {"A": "b"}, 5.0, max_body=20)
    assert (got.status, got.retry_after_s, got.body) == (200, 2.0, b"x" * 20)
