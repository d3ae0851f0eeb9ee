"""Fetch a file from a platform, up to a size, and from no other host."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.calls.posting import Answer, request
from turnmill.workers.delivery.calls.rest import AGENT

#: How long a file may take from the lookup of its host on, seconds: the 25 MiB of the largest sound
#: at 3.5 Mbit/s. A host that is silent is given up after `timeout_s`, as at other calls.
DOWNLOAD_S = 60.0


def download(
    platform: str, url: str, headers: Mapping[str, str], timeout_s: float, max_bytes: int
) -> bytes:
    """Fetch what is at an address, whole.

    Raises:
        ChannelUnavailable: again later.
        DeliveryRefused: it is not there, or larger.
    """
    return file_of(platform, received(platform, url, headers, timeout_s, max_bytes))


def file_of(platform: str, answer: Answer) -> bytes:
    """Return the file that a platform answers with. Raises `DeliveryRefused`: it has none."""
    if answer.status != 200:
        raise DeliveryRefused(
            f"{platform} has no such file ({answer.status}).", reason=f"http_{answer.status}"
        )
    return answer.body


def received(
    platform: str, url: str, headers: Mapping[str, str], timeout_s: float, max_bytes: int
) -> Answer:
    """Return what a platform answers, be it a file or the reason why there is none.

    Raises:
        ChannelUnavailable: again later.
        DeliveryRefused: it is larger.
    """
    sent = {"User-Agent": AGENT, **headers}
    answer = request("GET", url, b"", sent, timeout_s, max_body=max_bytes + 1, within_s=DOWNLOAD_S)
    if answer.status == 429 or answer.status >= 500:
        raise ChannelUnavailable(
            f"{platform} answered {answer.status}.", retry_after_s=answer.retry_after_s
        )
    if len(answer.body) > max_bytes:
        raise too_large(max_bytes)
    if not answer.is_whole:
        raise ChannelUnavailable(f"{platform} ended the file early.")
    return answer


def too_large(max_bytes: int) -> DeliveryRefused:
    """Build the error for a file that has more bytes than may be fetched."""
    return DeliveryRefused(f"The file has more than {max_bytes:,} bytes.", reason="too_large")


def refuse_foreign(url: str, *hosts: str) -> None:
    """Refuse an address that is on none of these hosts, or below one that begins with a dot.

    Whoever is sent the token of a channel must be its platform. Raises `DeliveryRefused`.
    """
    host = host_of(url)
    is_known = any(host == each or (each.startswith(".") and host.endswith(each)) for each in hosts)
    if not host or not is_known:
        raise DeliveryRefused("The file is not on the platform.", reason="address_refused")


def host_of(url: str) -> str:
    """The host of an address, with its port where that is not the scheme's own; empty where the
    address has a user or none of these."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if parts.username is not None:
        return ""
    own = {"https": 443, "http": 80}.get(parts.scheme)
    return host if port in (None, own) else f"{host}:{port}"
