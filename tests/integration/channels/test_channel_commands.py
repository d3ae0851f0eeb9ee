"""`turnmill channels`: the configured channels listed, checked, and tried without an account."""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from turnmill.infra.mocks.feishu.api import APP_ID as FEISHU_APP
from turnmill.infra.mocks.feishu.api import APP_SECRET as FEISHU_SECRET
from turnmill.infra.mocks.feishu.api import FeishuAPI
from turnmill.infra.mocks.teams.activities import APP_ID as TEAMS_APP
from turnmill.infra.mocks.teams.webhooks import TOKEN as HOOK_TOKEN
from turnmill.infra.mocks.telegram.api import TOKEN as TELEGRAM_TOKEN
from turnmill.infra.mocks.telegram.api import TelegramAPI
from turnmill.producer.api.app import Server
from turnmill.producer.channels.slack.scopes import BOT_SCOPES
from turnmill.producer.cli.app import main
from turnmill.producer.cli.channels import simulate
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.workers.testing import InlineWorker

TOKEN = "xoxb-made-up-token"  # noqa: S105
SECRET = "made-up-signing-secret"  # noqa: S105

#: Run `turnmill` with these words: exit status, and all that it says.
Turnmill = Callable[..., tuple[int, str]]


class FakeSlack(BaseHTTPRequestHandler):
    """`auth.test`, for one token."""

    scopes = ",".join(BOT_SCOPES)

    def do_POST(self) -> None:
        is_known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        good = {"ok": True, "user": "acme", "user_id": "U1", "team": "Acme", "bot_id": "B1"}
        body = json.dumps(good if is_known else {"ok": False, "error": "invalid_auth"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-OAuth-Scopes", type(self).scopes)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slack_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Slack", (FakeSlack,), {}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def telegram() -> Iterator[TelegramAPI]:
    with TelegramAPI() as api:
        yield api


@pytest.fixture
def feishu() -> Iterator[FeishuAPI]:
    with FeishuAPI() as api:
        yield api


@pytest.fixture
def file(
    tmp_path: Path,
    database_url: str,
    slack_url: str,
    telegram: TelegramAPI,
    feishu: FeishuAPI,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The configuration in the data folder, with one channel, `acme-slack`."""
    for name, value in {
        "TURNMILL_DATA": str(tmp_path),
        "TURNMILL_DATABASE__URL": database_url,
        "TURNMILL_ENGINE__NAME": "echo",
        "TURNMILL_ENGINE__MODEL": "echo",
        "SLACK_SECRET": SECRET,
        "SLACK_TOKEN": TOKEN,
        "TELEGRAM_TOKEN": TELEGRAM_TOKEN,
        "FEISHU_SECRET": FEISHU_SECRET,
        "FEISHU_KEY": "made-up-key",
        "DESK_SECRET": f"whsec_{'ab' * 16}",
        "HOOK_TOKEN": HOOK_TOKEN,
        "HOOK_URL": "http://127.0.0.1:9/workflow",
        "COLUMNS": "200",
    }.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "turnmill.toml"
    file.write_text(f"""
        [bots.support]
        instructions = "You answer for ACME Parcels."
        [bots.support.policies]
        double_texting = "reject"
        [channels.acme-slack]
        kind = "slack"
        bot = "support"
        signing_secret = {{ env = "SLACK_SECRET" }}
        bot_token = {{ env = "SLACK_TOKEN" }}
        api_url = "{slack_url}"
        [channels.lark]
        kind = "feishu"
        bot = "support"
        app_id = "{FEISHU_APP}"
        app_secret = {{ env = "FEISHU_SECRET" }}
        encrypt_key = {{ env = "FEISHU_KEY" }}
        verification_token = {{ env = "FEISHU_KEY" }}
        api_url = "{feishu.url}"
        [channels.desk]
        kind = "webhook"
        bot = "support"
        secret = {{ env = "DESK_SECRET" }}
        url = "http://127.0.0.1:9/replies"
        [channels.chat]
        kind = "telegram"
        bot = "support"
        bot_token = {{ env = "TELEGRAM_TOKEN" }}
        secret_token = {{ env = "DESK_SECRET" }}
        username = "acme_bot"
        api_url = "{telegram.url}"
        [channels.team]
        kind = "teams"
        bot = "support"
        app_id = "{TEAMS_APP}"
        app_secret = {{ env = "DESK_SECRET" }}
        api_url = "http://127.0.0.1:{free_port()}"
        [channels.hook]
        kind = "teams-webhook"
        bot = "support"
        token = {{ env = "HOOK_TOKEN" }}
        reply_url = {{ env = "HOOK_URL" }}
    """)
    return file


def free_port() -> int:
    """A port on which a simulation can serve what it needs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def turnmill(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Turnmill:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


@pytest.fixture
def api(
    file: Path, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """The settings of a running API, with a worker behind it."""
    settings = load_settings()
    server = Server(settings)
    with socket.create_server(("127.0.0.1", 0)) as listener, InlineWorker(settings):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        eventually(lambda: server.started)
        monkeypatch.setenv("TURNMILL_API__PORT", str(listener.getsockname()[1]))
        yield settings
        server.should_exit = True
        thread.join()


def policies_of(bot: str) -> dict[str, str]:
    settings = load_settings()
    database = Database(settings.database)
    try:
        rows = database.run("SELECT policies FROM bots WHERE name = %s", (bot,))
        return dict(rows[0].policies)
    finally:
        database.close()


def test_channels_are_listed_with_their_addresses(turnmill: Turnmill) -> None:
    status, said = turnmill("channels", "list")
    assert status == 0
    assert "acme-slack slack support default /channels/acme-slack" in " ".join(said.split())


def test_without_a_file_a_command_says_where_it_belongs(turnmill: Turnmill, file: Path) -> None:
    file.unlink()
    status, said = turnmill("channels", "list")
    assert (status, f"There is no turnmill.toml in {file.parent}" in said) == (64, True)


def test_bots_of_the_file_are_saved_with_their_policies_and_no_other_is_touched(
    turnmill: Turnmill, file: Path
) -> None:
    turnmill("bots", "save", "mine")
    assert turnmill("channels", "apply") == (0, "support, of the tenant default: saved.\n")
    assert policies_of("support") == {"double_texting": "reject"}
    assert "mine" in turnmill("bots", "list")[1]
    turnmill("bots", "save", "support", "--instructions", "Be brief.")
    assert policies_of("support") == {"double_texting": "reject"}
    file.write_text(file.read_text().replace('"reject"', '"enqueue"'))
    turnmill("channels", "apply")
    assert policies_of("support") == {"double_texting": "enqueue"}


def test_a_good_channel_passes_its_check_and_its_address_is_shown(turnmill: Turnmill) -> None:
    turnmill("channels", "apply")
    status, said = turnmill("channels", "check", "acme-slack", "--url", "https://a.example/")
    assert status == 0, said
    assert "All is well." in said
    assert "the bot is @acme (U1) in Acme" in said
    assert "https://a.example/channels/acme-slack" in said
    assert SECRET not in said
    assert TOKEN not in said


def test_a_check_names_what_is_wrong_and_what_to_do(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = turnmill("channels", "check", "acme-slack")
    assert (status, "has no bot 'support'" in said) == (1, True)
    monkeypatch.setenv("SLACK_TOKEN", "xoxb-wrong")
    status, said = turnmill("channels", "check", "acme-slack")
    assert (status, "auth.test: invalid_auth" in said) == (1, True)
    monkeypatch.delenv("SLACK_TOKEN")
    status, said = turnmill("channels", "check", "acme-slack")
    assert (status, "environment variable SLACK_TOKEN" in said) == (1, True)
    status, said = turnmill("channels", "check", "nobody")
    assert (status, "It has: acme-slack, lark, desk, chat, team, hook." in said) == (64, True)


def test_an_address_is_registered_where_the_platform_lets_us(
    turnmill: Turnmill, telegram: TelegramAPI
) -> None:
    turnmill("channels", "apply")
    status, said = turnmill("channels", "check", "chat", "--url", "https://a.example")
    assert (status, "no address is registered" in said) == (1, True)
    words = ("channels", "check", "chat", "--register", "--url", "https://a.example")
    status, said = turnmill(*words)
    assert status == 0, said
    assert telegram.webhook["url"] == "https://a.example/channels/chat"
    assert "the bot is @acme_bot" in said
    assert TELEGRAM_TOKEN not in said
    status, said = turnmill("channels", "check", "desk", "--register", "--url", "https://a.example")
    assert (status, "Paste it: https://a.example/channels/desk" in said) == (64, True)
    status, said = turnmill("channels", "check", "chat", "--register")
    assert (status, "--url" in said) == (64, True)


def test_a_check_of_feishu_shows_the_bots_id_and_names_a_wrong_secret(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    turnmill("channels", "apply")
    status, said = turnmill("channels", "check", "lark")
    assert (status, 'set open_id = "ou_bot"' in said) == (0, True)
    monkeypatch.setenv("FEISHU_SECRET", "wrong")
    status, said = turnmill("channels", "check", "lark")
    assert (status, "tenant_access_token: 10014" in said) == (1, True)


@pytest.mark.parametrize(
    ("scope", "status", "lost"),
    [
        ("im:message:send_as_bot", 1, "no reply is sent"),
        ("im:message.p2p_msg:readonly", 0, "direct messages do not arrive"),
        ("im:message.group_at_msg:readonly", 0, "messages of groups do not arrive"),
        ("im:message:readonly", 0, "pictures and sounds that people send are not fetched"),
    ],
)
def test_a_scope_that_feishu_has_not_granted_is_named_with_its_page(
    turnmill: Turnmill, feishu: FeishuAPI, scope: str, status: int, lost: str
) -> None:
    turnmill("channels", "apply")
    feishu.scopes[scope] = 2
    feishu.user_scopes[scope] = 1
    ended, said = turnmill("channels", "check", "lark")
    assert ended == status
    assert f"without the scope {scope} {lost}" in said
    assert f"/app/{FEISHU_APP}/auth?q={scope}" in said
    assert said.count("without the scope") == 1


def test_one_wider_scope_of_feishu_is_as_good(turnmill: Turnmill, feishu: FeishuAPI) -> None:
    turnmill("channels", "apply")
    feishu.scopes = {"im:message": 1, "im:message.group_msg": 1, "im:message.p2p_msg": 1}
    status, said = turnmill("channels", "check", "lark")
    assert (status, "without the scope" in said, "has the scopes" in said) == (0, False, True)


def test_where_feishu_does_not_tell_its_scopes_that_is_said(
    turnmill: Turnmill, feishu: FeishuAPI
) -> None:
    turnmill("channels", "apply")
    feishu.refusals["application"] = [212100]
    status, said = turnmill("channels", "check", "lark")
    assert (status, "scopes are not known: application/v6/scopes: 212100" in said) == (0, True)


def test_a_wrong_token_is_named_as_telegram_names_it(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    turnmill("channels", "apply")
    monkeypatch.setenv("TELEGRAM_TOKEN", "1:wrong")
    status, said = turnmill("channels", "check", "chat")
    assert (status, "getMe: Unauthorized" in said) == (1, True)
    assert "1:wrong" not in said


@pytest.mark.parametrize("token", ["1:torn apart", "1:torn\napart"])
def test_a_token_that_no_address_can_hold_is_not_shown(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    turnmill("channels", "apply")
    monkeypatch.setenv("TELEGRAM_TOKEN", token)
    status, said = turnmill("channels", "check", "chat")
    assert status == 1
    assert "apart" not in said


def test_missing_scopes_are_named_with_what_they_are_for(
    turnmill: Turnmill, slack_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSlack, "scopes", "chat:write")
    turnmill("channels", "apply")
    status, said = turnmill("channels", "check", "acme-slack")
    assert (status, "im:history (to read direct messages)" in said) == (1, True)
    assert "chat:write (" not in said


def test_the_scope_for_voice_is_missed_where_the_bot_speaks(
    turnmill: Turnmill, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turnmill("channels", "apply")
    assert "files:write" not in turnmill("channels", "check", "acme-slack")[1]
    policy = '[bots.support.policies]\n        voice_replies = "to_voice"'
    file.write_text(file.read_text().replace("[bots.support.policies]", policy))
    turnmill("channels", "apply")
    status, said = turnmill("channels", "check", "acme-slack")
    assert (status, "files:write" in said) == (0, True)
    monkeypatch.setattr(FakeSlack, "scopes", f"{FakeSlack.scopes},files:write")
    assert "files:write" not in turnmill("channels", "check", "acme-slack")[1]


@pytest.mark.parametrize("name", ["acme-slack", "desk", "chat", "lark", "team", "hook"])
def test_a_simulated_event_is_answered_and_its_thread_continued(
    turnmill: Turnmill, api: Settings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "DELIVERY_S", 0.5)
    status, said = turnmill("channels", "simulate", name, "Where is my parcel?")
    assert status == 0, said
    assert "Where is my parcel?" in said
    assert "Does a delivery worker run? turnmill deliver" in said
    thread = said.partition("--thread ")[2].split()[0]
    turnmill("channels", "simulate", name, "And now?", "--thread", thread)
    database = Database(api.database)
    rows = database.run("SELECT count(*) AS turns, count(DISTINCT conversation_id) AS c FROM turns")
    database.close()
    assert (rows[0].turns, rows[0].c) == (2, 1)


def test_a_simulation_whose_reply_fails_to_be_delivered_says_why(
    turnmill: Turnmill, api: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "DELIVERY_S", 0.5)
    database = Database(api.database)
    database.run("ALTER TABLE deliveries ALTER error_message SET DEFAULT 'The platform is away.'")
    database.close()
    status, said = turnmill("channels", "simulate", "hook", "Where is my parcel?")
    assert (status, "Not delivered yet. The platform is away." in said) == (0, True), said
    assert "Does a delivery worker run?" not in said


def test_what_the_real_slack_would_get_of_a_simulation_is_dropped(
    turnmill: Turnmill, api: Settings, file: Path, slack_url: str
) -> None:
    file.write_text(file.read_text().replace(slack_url, "https://slack.com/api/"))
    status, said = turnmill("channels", "simulate", "acme-slack", "Where is my parcel?")
    assert (status, "Where is my parcel?" in said) == (0, True)
    database = Database(api.database)
    rows = database.run("SELECT state FROM deliveries UNION ALL SELECT 'owed' FROM outbox")
    database.close()
    assert [row.state for row in rows] == ["dropped"]


def test_a_refused_simulation_says_why(
    turnmill: Turnmill, api: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_SECRET", "another")
    status, said = turnmill("channels", "simulate", "acme-slack", "hi")
    assert (status, "answered 401" in said) == (69, True)
    status, said = turnmill(
        "channels", "simulate", "acme-slack", "hi", "--url", "http://127.0.0.1:9"
    )
    assert (status, "Nobody answers at http://127.0.0.1:9" in said) == (69, True)


def test_an_api_with_a_wrong_file_does_not_start(turnmill: Turnmill, file: Path) -> None:
    file.write_text(file.read_text().replace("bot_token", "bot_tokn"))
    status, said = turnmill("api")
    assert (status, "Did you mean bot_token?" in said) == (64, True)
