"""Slack's Web API on this machine: its rules, and its failures when they are ordered.

The judge of what we call is `slack_sdk`, whose client talks to this server as to Slack. Response
URLs of slash commands are served too: five uses within thirty minutes.
"""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl

from turnmill.infra.mocks.serving import SILENCE_S, Order
from turnmill.infra.mocks.slack.limits import Limits
from turnmill.infra.mocks.slack.messages import Board, Posted
from turnmill.infra.mocks.slack.methods import Methods, Refusal
from turnmill.infra.mocks.slack.payloads import new_id, new_ts

SCOPES = (
    "app_mentions:read,assistant:write,channels:history,chat:write,commands,groups:history,"
    "im:history,im:read,im:write,reactions:read"
)
TOKEN = "xoxb-mock-token"  # noqa: S105 - of this mock only

#: Of a response URL: https://docs.slack.dev/interactivity/handling-user-interaction
MAX_USES, USABLE_S = 5, 30 * 60.0


class SlackAPI:
    """The server, on a free port of loopback."""

    def __init__(self, board: Board | None = None, *, limited: bool = True) -> None:
        self.board = board or Board()
        self.methods = Methods(self.board)
        self.limits = Limits(limited)
        self.tokens = {TOKEN}
        self.scopes = SCOPES
        #: Why a token is not taken: `token_revoked`, `account_inactive`, ...
        self.token_error: str | None = None
        #: Every call, in its order: the method and its arguments.
        self.calls: list[tuple[str, dict[str, Any]]] = []
        #: Told of every change that people would see.
        self.on_change: Callable[[], None] = lambda: None
        self._orders: dict[str, list[Order]] = defaultdict(list)
        self._response_urls: dict[str, tuple[str, float]] = {}
        self._uses: Counter[str] = Counter()
        self._closing = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """What `slack_sdk` calls `base_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/api/"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        for orders in self._orders.values():
            for order in orders:
                order.go.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def order(self, method: str, kind: str, *, retry_after_s: int = 1, times: int = 1) -> Order:
        """Order what becomes of a method's next calls.

        Kinds: `429`, `500`, `silence`, `dies` (it works, and the connection breaks), `before` and
        `after` (see `Order`), or an error of Slack's.
        """
        order = Order(kind, retry_after_s)
        self._orders[method] += [order] * times
        return order

    def response_url(self, channel: str) -> str:
        """A response URL, as a slash command brings it."""
        name = new_id("R")
        self._response_urls[name] = (channel, time.monotonic())
        return f"http://127.0.0.1:{self._server.server_port}/response/{name}"

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    def call(self, method: str, given: dict[str, Any], token: str | None) -> "Reply | None":
        """Answer one call of the Web API; None: never."""
        order = self._orders[method].pop(0) if self._orders[method] else None
        kind = order.kind if order else ""
        if order is not None and kind == "before":
            order.reached.set()
            order.go.wait()
        self.calls.append((method, given))
        if order is not None and kind == "429":
            return _limited(order.retry_after_s)
        if kind == "500":
            return Reply(500, b"upstream error", {})
        if kind == "silence":
            self._closing.wait(SILENCE_S)
            return None
        answer = self._answer(method, given, token, kind)
        if order is not None and kind == "after":
            order.reached.set()
            order.go.wait()
        return None if kind == "dies" else answer

    def respond(self, name: str, given: dict[str, Any]) -> "Reply":
        """Take a message for a response URL."""
        channel, since = self._response_urls.get(name, ("", float("-inf")))
        if time.monotonic() - since > USABLE_S:
            return Reply(404, b'{"ok":false,"error":"expired_url"}', {})
        self._uses[name] += 1
        if self._uses[name] > MAX_USES:
            return Reply(404, b'{"ok":false,"error":"used_url"}', {})
        blocks = given.get("blocks") or []
        self.board.add(Posted(channel, new_ts(), str(given.get("text", "")), blocks=blocks))
        self.calls.append(("response_url", given))
        self.on_change()
        return Reply(200, b"ok", {})

    def _answer(self, method: str, given: dict[str, Any], token: str | None, kind: str) -> "Reply":
        try:
            self._check_token(token)
            channel = str(given.get("channel") or given.get("channel_id") or "")
            if (wait_s := self.limits.retry_after_s(method, channel)) is not None:
                return _limited(wait_s)
            if kind not in ("", "before", "after", "dies"):
                raise Refusal(kind)
            known = self.methods.by_name.get(method)
            if known is None:
                raise Refusal("unknown_method")
            body = {"ok": True, **known(given)}
        except Refusal as refusal:
            body = {"ok": False, "error": str(refusal)}
        else:
            self.on_change()
        return Reply(200, json.dumps(body).encode(), {"x-oauth-scopes": self.scopes})

    def _check_token(self, token: str | None) -> None:
        if not token:
            raise Refusal("not_authed")
        if token not in self.tokens:
            raise Refusal("invalid_auth")
        if self.token_error is not None:
            raise Refusal(self.token_error)


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]


def _limited(wait_s: int) -> Reply:
    body = b'{"ok":false,"error":"ratelimited"}'
    return Reply(429, body, {"Retry-After": str(wait_s)})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: SlackAPI) -> None:
        self.api = api
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        kind, _, name = self.path.lstrip("/").partition("/")
        given = self._read()
        if kind == "response":
            self._reply(self.server.api.respond(name, given))
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        token = str(given.pop("token", "")) or token
        reply = self.server.api.call(name.partition("?")[0], given, token or None)
        if reply is None:
            self.close_connection = True
        else:
            self._reply(reply)

    do_GET = do_POST

    def _read(self) -> dict[str, Any]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            return dict(json.loads(body))
        return dict(parse_qsl(body, keep_blank_values=True)) | dict(
            parse_qsl(self.path.partition("?")[2])
        )

    def _reply(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json; charset=utf-8", **reply.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: object) -> None:
        """Silent."""
