"""An embedder of character pairs, and a stand-in for a server of `/v1/embeddings`."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from math import sqrt
from threading import Thread
from typing import Any

from turnmill.schemas.embedders.base import Identity
from turnmill.schemas.settings import EmbedderSettings
from turnmill.schemas.store.knowledge.spaces import Vector

DIMS = 64


def hashed(text: str, synonyms: dict[str, str] | None = None) -> list[float]:
    """Texts with many equal pairs of characters are near; so are synonyms."""
    text = text.casefold()
    for word, other in (synonyms or {}).items():
        text = text.replace(word, other)
    vector = [1e-3] * DIMS
    for a, b in pairwise(text):
        vector[zlib.crc32(f"{a}{b}".encode()) % DIMS] += 1.0
    length = sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


class Hashed:
    """Knows that a kettle is a boiler, which no word says."""

    is_remote = False
    version = "1"
    synonyms: dict[str, str]

    def __init__(self, settings: EmbedderSettings) -> None:
        self.synonyms = {"boiler": "kettle", "drips": "leaks"}
        self.passages = 0

    @property
    def identity(self) -> Identity:
        return Identity("hashed", self.version, DIMS)

    def embed_question(self, text: str) -> Vector:
        return hashed(text, self.synonyms)

    def embed_passages(self, texts: Sequence[str]) -> list[Vector]:
        self.passages += len(texts)
        return [hashed(text, self.synonyms) for text in texts]

    def close(self) -> None:
        pass


class HashedNewer(Hashed):
    version = "2"


class EmbeddingServer:
    """Answers as OpenAI does, with the vectors of `hashed` at twice their length."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        #: What it answers instead, status and body.
        self.answer: tuple[int, bytes] | None = None
        #: Whether it does so to one text: None is to all.
        self.of: str | None = None

    @contextmanager
    def running(self) -> Iterator[str]:
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(size))
                state.requests.append({"path": self.path, **body})
                state.keys.append(self.headers.get("Authorization"))
                answer = state.answer if state.of in {None, *body["input"]} else None
                status, said = answer or (200, _embeddings(body["input"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _embeddings(texts: list[str]) -> bytes:
    """The last one first: clients must look at the index."""
    rows = [
        {"object": "embedding", "index": at, "embedding": [2 * x for x in hashed(text)]}
        for at, text in enumerate(texts)
    ]
    return json.dumps({"object": "list", "data": rows[::-1]}).encode()
