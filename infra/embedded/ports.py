"""Loopback ports that no other stack on this machine takes in the meantime.

Ports stay below 32768: above lies the range from which the kernel serves outgoing
connections, and any of those may sit on the port when a server wants it back.
"""

import random
import socket
from collections.abc import Iterable, Iterator

from turnmill.schemas.errors import StackError

LOOPBACK = "127.0.0.1"
LOWEST, HIGHEST = 20_000, 32_000
_TRIES = 200


class PortClaim:
    """A port, and a name in the kernel that tells other stacks to leave it alone.

    The name is an abstract Unix socket: it needs no file, and it goes with its process.
    """

    def __init__(self, port: int, claim: socket.socket) -> None:
        self.port = port
        self._claim = claim

    def release(self) -> None:
        self._claim.close()


def claim_port(*preferred: int, host: str = LOOPBACK) -> PortClaim:
    """The first of the preferred ports that is free, or else any."""
    for port in _candidates(preferred):
        claim = _claim(port)
        if claim is None:
            continue
        if is_free(port, host):
            return PortClaim(port, claim)
        claim.close()
    raise StackError(f"No free port between {LOWEST} and {HIGHEST} on {host}.")


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there, which old connections in TIME_WAIT do not prevent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError:
        return False
    return True


def is_ours(host: str) -> bool:
    """Whether it is an address of this machine, so that a server could listen there at all."""
    return is_free(0, host)


def listens(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server listens there now. (`is_free` would get in the way of one that starts.)"""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _candidates(preferred: Iterable[int]) -> Iterator[int]:
    yield from preferred
    # Random, so that stacks that start together do not walk the same way.
    yield from random.sample(range(LOWEST, HIGHEST), _TRIES)


def _claim(port: int) -> socket.socket | None:
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0turnmill-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim
