"""The commands that only need the database: keys, bots, turns, batches, the schema."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.unit.producer.test_cli import commands, parameters
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.batches import control
from turnmill.producer.batches.backlog import read_backlog
from turnmill.producer.batches.submission import submit
from turnmill.producer.cli.app import main
from turnmill.producer.cli.backlogs import answering
from turnmill.producer.cli.views import batch_view, reply_view
from turnmill.producer.operations.why import Explainer, Why
from turnmill.producer.ratings import rate
from turnmill.producer.tenants import ensure_defaults
from turnmill.producer.turns import read_turn
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.store.batches import sweep
from turnmill.schemas.store.tables import PRUNER_LOCK_KEY
from turnmill.schemas.turns import Message, Role, TurnRequest
from turnmill.workers.testing import InlineWorker
from turnmill.workers.upkeep.batches import finish_sweeps

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


def test_tenants_are_made_listed_and_chosen(turnmill: Turnmill, migrated: str) -> None:
    assert turnmill("tenants", "create", "acme & co")[1].count("--tenant 'acme & co'") == 1
    assert turnmill("tenants", "create", "acme & co")[0] == USAGE
    turnmill("keys", "create", "web", "--tenant", "acme & co")
    turnmill("bots", "save", "support", "--tenant", "acme & co")
    assert "web" not in turnmill("keys", "list")[1]
    assert "support" not in turnmill("bots", "list")[1]
    assert "turns" in turnmill("keys", "list", "--tenant", "acme & co")[1]
    rows = turnmill("tenants", "list")[1].splitlines()
    assert [" ".join(row.split()[:-2]) for row in rows[1:]] == [
        "acme & co 2 1 no",
        "default 1 0 no",
    ]


def test_the_environment_chooses_a_tenant_too(
    turnmill: Turnmill, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turnmill("tenants", "create", "acme")
    turn_id = f"turn_{accept_one('whose?').turn_id.hex}"
    assert turnmill("turns", "show", turn_id)[0] == 0
    monkeypatch.setenv("TURNMILL_TENANT", "acme")
    assert turnmill("turns", "show", turn_id)[0] == USAGE
    assert turnmill("turns", "show", turn_id, "--tenant", "default")[0] == 0


#: What commands demand, by the names of their arguments and options.
_GIVEN = {
    "file": "tickets.csv",
    "questions": "tickets.csv",
    "source": ".",
    "output": "x.csv",
    "batch_id": "batch_0000",
    "turn_id": f"turn_{NOBODYS}",
    "conversation_id": f"conv_{NOBODYS}",
    "delivery_id": f"dlv_{NOBODYS}",
    "key_id": f"key_{NOBODYS}",
    "gap": f"gap_{NOBODYS}",
}

#: What some ask besides, in one of several ways, or need before they act for anybody.
_BESIDES = {("batch", "retry"): ("--failed",), ("bots", "sample"): ("service",)}


def commands_for_a_tenant() -> Iterator[tuple[str, ...]]:
    """Each command that takes `--tenant`, with what it demands."""
    for path in commands():
        parts = parameters(path) or []
        if not any("--tenant" in each.opts for each in parts):
            continue
        words = list(path)
        for each in (each for each in parts if each.required):
            option = [each.opts[-1]] if each.param_type_name == "option" else []
            words += [*option, _GIVEN.get(each.name, "x")]
        yield (*words, *_BESIDES.get(path, ()))


@pytest.mark.parametrize("words", list(commands_for_a_tenant()), ids=" ".join)
def test_every_command_that_acts_for_a_tenant_refuses_an_unknown_one(
    turnmill: Turnmill,
    migrated: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tickets.csv").write_text("prompt,question,uri\nwhere?,where?,a.md\n")
    status, _, said = turnmill(*words, "--tenant", "nobody")
    assert status == USAGE
    assert "There is no tenant 'nobody'" in said and "turnmill tenants create" in said


def submit_rows(folder: Path, *prompts: str) -> tuple[UUID, str]:
    """A batch, and the name by which the commands know it."""
    path = folder / "tickets.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings = load_settings()
    database = Database(settings.database)
    try:
        tenant_id = ensure_defaults(database, settings)
        batch = submit(database, tenant_id, settings.engine.model_name, read_backlog(path))
    finally:
        database.close()
    return batch.batch_id, f"batch_{batch.batch_id.hex[:12]}"


def test_a_batch_is_paused_resumed_retried_and_cancelled_by_commands(
    turnmill: Turnmill, migrated: str, tmp_path: Path
) -> None:
    batch_id, name = submit_rows(tmp_path, "one", "two", "three")

    def state() -> str:
        (row,) = turnmill("batch", "list")[1].splitlines()[1:]
        return " ".join(row.split()[3:6])

    assert state() == "3 0 open"
    status, said, _ = turnmill("batch", "pause", name)
    assert status == 0 and "is paused" in said
    (command,) = re.findall(r"turnmill (batch resume batch_\w+)", said)
    assert state() == "3 0 paused"
    assert "0/3 done, paused" in turnmill("batch", "status", name)[1]
    assert "goes on" in turnmill(*command.split())[1]
    assert "was not paused" in turnmill(*command.split())[1]

    with psycopg.connect(migrated, autocommit=True) as link:
        link.execute(
            "UPDATE turns SET state = 'failed', error_code = 'bad', settled_at = now() "
            "WHERE batch_id = %s AND batch_row = 2",
            (batch_id,),
        )
        link.execute(
            "DELETE FROM outbox WHERE turn_id IN (SELECT id FROM turns WHERE batch_row = 2)"
        )
    assert "1 bad, such as row '2'" in turnmill("batch", "status", name)[1]
    assert turnmill("batch", "retry", name)[0] == USAGE
    status, said, _ = turnmill("batch", "retry", name, "--failed")
    assert status == 0 and "answers 1 rows anew" in said and "status --watch" in said

    assert turnmill("batch", "cancel", name, stdin="n\n")[0] == 1
    assert state() == "3 0 open"
    assert "is cancelled" in turnmill("batch", "cancel", name, "--yes")[1]
    assert state() == "3 3 cancelled"
    status, _, said = turnmill("batch", "resume", name)
    assert status and "was cancelled and stays so" in said


def test_a_file_that_was_submitted_before_is_said_to_have_its_replies_of_then(
    turnmill: Turnmill, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot that was changed since does not answer the file again."""
    submit_rows(tmp_path, "one", "two")
    (file,) = tmp_path.glob("*.jsonl")
    monkeypatch.setattr(answering, "watch_batch", lambda *words: None)
    again = ["batch", "run", str(file), "-o", str(tmp_path / "out.csv")]
    assert "before, on 20" in (said := turnmill(*again)[1]) and "0 of 2 rows have ended" in said
    with psycopg.connect(migrated) as link:
        link.execute("UPDATE turns SET state = 'failed', error_code = 'bad', settled_at = now()")
    said = " ".join(turnmill(*again)[1].split())
    assert "The replies are those of then" in said and "--name NAME" in said
    assert "before" not in turnmill(*again, "--name", "anew")[1]


def test_a_question_that_nobody_answers_says_why_beside_its_reply(
    turnmill: Turnmill, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = Explainer.explain

    def explain_then_end(self: Explainer, turn_id: UUID) -> Why | None:
        why = explain(self, turn_id)
        with psycopg.connect(migrated) as link:
            link.execute("UPDATE turns SET state = 'cancelled', settled_at = now()")
        return why

    monkeypatch.setattr(reply_view, "QUIET_S", 0.0)
    monkeypatch.setattr(Explainer, "explain", explain_then_end)
    status, out, said = turnmill("ask", "Where is my parcel?")
    assert status == 1
    assert "The turn waits for a worker: none consumes lane interactive" in said
    assert "→ turnmill worker --lane interactive" in said
    assert "→" not in out


def test_a_batch_that_nobody_answers_says_why_while_it_is_watched(
    turnmill: Turnmill, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, name = submit_rows(tmp_path, "one", "two")
    explain = Explainer.explain

    def explain_once(self: Explainer, turn_id: UUID) -> Why | None:
        monkeypatch.setattr(Explainer, "explain", ctrl_c)
        return explain(self, turn_id)

    def ctrl_c(self: Explainer, turn_id: UUID) -> Why | None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_view, "QUIET_S", 0.0)
    monkeypatch.setattr(batch_view, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(Explainer, "explain", explain_once)
    status, said, _ = turnmill("batch", "status", "--watch", name)
    assert status == 130
    assert "Its last turn waits for a worker: none consumes lane batch" in said
    assert "→ turnmill worker --lane batch" in said


def test_ctrl_c_during_a_cancellation_says_that_it_holds_and_who_does_the_rest(
    turnmill: Turnmill, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, name = submit_rows(tmp_path, *"abcde")
    monkeypatch.setattr(sweep, "PAGE_TURNS", 2)
    sweep_page = control.sweep_page

    def interrupted(database: Database, batch_id: UUID) -> int | None:
        monkeypatch.setattr(control, "sweep_page", stopped)
        return sweep_page(database, batch_id)

    def stopped(database: Database, batch_id: UUID) -> int | None:
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "sweep_page", interrupted)
    status, said, _ = turnmill("batch", "cancel", name, "--yes")
    assert status == 130
    assert "is cancelled: that holds already, and workers do the rows after 2." in said
    (command,) = re.findall(r"turnmill (batch status --watch batch_\w+)", said)
    with psycopg.connect(migrated, autocommit=True) as link:
        open_now = "SELECT count(*) FROM turns WHERE state = 'queued'"
        assert link.execute(open_now).fetchone() == (3,)
    database = Database(load_settings().database)
    while finish_sweeps(database):
        pass
    database.close()
    assert "5/5 done" in turnmill(*command.split())[1]


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
        ("turns", "show", f"turn_{NOBODYS}"),
        ("turns", "show", f"conv_{NOBODYS}"),
        ("turns", "cancel", f"turn_{NOBODYS}"),
        ("parked", "show", f"turn_{NOBODYS}"),
        ("parked", "list", "--after", "latest"),
        ("parked", "replay", f"turn_{NOBODYS}"),
        ("parked", "drop", f"turn_{NOBODYS}"),
        ("ask", "Hello?", "--bot", "nobody"),
        ("ask", "Hello?", "--conversation", f"conv_{NOBODYS}"),
        ("chat", "--conversation", f"conv_{NOBODYS}"),
        ("batch", "status", "batch_0000"),
        ("batch", "status", "tickets"),
        ("batch", "results", "batch_0000", "-o", "x.csv"),
        ("batch", "pause", "batch_0000"),
        ("batch", "resume", "batch_0000"),
        ("batch", "cancel", "batch_0000", "--yes"),
        ("batch", "retry", "batch_0000", "--failed"),
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
    status, shown, _ = turnmill("turns", "show", turn_id)
    assert status == 0
    assert "queued in lane interactive, attempt 0" in shown
    assert "Where is my parcel?" in shown
    assert turnmill("turns", "cancel", turn_id)[1].strip() == "Cancelled."
    assert "cancelled in lane" in turnmill("turns", "show", turn_id)[1]
    assert "already ended" in turnmill("turns", "cancel", turn_id)[1]


def test_what_users_write_is_shown_as_it_is_but_cannot_steer_the_terminal(
    turnmill: Turnmill, migrated: str
) -> None:
    turn = accept_one(HOSTILE)
    turnmill("bots", "save", "odd", "--instructions", HOSTILE)
    for words in (
        ("turns", "show", f"turn_{turn.turn_id.hex}"),
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
    assert "failed (engine_failure): The engine cannot answer this turn." in said


def test_a_bot_is_changed_by_saving_it_again(turnmill: Turnmill, migrated: str) -> None:
    assert turnmill("bots", "save", "support", "--temperature", "0.5")[0] == 0
    arguments = ("--instructions", "Be brief.", "--ignore-tools")
    assert turnmill("bots", "save", "support", *arguments)[0] == 0
    _, listed, _ = turnmill("bots", "list")
    (line,) = [line for line in listed.splitlines() if "support" in line]
    assert "Be brief." in line
    assert "0.5" not in line


def test_a_bot_s_parameters_are_set_and_taken_back_by_name(
    turnmill: Turnmill, migrated: str
) -> None:
    assert turnmill("bots", "save", "support", "--instructions", "Be brief.")[0] == 0
    words = ("--set", "temperature=0.2", "--set", 'stop=["END"]')
    status, said, _ = turnmill("bots", "change", "support", *words)
    assert status == 0
    assert """{"temperature":0.2,"stop":["END"]}""" in said
    _, said, _ = turnmill("bots", "change", "support", "--reset", "temperature", "--reset", "stop")
    assert "the parameters {}" in said
    (line,) = [row for row in turnmill("bots", "list")[1].splitlines() if "support" in row]
    assert "Be brief." in line


def test_a_bot_s_replies_are_held_to_the_schema_of_a_file(
    turnmill: Turnmill, migrated: str, tmp_path: Path
) -> None:
    schema, wrong = tmp_path / "triage.json", tmp_path / "wrong.json"
    schema.write_text('{"type": "object", "properties": {"urgency": {"type": "integer"}}}')
    wrong.write_text('{"type": "object", "properties": {"urgency": {"not": {}}}}')
    assert turnmill("bots", "save", "triage", "--schema", str(schema))[0] == 0
    _, shown, _ = turnmill("bots", "show", "triage")
    assert '{"response_format":"json_schema"}' in shown
    assert '"urgency": {"type": "integer"}' in " ".join(shown.split())
    status, _, said = turnmill("bots", "change", "triage", "--schema", str(wrong))
    assert status != 0 and "'wrong.json'" in said and "urgency.not" in said
    _, said, _ = turnmill("bots", "change", "triage", "--reset", "response_format")
    assert "the parameters {}" in said
    _, said, _ = turnmill("bots", "change", "triage", "--schema", str(schema))
    assert '{"response_format":"json_schema"}' in said


def test_saving_a_bot_says_that_nobody_serves_its_model(
    turnmill: Turnmill, migrated: str, database_url: str
) -> None:
    _, said, _ = turnmill("bots", "save", "support", "--model", "typo")
    assert "No worker" not in said, "nothing runs yet"
    settings = load_settings(
        database={"url": database_url}, engine={"name": "echo", "model": "echo"}
    )
    with InlineWorker(settings):
        _, said, _ = turnmill("bots", "save", "support", "--model", "typo")
        assert "No worker serves the model 'typo' now; they serve echo." in said
        _, said, _ = turnmill("bots", "change", "support", "--model", "echo")
        assert "No worker" not in said


def test_a_bot_is_shown_and_deleted_unless_the_configuration_needs_it(
    turnmill: Turnmill, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("support", "sales"):
        turnmill("bots", "save", name, "--instructions", "Be brief.")
    file = tmp_path / "bots.toml"
    file.write_text("[bots.sales]\n")
    monkeypatch.setenv("TURNMILL_CONFIG", str(file))
    status, said, _ = turnmill("bots", "show", "support")
    assert (status, "support, version 1" in said, "Be brief." in said) == (0, True, True)
    assert turnmill("bots", "delete", "support")[0] == 0
    assert turnmill("bots", "show", "support")[0] == 64
    assert turnmill("ask", "--bot", "support", "hi")[0] == 64
    status, _, said = turnmill("bots", "delete", "sales")
    assert (status, "[bots.sales]" in said) == (64, True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nobodys",), "no bot"),
        (("support", "--reset", "temprature"), "temprature"),
        (("support", "--set", "temperature=9"), "temperature"),
        (("support", "--set", "temperature"), "NAME=VALUE"),
        (("support", "--set", "seed=1", "--reset", "seed"), "twice"),
    ],
)
def test_a_change_of_a_bot_that_makes_no_sense_is_refused(
    turnmill: Turnmill, migrated: str, words: tuple[str, ...], why: str
) -> None:
    turnmill("bots", "save", "support")
    status, _, said = turnmill("bots", "change", *words)
    assert status == USAGE
    assert why in said


def park(database_url: str, *texts: str, error: str = "attempts_used_up") -> list[str]:
    """Turns of a conversation each that ran out of attempts; their ids as they are shown."""
    turns = [accept_one(text) for text in texts]
    with psycopg.connect(database_url) as link:
        ids = [turn.turn_id for turn in turns]
        link.execute("DELETE FROM outbox WHERE turn_id = ANY(%s)", (ids,))
        link.execute(
            "UPDATE turns SET state = 'parked', attempt = 5, settled_at = clock_timestamp(), "
            "error_code = %s, error_message = 'The turn failed 5 times.' WHERE id = ANY(%s)",
            (error, ids),
        )
        link.execute("UPDATE conversations SET answered_seq = 1")
    return [f"turn_{turn.turn_id.hex}" for turn in turns]


def test_parked_turns_are_listed_with_what_is_the_matter(turnmill: Turnmill, migrated: str) -> None:
    assert turnmill("parked", "list")[1].strip() == "No parked turns."
    first, second = park(migrated, "Where is it?", "And now?")
    (lost,) = park(migrated, HOSTILE, error="worker_lost")
    status, said, _ = turnmill("parked", "list")
    assert status == 0
    assert "3 parked: 2 attempts_used_up, 1 worker_lost" in said
    assert all(turn_id in said for turn_id in (first, second, lost))
    _, said, _ = turnmill("parked", "list", "--error-code", "worker_lost", "--since", "1h")
    assert lost in said
    assert first not in said
    _, said, _ = turnmill("parked", "list", "--limit", "2")
    assert f"--after {second}" in said
    _, said, _ = turnmill("parked", "list", "--after", second, "--json")
    page = json.loads(said)
    assert ([turn["turn_id"] for turn in page["turns"]], page["total"]) == ([first], 3)
    assert turnmill("parked", "list", "--since", "yesterday")[0] == USAGE
    _, said, _ = turnmill("parked", "show", lost)
    assert HARMLESS in said
    assert "\x1b" not in said
    assert "It would be answered in its place." in said
    assert json.loads(turnmill("parked", "show", first, "--json")[1])["can_replay"] is True


def test_parked_turns_are_replayed_by_name_or_all_after_a_question(
    turnmill: Turnmill, migrated: str
) -> None:
    first, second, third = park(migrated, "one", "two", "three")
    assert "1 of 1 parked turn replayed: now 1 queued." in turnmill("parked", "replay", first)[1]
    status, said, _ = turnmill("parked", "replay", first)
    assert status == 1
    assert f"{first}: The turn is not parked: it is queued." in said
    assert "2 parked" in turnmill("parked", "list")[1]
    status, said, _ = turnmill("parked", "replay", "--all", "--dry-run")
    assert (status, "2 of 2 parked turns would be replayed." in said) == (0, True)
    status, said, _ = turnmill("parked", "replay", "--all", stdin="n\n")
    assert (status, "Replay 2 parked turns?" in said) == (1, True)
    assert "2 parked" in turnmill("parked", "list")[1]
    one = ("parked", "replay", "--all", "--limit", "1", "--into", "quarantine", "--yes")
    assert turnmill(*one)[0] == 0
    assert "queued in lane quarantine" in turnmill("turns", "show", second)[1]
    assert "1 of 1 parked turn dropped" in turnmill("parked", "drop", "--all", stdin="y\n")[1]
    _, said, _ = turnmill("turns", "show", third)
    assert "failed in lane interactive" in said
    assert "attempts_used_up" in said
    assert "0 of 0 parked turns replayed." in turnmill("parked", "replay", "--all")[1]


@pytest.mark.parametrize("verb", ["replay", "drop"])
@pytest.mark.parametrize(
    "words",
    [(), ("--lane", "batch"), (f"turn_{NOBODYS}", "--all"), (f"turn_{NOBODYS}", "--limit", "1")],
    ids=" ".join,
)
def test_which_parked_turns_are_meant_must_be_said(
    turnmill: Turnmill, migrated: str, verb: str, words: tuple[str, ...]
) -> None:
    status, _, said = turnmill("parked", verb, *words)
    assert status == USAGE
    assert "Name the turns, or say --all" in said


def test_turns_parked_in_an_outage_are_answered_after_it(
    turnmill: Turnmill, make_system: Callable[..., Any], migrated: str, valkey_url: str,
    eventually: Callable[..., None],
) -> None:  # fmt: skip
    """The operator's night: an engine that cannot answer, its turns parked, and put right."""
    system = make_system(migrated, valkey_url)
    conversations = [
        accept_many(
            system.database,
            [system.request(f"question {n}", conversation_id=known) for n in range(3)],
        )
        for known in (new_id() for _ in range(5))
    ]
    system.start("relay")
    broken = system.start_worker(
        TURNMILL_ENGINE__ECHO_FAILURE_RATE="1", TURNMILL_WORKER__MAX_ATTEMPTS="1"
    )
    eventually(lambda: system.count("state = 'parked'") == 15, 60)
    broken.kill()
    assert "15 parked: 15 attempts_used_up" in turnmill("parked", "list")[1]
    status, said, _ = turnmill("parked", "replay", "--all", "--yes")
    assert (status, "now 5 queued, 10 waiting" in said) == (0, True)
    system.start_worker()
    system.wait_until_settled()
    for turns in conversations:
        found = [read_turn(system.database, system.tenant_id, turn.turn_id) for turn in turns]
        assert [turn.reply.content for turn in found] == [f"question {n}" for n in range(3)]
        assert [turn.attempt for turn in found] == [2, 2, 2]
        assert [turn.settled_at for turn in found] == sorted(turn.settled_at for turn in found)


def test_old_turns_are_pruned_by_hand_and_the_tables_measured(
    turnmill: Turnmill, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(load_settings().database)
    accept_one("old")
    # The clock of its id stands still; nothing that ends here is a year old otherwise.
    database.run("UPDATE turns SET id = '0170a000-0000-7000-8000-000000000001', "
                 "state = 'failed', settled_at = '2020-03-01'")  # fmt: skip
    database.run("DELETE FROM outbox")
    database.run("UPDATE conversations SET answered_seq = 1")
    assert "Nothing is old enough." in turnmill("db", "prune")[1]
    monkeypatch.setenv("TURNMILL_RETENTION__TURNS_DAYS", "365")
    assert turnmill("db", "prune", "--dry-run")[1].split()[-2:] == ["turns", "1"]
    assert "2020-03" in turnmill("db", "size")[1]
    assert turnmill("db", "prune")[1].split()[-4:] == ["turns", "1", "conversations", "1"]
    assert "Nothing is old enough." in turnmill("db", "prune")[1]
    with database.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s)", (PRUNER_LOCK_KEY,))
        status, said, _ = turnmill("db", "prune")
    assert (status, said) == (1, "Another process is pruning right now.\n")
    database.close()


def _end(database_url: str, turn: Any) -> None:
    """As if a worker had answered it."""
    with psycopg.connect(database_url) as link:
        link.execute("DELETE FROM outbox WHERE turn_id = %s", (turn.turn_id,))
        link.execute(
            "UPDATE turns SET state = 'completed', settled_at = now() WHERE id = %s",
            (turn.turn_id,),
        )
        link.execute(
            "INSERT INTO replies (turn_id, attempt, content, finish_reason, prompt_tokens, "
            "completion_tokens) VALUES (%s, 0, 'Good day.', 'stop', 1, 2)",
            (turn.turn_id,),
        )


def test_a_conversation_is_handed_off_answered_and_resumed(
    turnmill: Turnmill, migrated: str
) -> None:
    turn = accept_one(HOSTILE)
    _end(migrated, turn)
    shown = f"conv_{turn.conversation_id.hex}"
    assert "No conversation is handed off." in turnmill("conversations", "list")[1]
    status, said, _ = turnmill("conversations", "hand-off", shown, "--reason", HOSTILE)
    assert status == 0
    assert f"turnmill conversations answer {shown}" in said
    listed = turnmill("conversations", "list")[1]
    assert shown in listed
    assert HARMLESS in listed
    answer = ("It is on its way.", "--author", "[red]ada[/]")
    assert turnmill("conversations", "answer", shown, *answer)[0] == 0
    told = turnmill("conversations", "show", shown)[1]
    assert f"user: {HARMLESS}" in told
    assert "bot: Good day." in told
    assert "assistant ([red]ada[/]): It is on its way." in told
    assert "A person answers since" in told
    assert "\x1b[2J" not in told
    said = turnmill("chat", "--conversation", shown, stdin="Thanks\n")[1]
    assert "a person: It is on its way." in said
    assert "A person answers this conversation" in said
    assert "The bot answers again." in turnmill("conversations", "resume", shown)[1]
    assert "answers it already" in turnmill("conversations", "resume", shown)[1]
    assert turnmill("conversations", "answer", shown, "Hi")[0] != 0


def test_what_did_not_reach_its_channel_is_shown_with_its_conversation(
    turnmill: Turnmill, migrated: str
) -> None:
    """Whoever answered as a person was told "Answered.", and nothing more."""
    turn = accept_one("Hello")
    _end(migrated, turn)
    shown = f"conv_{turn.conversation_id.hex}"
    reply, answer, sent, others = (new_id() for _ in range(4))
    rows = [
        (reply, turn.conversation_id, turn.turn_id, "failed"),
        (answer, turn.conversation_id, None, "failed"),
        (sent, turn.conversation_id, None, "sent"),
        (others, new_id(), None, "failed"),
    ]
    with psycopg.connect(migrated) as link, link.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO deliveries (id, tenant_id, conversation_id, turn_id, channel, target, "
            "kind, state, error_message) SELECT %s, tenant_id, %s, %s, 'acme', '{}', 'reply', %s, "
            "'It was revoked.' FROM turns",
            rows,
        )
    told = turnmill("conversations", "show", shown)[1]
    assert "A reply failed on channel acme, because: It was revoked." in told
    assert "A notice or an answer of a person failed on channel acme" in told
    for each in (reply, answer):
        assert f"→ turnmill deliveries retry dlv_{each.hex}; mend the reason first" in told
    assert sent.hex not in told
    assert others.hex not in told


def test_a_conversation_is_given_policies_and_loses_them(turnmill: Turnmill, migrated: str) -> None:
    shown = f"conv_{accept_one('Hello').conversation_id.hex}"
    set_ = ("conversations", "set", shown)
    assert turnmill(*set_, "--policy", "double_texting=reject")[0] == 0
    assert "'double_texting': 'reject'" in turnmill("conversations", "show", shown)[1]
    assert turnmill(*set_)[0] == 0
    assert "reject" not in turnmill("conversations", "show", shown)[1]
    status, _, said = turnmill(*set_, "--policy", "mood=kind")
    assert status == USAGE
    assert "known: double_texting" in said
    assert turnmill("conversations", "show", f"conv_{NOBODYS}")[0] == USAGE


def test_a_bot_keeps_its_policies_when_it_is_saved_without(
    turnmill: Turnmill, migrated: str
) -> None:
    turnmill("bots", "save", "support", "--policy", "double_texting=collect")
    turnmill("bots", "save", "support", "--instructions", "Be brief.")
    (line,) = [row for row in turnmill("bots", "list")[1].splitlines() if "support" in row]
    assert '{"double_texting":"collect"}' in line


def test_ratings_are_counted_and_exported(
    turnmill: Turnmill, migrated: str, tmp_path: Path
) -> None:
    turn = accept_one("Hello")
    _end(migrated, turn)
    assert "Nothing is rated yet." in turnmill("ratings", "summary")[1]
    database = Database(load_settings().database)
    tenant_id = ensure_defaults(database, load_settings())
    rate(database, tenant_id, turn.turn_id, "a", 1)
    rate(database, tenant_id, turn.turn_id, "b", -1, "=1+1")
    rate(database, tenant_id, turn.turn_id, "c", 1)
    database.close()
    line = turnmill("ratings", "summary", "--days", "1")[1].splitlines()[-1]
    assert line.split() == ["smollm2-135m-instruct", "1", "smollm2-135m-instruct", "2", "1", "67"]
    ratings = [json.loads(line) for line in turnmill("ratings", "export")[1].splitlines()]
    # Those of one millisecond are in no order.
    shown = sorted((each["author"], each["score"]) for each in ratings)
    assert shown == [("a", 1), ("b", -1), ("c", 1)]
    assert ratings[0]["turn_id"] == f"turn_{turn.turn_id.hex}"
    assert (ratings[0]["bot_version"], ratings[0]["source"]) == (1, "api")
    file = tmp_path / "ratings.csv"
    assert turnmill("ratings", "export", str(file))[0] == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert sorted(row["comment"] for row in rows) == ["", "", "'=1+1"]
    assert turnmill("ratings", "export", str(file))[0] == USAGE
    assert turnmill("ratings", "export", str(tmp_path / "ratings.xml"))[0] == USAGE
