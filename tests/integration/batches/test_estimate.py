"""What a backlog takes is estimated from the bot's latest turns, before anything is spent."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from turnmill.producer.accept import accept_many
from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.estimate import Estimate, estimate
from turnmill.producer.cli.backlogs.preview import describe
from turnmill.schemas.outcomes import Answered, Failed
from turnmill.schemas.turns import Reply, Usage
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler

QUESTION = "Where is my parcel? It was to come on Monday."
USAGE = Usage(prompt_tokens=30, completion_tokens=12)


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@pytest.fixture
def leases(system: Any) -> Leases:
    model = system.settings.engine.model_name
    return Leases(system.database, system.settings.worker, model=model, engine="echo")


@pytest.fixture
def answered(system: Any, leases: Leases) -> None:
    """Ten turns, and one that failed."""
    settler = Settler(system.database, max_attempts=1, give_up=Event())
    for number, turn in enumerate(accept_many(system.database, [system.request(QUESTION)] * 11)):
        claim = leases.claim(turn.turn_id)
        assert claim is not None
        reply = Answered(Reply(content="Tomorrow.", finish_reason="stop", usage=USAGE))
        settler.settle(claim, reply if number else Failed("bad", "No."))
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
def test_longer_rows_take_more_and_shorter_replies_less(system: Any, tmp_path: Path) -> None:
    backlog = backlog_of(tmp_path, [QUESTION * 20] * 50)
    found = estimated(system, backlog, max_tokens=6)
    assert found is not None
    assert found.prompt_tokens > 5 * 50 * 30
    assert found.completion_tokens == 50 * 6


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
