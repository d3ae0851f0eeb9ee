"""Around every call: an id, a log line, a measurement, and an answer whatever happens.

A log line has the route, never the path's query or anything that was said.
"""

import asyncio
import contextlib
import re
import time
import traceback
from collections.abc import Iterator
from itertools import count
from secrets import token_hex

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnmill.producer.api.errors import Problem, problem_of
from turnmill.producer.api.resources.metrics import APIMetrics

REQUEST_ID_HEADER = "X-Request-Id"

#: A client's own id is kept if it cannot do harm in a log.
_GOOD_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

#: Methods that are worth a label of their own.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: Routes that are called all the time.
_PROBES = frozenset({"/health", "/healthz", "/readyz", "/metrics"})

#: Whether the turn was accepted is not known here; with its idempotency key a client may ask.
STOPPING = Problem("stopping", "The server is stopping. Send the call again.")

#: How much of a refused body is read before its answer, and for how long.
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
DISCARD_S = 5.0

log = structlog.get_logger()


class ObservedCalls:
    """ASGI middleware; the outermost one of the app."""

    def __init__(self, app: ASGIApp, metrics: APIMetrics) -> None:
        self._app = app
        self._metrics = metrics
        # Fresh randomness for each call would be a system call for each.
        start = token_hex(12)
        self._fresh_ids = (f"{start}{number:08x}" for number in count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _Call(scope, receive, send, self._fresh_ids)
        if call.is_head:
            # What a GET would be answered, without its body: the app has no routes for HEAD.
            scope = {**scope, "method": "GET"}
        with structlog.contextvars.bound_contextvars(request_id=call.request_id):
            try:
                await self._app(scope, call.receive, call.send)
            except ClientDisconnect:
                pass
            except asyncio.CancelledError:
                # The server stops, and waits no longer for what may wait for PostgreSQL.
                if call.status is not None:
                    raise
                await STOPPING.response()(scope, receive, call.send)
            except Exception as error:
                _log_failure(error)
                if call.status is None:
                    await problem_of(error).response()(scope, receive, call.send)
            finally:
                self._observe(call, scope)

    def _observe(self, call: "_Call", scope: Scope) -> None:
        method = call.method if call.method in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "unknown")
        # nginx's number for a client that left before anything was said.
        status = call.status or 499
        duration_s = time.monotonic() - call.started
        self._metrics.observe(route, method, status, duration_s)
        level = "debug" if route in _PROBES else "info"
        fields = {"method": method, "route": route, "status": status}
        getattr(log, level)("call.answered", **fields, duration_s=round(duration_s, 4))


class _Call:
    """One call: passes its body and its answer on, and remembers the status."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, fresh_ids: Iterator[str]
    ) -> None:
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID_HEADER, "")
        self.request_id = given if _GOOD_ID.fullmatch(given) else next(fresh_ids)
        self.started = time.monotonic()
        self.status: int | None = None
        self.method: str = scope["method"]
        self._receive = receive
        self._send = send
        self._has_unread_body = headers.get("content-length", "0") != "0" or (
            "transfer-encoding" in headers
        )
        #: Whether the client holds its body back until it is asked for it.
        self._is_asked_for_body = "expect" not in headers

    @property
    def is_head(self) -> bool:
        return self.method == "HEAD"

    async def receive(self) -> Message:
        self._is_asked_for_body = True
        message = await self._receive()
        self._has_unread_body = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self.request_id
            if self._has_unread_body and self._is_asked_for_body:
                await self._discard_body()
            if self._has_unread_body:
                headers["Connection"] = "close"
        elif self.is_head:
            message = {**message, "body": b""}
        await self._send(message)

    async def _discard_body(self) -> None:
        """Read what an early answer left of the body, up to a limit: clients read no answer while
        they send, and a connection that is closed on unread bytes is reset, the answer with it."""
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while self._has_unread_body and size < MAX_DISCARDED_BYTES:
                    size += len((await self.receive()).get("body", b""))


def _log_failure(error: Exception) -> None:
    """What happened and where; not the message, which may repeat a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    log.error("call.failed", error=type(error).__name__, where=where)
