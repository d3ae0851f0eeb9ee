"""Proxies and certificates of the environment, and the clients of HTTP that meet them."""

import ast
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import proxy_bypass

import certifi
import httpx
import pytest
from slack_sdk.proxy_env_variable_loader import load_http_proxy_from_env

from turnmill.producer.channels.asking import ask
from turnmill.producer.cli import processes
from turnmill.producer.doctor.configuration import _network
from turnmill.schemas.embedders.openai_http import OpenAIEmbedder
from turnmill.schemas.errors import EngineFailure, EngineUnavailable, SettingsError
from turnmill.schemas.process import network, surroundings
from turnmill.schemas.process.clients import http_client
from turnmill.schemas.settings import EngineSettings, MediaSettings, load_settings
from turnmill.schemas.settings.engine import EmbedderSettings
from turnmill.workers.engines.hub_errors import translated
from turnmill.workers.engines.remote.http_front import HTTPFront
from turnmill.workers.engines.tfserving.http import ModelClient
from turnmill.workers.media.base import Hints
from turnmill.workers.media.transcribers.openai_http import ServerTranscriber

SOCKS = "socks5://user:secret@proxy:1080"
CERTIFICATES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: no proxy, no certificates, and no package for SOCKS."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.upper().startswith("TURNMILL_")]:
        monkeypatch.delenv(name)
    for name in CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setattr(network, "find_spec", lambda _: None)


def answer_of(status: int, _: str) -> EngineFailure:
    return EngineFailure(str(status))


@contextmanager
def answering(host: str) -> Iterator[str]:
    """The URL of a server that answers GET with 204, and POST with vectors and a transcript."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = {"data": [{"index": 0, "embedding": [1.0, 0.0]}], "text": "hello"}
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Server((host, 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        shown = f"[{host}]" if ":" in host else host
        try:
            yield f"http://{shown}:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_no_proxy_stands_between_this_machine_and_itself(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    environ = dict(os.environ)
    surroundings.keep_out_foreign_variables(environ)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, environ[name])

    with answering(host) as url:
        assert httpx.get(url).status_code == 204


def test_hosts_that_take_no_proxy_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"NO_PROXY": "intranet,.example.com"}
    surroundings.keep_out_foreign_variables(environ)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", SOCKS)
    for host, is_spared in (("intranet", 1), ("a.example.com:443", 1), ("example.org", 0)):
        assert bool(proxy_bypass(host)) == bool(is_spared)
        assert network.takes_proxy(f"https://u:p@{host}/v1") != bool(is_spared)
    http_client("https://intranet/v1", timeout=1).close()


#: Python's own module as macOS has it, where the system's settings stand beside the variables.
MACOS = """
import importlib, sys, types, urllib.request
from turnmill.schemas.process import network
macos = types.ModuleType("_scproxy")
macos._get_proxies = macos._get_proxy_settings = dict
sys.modules["_scproxy"] = macos
sys.platform = "darwin"
importlib.reload(urllib.request)
importlib.reload(network)
for host in ("intranet", "example.org"):
    print(network.takes_proxy(f"https://{host}/v1", {"NO_PROXY": "intranet"}))
"""


def test_hosts_that_take_no_proxy_are_known_on_macos_too() -> None:
    told = subprocess.run(
        [sys.executable, "-c", MACOS], capture_output=True, text=True, check=False
    )
    assert told.stdout.split() == ["False", "True"], told.stderr


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ALL_PROXY", SOCKS, "pip install socksio"),
        ("https_proxy", "socks5h://proxy:1080", "pip install socksio"),
        ("HTTP_PROXY", "socks4://proxy:1080", "another kind than"),
        ("HTTPS_PROXY", "http://proxy:port", "cannot be read"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "/nowhere/ca.pem, which does not exist"),
        ("SSL_CERT_FILE", __file__, "no file of certificates"),
        ("SSL_CERT_DIR", "/nowhere/certs", "/nowhere/certs, which does not exist"),
    ],
)
def test_a_network_that_no_client_can_use_is_refused_in_a_sentence(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://api.example.org/v1"
    with pytest.raises(SettingsError, match=named):
        network.refuse_unusable_network([url], {variable: value})
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=named) as refused:
        http_client(url, timeout=1)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (SOCKS, "names a SOCKS proxy, which the library for Slack's socket mode cannot use"),
        ("socks4://proxy:1080", "names a SOCKS proxy"),
        ("ftp://proxy:21", "another kind than"),
        ("http://proxy:port", "cannot be read"),
        ("proxy:3128", "without http://"),
    ],
)
def test_slack_is_called_by_the_first_proxy_that_its_library_finds(
    value: str, named: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://slack.com/api/"
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
    for name in names[first + 1 :]:
        monkeypatch.setenv(name, "http://proxy:3128")
    network.refuse_unusable_for_slack(url)
    monkeypatch.setenv(names[first], value)
    assert load_http_proxy_from_env() == value
    with pytest.raises(SettingsError, match=f"{names[first]} .*{named}") as refused:
        network.refuse_unusable_for_slack(url)
    assert "secret" not in refused.value.message
    network.refuse_unusable_for_slack("http://127.0.0.1:9/api/")
    monkeypatch.setenv("NO_PROXY", ".slack.com")
    network.refuse_unusable_for_slack(url)


def test_what_slacks_library_does_not_read_keeps_nobody_from_slack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", SOCKS)
    network.refuse_unusable_for_slack("https://slack.com/api/")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(SettingsError, match="SSL_CERT_FILE names /nowhere"):
        network.refuse_unusable_for_slack("https://slack.com/api/")


def test_socket_asks_slacks_own_check_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "turnmill.toml"
    config.write_text(
        '[channels.acme]\nkind = "slack"\nbot = "default"\nbot_token = { env = "T" }\n'
        'app_token = { env = "T" }\nsigning_secret = { env = "T" }\n'
    )
    monkeypatch.setenv("TURNMILL_CONFIG", str(config))
    monkeypatch.setattr(processes, "_start_on_database", load_settings)
    monkeypatch.setenv("HTTP_PROXY", SOCKS)
    with pytest.raises(SettingsError, match="HTTP_PROXY names a SOCKS proxy"):
        processes.socket("acme")


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_certificates_for_the_bucket_of_files_are_looked_at(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load_settings(files={"storage": "s3"}, s3={"bucket": "b-1"})
    for path in ("/nowhere/ca.pem", __file__):
        monkeypatch.setenv(variable, path)
        with pytest.raises(SettingsError, match=f"{variable} names {path}"):
            network.refuse_unusable_for_files(given)
    monkeypatch.setenv("AWS_CA_BUNDLE", certifi.where())
    network.refuse_unusable_for_files(given)


@pytest.mark.parametrize("variable", CERTIFICATES)
def test_certificates_that_a_process_does_not_read_never_keep_it_from_starting(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/nowhere/ca.pem")
    alone = load_settings(engine={"name": "echo", "model": "echo"})
    network.refuse_unusable_for_api(alone)
    network.refuse_unusable_for_workers(alone)
    remote = load_settings(embedder={"url": "https://api.example.org/v1"})
    starts = [
        lambda: network.refuse_unusable_for_api(remote),
        lambda: network.refuse_unusable_for_workers(remote),
        lambda: network.refuse_unusable_for_deliveries(alone),
    ]
    is_read = variable.startswith("SSL_")
    for start in starts:
        with pytest.raises(SettingsError, match=variable) if is_read else nullcontext():
            start()


def test_of_several_folders_of_certificates_one_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join(["/nowhere/certs", str(tmp_path)]))
    http_client("https://api.example.org/v1", timeout=1).close()


def engine(url: str) -> None:
    front = HTTPFront(url, {}, 5.0, answer_of)
    with closing(front), pytest.raises(EngineFailure, match="204"):
        front.get("/")


def tfserving(url: str) -> None:
    client = ModelClient(url, EngineSettings(name="tfserving", remote_model="m"))
    with closing(client), pytest.raises(EngineUnavailable, match="204"):
        client.look()


def embedder(url: str) -> None:
    with closing(OpenAIEmbedder(EmbedderSettings.model_validate({"url": url, "model": "m"}))) as it:
        assert it.embed_question("x") == [1.0, 0.0]


def transcriber(url: str) -> None:
    settings = MediaSettings.model_validate({"transcriber_url": url})
    heard = ServerTranscriber(settings).transcribe(b"RIFF", Hints(), threading.Event())
    assert heard.text == "hello"


REMOTE = (engine, tfserving, embedder, transcriber)


@pytest.mark.parametrize("piece", REMOTE)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_that_no_client_can_use_does_not_matter_to_servers_on_loopback(
    host: str, piece: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ALL_PROXY", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, SOCKS)
    with answering(host) as url:
        network.refuse_unusable_network([url])
        piece(url)


@pytest.mark.parametrize("piece", REMOTE)
def test_a_proxy_that_no_client_can_use_is_a_sentence_of_each_remote_piece(
    piece: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", SOCKS)
    with pytest.raises(SettingsError, match="ALL_PROXY names a SOCKS proxy"):
        piece("https://api.example.org/v1")


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": {"endpoints": ["https://api.example.org/v1"]}},
        {"embedder": {"url": "https://api.example.org/v1"}},
        {"media": {"transcriber_url": "https://api.example.org/v1"}},
        {"files": {"storage": "s3"}, "s3": {"bucket": "b-1"}},
        {"files": {"storage": "s3"}, "s3": {"bucket": "b-1", "endpoint": "https://s3.example"}},
    ],
    ids=str,
)
def test_each_remote_address_of_the_settings_is_looked_at_before_anything_starts(
    settings: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", SOCKS)
    given = load_settings(**settings)
    with pytest.raises(SettingsError, match="HTTPS_PROXY names a SOCKS proxy"):
        network.refuse_unusable_for_workers(given)
    [finding] = _network(given)
    assert "HTTPS_PROXY names a SOCKS proxy" in finding.detail
    monkeypatch.setenv("NO_PROXY", ".example.org,.example,s3.amazonaws.com")
    network.refuse_unusable_for_workers(given)


def test_channels_are_called_as_deliveries_call_them_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with answering("127.0.0.1") as url:
        assert ask(url, {})[1]["text"] == "hello"


def test_a_proxy_that_the_hubs_client_cannot_use_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", SOCKS)
    with pytest.raises(SettingsError, match="HTTPS_PROXY names a SOCKS proxy"), translated("model"):
        httpx.Client()


def test_whoever_calls_servers_by_http_uses_the_clients_that_know_of_proxies() -> None:
    """Each that is made elsewhere would read the environment in its own way."""
    root = Path(__file__).parents[4]
    makers = {"Client", "AsyncClient", "get", "post", "request", "stream", "urlopen"}
    found = {
        str(path.relative_to(root))
        for top in ("compression", "producer", "schemas", "workers", "infra")
        for path in (root / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in makers and _is_library(node.func.value)
    }
    # A sample for users to copy, which needs nothing of Turnmill's.
    samples = {"infra/samples/bots/assistant/client.py"}
    assert found == {"schemas/process/clients.py"} | samples


def _is_library(value: ast.expr) -> bool:
    return ast.unparse(value) in ("httpx", "requests", "urllib.request")
