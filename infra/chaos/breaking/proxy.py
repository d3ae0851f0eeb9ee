"""A network of ours: a TCP proxy in front of a broker or PostgreSQL that delays, resets,
refuses, or falls silent.

Silence is the hard case. The proxy's kernel goes on acknowledging what it is sent, so neither
keepalives nor TCP_USER_TIMEOUT notice: only who waits for an answer with a limit finds out. A
connection that has been silent stays so after `heal`, for bytes are missing in it.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit, urlunsplit

LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {"amqp": 5672, "redis": 6379, "postgresql": 5432, "postgres": 5432}

_CHUNK_BYTES = 64 * 1024
#: Close with RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)
_ACTION_TIMEOUT_S = 10.0


class _Link:
    """A client's connection and, unless it began in silence, ours to the target."""

    def __init__(self, client: socket.socket, *, is_silent: bool) -> None:
        self.sockets = [client]
        self.is_silent = is_silent
        self.is_reset = False
        self.task: asyncio.Task[None] | None = None

    def close(self) -> None:
        for end in self.sockets:
            if self.is_reset:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()


class Proxy:
    """Listens on `port` of loopback between `__enter__` and `__exit__`, in a thread of its own.

    The faults may be called from any thread; each holds until `heal`, except `reset`.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._listener = socket.create_server((LOOPBACK, 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._links: set[_Link] = set()
        self._delay_s = self._jitter_s = 0.0
        self._is_silent = self._is_refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy in front of the server of a URL with one host."""
        parts = urlsplit(url)
        return cls(parts.hostname or LOOPBACK, parts.port or DEFAULT_PORTS[parts.scheme])

    def url(self, url: str) -> str:
        """The same URL, by way of this proxy."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}{LOOPBACK}:{self.port}"))

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Hold every piece of data back for `seconds`, and up to `jitter` seconds more."""
        self._delay_s, self._jitter_s = seconds, jitter

    def reset(self) -> None:
        """End every connection with RST, at both ends. New ones are served as before."""
        self._do(self._reset_all())

    def half_open(self) -> None:
        """Swallow what either end sends, and keep every connection open: the peer has vanished.

        New connections are accepted and never hear anything.
        """
        self._do(self._fall_silent())

    def refuse(self) -> None:
        """Reset new connections at once; those that are open live on."""
        self._is_refusing = True

    def heal(self) -> None:
        """Serve new connections, and open ones that were not silent, without any fault."""
        self._delay_s = self._jitter_s = 0.0
        self._is_silent = self._is_refusing = False

    @property
    def link_count(self) -> int:
        """Connections that are open, the silent ones among them."""
        return len(self._links)

    def __enter__(self) -> Self:
        self._thread.start()
        self._accepting = asyncio.run_coroutine_threadsafe(self._accept(), self._loop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._accepting.cancel()
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    def _do(self, action: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(_ACTION_TIMEOUT_S)

    async def _fall_silent(self) -> None:
        self._is_silent = True
        for link in self._links:
            link.is_silent = True

    async def _reset_all(self) -> None:
        tasks = []
        for link in self._links:
            link.is_reset = True
            if link.task is not None:
                link.task.cancel()
                tasks.append(link.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            link = _Link(client, is_silent=self._is_silent)
            self._links.add(link)
            link.task = self._loop.create_task(self._serve(link))

    async def _serve(self, link: _Link) -> None:
        try:
            link.is_reset = self._is_refusing
            if not self._is_refusing:
                await self._connect_and_pump(link)
        except* OSError:
            link.is_reset = True
        finally:
            self._links.discard(link)
            link.close()

    async def _connect_and_pump(self, link: _Link) -> None:
        client = link.sockets[0]
        if link.is_silent:
            await self._pump(link, client, client)
            return
        server = socket.socket()
        server.setblocking(False)
        link.sockets.append(server)
        await self._loop.sock_connect(server, self._target)
        for end in link.sockets:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(link, client, server))
            group.create_task(self._pump(link, server, client))

    async def _pump(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK_BYTES):
            if self._delay_s or self._jitter_s:
                await asyncio.sleep(self._delay_s + random.uniform(0, self._jitter_s))
            if not link.is_silent:
                await self._loop.sock_sendall(sink, data)
        if link.is_silent:
            # Who vanished says no goodbye: the other end stays open until a reset.
            await asyncio.Event().wait()
        sink.shutdown(socket.SHUT_WR)
