"""Conversations become a backlog, and the backlog with its results training text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turnmill.compression.data import read_conversations
from turnmill.compression.distill.generated import backlog_of, chats_of
from turnmill.compression.texts import Conversation, part_of
from turnmill.producer.batches.backlog import read_backlog
from turnmill.schemas.batches import BatchResult
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import TurnState

CONVERSATIONS = [
    Conversation(
        f"ticket-{number}",
        (
            {"role": "user", "content": f"Where is parcel {number}?"},
            {"role": "assistant", "content": "On its way."},
            {"role": "user", "content": "Since when?"},
            {"role": "assistant", "content": "Monday."},
        ),
    )
    for number in range(40)
]


def write(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def result(row_id: str, reply: str | None, state: TurnState = TurnState.COMPLETED) -> Any:
    """A line of a results file."""
    return BatchResult(
        id=row_id,
        row=1,
        turn_id="turn_1",
        conversation_id="conv_1",
        seq=1,
        state=state,
        reply=reply,
        attempts=1,
    ).model_dump(mode="json")


def test_only_training_conversations_are_asked_and_the_backlog_is_accepted(tmp_path: Path) -> None:
    rows = list(backlog_of(CONVERSATIONS))
    assert 20 < len(rows) < 40
    assert {part_of(row["id"]) for row in rows} == {"train"}
    assert rows[0]["messages"][-1] == {"role": "user", "content": "Since when?"}
    assert read_backlog(write(tmp_path / "backlog.jsonl", rows))


def test_namesakes_are_asked_under_ids_of_their_own(tmp_path: Path) -> None:
    first = next(each for each in CONVERSATIONS if part_of(each.id) == "train")
    rows = list(backlog_of([first, first, first]))
    assert len({row["id"] for row in rows}) == 3
    assert {part_of(row["id"]) for row in rows} == {"train"}
    assert rows[0]["id"] == first.id


def test_no_beginning_of_a_chat_that_judges_is_asked() -> None:
    chats = [replace(each, id=f"long-{each.id}") for each in CONVERSATIONS]
    beginnings = [replace(each, messages=each.messages[:2]) for each in CONVERSATIONS]
    rows = list(backlog_of([*chats, *beginnings]))
    assert [row["id"] for row in rows] == [row["id"] for row in backlog_of(beginnings)]
    assert {row["messages"][-1]["content"] for row in rows} == {"Since when?"}


def test_replies_join_their_prompts_and_stay_in_the_training_part(tmp_path: Path) -> None:
    rows = list(backlog_of(CONVERSATIONS))
    backlog = write(tmp_path / "backlog.jsonl", rows)
    results = write(
        tmp_path / "results.jsonl",
        [result(row["id"], "Since noon.") for row in rows[:2]]
        + [result(rows[2]["id"], None, TurnState.FAILED)],
    )
    chats = write(tmp_path / "chats.jsonl", chats_of(backlog, results))
    found = read_conversations([chats])
    assert [each.id for each in found] == [row["id"] for row in rows[:2]]
    assert found[0].messages[-1] == {"role": "assistant", "content": "Since noon."}
    assert {part_of(each.id) for each in found} == {"train"}


def test_rows_of_plain_prompts_are_read_too(tmp_path: Path) -> None:
    backlog = write(tmp_path / "b.jsonl", [{"prompt": "Hello", "system": "Be brief."}])
    results = write(tmp_path / "r.jsonl", [result("1", "Hi.")])
    (chat,) = chats_of(backlog, results)
    assert [each["role"] for each in chat["messages"]] == ["system", "user", "assistant"]


def test_results_of_another_backlog_are_refused(tmp_path: Path) -> None:
    backlog = write(tmp_path / "b.jsonl", [{"id": "a", "prompt": "Hello"}])
    results = write(tmp_path / "r.jsonl", [result("b", "Hi.")])
    with pytest.raises(InvalidInput, match="has no row 'b'"):
        list(chats_of(backlog, results))
