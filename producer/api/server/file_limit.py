"""How many files this process may open, which is how many connections it can hold."""

import resource
import socket
from collections.abc import Iterable

from turnmill.schemas.settings import Settings

#: More would only make the kernel's tables large.
MAX_FILES = 65_536
#: Files that are no connection: logs, the event loop's own, listeners, the database's connections
#: beside the pool.
RESERVED_FILES = 64
MIN_CONNECTIONS = 16
MAX_BACKLOG = 2048


def raise_file_limit() -> None:
    """Allow this process as many files as its hard limit does. Most systems give out 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def accept_backlog() -> int:
    """Connections that asyncio accepts in one go, before any of them is looked at."""
    return min(MAX_BACKLOG, max(MIN_CONNECTIONS, _file_limit() // 8))


def deepen_backlog(listeners: Iterable[socket.socket]) -> None:
    """Let the kernel queue more connections than asyncio accepts in one go: it drops those that its
    queue has no room for, and their clients try again after a second."""
    for listener in listeners:
        with socket.fromfd(listener.fileno(), listener.family, listener.type) as same:
            same.listen(MAX_BACKLOG)


def connection_capacity(settings: Settings) -> int:
    """Connections this process can hold and still open the files that answering them takes."""
    free = _file_limit() - RESERVED_FILES - settings.database.pool_size - accept_backlog()
    return max(MIN_CONNECTIONS, min(settings.api.max_connections, free))


def _file_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft
