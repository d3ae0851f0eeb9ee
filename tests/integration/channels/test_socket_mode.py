"""Socket mode: the same events over a connection of ours, acknowledged when they are committed."""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from turnmill.infra.mocks.slack.payloads import Workspace
from turnmill.infra.mocks.slack.socket_mode import SocketModeServer
from turnmill.producer.channels.slack.socket_mode import SocketMode
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.errors import DatabaseUnavailable, SettingsError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings

APP_TOKEN = "xapp-made-up"  # noqa: S105
WORKSPACE = Workspace()


@pytest.fixture
def slack() -> Iterator[SocketModeServer]:
    with SocketModeServer(APP_TOKEN) as server:
        yield server


@pytest.fixture
def settings(database_url: str) -> Settings:
    return load_settings(
        database={"url": database_url, "connect_timeout_s": 2},
        engine={"name": "echo", "model": "echo"},
    )


@pytest.fixture
def section(slack: SocketModeServer, monkeypatch: pytest.MonkeyPatch) -> SlackSection:
    monkeypatch.setenv("APP_TOKEN", APP_TOKEN)
    token = SecretReference(env="APP_TOKEN")
    return SlackSection(
        kind="slack", bot="echo", bot_token=token, app_token=token, api_url=slack.api_url
    )


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    ensure_defaults(database, settings)
    yield database
    database.close()


@pytest.fixture
def running(
    settings: Settings,
    section: SlackSection,
    slack: SocketModeServer,
    database: Database,
    eventually: Callable[..., None],
) -> Iterator[SocketMode]:
    socket_mode = SocketMode(settings, "acme", section)
    thread = threading.Thread(target=socket_mode.run)
    thread.start()
    # The server knows of a connection before its client does.
    eventually(lambda: slack.links and socket_mode.health.unready() is None)
    yield socket_mode
    socket_mode.stop()
    thread.join()


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody reaches, and this machine's own addresses are spared from."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "localhost,127.0.0.1")


@pytest.mark.usefixtures("proxied")
def test_no_proxy_stands_between_socket_mode_and_this_machine(running: SocketMode) -> None:
    assert running.health.unready() is None


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks is noticed by pings."""
    monkeypatch.setattr("turnmill.producer.channels.slack.socket_mode.PING_S", 1.0)


def inputs(database: Database) -> list[str]:
    rows = database.run("SELECT input FROM turns ORDER BY id")
    return [message["content"] for row in rows for message in row.input]


def mention(text: str) -> dict[str, Any]:
    return WORKSPACE.callback(WORKSPACE.mention(text))


def test_an_event_is_acknowledged_when_its_turn_is_committed(
    running: SocketMode, slack: SocketModeServer, database: Database, eventually: Any
) -> None:
    assert running.health.unready() is None
    envelope = slack.send("events_api", mention("Where is my parcel? 👩‍👩‍👧"))
    eventually(lambda: slack.answer_to(envelope))
    assert slack.answer_to(envelope) == {"envelope_id": envelope}
    assert inputs(database) == ["Where is my parcel? 👩‍👩‍👧"]


def test_an_event_that_comes_again_is_acknowledged_and_no_second_turn(
    running: SocketMode, slack: SocketModeServer, database: Database, eventually: Any
) -> None:
    payload = mention("once")
    envelopes = [slack.send("events_api", payload) for _ in range(3)]
    eventually(lambda: all(map(slack.answer_to, envelopes)))
    assert inputs(database) == ["once"]


def test_commands_and_buttons_come_the_same_way_and_are_answered_in_the_envelope(
    running: SocketMode, slack: SocketModeServer, database: Database, eventually: Any
) -> None:
    asked = WORKSPACE.slash_command("Where is my parcel?")
    command = slack.send("slash_commands", asked, accepts_response_payload=True)
    helped = slack.send(
        "slash_commands", WORKSPACE.slash_command("help"), accepts_response_payload=True
    )
    button = WORKSPACE.pressed({"action_id": "turnmill_resume"}, ts="2.000001")
    pressed = slack.send("interactive", button, accepts_response_payload=True)
    unknown = slack.send("something_new", {})
    eventually(lambda: all(map(slack.answer_to, (command, helped, pressed, unknown))))
    shown = slack.answer_to(command)
    assert shown and shown["payload"] == {"response_type": "in_channel"}
    shown = slack.answer_to(helped)
    assert shown and "/ask stop" in shown["payload"]["text"]
    assert inputs(database) == ["Where is my parcel?"]


def test_a_payload_that_is_nested_too_deeply_is_told_and_the_next_event_is_taken(
    running: SocketMode, slack: SocketModeServer, database: Database, eventually: Any
) -> None:
    # The decoder reads it. A comprehension has a frame of its own before 3.12.
    depth = 600 if sys.version_info < (3, 12) else sys.getrecursionlimit()
    nested = functools.reduce(lambda inner, _: [inner], range(depth), [])
    with capture_logs() as logs:
        wrong = slack.send("events_api", mention("wrong") | {"nested": nested})
        eventually(lambda: [each for each in logs if each["event"] == "socket.event_failed"])
    (failed,) = [each for each in logs if each["event"] == "socket.event_failed"]
    assert (failed["log_level"], failed["error"]) == ("error", "InvalidInput")
    assert slack.answer_to(wrong) is None
    right = slack.send("events_api", mention("right"))
    eventually(lambda: slack.answer_to(right))
    assert inputs(database) == ["right"]


def test_without_a_database_an_event_is_not_acknowledged(
    running: SocketMode,
    slack: SocketModeServer,
    database: Database,
    settings: Settings,
    postgres_url: str,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: list[Exception] = []
    receive = running._pipeline.receive

    def noting(*args: Any) -> Any:
        try:
            return receive(*args)
        except Exception as error:
            failures.append(error)
            raise

    monkeypatch.setattr(running._pipeline, "receive", noting)
    name = settings.database.url.get_secret_value().rpartition("/")[2]
    payload = mention("hi")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        refused = slack.send("events_api", payload)
        eventually(lambda: failures)
        assert slack.answer_to(refused) is None
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def is_taken() -> bool:
        failures.clear()
        again = slack.send("events_api", payload)
        eventually(lambda: slack.answer_to(again) or failures)
        return slack.answer_to(again) is not None

    eventually(is_taken)
    with pytest.raises(DatabaseUnavailable):
        inputs(database)
    assert inputs(database) == ["hi"]


@pytest.mark.usefixtures("brisk")
def test_a_connection_that_slack_replaces_or_that_breaks_is_opened_again(
    running: SocketMode, slack: SocketModeServer, database: Database, eventually: Any
) -> None:
    first = slack.links[-1]
    slack.ask_to_reconnect()
    eventually(lambda: slack.links and slack.links[-1] is not first)
    second = slack.links[-1]
    second.hang_up()
    eventually(lambda: slack.links and slack.links[-1] not in (first, second), 40)
    envelope = slack.send("events_api", mention("still here"))
    eventually(lambda: slack.answer_to(envelope))
    assert inputs(database) == ["still here"]


def test_a_wrong_app_token_is_told(
    settings: Settings, section: SlackSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_TOKEN", "xapp-wrong")
    with pytest.raises(SettingsError, match=r"refuses the app token of .*: invalid_auth"):
        SocketMode(settings, "acme", section).run()


def test_a_channel_without_an_app_token_is_refused(
    settings: Settings, section: SlackSection
) -> None:
    without = section.model_copy(update={"app_token": None})
    with pytest.raises(SettingsError, match="has no app_token"):
        SocketMode(settings, "acme", without)
