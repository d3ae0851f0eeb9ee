"""The commands that only need the database: keys, bots, turns, batches, the schema."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turnmill.producer.accept import accept
from turnmill.producer.cli.app import main
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.turns import Message, Role, TurnRequest

#: Run `turnmill` with these words: exit status, standard output, standard error.
Turnmill = Callable[..., tuple[int, str, str]]

USAGE = 64
NOBODYS = "0" * 32

#: Markup to Rich, nonsense to a person; then a sequence that would clear the screen.
HOSTILE = "[/bold] [red]stop[/] \x1b[2J\a end"
HARMLESS = "[/bold] [red]stop[/]"


@pytest.fixture
def turnmill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Turnmill:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def migrated(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    return database_url


def accept_one(text: str) -> Any:
    settings = load_settings()
    database = Database(settings.database)
    try:
        request = TurnRequest(
            tenant_id=ensure_defaults(database, settings),
            bot=settings.engine.model_name,
            messages=(Message(role=Role.USER, content=text),),
        )
        return accept(database, request)
    finally:
        database.close()


def test_the_schema_is_made_once_and_may_be_asked_for_again(
    turnmill: Turnmill, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", empty_database_url)
    assert turnmill("doctor")[0] == 1
    for _ in range(2):
        # Not in this process: it sets up the logging.
        command = [sys.executable, "-m", "turnmill.producer.cli", "db", "upgrade"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
    status, said, _ = turnmill("bots", "list")
    assert status == 0
    assert "smollm2-135m-instruct" in said


def test_a_secret_is_printed_once_and_alone_on_its_line(turnmill: Turnmill, migrated: str) -> None:
    status, secret, _ = turnmill("keys", "create", "slack-bot")
    assert status == 0
    assert secret.startswith("tm-")
    assert len(secret.split()) == 1
    _, listed, _ = turnmill("keys", "list")
    assert "slack-bot" in listed
    assert secret.strip() not in listed


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "revoke", f"key_{NOBODYS}"),
        ("keys", "revoke", "slack-bot"),
        ("turn", "show", f"turn_{NOBODYS}"),
        ("turn", "show", f"conv_{NOBODYS}"),
        ("turn", "cancel", f"turn_{NOBODYS}"),
        ("ask", "Hello?", "--bot", "nobody"),
        ("ask", "Hello?", "--conversation", f"conv_{NOBODYS}"),
        ("chat", "--conversation", f"conv_{NOBODYS}"),
        ("batch", "status", "batch_0000"),
        ("batch", "status", "tickets"),
        ("batch", "results", "batch_0000", "-o", "x.csv"),
        ("batch", "run", "missing.jsonl"),
        ("bots", "save", "n" * 101),
    ],
    ids=" ".join,
)
def test_what_does_not_exist_is_an_error_of_whoever_asked(
    turnmill: Turnmill, migrated: str, words: tuple[str, ...]
) -> None:
    status, _, said = turnmill(*words)
    assert status == USAGE, said
    assert said.startswith("error")
    assert "Traceback" not in said


def test_an_open_turn_is_shown_and_cancelled_once(turnmill: Turnmill, migrated: str) -> None:
    turn_id = f"turn_{accept_one('Where is my parcel?').turn_id.hex}"
    status, shown, _ = turnmill("turn", "show", turn_id)
    assert status == 0
    assert "queued in lane interactive, attempt 0" in shown
    assert "Where is my parcel?" in shown
    assert turnmill("turn", "cancel", turn_id)[1].strip() == "Cancelled."
    assert "cancelled in lane" in turnmill("turn", "show", turn_id)[1]
    assert "already ended" in turnmill("turn", "cancel", turn_id)[1]


def test_what_users_write_is_shown_as_it_is_but_cannot_steer_the_terminal(
    turnmill: Turnmill, migrated: str
) -> None:
    turn = accept_one(HOSTILE)
    turnmill("bots", "save", "odd", "--instructions", HOSTILE)
    for words in (
        ("turn", "show", f"turn_{turn.turn_id.hex}"),
        ("chat", "--conversation", f"conv_{turn.conversation_id.hex}"),
        ("bots", "list"),
    ):
        status, said, _ = turnmill(*words)
        assert status == 0, words
        assert HARMLESS in said, words
        assert "\x1b" not in said, words
        assert "\a" not in said, words


def test_a_reply_cannot_steer_the_terminal_while_it_is_streamed(
    turnmill: Turnmill, make_system: Callable[..., Any], migrated: str, valkey_url: str
) -> None:
    system = make_system(migrated, valkey_url)
    system.start("relay")
    system.start_worker()
    status, said, _ = turnmill("ask", f"{HOSTILE} :smile:")
    assert status == 0
    assert said.startswith(HARMLESS)
    assert ":smile:" in said
    assert "\x1b" not in said
    status, said, _ = turnmill("ask", "[[fail]]")
    assert status == 1
    assert "failed (engine_failure): The message says [[fail]]." in said


def test_a_bot_is_changed_by_saving_it_again(turnmill: Turnmill, migrated: str) -> None:
    assert turnmill("bots", "save", "support", "--temperature", "0.5")[0] == 0
    assert turnmill("bots", "save", "support", "--instructions", "Be brief.")[0] == 0
    _, listed, _ = turnmill("bots", "list")
    (line,) = [line for line in listed.splitlines() if "support" in line]
    assert "Be brief." in line
    assert "0.5" not in line
