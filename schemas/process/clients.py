"""The clients of HTTP for servers that the settings name. No other ones are made.

What the environment says of proxies counts for all of them alike; calls to this machine, and to
hosts of `NO_PROXY`, take none.
"""

from collections.abc import Mapping

import httpx

from turnmill.schemas.process.network import refuse_unusable_network, takes_proxy

#: httpx's own: https://www.python-httpx.org/advanced/resource-limits/
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)


def http_client(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: httpx.Timeout | float,
    limits: httpx.Limits = _LIMITS,
) -> httpx.Client:
    """Make a client whose paths follow `url`. Raises `SettingsError` for an unusable proxy."""
    refuse_unusable_network([url])
    # A transport of ours knows no proxy.
    direct = None if takes_proxy(url) else httpx.HTTPTransport(limits=limits)
    return httpx.Client(
        base_url=url, headers=headers, timeout=timeout, limits=limits, transport=direct
    )


def async_http_client(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: httpx.Timeout | float,
    limits: httpx.Limits = _LIMITS,
) -> httpx.AsyncClient:
    """As `http_client`."""
    refuse_unusable_network([url])
    direct = None if takes_proxy(url) else httpx.AsyncHTTPTransport(limits=limits)
    return httpx.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, limits=limits, transport=direct
    )
