"""Redis and Valkey: nothing evicted, nothing forgotten at a restart, one server."""

from collections.abc import Iterator
from typing import Any

import redis

from turnmill.producer.doctor import clock
from turnmill.producer.doctor.broker import WRITING, Target
from turnmill.producer.doctor.findings import Check, Finding, broken, warning

#: Gone after a second.
_PROBE = "turnmill.doctor"


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


def _writes(target: Target) -> Iterator[Finding]:
    """Tries it: memory, disk, replicas and roles all show in what the server answers."""
    try:
        _client(target).set(_PROBE, 1, px=1000)
    except redis.exceptions.NoPermissionError:
        # An access list may name the keys of hints alone.
        return
    except redis.ResponseError as error:
        yield broken(f"no hint can be published: {error}", _remedy(error))


def _remedy(error: redis.ResponseError) -> str:
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return "CONFIG SET maxmemory to more, or free what else lies there: redis-cli --bigkeys"
    if isinstance(error, redis.exceptions.ReadOnlyError):
        return (
            "it is a replica: point TURNMILL_BROKER__URL at the primary, or at the Sentinels "
            "(sentinel://…)"
        )
    return "mend what it says; turns are accepted and kept meanwhile"


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
    WRITING: _writes,
    "redis cluster": _cluster,
    "eviction": _eviction,
    "persistence": _persistence,
    "broker clock": _clock,
}
