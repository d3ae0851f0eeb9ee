"""Send requests to an address of somebody else's, and to no other.

A name is looked up once. Each of its addresses is judged, and the allowed ones are tried in order:
a name that resolves to another address a moment later (DNS rebinding) gains nothing. Redirects are
not followed.

A request has one deadline, which begins before the lookup, so that neither a resolver nor a
platform that answers one byte at a time holds it up. It is checked at every system call: a process
that was paused meanwhile sends nothing.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.process.retry_after import retry_after_s
from turnmill.workers.delivery.base import pause_s

#: More of an answer's body is not read.
MAX_BODY = 65_536

#: What is called before the first byte of each request; see `guarded`.
_GUARD: ContextVar[Callable[[], None] | None] = ContextVar("guard", default=None)


#: By when each request has ended, on the monotonic clock; see `ending`.
_UNTIL: ContextVar[float] = ContextVar("until", default=float("inf"))


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    #: The pause that `Retry-After` asks for in seconds (`pause_s`).
    retry_after_s: float | None
    #: As much of it as is read.
    body: bytes = b""
    #: Their names in lower case.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: False: the peer ended the body before the length that it had announced.
    is_whole: bool = True


@contextmanager
def guarded(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` in this thread before each request's first byte, once the peer is connected.

    What `check` raises ends the request, of which nothing was sent then.
    """
    token = _GUARD.set(check)
    try:
        yield
    finally:
        _GUARD.reset(token)


@contextmanager
def ending(within_s: float) -> Iterator[None]:
    """Give all requests of this thread one deadline, beside the one that each has."""
    token = _UNTIL.set(time.monotonic() + within_s)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
    """Post a body. Raises as `request` does."""
    return request("POST", url, body, headers, timeout_s)


def request(
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
    *,
    max_body: int = MAX_BODY,
    within_s: float | None = None,
) -> Answer:
    """Send one request, and take at most `timeout_s` for it, from the lookup to the answer.

    With `within_s`, it may take that long in all: a connection must be there after `timeout_s`, and
    the peer may be silent for as long again.

    Errors name the host alone: a path can hold a secret.

    Raises:
        DeliveryRefused: the address is none that webhooks are sent to.
        ChannelUnavailable: nobody answers there, or not in time.
    """
    parts = urlsplit(url)
    host, is_tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    began_at = time.monotonic()
    until = min(began_at + (timeout_s if within_s is None else within_s), _UNTIL.get())
    connected_by = min(began_at + timeout_s, until)
    try:
        addresses = _allowed(host, _looked_up(host, port, _left_s(connected_by)), is_tls=is_tls)
    except (OSError, UnicodeError) as error:
        raise ChannelUnavailable(f"{host} is not found: {type(error).__name__}.") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    is_sent = False
    try:
        with _connected(host, addresses, port, connected_by, is_tls=is_tls) as sock:
            if (check := _GUARD.get()) is not None:
                check()
            bounded = _Bounded(sock, timeout_s, until)
            connection = _Connection(host, port, bounded, is_tls=is_tls)
            bounded.in_time()
            is_sent = True
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            content = response.read(max_body)
            # `read` with a bound raises for no body that ends early, unless it is chunked; what is
            # left of its length it keeps.
            is_whole = len(content) == max_body or not response.length
    except (OSError, http.client.HTTPException) as error:
        raise ChannelUnavailable(
            f"{host} does not answer: {type(error).__name__}.", is_doubtful=is_sent
        ) from None
    named = {name.lower(): value for name, value in response.getheaders()}
    asked_s = retry_after_s(named)
    after_s = None if asked_s is None else pause_s(asked_s)
    return Answer(response.status, after_s, content, named, is_whole)


def _looked_up(host: str, port: int, wait_s: float) -> list[IPv4Address | IPv6Address]:
    """Look up a name's addresses. Raises `OSError`, which `TimeoutError` is too, `UnicodeError`.

    A resolver takes no deadline, so a thread is left behind with it until its own is over.

    Raises:
        ChannelUnavailable: the system gives no more threads.
    """
    found: Future[list[IPv4Address | IPv6Address]] = Future()

    def look_up() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([_ip(str(row[4][0])) for row in rows])
        except Exception as error:
            found.set_exception(error)

    try:
        Thread(target=look_up, name="lookup", daemon=True).start()
    except RuntimeError as error:
        raise ChannelUnavailable(f"{host} cannot be looked up: {error}.") from None
    return found.result(wait_s)


def _ip(text: str) -> IPv4Address | IPv6Address:
    ip = ip_address(text.partition("%")[0])
    return (isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip


def _allowed(
    host: str, found: Sequence[IPv4Address | IPv6Address], *, is_tls: bool
) -> list[IPv4Address | IPv6Address]:
    """Return the addresses that may be connected to, in order. Raises `DeliveryRefused`: none."""
    reasons = [why_refused(ip, is_tls=is_tls) for ip in found]
    allowed = [ip for ip, why in zip(found, reasons, strict=True) if why is None]
    if not allowed:
        raise DeliveryRefused(
            f"Nothing is sent to {host}: {reasons[0]}.",
            reason="address_refused",
            told=f"Nothing is sent to the receiver: {reasons[0]}.",
        )
    return allowed


def why_refused(ip: IPv4Address | IPv6Address, *, is_tls: bool) -> str | None:
    """Say why an address is none that webhooks are sent to.

    The operator configures the URL, so a receiver may be on this machine or in a private network.
    Cloud providers serve credentials on link-local addresses.
    """
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return "its address is link-local, multicast or unspecified"
    if ip.is_reserved and not ip.is_loopback:
        return "its address is reserved"
    if not is_tls and ip.is_global:
        return "it is on the internet and its URL begins with http://; use https://"
    return None


@contextmanager
def _connected(
    host: str,
    addresses: Sequence[IPv4Address | IPv6Address],
    port: int,
    until: float,
    *,
    is_tls: bool,
) -> Iterator[socket.socket]:
    """A connection to one of these addresses until a deadline, with the host's name for TLS."""
    with _first_of(addresses, port, until) as sock:
        if not is_tls:
            yield sock
            return
        sock.settimeout(_left_s(until))  # of the handshake as a whole
        with ssl.create_default_context().wrap_socket(sock, server_hostname=host) as secure:
            yield secure


def _first_of(
    addresses: Sequence[IPv4Address | IPv6Address], port: int, until: float
) -> socket.socket:
    """Connect to the first address that answers. Raises `OSError` as the last one does.

    An address that is silent takes half of the time that is left, the last one all of it.
    """
    for ip in addresses[:-1]:
        try:
            return socket.create_connection((str(ip), port), _left_s(until) / 2)
        except OSError:
            continue
    return socket.create_connection((str(addresses[-1]), port), _left_s(until))


def _left_s(until: float) -> float:
    """Seconds until a deadline. Raises `TimeoutError`: it is over."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


class _Bounded:
    """What `http.client` uses of a socket, until a deadline. Who connected it closes it."""

    def __init__(self, sock: socket.socket, silent_s: float, until: float) -> None:
        self._sock = sock
        self._silent_s = silent_s
        self._until = until

    def in_time(self) -> socket.socket:
        """The socket, ready for one system call. Raises `TimeoutError`."""
        self._sock.settimeout(min(_left_s(self._until), self._silent_s))
        return self._sock

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.in_time().send(rest) :]

    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(_Received(self))

    def close(self) -> None:
        """`http.client` does so before it has read all."""


class _Received(io.RawIOBase):
    def __init__(self, bounded: _Bounded) -> None:
        self._bounded = bounded

    def readable(self) -> bool:
        return True

    #: Whatever can be written into, which has no name before Python 3.12.
    def readinto(self, buffer: Any) -> int:
        return self._bounded.in_time().recv_into(buffer)


class _Connection(http.client.HTTPConnection):
    """Over a socket that is connected; `Host` names the port where it is not the scheme's own."""

    def __init__(self, host: str, port: int, sock: object, *, is_tls: bool) -> None:
        super().__init__(host, port)
        self.default_port = 443 if is_tls else 80
        self.sock = sock
