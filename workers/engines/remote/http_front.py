"""HTTP to one server, for many threads, on an event loop in a thread of its own.

A turn is a task there, so that giving it up closes its connection at once, also while the server
says nothing. It is given up by anyio's cancel scopes, as httpx expects: `Task.cancel` would also
reach it while it closes other turns' old connections, and leave those open.
https://anyio.readthedocs.io/en/stable/cancellation.html
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

import anyio
import httpx

from turnmill.schemas.errors import (
    EngineAway,
    EngineBrokeOff,
    EngineUnavailable,
    TurnmillError,
    Unanswered,
)
from turnmill.schemas.process.clients import async_http_client
from turnmill.schemas.process.retry_after import retry_after_s
from turnmill.workers.turn.abort import Abort, Interrupted, heeded

#: Seconds to connect; and for answers that need no model.
CONNECT_S = 3.0
SHORT_S = 5.0
#: Servers close idle connections after 5 s; a turn must not meet one that is being closed.
KEEP_ALIVE_S = 2.0
#: What is said of a connection that the server has closed.
CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
#: Bodies of answers that are read whole.
MAX_BODY_BYTES = 1 << 20

#: What an answer to `stream` may be.
EVENTS, JSON = "text/event-stream", "application/json"

#: What an answer's status and the beginning of its body mean, if it is not 200.
Translate = Callable[[int, str], TurnmillError]
ResultT = TypeVar("ResultT")


class _Call:
    """A question to the server. Only the loop's thread touches it."""

    def __init__(self) -> None:
        #: Once it has begun.
        self.scope: anyio.CancelScope | None = None
        self.is_given_up = False

    def give_up(self) -> None:
        self.is_given_up = True
        if self.scope is not None:
            self.scope.cancel()


class HTTPFront:
    """A pool of connections to `url`; `silence_s` is how long a stream may say nothing."""

    def __init__(
        self, url: str, headers: dict[str, str], silence_s: float, translate: Translate
    ) -> None:
        self._translate = translate
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S)
        timeout = httpx.Timeout(silence_s, connect=CONNECT_S)
        self._client = async_http_client(url, headers=headers, timeout=timeout, limits=limits)
        self._is_closed = False
        #: Those that run.
        self._calls: set[_Call] = set()
        self._lock = Lock()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = Thread(target=self._run, name="http-front", daemon=True)
        self._thread.start()

    def get(self, path: str) -> object:
        """The JSON at a path, within a few seconds. Errors as `stream`, and `Interrupted`
        once the abort that is heeded is set.
        """
        return self._answer("GET", path, None)

    def post(self, path: str, body: dict[str, object]) -> object:
        """As `get`."""
        return self._answer("POST", path, body)

    def stream(self, path: str, body: dict[str, object], abort: Abort) -> Iterator[bytes]:
        """The bytes of an event stream as they come; ends early once `abort` is set.

        Raises:
            EngineUnavailable: the server cannot be reached, is silent, or breaks off.
            TurnmillError: what `translate` makes of its status.
        """
        events: SimpleQueue[bytes | TurnmillError | None] = SimpleQueue()
        call = _Call()
        self._submit(self._pass_on(path, body, events, call))
        try:
            with abort.telling(lambda: events.put(None)):
                while (event := events.get()) is not None and not abort.is_set():
                    if isinstance(event, TurnmillError):
                        raise event
                    yield event
        finally:
            self._give_up(call)

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _answer(self, method: str, path: str, body: dict[str, object] | None) -> object:
        abort, call = heeded(), _Call()
        answer = self._submit(self._whole(method, path, body, call))
        try:
            with abort.telling(lambda: self._give_up(call)):
                return answer.result()
        except TurnmillError:
            if abort.is_set():
                raise Interrupted from None
            raise

    def _submit(self, work: Coroutine[object, object, ResultT]) -> Future[ResultT]:
        with self._lock:
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise EngineAway("The engine is closed.")

    def _give_up(self, call: _Call) -> None:
        with self._lock:
            if not self._is_closed:
                self._loop.call_soon_threadsafe(call.give_up)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._stop.wait()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        # One that has not begun yet is given up as it begins.
        for call in self._calls:
            call.give_up()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.aclose()

    @contextmanager
    def _running(self, call: _Call, most_s: float = math.inf) -> Iterator[anyio.CancelScope]:
        """The block ends early, and quietly, once the call is given up, the front is closed, or
        the time is over.
        """
        self._calls.add(call)
        try:
            with anyio.move_on_after(most_s) as call.scope:
                if call.is_given_up or self._stop.is_set():
                    call.scope.cancel()
                yield call.scope
        finally:
            self._calls.discard(call)

    async def _whole(
        self, method: str, path: str, body: dict[str, object] | None, call: _Call
    ) -> object:
        answer, text = None, ""
        try:
            with self._running(call, SHORT_S) as scope:
                async with self._asked(method, path, body) as answer:
                    text = await _beginning(answer)
        except httpx.HTTPError as error:
            raise _unavailable(error) from None
        if self._stop.is_set():
            raise EngineAway("The engine is closed.")
        if answer is None or scope.cancelled_caught:
            raise Unanswered(f"it does not answer within {SHORT_S:g} s")
        if answer.status_code != httpx.codes.OK:
            raise self._error(answer, text)
        try:
            return json.loads(text)
        except ValueError:
            raise EngineUnavailable(f"its answer at {path} is not JSON") from None

    async def _pass_on(
        self,
        path: str,
        body: dict[str, object],
        events: SimpleQueue[bytes | TurnmillError | None],
        call: _Call,
    ) -> None:
        end: TurnmillError | None = EngineAway("The engine is closed.")
        try:
            with self._running(call):
                async with self._asked("POST", path, body) as answer:
                    await self._check(answer)
                    if _kind(answer) == JSON:
                        events.put(_as_event(await _beginning(answer)))
                    else:
                        async for data in answer.aiter_bytes():
                            events.put(data)
                end = None
        except TurnmillError as error:
            end = error
        except httpx.HTTPError as error:
            end = _unavailable(error)
        finally:
            events.put(end)

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: dict[str, object] | None
    ) -> AsyncIterator[httpx.Response]:
        """The answer, its body still to come.

        A kept connection may be one that the server closes just now (RFC 9112, section 9.6): what
        was not answered at all is asked once more.
        """
        try:
            answer = await self._sent(method, path, body)
        except CLOSED:
            answer = await self._sent(method, path, body)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def _sent(self, method: str, path: str, body: dict[str, object] | None) -> httpx.Response:
        # In ASCII: a lone surrogate cannot be written in UTF-8.
        content = None if body is None else json.dumps(body).encode()
        headers = None if body is None else {"Content-Type": "application/json"}
        request = self._client.build_request(method, path, content=content, headers=headers)
        return await self._client.send(request, stream=True)

    async def _check(self, answer: httpx.Response) -> None:
        if answer.status_code != httpx.codes.OK:
            raise self._error(answer, await _beginning(answer))
        if _kind(answer) not in (EVENTS, JSON):
            raise EngineUnavailable(
                f"it answers with '{_kind(answer)[:50]}' instead of an event stream"
            )

    def _error(self, answer: httpx.Response, text: str) -> TurnmillError:
        error = self._translate(answer.status_code, text)
        if isinstance(error, EngineUnavailable):
            error.retry_after_s = retry_after_s(answer.headers)
        return error


def _kind(answer: httpx.Response) -> str:
    kind: str = answer.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def _as_event(body: str) -> bytes:
    """A whole answer of a server that does not stream, as a stream of one event.

    Raises:
        EngineUnavailable: it is not JSON.
    """
    try:
        event = json.dumps(json.loads(body)).encode()
    except ValueError:
        raise EngineUnavailable("its answer is not JSON") from None
    return b"data: " + event + b"\n\ndata: [DONE]\n\n"


async def _beginning(answer: httpx.Response) -> str:
    """As much of the body as is read."""
    body = bytearray()
    with suppress(httpx.DecodingError):
        async for data in answer.aiter_bytes():
            body += data
            if len(body) > MAX_BODY_BYTES:
                break
    return body[:MAX_BODY_BYTES].decode(errors="replace")


def _unavailable(error: Exception) -> EngineUnavailable:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return EngineAway(f"it cannot be reached ({type(error).__name__}: {error})")
    if isinstance(error, httpx.TimeoutException):
        return Unanswered(f"it does not answer in time ({type(error).__name__})")
    # RemoteProtocolError, ReadError, WriteError: the connection broke.
    return EngineBrokeOff(f"it broke off ({type(error).__name__}: {error})")
