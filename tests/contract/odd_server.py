"""A chat completions server on loopback that answers in the odd ways of real ones."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def chunk(content: object = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def unfinished(content: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}}]}


DONE = b"data: [DONE]\n\n"
HELLO = event(chunk("Hel")) + event(chunk("lo", "stop")) + DONE
NOTHING: Mapping[str, str] = {}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def spelled(text: str) -> bytes:
    """An event whose text is written as JSON escapes."""
    return b'data: {"choices":[{"delta":{"content":"' + text.encode() + b'"}}]}\n\n'


#: What a server sends to say "Hello".
HELLOS: Mapping[str, bytes] = {
    "as OpenAI does": HELLO,
    "finish_reason missing": event(unfinished("Hel")) + event(chunk("lo", "stop")) + DONE,
    "finish_reason empty": event(chunk("Hel", "")) + event(chunk("lo", "stop")) + DONE,
    "no finish_reason at all": event(unfinished("Hello")) + DONE,
    "no [DONE]": event(chunk("Hel")) + event(chunk("lo", "stop")),
    "no last blank line": (event(chunk("Hel")) + event(chunk("lo", "stop"))).removesuffix(b"\n\n"),
    "no space": HELLO.replace(b"data: ", b"data:"),
    "CRLF": HELLO.replace(b"\n", b"\r\n"),
    "CR": HELLO.replace(b"\n", b"\r"),
    "single newlines": HELLO.replace(b"\n\n", b"\n"),
    "comments and fields": b": PROCESSING\n\nevent: message\nid: 1\nretry: 100\n" + HELLO,
    "pings": b'event: ping\ndata: {"type": "ping"}\n\n' + event({}) + HELLO,
    "role alone": event({"choices": [{"delta": {"role": "assistant", "content": None}}]}) + HELLO,
    "delta null": event({"choices": [{"delta": None, "finish_reason": None}]}) + HELLO,
    "annotations first": event({"choices": [], "prompt_filter_results": []}) + HELLO,
    "parts": event(
        chunk([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], "stop")
    ),
    "thinking": event({"choices": [{"delta": {"reasoning_content": "hm"}}]}) + HELLO,
    "usage null": event(chunk("Hello", "stop", usage=None)) + DONE,
    "usage of nulls": event(chunk("Hello", "stop", usage=dict.fromkeys(USAGE))) + DONE,
    "usage of strings": event(
        chunk("Hello", "stop", usage={"prompt_tokens": "3", "completion_tokens": 2.0})
    ),
    "usage late": HELLO.replace(DONE, b"") + event({"choices": [], "usage": USAGE}) + DONE,
}


class OddServer:
    """What it says and what it was asked; `kind` is the content type of its answers."""

    def __init__(self) -> None:
        self.says: bytes | Mapping[str, bytes] = HELLO
        self.kind = "text/event-stream"
        #: What a refusal has beside its content type.
        self.headers: dict[str, str] = {}
        self.models: Any = [{"id": "m"}]
        #: Status and body for a request that is refused.
        self.refuses: Any = lambda body: None
        self.bodies: list[dict[str, Any]] = []
        self.url = ""


@contextmanager
def serving() -> Iterator[OddServer]:
    odd = OddServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if odd.models is None:
                self.answer(404, "application/json", b'{"error": "not found"}')
            else:
                self.answer(200, "application/json", json.dumps({"data": odd.models}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            odd.bodies.append(body)
            if refusal := odd.refuses(body):
                said = json.dumps(refusal[1]).encode()
                self.answer(refusal[0], "application/json", said, odd.headers)
                return
            says = odd.says
            if isinstance(says, Mapping):
                says = says.get(body["messages"][-1]["content"].split()[0], HELLO)
            self.answer(200, odd.kind, says)

        def answer(
            self, status: int, kind: str, data: bytes, more: Mapping[str, str] = NOTHING
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        odd.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        try:
            yield odd
        finally:
            server.shutdown()
            thread.join()
