"""A platform's API on this machine: its rules, and its failures when they are ordered."""

import json
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

#: How long a call is left without an answer when `silence` is ordered.
SILENCE_S = 60.0


@dataclass
class Order:
    """What becomes of a call instead of its answer.

    `before` and `after` are told that it was reached, before the method has run or after, and the
    call waits until `go` is set.
    """

    kind: str
    retry_after_s: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Call:
    verb: str
    path: str
    given: dict[str, Any]
    #: Their names in lower case.
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    status: int
    data: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


class MockAPI(ABC):
    """A server of JSON on a free port of loopback; a platform adds its methods and its rules."""

    def __init__(self) -> None:
        #: The names and bodies of all calls, in their order.
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._orders: dict[str, list[Order]] = defaultdict(list)
        self._closing = threading.Event()
        self._server = _Server(self._call)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @abstractmethod
    def name(self, call: Call) -> str:
        """Name a call, as `order` and `calls` do."""

    @abstractmethod
    def answer(self, call: Call) -> Reply:
        """Do what is asked, by the platform's rules."""

    @abstractmethod
    def limited(self, retry_after_s: float) -> Reply:
        """Say "too many requests" as the platform does."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def order(self, name: str, kind: str, *, retry_after_s: int = 1, times: int = 1) -> Order:
        """Order what becomes of a method's next calls.

        Kinds: `429`, `500`, `silence`, `dies` (it works, and the connection breaks), `before` and
        `after` (see `Order`).
        """
        order = Order(kind, retry_after_s)
        self._orders[name] += [order] * times
        return order

    def count(self, name: str) -> int:
        return sum(each == name for each, _ in self.calls)

    def close(self) -> None:
        self._closing.set()
        for orders in self._orders.values():
            for order in orders:
                order.go.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, call: Call) -> Reply | None:
        """Answer a call, or never (None)."""
        name = self.name(call)
        order = self._orders[name].pop(0) if self._orders[name] else Order("")
        if order.kind == "before":
            order.reached.set()
            order.go.wait()
        self.calls.append((name, call.given))
        if order.kind == "429":
            return self.limited(order.retry_after_s)
        if order.kind == "500":
            return Reply(500)
        if order.kind == "silence":
            self._closing.wait(SILENCE_S)
            return None
        reply = self.answer(call)
        if order.kind == "after":
            order.reached.set()
            order.go.wait()
        return None if order.kind == "dies" else reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, take: Callable[[Call], Reply | None]) -> None:
        self.take = take
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = urlsplit(self.path).path
        reply = self.server.take(Call(self.command, path, json.loads(body or b"{}"), headers))
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        content = b"" if reply.data is None else json.dumps(reply.data).encode()
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _take

    def log_message(self, *_: object) -> None:
        """Silent."""
