"""What a URL leads to. Those of no database or broker of ours are refused before anything connects.

The sentences never repeat a URL: it may hold a password. Each check returns its URL, or raises
`ValueError`, which pydantic turns into a mistake of the variable at fault.
"""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

#: What kombu calls the transports that hints are published with.
AMQP = frozenset(("amqp", "amqps", "pyamqp"))
REDIS = frozenset(("redis", "rediss", "redis+socket"))
SENTINEL = frozenset(("sentinel",))

#: What people write instead.
_MEANT = {
    "rabbit": "amqp",
    "rabbitmq": "amqp",
    "rabbits": "amqps",
    "rabbitmqs": "amqps",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+sentinel": "sentinel",
    "redis-sentinel": "sentinel",
}
_DATABASE_FORM = "postgresql://user:password@host:5432/name"
_ENCODED = "with special characters of the password percent-encoded (@ is %40, / is %2F)"
_HOST = re.compile(r"(\[[\w:.%]+\]|[^:\[\]]*)(:\d*)?")
_UNKNOWN_PARAMETER = re.compile(r'invalid URI query parameter: "(\w+)"')


def check_database_url(url: str) -> str:
    """Accept what libpq reads: https://www.postgresql.org/docs/current/libpq-connect.html"""
    scheme, separator, rest = url.strip().partition("://")
    if not url.strip():
        raise ValueError(f"is empty; write {_DATABASE_FORM}, or leave the variable out")
    if scheme.startswith(("postgresql+", "postgres+", "jdbc:postgresql")):
        raise ValueError(f"names a driver; write {_DATABASE_FORM}")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ValueError(f"must start with postgresql://, as in {_DATABASE_FORM}")
    _refuse_odd_hosts(re.split("[/?]", rest)[0].rpartition("@")[2])
    # Settings are read where no database is, too: engines are measured on machines without it.
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError) as error:
        if parameter := _UNKNOWN_PARAMETER.search(str(error)):
            raise ValueError(
                f"has the parameter {parameter[1]!r}, which PostgreSQL's library does not know: "
                f"remove it (a schema is chosen with ALTER ROLE … SET search_path)"
            ) from None
        raise ValueError(
            f"is no URL that can be read; write {_DATABASE_FORM}, {_ENCODED}"
        ) from None
    return url.strip()


def check_broker_url(urls: str) -> str:
    """Accept one URL, or several of one kind joined with `;`."""
    kinds = {_broker_kind(url.strip()) for url in urls.split(";")}
    if len(kinds) > 1:
        raise ValueError("names brokers of different kinds; turns are hinted through one kind")
    return ";".join(url.strip() for url in urls.split(";"))


def _broker_kind(url: str) -> frozenset[str]:
    scheme, separator, rest = url.partition("://")
    if not url:
        raise ValueError("is empty; write amqp://… or redis://…, or leave the variable out")
    if scheme in _MEANT:
        raise ValueError(f"must start with {_MEANT[scheme]}:// for this broker")
    kind = next((kind for kind in (AMQP, REDIS, SENTINEL) if scheme in kind), None)
    if not separator or kind is None:
        raise ValueError(
            "must start with amqp:// (RabbitMQ), redis:// (Redis or Valkey) or sentinel:// (their "
            "Sentinels)"
        )
    if scheme != "redis+socket":
        _refuse_no_host(url, rest)
    return kind


def _refuse_no_host(url: str, rest: str) -> None:
    hosts = re.split("[/?]", rest)[0].rpartition("@")[2]
    if "," in hosts:
        raise ValueError("has a list of hosts; write one whole URL for each, joined with ;")
    _refuse_odd_hosts(hosts)
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if not host:
        raise ValueError(f"names no host; write scheme://user:password@host:port/…, {_ENCODED}")


def _refuse_odd_hosts(hosts: str) -> None:
    for host in hosts.split(","):
        if host.count(":") > 1 and not host.startswith("["):
            raise ValueError("has an IPv6 address without brackets; write [::1]:5432")
        if _HOST.fullmatch(host) is None:
            raise ValueError(f"has a host or port that cannot be read; write host:port, {_ENCODED}")


def check_server_url(url: str) -> str:
    """Accept the address of an HTTP server, perhaps with a login and a path."""
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
        host.encode("idna")  # no label is empty, or too long
        is_web = parts.scheme in ("http", "https") and bool(host)
        is_web = is_web and re.search(r"\s", url.strip()) is None
        _ = parts.port
    except ValueError:  # UnicodeError is one
        is_web = False
    if not is_web:
        raise ValueError(
            f"must be an address of http:// or https://, as in http://localhost:8080, {_ENCODED}"
        )
    if parts.query or parts.fragment:
        raise ValueError("has a '?' or '#' in it; write the address alone")
    return url.strip()


def check_origin(origin: str) -> str:
    """Accept an origin as browsers send it, or `*`: https://www.rfc-editor.org/rfc/rfc6454"""
    if "@" in origin:
        raise ValueError("has a login in it, which no browser sends; write https://host")
    return origin


def is_loopback(url: str) -> bool:
    """Whether every host of a URL is this machine (a socket's path is)."""
    hosts = urlsplit(url).netloc.rpartition("@")[2]
    return all(is_loopback_host(_without_port(host)) for host in hosts.split(","))


def is_loopback_host(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in ("", "localhost") or host.startswith("%2F")


def _without_port(host: str) -> str:
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def reachable(host: str) -> str:
    """Where a server is reached that listens on `host`: on all addresses is on loopback, too."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def address(host: str, port: int) -> str:
    """`host:port`, with the brackets of an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
