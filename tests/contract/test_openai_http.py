"""What OpenAI-compatible servers send, and what the engine makes of it; servers are killed."""

import gc
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any, ClassVar

import pytest

from turnmill.schemas.errors import ContextOverflow, EngineFailure, EngineUnavailable
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.remote.control import answers
from turnmill.workers.engines.remote.sse import MAX_EVENT_BYTES, EventReader
from turnmill.workers.turn.abort import Abort

from .conftest import OpenAIServerProcess
from .openai_standin import serving

httpx = pytest.importorskip("httpx")

PROMPT = Prompt((Message(role=Role.USER, content="[[tokens=60]]"),))
PARAMS = GenerationParams(temperature=0, max_tokens=60).over(DEFAULT_PARAMS)


def new_engine(*urls: str, **values: Any) -> Any:
    from turnmill.workers.engines.openai_http.engine import OpenAIEngine

    values = {"context_window": 512, **values}
    return OpenAIEngine(EngineSettings(name="openai_http", endpoints=urls, **values))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_whole_wherever_the_bytes_are_cut(size: int) -> None:
    texts = ["a\u2028b\u0085c", "😀 é", ""]
    data = b": ping\r\n\r\n" + b"".join(f"data: {each}\r\n\r\n".encode() for each in texts)
    reader = EventReader()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert [event.decode() for piece in pieces for event in reader.push(piece)] == texts


def test_an_event_without_end_is_given_up() -> None:
    reader = EventReader()
    with pytest.raises(EngineUnavailable):
        for _ in range(3):
            list(reader.push(b"x" * (MAX_EVENT_BYTES // 2)))


def test_a_turn_whose_replica_is_killed_goes_on_at_another_one() -> None:
    """Stand-ins that speak like vLLM."""
    with serving(0.02) as first, serving(0.02) as second:
        engine = new_engine(first.url, second.url)
        engine.start()
        try:
            chunks = engine.generate(PROMPT, PARAMS, Abort())
            begun = list(islice(chunks, 5))
            first.kill()  # the turn went to the first of two that owe nothing
            reply = begun + list(chunks)
        finally:
            engine.close()
    assert text_of(reply) == " ".join(f"w{number}" for number in range(1, 61))
    assert sum(chunk.token_count for chunk in reply) == 60
    assert (reply[-1].finish_reason, reply[-1].prompt_tokens) == ("stop", 1)


def test_a_turn_whose_server_is_killed_ends_at_another_one_with_the_same_text(
    start_openai_server: Callable[[ExitStack], OpenAIServerProcess],
) -> None:
    prompt = Prompt((Message(role=Role.USER, content="Write a story about a fox and a hen."),))
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        both = pool.map(start_openai_server, [stack] * 2)
        servers = {server.url: server for server in both}
        engine = new_engine(*servers)
        stack.callback(engine.close)
        engine.start()
        undisturbed = list(engine.generate(prompt, PARAMS, Abort()))
        chunks = engine.generate(prompt, PARAMS, Abort())
        begun = list(islice(chunks, 10))
        (busy,) = [one.replica.name for one in engine._pool._members if one.owed_tokens]
        servers[busy].kill()
        reply = begun + list(chunks)
    assert text_of(reply) == text_of(undisturbed)
    assert sum(chunk.token_count for chunk in reply) == 60
    assert (reply[-1].finish_reason, reply[-1].prompt_tokens) == (
        undisturbed[-1].finish_reason,
        undisturbed[-1].prompt_tokens,
    )


def test_a_real_server_answers_the_control_question_until_it_is_killed(
    start_openai_server: Callable[[ExitStack], OpenAIServerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from turnmill.workers.engines.openai_http.engine import OpenAIServer

    # Other tests compute beside it.
    monkeypatch.setattr("turnmill.workers.engines.remote.control.CONTROL_S", 60)
    with ExitStack() as stack:
        process = start_openai_server(stack)
        server = OpenAIServer(process.url, EngineSettings(name="openai_http"))
        stack.callback(server.close)
        server.check()
        assert answers(server, Abort())
        process.kill()
        assert answers(server, Abort()) is False


class Scripted(BaseHTTPRequestHandler):
    """A plain server: no token counts, nothing beyond the protocol."""

    status, kind, data = 200, "text/event-stream", b""
    card: ClassVar[dict[str, Any]] = {"id": "smollm2-135m-instruct"}
    #: Paths that it knows nothing of.
    lacks: tuple[str, ...] = ()
    refuses_options = False
    #: Requests that it answers on one connection; on the next one it hangs up.
    keeps_for = 0
    request_count = 0
    said_goodbye = threading.Event()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def parse_request(self) -> bool:
        self.request_count += 1
        if self.keeps_for and self.request_count > self.keeps_for:
            self.close_connection = True
            return False
        return super().parse_request()

    def do_GET(self) -> None:
        self.say(200, "application/json", json.dumps({"data": [self.card]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path in self.lacks:
            self.say(404, "application/json", b'{"error": {"message": "File Not Found"}}')
            return
        if self.refuses_options and "stream_options" in body:
            self.say(422, "application/json", b'{"error": "unknown field stream_options"}')
            return
        self.say(self.status, self.kind, self.data)
        if b"[DONE]" not in self.data and self.data.endswith(b"\n\n"):
            self.connection.settimeout(20)
            if self.connection.recv(1) == b"":
                self.said_goodbye.set()

    def say(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.keeps_for:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def ask() -> Iterator[Callable[..., list[Chunk]]]:
    """Ask a server that says what is given."""
    handler = type("Handler", (Scripted,), {"said_goodbye": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    engine = new_engine(url, silence_s=2)

    def ask(**says: Any) -> list[Chunk]:
        for name, value in says.items():
            setattr(handler, name, value)
        engine.start()
        return list(engine.generate(PROMPT, PARAMS, Abort()))

    ask.handler, ask.engine, ask.url = handler, engine, url  # type: ignore[attr-defined]
    yield ask
    engine.close()
    server.shutdown()
    thread.join()
    server.server_close()


def event(text: str, reason: str | None = None) -> bytes:
    body = {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


END = event("", "stop") + b"data: [DONE]\n\n"


def test_a_plain_server_is_believed_as_far_as_it_speaks(ask: Any) -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}\n\n'
    data = event("a\u2028") + event("😀") + event("", "length") + usage + b"data: [DONE]\n\n"
    reply = ask(data=data, refuses_options=True)
    assert text_of(reply) == "a\u2028😀"
    assert sum(chunk.token_count for chunk in reply) == 5
    assert (reply[-1].finish_reason, reply[-1].prompt_tokens) == ("length", 9)
    assert not ask.engine.capabilities.continues


def test_an_old_llama_cpp_is_taken_as_it_is(ask: Any) -> None:
    card = {**Scripted.card, "owned_by": "llamacpp", "meta": {"n_ctx": 256}}
    lacks = ("/apply-template", "/v1/chat/completions/input_tokens")
    reply = ask(card=card, lacks=lacks, data=event("a") + event(" b") + END)
    assert not ask.engine.capabilities.continues
    assert ask.engine.context_window == 256
    assert sum(chunk.token_count for chunk in reply) == 2
    assert reply[-1].prompt_tokens == ask.engine.count_tokens(PROMPT) == 3


def test_a_turn_that_meets_a_connection_being_closed_is_asked_again(ask: Any) -> None:
    reply = ask(protocol_version="HTTP/1.1", keeps_for=1, data=event("a") + END)
    assert text_of(reply) == "a"


def test_turns_that_end_leave_no_connection_open(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is forgotten open is a ResourceWarning, and those are errors here. Turns
    close each other's old ones as they end.
    """
    monkeypatch.setattr("turnmill.workers.engines.remote.http_front.KEEP_ALIVE_S", 0.002)
    engine = new_engine(ask.url)
    ask(protocol_version="HTTP/1.1", keeps_for=1_000, data=event("a") + END)
    engine.start()
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(lambda _: list(engine.generate(PROMPT, PARAMS, Abort())), range(400))
        )
    engine.close()
    gc.collect()
    assert {text_of(reply) for reply in replies} == {"a"}


def test_usage_may_be_missing(ask: Any) -> None:
    reply = ask(data=event("a") + END)
    assert (sum(chunk.token_count for chunk in reply), reply[-1].prompt_tokens) == (1, 3)


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (
            {"status": 400, "data": b'{"error": {"message": "maximum context length"}}'},
            ContextOverflow,
        ),
        ({"status": 400, "data": b'{"error": {"message": "bad temperature"}}'}, EngineFailure),
        ({"status": 401}, EngineUnavailable),
        ({"status": 429}, EngineUnavailable),
        ({"status": 500, "data": b"oops"}, EngineUnavailable),
        ({"kind": "text/html", "data": b"<html>"}, EngineUnavailable),
        ({"data": b"data: garbage\n\n"}, EngineUnavailable),
        ({"data": b'data: {"error": {"message": "out of memory"}}\n\n'}, EngineUnavailable),
        ({"data": event("closed") + b":"}, EngineUnavailable),
        ({"data": event("silent")}, EngineUnavailable),
    ],
)
def test_what_goes_wrong_is_an_error_of_ours(
    ask: Any, says: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(**says)


def test_an_abort_closes_the_connection_of_a_silent_server(ask: Any) -> None:
    ask(data=END)
    ask.handler.data = event("begun")
    abort = Abort()
    chunks = ask.engine.generate(PROMPT, PARAMS, abort)
    assert next(chunks).text == "begun"
    abort.set()
    assert list(chunks) == []
    assert ask.handler.said_goodbye.wait(20)
