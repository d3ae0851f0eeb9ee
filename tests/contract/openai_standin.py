"""A stand-in for a vLLM server, as a process of its own: its protocol, the echo engine's replies.

python tests/contract/openai_standin.py SECONDS_PER_TOKEN
"""

import json
import sys
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from turnmill.infra.bench.announced import Announced, announced
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings
from turnmill.schemas.turns import GenerationParams, Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.abort import Abort


def serving(token_s: float = 0.0) -> AbstractContextManager[Announced]:
    return announced(sys.executable, __file__, str(token_s))


class Handler(BaseHTTPRequestHandler):
    engine: EchoEngine

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        card = {"id": DEFAULT_MODEL, "owned_by": "vllm", "max_model_len": 512}
        self.answer({"data": [card]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = prompt_of(body)
        if self.path == "/tokenize":
            count = self.engine.count_tokens(prompt)
            self.answer({"count": count})
        else:
            self.stream(prompt, body)

    def answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, prompt: Prompt, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        prompt_tokens = self.engine.count_tokens(prompt)
        params = GenerationParams(max_tokens=body["max_tokens"], seed=body.get("seed"))
        count = 0
        for chunk in self.engine.generate(prompt, params, Abort()):
            count += chunk.token_count
            choice = {"delta": {"content": chunk.text}, "finish_reason": chunk.finish_reason}
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count}
            event = json.dumps({"choices": [choice], "usage": usage}, ensure_ascii=True)
            self.wfile.write(f"data: {event}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def prompt_of(body: dict[str, Any]) -> Prompt:
    messages = [
        Message.model_construct(role=Role(each["role"]), content=each["content"])
        for each in body["messages"]
    ]
    prefix = messages.pop().content if body.get("continue_final_message") else ""
    return Prompt(tuple(messages), prefix)


class Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A reader left."""


if __name__ == "__main__":
    settings = EngineSettings(name="echo", echo_token_s=float(sys.argv[1]), context_window=512)
    Handler.engine = EchoEngine(settings)
    server = Server(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()
