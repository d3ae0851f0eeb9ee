"""Redis and Valkey: nothing evicted, nothing forgotten at a restart, one server."""

from collections.abc import Iterator
from typing import Any

from turnmill.producer.doctor import clock
from turnmill.producer.doctor.broker import Target
from turnmill.producer.doctor.findings import Check, Finding, broken, warning


def _client(target: Target) -> Any:
    """redis-py's client, of the master where there are Sentinels. Its own types have it that each
    answer may have to be awaited."""
    return target.connection.default_channel.client


def _cluster(target: Target) -> Iterator[Finding]:
    if _client(target).info("cluster").get("cluster_enabled"):
        yield broken(
            "Celery cannot use Redis Cluster: its keys lie in several slots",
            "a single server, or one primary with Sentinels: TURNMILL_BROKER__URL=sentinel://…",
        )


def _eviction(target: Target) -> Iterator[Finding]:
    policy = _client(target).info("memory").get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield broken(
            f"maxmemory-policy is {policy}: hints are thrown away when memory is short",
            "CONFIG SET maxmemory-policy noeviction, and in the server's configuration",
        )


def _persistence(target: Target) -> Iterator[Finding]:
    if not _client(target).info("persistence").get("aof_enabled"):
        yield warning(
            "appendonly is off: a restart forgets the hints since the last snapshot, and turns "
            "wait until they are missed",
            "CONFIG SET appendonly yes, and in the server's configuration",
        )


def _clock(target: Target) -> Iterator[Finding]:
    def read_s() -> float:
        seconds, microseconds = _client(target).time()
        return float(seconds + microseconds / 1e6)

    return clock.compare("the broker", read_s)


CHECKS: dict[str, Check[Target]] = {
    "redis cluster": _cluster,
    "eviction": _eviction,
    "persistence": _persistence,
    "broker clock": _clock,
}
