"""Replies in a file: any table or JSONL with a column of replies."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from turnmill.producer.evaluation.said import Said
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.columns import text_of
from turnmill.schemas.records.table import read_table

#: As spreadsheets write a time: year first, without zeros before single digits.
_SHEET_TIME = re.compile(
    r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}))?)?"
)


def read_said(
    path: Path,
    reply: str = "reply",
    reference: str | None = None,
    conversation: str | None = None,
    *,
    with_times: bool = True,
) -> Iterator[Said]:
    """Yield the replies of a file.

    Columns that count where they are there: `reference`, `conversation` (or `conversation_id`),
    `bot`, `model`, `tenant`, `created_at` (ISO 8601, or a spreadsheet's 2026/11/1 9:30) and
    `finish_reason`. A row without a conversation is one. Times are read only `with_times`.

    Raises:
        InvalidInput: the file cannot be read, has no column of replies, or no row has what a
            named column should hold.
    """
    missing = {name for name in (reference, conversation) if name}
    seen: dict[str, object] = {}
    for line, cells in read_table(path, (reply,)):
        missing -= cells.keys()
        seen |= cells
        yield Said(
            text=text_of(cells.get(reply, "")),
            reference=_text(cells, reference or "reference"),
            conversation=_conversation(cells, conversation) or f"line {line}",
            bot=text_of(cells.get("bot", "")),
            model=text_of(cells.get("model", "")),
            tenant=text_of(cells.get("tenant", "")),
            said_at=_time(path, line, cells.get("created_at")) if with_times else None,
            is_cut=_is_cut(cells.get("finish_reason")),
        )
    for name in sorted(missing):
        raise InvalidInput(
            f"{path}: no row has a cell in column '{name[:80]}'. There are {', '.join(seen)[:500]}."
        )


def _text(cells: Mapping[str, object], name: str) -> str | None:
    return text_of(cells[name]) if name in cells else None


def _conversation(cells: Mapping[str, object], name: str | None) -> str | None:
    if name:
        return _text(cells, name)
    return _text(cells, "conversation") or _text(cells, "conversation_id")


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
        time = value if isinstance(value, datetime) else _read_time(text_of(value))
    except ValueError:
        raise InvalidInput(
            f"{path}, line {line}, column 'created_at': '{text_of(value)[:80]}' is no time. "
            "Write ISO 8601: 2026-11-29T14:30:00Z."
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _read_time(text: str) -> datetime:
    """Read a time of ISO 8601 or of a spreadsheet. Raises `ValueError`."""
    if (parts := _SHEET_TIME.fullmatch(text)) is None:
        return datetime.fromisoformat(text)
    year, month, day, hour, minute, second = (int(part or 0) for part in parts.groups())
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
