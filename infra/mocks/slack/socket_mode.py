"""Slack's end of socket mode: `apps.connections.open`, and the WebSocket that it leads to."""

import base64
import hashlib
import json
import secrets
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from turnmill.infra.mocks.sending import Payload

#: RFC 6455, section 1.3.
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


class SocketModeServer(ThreadingHTTPServer):
    """Serves between `__enter__` and `__exit__` on a free port of loopback."""

    daemon_threads = True

    def __init__(self, app_token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.app_token = app_token
        #: What the client acknowledged, as it came.
        self.acknowledged: list[dict[str, object]] = []
        #: The connections that are open, the latest last.
        self.links: list[_Handler] = []

    def __enter__(self) -> "SocketModeServer":
        self._thread = threading.Thread(target=self.serve_forever, args=[0.05], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        for link in list(self.links):
            link.hang_up()
        self.server_close()
        self._thread.join()

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api/"

    def send(self, kind: str, payload: Payload, **more: object) -> str:
        """Send an envelope on the latest connection, and return its id."""
        envelope_id = secrets.token_hex(8)
        message = {"envelope_id": envelope_id, "type": kind, "payload": payload, **more}
        self.links[-1].write(_TEXT, json.dumps(message).encode())
        return envelope_id

    def ask_to_reconnect(self) -> None:
        """Say that the connection will be closed, as Slack does every few hours."""
        self.links[-1].write(_TEXT, b'{"type": "disconnect", "reason": "refresh_requested"}')

    def answer_to(self, envelope_id: str) -> dict[str, object] | None:
        """What came back for an envelope, or None so far."""
        return next((a for a in self.acknowledged if a["envelope_id"] == envelope_id), None)


class _Handler(BaseHTTPRequestHandler):
    server: SocketModeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        is_known = self.headers.get("Authorization") == f"Bearer {self.server.app_token}"
        url = f"ws://127.0.0.1:{self.server.server_port}/link/?ticket={secrets.token_hex(4)}"
        answer = {"ok": True, "url": url} if is_known else {"ok": False, "error": "invalid_auth"}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + _GUID
        accepted = base64.b64encode(hashlib.sha1(key.encode()).digest())
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accepted.decode())
        self.end_headers()
        self.close_connection = True
        self._writing = threading.Lock()
        self.write(_TEXT, b'{"type": "hello", "num_connections": 1}')
        self.server.links.append(self)
        try:
            while self._serve_frame():
                pass
        except OSError:
            pass
        finally:
            self.server.links.remove(self)

    def write(self, opcode: int, data: bytes) -> None:
        """Send one frame, unmasked as a server's are."""
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        with self._writing:
            self.wfile.write(head + data)
            self.wfile.flush()

    def hang_up(self) -> None:
        """Close the connection without a close frame."""
        self.connection.shutdown(2)

    def _serve_frame(self) -> bool:
        head = self.rfile.read(2)
        if len(head) < 2:
            return False
        opcode, size = head[0] & 0x0F, head[1] & 0x7F
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(self.rfile.read(width), "big")
        mask = self.rfile.read(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
        if opcode == _PING:
            self.write(_PONG, data)
        elif opcode == _TEXT:
            self.server.acknowledged.append(json.loads(data))
        return opcode != _CLOSE

    def log_message(self, *_: object) -> None:
        pass
