"""Send requests to an address of somebody else's, and to no other.

The address is looked up once, judged, and connected to: a name that resolves to another address a
moment later (DNS rebinding) gains nothing. Redirects are not followed.
"""

import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.base import pause_s

#: More of an answer's body is not read.
_MAX_BODY = 65_536


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    #: The pause that `Retry-After` asks for in seconds (`pause_s`).
    retry_after_s: float | None
    #: As much of it as is read.
    body: bytes = b""


def post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
    """Post a body. Raises as `request` does."""
    return request("POST", url, body, headers, timeout_s)


def request(
    method: str, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
) -> Answer:
    """Send one request. Errors name the host alone: a path can hold a secret.

    Raises:
        DeliveryRefused: the address is none that webhooks are sent to.
        ChannelUnavailable: nobody answers there, or not in time.
    """
    parts = urlsplit(url)
    host, is_tls = parts.hostname or "", parts.scheme == "https"
    try:
        address = _address(host, parts.port or (443 if is_tls else 80), is_tls=is_tls)
        connection = _Connection(host, address, timeout_s, is_tls=is_tls)
    except OSError as error:
        raise ChannelUnavailable(f"{host} is not found: {type(error).__name__}.") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    is_sent = False
    try:
        connection.connect()
        is_sent = True
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        content = response.read(_MAX_BODY)
    except (OSError, http.client.HTTPException) as error:
        raise ChannelUnavailable(
            f"{host} does not answer: {type(error).__name__}.", is_doubtful=is_sent
        ) from None
    finally:
        connection.close()
    return Answer(response.status, _seconds(response.getheader("Retry-After")), content)


def _address(host: str, port: int, *, is_tls: bool) -> tuple[str, int]:
    """The address that is connected to. Raises `OSError`, `DeliveryRefused`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ip = ip_address(str(found[0][4][0]).partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if (why := why_refused(ip, is_tls=is_tls)) is not None:
        raise DeliveryRefused(f"Webhooks are not sent to {host}: {why}.", reason="address_refused")
    return str(ip), port


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


class _Connection(http.client.HTTPConnection):
    """To an address that was looked up before, with the name for TLS and `Host`."""

    def __init__(
        self, host: str, address: tuple[str, int], timeout_s: float, *, is_tls: bool
    ) -> None:
        super().__init__(host, address[1], timeout=timeout_s)
        self._address = address
        self._tls = ssl.create_default_context() if is_tls else None
        self.default_port = 443 if is_tls else 80

    def connect(self) -> None:
        self.sock = socket.create_connection(self._address, self.timeout)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


def _seconds(text: str | None) -> float | None:
    """Seconds as RFC 9110 writes them, or with decimals as Discord does."""
    is_number = text and text.isascii() and text.replace(".", "", 1).isdigit()
    return pause_s(float(text)) if text and is_number else None
