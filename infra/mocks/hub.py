"""A stand-in for the Hugging Face hub on loopback, with the faults that networks and hubs have.

It serves what the real client asks for when a model is pulled: the list of a repository's files
with their sizes and checksums, and each file by a redirect to a store that knows ranges.
https://huggingface.co/docs/hub/api
"""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

REVISION = "1" * 40


class Hub:
    """Files by repository and name. `faults` is used up, one for each call of the kind.

    Of the list: a status. Of a file: a status, `cut` (the connection breaks half way), `wrong`
    (other bytes of the same length), `slow` (in ten pieces), `stall` (no more than half of it until
    `go_on` is set).
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.list_faults: list[int] = []
        self.file_faults: list[int | str] = []
        self.go_on = threading.Event()
        #: Without it a request for a range gets the whole file.
        self.knows_ranges = True
        #: The token that gated repositories want.
        self.token: str | None = None
        #: The ranges that were asked for, or None, by the order of the calls.
        self.ranges: list[str | None] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            if path.startswith("api/models/"):
                self._list(path.removeprefix("api/models/").split("/revision/")[0])
            elif "/resolve/" in path:
                self._resolve(path)
            elif path.startswith("store/"):
                self._store(path.removeprefix("store/"))
            else:
                # As `api/agent-harnesses`, which the client does without.
                self._refuse(404)

        def _list(self, repo: str) -> None:
            if hub.list_faults:
                self._refuse(hub.list_faults.pop(0))
            elif repo not in hub.files:
                self._refuse(404, "RepoNotFound")
            else:
                siblings = [_sibling(name, data) for name, data in hub.files[repo].items()]
                body = {"id": repo, "sha": REVISION, "siblings": siblings}
                self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def _resolve(self, path: str) -> None:
            repo, _, rest = path.partition("/resolve/")
            if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
                status = 403 if self.headers["Authorization"] else 401
                self._refuse(status, "GatedRepo")
            elif hub.file_faults and isinstance(hub.file_faults[0], int):
                self._refuse(int(hub.file_faults.pop(0)))
            else:
                self._send(302, b"", {"Location": f"/store/{repo}/{rest.partition('/')[2]}"})

        def _store(self, path: str) -> None:
            owner, name, file = path.split("/", 2)
            data = hub.files[f"{owner}/{name}"][file]
            fault = hub.file_faults.pop(0) if hub.file_faults else ""
            wanted = self.headers["Range"]
            hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            start = start if hub.knows_ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self._write(data[start:], fault)

        def _write(self, data: bytes, fault: int | str) -> None:
            if fault == "wrong":
                data = bytes(255 - byte for byte in data)
            if fault in ("cut", "stall"):
                self.wfile.write(data[: len(data) // 2])
                if fault == "stall":
                    hub.go_on.wait()
                self.close_connection = True
                return
            pieces = 10 if fault == "slow" else 1
            size = -(-len(data) // pieces)
            for begin in range(0, len(data), size):
                self.wfile.write(data[begin : begin + size])
                time.sleep(0.1 if fault == "slow" else 0)

        def _refuse(self, status: int, code: str = "") -> None:
            self._send(status, b"", {"X-Error-Code": code} if code else {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _sibling(name: str, data: bytes) -> dict[str, object]:
    """Large files are named by SHA-256, small ones by the SHA-1 of their git blob."""
    blob = b"blob %d\0" % len(data) + data
    found: dict[str, object] = {
        "rfilename": name,
        "size": len(data),
        "blobId": hashlib.sha1(blob, usedforsecurity=False).hexdigest(),
    }
    if name.endswith((".gguf", ".safetensors")):
        sha256 = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 135}
    return found
