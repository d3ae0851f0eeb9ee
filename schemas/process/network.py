"""What the environment says of proxies and certificates, for the servers that we call.

Clients of HTTP obey `HTTPS_PROXY` and its like when they are made, so that an unusable one is an
error of every client, also of those that need no proxy.
"""

import os
import ssl
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

# `proxy_bypass` is given variables on Linux only, and there typeshed hides what it is.
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.urls import is_loopback

if TYPE_CHECKING:
    from turnmill.schemas.settings import Settings

_PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")
#: What httpx and OpenSSL take: the folders count where no file is named.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
#: What botocore takes the first of.
_S3_CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
#: What httpx takes: https://www.python-httpx.org/advanced/proxies/
_SCHEMES = ("http", "https", "socks5", "socks5h")
_AWS = "https://s3.amazonaws.com"
#: What slack_sdk takes the first of, whatever the URL's scheme: its proxy_env_variable_loader.py.
_SLACK_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")


def takes_proxy(url: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a proxy of the environment would stand between this process and a URL."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    spared = environ.get("no_proxy") or environ.get("NO_PROXY", "")
    return not is_loopback(url) and not proxy_bypass_environment(host, {"no": spared})


def refuse_unusable_network(urls: Iterable[str], environ: Mapping[str, str] = os.environ) -> None:
    """Raises `SettingsError` for proxies and certificates that no client of ours can use.

    A proxy matters only where one of the `urls` takes it, certificates only where there are `urls`.
    """
    urls = tuple(urls)
    proxied = _PROXIES if any(takes_proxy(url, environ) for url in urls) else ()
    for name in (*proxied, *(proxy.lower() for proxy in proxied)):
        if proxy := environ.get(name):
            _refuse_unusable_proxy(name, proxy)
    if urls:
        _refuse_unusable_certificates(_CERTIFICATES, environ)


def refuse_unusable_for_api(settings: "Settings") -> None:
    """Raises `SettingsError` for what would keep the API from what it calls itself."""
    embedder = settings.embedder.url
    refuse_unusable_network([embedder.get_secret_value()] if embedder else [])
    refuse_unusable_for_files(settings)


def refuse_unusable_for_workers(settings: "Settings") -> None:
    """Raises `SettingsError` for what would keep workers from the servers of their models."""
    servers = [settings.embedder.url, settings.media.transcriber_url]
    urls = [each.get_secret_value() for each in servers if each]
    refuse_unusable_network([*settings.engine.endpoint_urls, *urls])
    refuse_unusable_for_files(settings)


def refuse_unusable_for_deliveries(settings: "Settings") -> None:
    """Raises `SettingsError` for what would keep deliveries from platforms and files. Platforms
    are called without a proxy, and with the certificates that OpenSSL finds.
    """
    _refuse_unusable_certificates(_CERTIFICATES, os.environ)
    refuse_unusable_for_files(settings)


def refuse_unusable_for_files(settings: "Settings") -> None:
    """Raises `SettingsError` for a proxy or certificates that keep a process from the bucket of
    files.
    """
    if settings.files.storage == "s3":
        endpoint = settings.s3.endpoint
        url = endpoint.get_secret_value() if endpoint else _AWS
        name = f"{urlsplit(url).scheme}_proxy"
        for each in (name.upper(), name) if takes_proxy(url) else ():
            _refuse_socks(each, "the bucket of files", os.environ)
        _refuse_unusable_certificates(_S3_CERTIFICATES, os.environ)


def refuse_unusable_for_slack(url: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raises `SettingsError` for a proxy or certificates that keep socket mode from Slack.

    `url`: of Slack's API; the address of the connection is known only when Slack has told it.
    """
    name = _first(_SLACK_PROXIES, environ)
    if name and takes_proxy(url, environ) and (proxy := environ[name].strip()):
        _refuse_socks(name, "Slack's socket mode", environ)
        _refuse_unusable_proxy(name, proxy)
        if "://" not in proxy:  # the library would look for it on this machine
            raise SettingsError(f"{name} names a proxy without http://: write http://host:port.")
    _refuse_unusable_certificates(_CERTIFICATES, environ)


def _refuse_socks(name: str, client: str, environ: Mapping[str, str]) -> None:
    """`client`: what the library is for, which knows no such proxy."""
    if environ.get(name, "").strip().lower().startswith("socks"):
        raise SettingsError(
            f"{name} names a SOCKS proxy, which the library for {client} cannot use. Name "
            f"a proxy of http://, or add the host to NO_PROXY."
        )


def _first(names: Iterable[str], environ: Mapping[str, str]) -> str | None:
    """Return the first of the variables that is set."""
    return next((name for name in names if environ.get(name)), None)


def _refuse_unusable_certificates(names: Iterable[str], environ: Mapping[str, str]) -> None:
    """`names`: of which the first that is set counts."""
    name = _first(names, environ)
    if name is None:
        return
    path = environ[name]
    places = path.split(os.pathsep) if name == "SSL_CERT_DIR" else [path]
    if not any(Path(each).exists() for each in places):
        why = "which does not exist"
    elif Path(path).is_file() and not _has_certificates(path):
        why = "which is no file of certificates in PEM that can be read"
    else:
        return
    raise SettingsError(
        f"{name} names {path}, {why}. Correct it, or remove the variable from the environment."
    )


def _has_certificates(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:  # ssl.SSLError is one
        return False
    return True


def _refuse_unusable_proxy(name: str, proxy: str) -> None:
    """The proxy itself is not shown: it may hold a password."""
    scheme, separator, _ = proxy.partition("://")
    if separator and scheme.lower() not in _SCHEMES:
        raise SettingsError(
            f"{name} names a proxy of another kind than {', '.join(_SCHEMES)}. Correct it, or "
            "remove the variable from the environment."
        )
    try:
        _ = urlsplit(proxy if separator else f"http://{proxy}").port
    except ValueError:
        raise SettingsError(
            f"{name} names a proxy whose address cannot be read. Write http://host:port, or remove "
            "the variable from the environment."
        ) from None
    if separator and scheme.lower().startswith("socks") and find_spec("socksio") is None:
        raise SettingsError(
            f"{name} names a SOCKS proxy, for which a package is missing: pip install socksio, "
            "or remove the variable from the environment."
        )
