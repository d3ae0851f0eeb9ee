"""What a backlog takes is estimated from the bot's latest turns, before anything is spent."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from typer.testing import CliRunner

from turnmill.producer.accept import accept_many
from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.estimate import Estimate, estimate
from turnmill.producer.cli.app import app
from turnmill.producer.cli.backlogs.preview import describe
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.formats.note import format_note
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.outcomes import Answered, Failed
from turnmill.schemas.turns import GenerationParams, Reply, Usage
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler

QUESTION = "Where is my parcel? It was to come on Monday."
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"language": {"enum": ["en", "de"], "description": "As the user writes."}},
        "required": ["language"],
    },
    indent=2,
)
FORMAT = ResponseFormat(type="json_schema", schema_text=SCHEMA)
USAGE = Usage(prompt_tokens=30, completion_tokens=12)


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@pytest.fixture
def leases(system: Any) -> Leases:
    model = system.settings.engine.model_name
    return Leases(system.database, system.settings.worker, model=model, engine="echo")


def answer(
    system: Any,
    leases: Leases,
    count: int,
    params: GenerationParams | None = None,
    usage: Usage = USAGE,
) -> None:
    """Fail the first turn and answer the others."""
    request = system.request(QUESTION, params=params or GenerationParams())
    settler = Settler(system.database, max_attempts=1, give_up=Event())
    for number, turn in enumerate(accept_many(system.database, [request] * count)):
        claim = leases.claim(turn.turn_id)
        assert claim is not None
        reply = Answered(Reply(content="Tomorrow.", finish_reason="stop", usage=usage))
        settler.settle(claim, reply if number else Failed("bad", "No."))


@pytest.fixture
def answered(system: Any, leases: Leases) -> None:
    """Ten turns, and one that failed."""
    answer(system, leases, 11)
    system.database.run("UPDATE turns SET settled_at = started_at + interval '3 s'")


def backlog_of(folder: Path, questions: list[str]) -> Backlog:
    path = folder / "tickets.jsonl"
    rows = ({"id": f"t{number}", "prompt": text} for number, text in enumerate(questions))
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return read_backlog(path)


def estimated(system: Any, backlog: Backlog, **options: Any) -> Estimate | None:
    bot = system.settings.engine.model_name
    lease_s = system.settings.worker.lease_s
    return estimate(system.database, system.tenant_id, bot, backlog, lease_s=lease_s, **options)


def test_a_bot_that_has_answered_nothing_is_not_judged(system: Any, tmp_path: Path) -> None:
    assert estimated(system, backlog_of(tmp_path, [QUESTION])) is None


@pytest.mark.usefixtures("answered")
def test_rows_like_those_before_take_what_those_took(system: Any, tmp_path: Path) -> None:
    found = estimated(system, backlog_of(tmp_path, [QUESTION] * 50))
    assert found == Estimate(50 * 30, 50 * 12, duration_s=None, measured=10)
    assert "no worker consumes" in describe(found)


@pytest.mark.usefixtures("answered")
def test_what_turns_waited_between_attempts_is_no_time_of_a_slot(
    system: Any, leases: Leases, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """A batch was paused overnight, or its engine failed for a while."""
    leases.start()
    try:
        eventually(lambda: estimated(system, backlog_of(tmp_path, [QUESTION])).duration_s)
        first = estimated(system, backlog_of(tmp_path, [QUESTION] * 50))
        system.database.run(
            "UPDATE turns SET attempt = 2, settled_at = started_at + interval '8 h' "
            "WHERE id IN (SELECT turn_id FROM replies LIMIT 5)"
        )
        assert estimated(system, backlog_of(tmp_path, [QUESTION] * 50)) == first
    finally:
        leases.close()


@pytest.mark.usefixtures("answered")
def test_longer_rows_take_more_and_shorter_replies_less(system: Any, tmp_path: Path) -> None:
    backlog = backlog_of(tmp_path, [QUESTION * 20] * 50)
    found = estimated(system, backlog, max_tokens=6)
    assert found is not None
    assert found.prompt_tokens > 5 * 50 * 30
    assert found.completion_tokens == 50 * 6


@pytest.mark.usefixtures("answered")
def test_a_format_that_was_never_asked_for_bounds_the_replies(system: Any, tmp_path: Path) -> None:
    backlog = backlog_of(tmp_path, [QUESTION] * 50)
    found = estimated(system, backlog, format=FORMAT, max_tokens=40)
    assert found is not None
    note = len(format_note(FORMAT))
    per_char = 30 / len(json.dumps([{"role": "user", "content": QUESTION}]))
    assert found.prompt_tokens == pytest.approx(50 * (30 + note * per_char), rel=0.2)
    assert found.completion_tokens == 50 * 40
    assert "at most 2,000 reply tokens" in describe(found)
    assert "in other formats" in describe(found)
    system.database.run("""UPDATE bots SET params = params || '{"max_tokens": 99}'""")
    by_bot = estimated(system, backlog, format=FORMAT)
    assert by_bot is not None
    assert by_bot.completion_tokens == 50 * 99


@pytest.mark.usefixtures("answered")
def test_turns_of_the_same_format_are_what_rows_of_it_are_judged_by(
    system: Any, leases: Leases, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    usage = Usage(prompt_tokens=200, completion_tokens=5)
    named = FORMAT.model_copy(update={"name": "triage"})
    leases.capabilities = Capabilities(formats=frozenset({"json_schema"}))
    leases.start()
    try:
        eventually(lambda: system.database.run("SELECT FROM worker_liveness"))
        answer(system, leases, 5, GenerationParams(response_format=named), usage)
    finally:
        leases.close()
    backlog = backlog_of(tmp_path, [QUESTION] * 50)
    found = estimated(system, backlog, format=FORMAT)
    assert found is not None
    assert found[:2] == (50 * 200, 50 * 5)
    assert (found.measured, found.is_bound) == (4, False)
    assert "at most" not in describe(found)
    others = estimated(system, backlog)
    assert others is not None
    assert (others[:2], others.measured) == ((50 * 30, 50 * 12), 10)


@pytest.mark.usefixtures("answered")
def test_a_preview_says_what_a_schema_adds(
    system: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    backlog = backlog_of(tmp_path, [QUESTION] * 50)
    schema = tmp_path / "schema.json"
    schema.write_text(SCHEMA)
    words = ["batch", "run", str(backlog.path), "--preview", "1", "--max-tokens", "40"]
    plain = CliRunner().invoke(app, words, catch_exceptions=False).output
    typed = CliRunner().invoke(app, [*words, "--schema", str(schema)], catch_exceptions=False)
    assert "about 1,500 prompt and 600 reply tokens" in plain
    found = estimated(system, backlog, format=FORMAT, max_tokens=40)
    assert found is not None
    assert found.prompt_tokens > 3 * 1500
    assert describe(found) in typed.output


@pytest.mark.usefixtures("answered")
def test_the_slots_that_consume_share_the_time(
    system: Any, leases: Leases, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    backlog = backlog_of(tmp_path, [QUESTION] * 80)
    leases.start()
    try:
        leases.is_consuming = lambda: True
        eventually(lambda: (now := estimated(system, backlog)) and now.duration_s)
        found = estimated(system, backlog)
    finally:
        leases.close()
    assert found is not None
    slots = system.settings.worker.concurrency
    assert found.duration_s == pytest.approx(80 * 3 / slots)
    assert f"{80 * 3 / slots:.0f} s with the workers" in describe(found)
