"""The connections of the API: what each may take, and which one gives way when there are too many.

uvicorn waits for ever for the rest of a request, so that a few thousand half-sent ones take all of
a process's files. Here a connection has a time for everything it is to do, and when all places are
taken, one that still owes a request gives its place up: the oldest of the address that has most of
such. A client that sends its request at once is never that one.
"""

import asyncio
import logging
import re
from enum import Enum
from http import HTTPStatus
from typing import Any

import h11

from turnmill.producer.api.errors import Problem
from turnmill.producer.api.resources.metrics import APIMetrics
from turnmill.producer.api.server.rare_log import RareLog
from turnmill.producer.vendor import HTTPProtocol, read_at_most
from turnmill.schemas.settings import APISettings

#: A body may take its timeout and a second more for each of so many bytes.
MIN_BYTES_PER_S = 10_000
#: How long a client that was refused may take to read the answer.
LINGER_S = 2.0
#: Bytes read at a time. What is read is parsed at once, and other connections wait.
READ_BYTES = 64 * 1024
#: Bytes of a request's headers.
MAX_HEADER_BYTES = 64 * 1024
#: Chunks of a body that may be tiny. Each takes the parser as long as a kilobyte does.
MAX_TINY_CHUNKS = 10_000
TINY_BYTES = 8

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")

TOO_SLOW = Problem("request_timeout", "The request did not arrive in time.")
FULL = Problem("unavailable", "The server has no room for another connection. Try again shortly.")

_logger = logging.getLogger("turnmill.api.connection")
#: uvicorn warns of each malformed request; `api.connections_refused` counts them.
_logger.setLevel(logging.ERROR)


class Phase(Enum):
    """What a connection waits for."""

    HEADER = "header"
    BODY = "body"
    REPLY = "reply"
    #: The next request of a connection that is kept alive; uvicorn has a timer for it.
    NEXT = "next"


class Crowd:
    """The connections of one server. Lives in one event loop: no locks."""

    def __init__(self, settings: APISettings, capacity: int, metrics: APIMetrics) -> None:
        self.settings = settings
        self.capacity = capacity
        self._metrics = metrics
        self._open: set[Connection] = set()
        #: Those that owe a request or the rest of one, by address, the oldest first.
        self._owing: dict[str, dict[Connection, None]] = {}
        self._log = RareLog("api.connections_refused")

    def admit(self, connection: "Connection") -> bool:
        """Let a connection in, if need be for another one that gives way."""
        if len(self._open) >= self.capacity and not self._make_room():
            return False
        self._open.add(connection)
        return True

    def note(self, connection: "Connection", *, is_owing: bool) -> None:
        """Note what a connection waits for now."""
        self._forget_owing(connection)
        if is_owing and connection in self._open:
            self._owing.setdefault(connection.address, {})[connection] = None

    def leave(self, connection: "Connection") -> None:
        self._open.discard(connection)
        self._forget_owing(connection)

    def has_place(self, connection: "Connection") -> bool:
        return connection in self._open

    def note_refusal(self, reason: str) -> None:
        self._log.note(reason)
        self._metrics.count_refusal(reason)

    def _make_room(self) -> bool:
        busiest = max(self._owing.values(), key=len, default=None)
        if busiest is None:
            return False
        next(iter(busiest)).give_way()
        return True

    def _forget_owing(self, connection: "Connection") -> None:
        owing = self._owing.get(connection.address, {})
        owing.pop(connection, None)
        if not owing:
            self._owing.pop(connection.address, None)


class Connection(HTTPProtocol):
    """One client's connection."""

    def __init__(self, *arguments: Any, crowd: Crowd, **options: Any) -> None:
        # uvicorn's own, whichever it has.
        super().__init__(*arguments, **options)
        self.conn = StrictParser(h11.SERVER, MAX_HEADER_BYTES)
        self.logger = _logger
        self.address = ""
        self._crowd = crowd
        self._phase: Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._phase_began = 0.0
        self._phase_bytes = 0
        self._is_refused = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        read_at_most(transport, READ_BYTES)
        if self._crowd.admit(self):
            self._note_phase()
        else:
            self._refuse(FULL, "full")

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._phase_bytes += len(data)
        super().data_received(data)
        self._note_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_write_timer()
        self.stop_idle_timer()
        self._crowd.leave(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        timeout_s = self._crowd.settings.send_timeout_s
        self._write_timer = self.loop.call_later(timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_phase()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # Closing waits until all is sent, which a client that does not read prevents.
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem("invalid_input", "The request is not valid HTTP/1.1."), "malformed")

    # Our own

    def give_way(self) -> None:
        """Close at once, for another connection."""
        self._crowd.note_refusal("gave_way")
        self._crowd.leave(self)
        self.transport.abort()

    def _note_phase(self) -> None:
        phase = self._find_phase()
        if self._is_refused or self.transport.is_closing() or phase is self._phase:
            return
        self._phase, self._phase_began, self._phase_bytes = phase, self.loop.time(), 0
        self._crowd.note(self, is_owing=phase is not Phase.REPLY)
        self._stop_timer()
        if phase in (Phase.HEADER, Phase.BODY):
            self._set_timer(self._allowed_s)

    def _find_phase(self) -> Phase:
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.BODY
        if self.conn.their_state is not h11.IDLE:
            return Phase.REPLY
        has_begun = self._phase is None or bool(self.conn.trailing_data[0])
        is_first = self._phase is Phase.HEADER
        return Phase.HEADER if has_begun or is_first else Phase.NEXT

    @property
    def _allowed_s(self) -> float:
        settings = self._crowd.settings
        if self._phase is Phase.BODY:
            return settings.body_timeout_s + self._phase_bytes / MIN_BYTES_PER_S
        return settings.header_timeout_s

    def _set_timer(self, after_s: float) -> None:
        self._timer = self.loop.call_later(after_s, self._check_pace)

    def _check_pace(self) -> None:
        if self.flow.read_paused:
            # It is the app that does not read, not the client that does not send.
            self._phase_began, self._phase_bytes = self.loop.time(), 0
        left_s = self._phase_began + self._allowed_s - self.loop.time()
        if left_s > 0:
            self._set_timer(left_s)
        elif self._phase is Phase.HEADER and not self._phase_bytes:
            self.transport.close()
        else:
            self._refuse(TOO_SLOW, "slow")

    def _refuse(self, problem: Problem, reason: str) -> None:
        """Answer and close, but not before the client has read it: a socket that is closed with
        unread bytes resets the connection, and the answer is lost."""
        self._is_refused = True
        self._stop_timer()
        self._crowd.note_refusal(reason)
        self._crowd.note(self, is_owing=True)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write(problem)
            self.flow.resume_reading()
        self._close_gently()

    def _close_gently(self) -> None:
        if self._crowd.has_place(self):
            self.transport.write_eof()
            self._timer = self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            self.transport.close()

    def _write(self, problem: Problem) -> None:
        response = problem.response({"Connection": "close"})
        headers = [*self.server_state.default_headers, *response.raw_headers]
        reason = HTTPStatus(response.status_code).phrase.encode()
        for event in (
            h11.Response(status_code=response.status_code, headers=headers, reason=reason),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()


class StrictParser(h11.Connection):
    """h11, without what parsers read in more than one way: request smuggling lives on that.

    https://www.rfc-editor.org/rfc/rfc9112#section-6.3, https://www.rfc-editor.org/rfc/rfc9112#section-2.2
    """

    _chunks = 0
    _chunk_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE:
            header, _, _ = self.trailing_data[0].partition(b"\r\n\r\n")
            if _BARE_LINE_FEED.search(header):
                raise h11.RemoteProtocolError("a line ends without a carriage return")
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
            _check_framing(event)
        elif isinstance(event, h11.Data):
            self._check_chunk(len(event.data))
        return event

    def _check_chunk(self, size: int) -> None:
        self._chunks += 1
        self._chunk_bytes += size
        if self._chunks > MAX_TINY_CHUNKS and self._chunk_bytes < TINY_BYTES * self._chunks:
            raise h11.RemoteProtocolError("the chunks are tiny")


def _check_framing(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return
    if b"content-length" in names or request.http_version < b"1.1":
        raise h11.RemoteProtocolError("the length of the body is ambiguous")
