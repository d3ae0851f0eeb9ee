"""Replies in a file: any table or JSONL with a column of replies."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from turnmill.producer.evaluation.said import Said
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.columns import text_of
from turnmill.schemas.records.table import read_table


def read_said(path: Path, reply: str = "reply", reference: str = "reference") -> Iterator[Said]:
    """Yield the replies of a file.

    Columns that count where they are there: `conversation` (or `conversation_id`), `bot`, `model`,
    `tenant`, `created_at` (ISO 8601) and `finish_reason`. A row without a conversation is one.

    Raises:
        InvalidInput: the file cannot be read, or has no column of replies.
    """
    for line, cells in read_table(path, (reply,)):
        conversation = cells.get("conversation", cells.get("conversation_id", f"line {line}"))
        yield Said(
            text=text_of(cells.get(reply, "")),
            reference=text_of(cells[reference]) if reference in cells else None,
            conversation=text_of(conversation),
            bot=text_of(cells.get("bot", "")),
            model=text_of(cells.get("model", "")),
            tenant=text_of(cells.get("tenant", "")),
            said_at=_time(path, line, cells.get("created_at")),
            is_cut=_is_cut(cells.get("finish_reason")),
        )


def read_references(path: Path) -> dict[str, str]:
    """Read what should have been said, by the turn's id.

    Raises:
        InvalidInput: the file cannot be read, or lacks `turn_id` or `reference`.
    """
    names = ("turn_id", "reference")
    rows = (cells for _, cells in read_table(path, names))
    known = ([cells.get(name) for name in names] for cells in rows)
    return {
        text_of(turn_id): text_of(reference)
        for turn_id, reference in known
        if turn_id is not None and reference is not None
    }


def _is_cut(reason: object) -> bool | None:
    return None if reason is None else reason == "length"


def _time(path: Path, line: int, value: object) -> datetime | None:
    if value is None:
        return None
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(text_of(value))
    except ValueError:
        raise InvalidInput(
            f"{path}, line {line}, column 'created_at': '{text_of(value)[:80]}' is no time. "
            "Write ISO 8601: 2026-11-29T14:30:00Z."
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
