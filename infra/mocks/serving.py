"""A platform's API on this machine: its rules, and its failures when they are ordered."""

import json
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from turnmill.infra.mocks.sending import FORM, Payload

#: How long `close` waits at most, seconds.
_POLL_S = 0.02
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
    given: Payload
    #: Their names in lower case.
    headers: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    status: int
    #: JSON, or a file.
    data: dict[str, object] | list[dict[str, object]] | bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


class MockAPI(ABC):
    """A server of JSON, which reads forms too, on loopback: on a free port unless one is named.

    A platform adds its methods and its rules.
    """

    def __init__(self, port: int = 0) -> None:
        #: The names and bodies of all calls, in their order.
        self.calls: list[tuple[str, dict[str, object]]] = []
        #: How many calls met the platform's own limit, not one that was ordered.
        self.limited_count = 0
        self._orders: dict[str, list[Order]] = defaultdict(list)
        self._closing = threading.Event()
        self._server = _Server(self.call, port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), daemon=True
        )

    @abstractmethod
    def name(self, call: Call) -> str:
        """Name a call, as `order` and `calls` do."""

    @abstractmethod
    def answer(self, call: Call) -> Reply:
        """Do what is asked, by the platform's rules."""

    @abstractmethod
    def limited(self, retry_after_s: float) -> Reply:
        """Say "too many requests" as the platform does."""

    def refused(self, error: str) -> Reply:
        """Answer with an error of the platform's own, for orders that name one.

        Raises:
            ValueError: the mock knows no such order.
        """
        raise ValueError(f"There is no order '{error}' here.")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def order(self, name: str, kind: str, *, retry_after_s: int = 1, times: int = 1) -> Order:
        """Order what becomes of a method's next calls.

        Kinds: `429`, `500`, `silence`, `dies` (it works, and the connection breaks), `before` and
        `after` (see `Order`), or an error that the platform has a word for (`refused`).
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

    def call(self, call: Call) -> Reply | None:
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
        if order.kind not in ("", "before", "after", "dies"):
            return self.refused(order.kind)
        reply = self.answer(call)
        self.limited_count += reply.status == 429
        if order.kind == "after":
            order.reached.set()
            order.go.wait()
        return None if order.kind == "dies" else reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, take: Callable[[Call], Reply | None], port: int) -> None:
        self.take = take
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        if headers.get("content-type", "").startswith(FORM):
            given: Payload = dict(parse_qsl(body.decode(), keep_blank_values=True))
        elif headers.get("content-type", "").startswith("multipart/form-data"):
            given = _form(headers["content-type"], body)
        elif headers.get("content-type", "").startswith("application/octet-stream"):
            given = {}
        else:
            given = json.loads(body or b"{}")
        reply = self.server.take(Call(self.command, parts.path, given, headers, query, body))
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        content = b"" if reply.data is None else reply.data
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _take

    def log_message(self, *_: object) -> None:
        """Silent."""


def _form(content_type: str, body: bytes) -> dict[str, object]:
    """The parts of a form: texts, and files as bytes."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = BytesParser(policy=default).parsebytes(head + body)
    found: dict[str, object] = {}
    for part in message.iter_parts():
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        name = part.get_param("name", header="content-disposition")
        found[str(name)] = data if part.get_filename() else data.decode()
    return found
