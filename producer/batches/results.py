"""The results of a batch: one line per row of its backlog, in JSONL, CSV or Parquet.

The file appears as a whole or not at all, and can be written again at any time: rows that
are not answered yet stand in it with their state.
"""

import csv
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from turnmill.producer.batches.formats import import_pyarrow
from turnmill.schemas.batches import BatchResult, ResultError, row_id_of
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.json_lines import one_line
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.tables import replies, turns
from turnmill.schemas.turns import FinishReason, TurnState

#: Results in memory at a time.
PAGE_ROWS = 1000

#: As in the other formats; the error lies flat.
_CSV_COLUMNS = (
    *(name for name in BatchResult.model_fields if name not in ("question", "error")),
    "error_code",
    "error_message",
)

_RESULT = sa.select(
    turns.c.id, turns.c.idempotency_key, turns.c.batch_row, turns.c.conversation_id, turns.c.seq,
    turns.c.state, turns.c.attempt, turns.c.error_code, turns.c.error_message,
    turns.c.accepted_at, turns.c.settled_at, turns.c.input[-1]["content"].astext.label("question"),
    replies.c.content, replies.c.finish_reason,
    replies.c.prompt_tokens, replies.c.completion_tokens,
).outerjoin(replies, replies.c.turn_id == turns.c.id)  # fmt: skip


class _ResultRow(NamedTuple):
    """A row of `_RESULT`. Without a reply the columns from `content` on are None."""

    id: UUID
    idempotency_key: str
    batch_row: int
    conversation_id: UUID
    seq: int
    state: str
    attempt: int
    error_code: str | None
    error_message: str | None
    accepted_at: datetime
    settled_at: datetime | None
    question: str | None
    content: str | None
    finish_reason: FinishReason | None
    prompt_tokens: int | None
    completion_tokens: int | None


def results(
    database: Database, tenant_id: UUID, batch_id: UUID, limit: int | None = None
) -> Iterator[BatchResult]:
    """The accepted rows in the order of the file, with what has become of them so far.

    Another tenant's batch has no rows.

    Read page by page, so that no transaction stays open while a slow reader writes them away.
    """
    after = 0
    while limit is None or limit > 0:
        size = PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)
        query = _RESULT.where(
            turns.c.batch_id == batch_id,
            turns.c.tenant_id == tenant_id,
            turns.c.batch_row > after,
        )
        with database.begin() as connection:
            page = typed(
                _ResultRow, connection.execute(query.order_by(turns.c.batch_row).limit(size))
            )
        yield from map(_result, page)
        if len(page) < size:
            return
        after = page[-1].batch_row
        limit = None if limit is None else limit - size


def write_results(path: Path, results: Iterable[BatchResult]) -> int:
    """Write the results, in the format that the path's suffix names; returns their number.

    Raises:
        InvalidInput: the suffix is unknown, or the file cannot be written.
    """
    write = check_results_path(path)
    count = 0

    def counted() -> Iterator[BatchResult]:
        nonlocal count
        for count, result in enumerate(results, start=1):  # noqa: B007
            yield result

    with _replaced(path) as part:
        write(part, counted())
    return count


def check_results_path(path: Path) -> "Writer":
    """The writer of a results file, so that a wrong name is refused before the work is done."""
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(_WRITERS)
        raise InvalidInput(f"'{path.name}' is no format for results. Known are {known}.")
    if writer is _write_parquet:
        import_pyarrow()
    return writer


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file beside this one that takes its place when all has been written."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be written: {error.strerror or error}.") from None
    finally:
        with suppress(OSError):
            part.unlink()


def _write_jsonl(path: Path, results: Iterator[BatchResult]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(one_line(result.model_dump_json()) + "\n" for result in results)


def _write_csv(path: Path, results: Iterator[BatchResult]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _CSV_COLUMNS)
        writer.writeheader()
        for result in results:
            cells = result.model_dump(mode="json")
            error = cells.pop("error") or {}
            cells |= {"error_code": error.get("code"), "error_message": error.get("message")}
            writer.writerow(cells)


def _write_parquet(path: Path, results: Iterator[BatchResult]) -> None:
    arrow, parquet = import_pyarrow()
    text, number = arrow.string(), arrow.int64()
    schema = arrow.schema(
        {
            "id": text, "row": number, "turn_id": text, "conversation_id": text, "seq": number,
            "state": text, "reply": text, "finish_reason": text, "prompt_tokens": number,
            "completion_tokens": number, "attempts": number, "latency_s": arrow.float64(),
            "error": arrow.struct({"code": text, "message": text}),
        }
    )  # fmt: skip
    with parquet.ParquetWriter(path, schema) as writer:
        while page := [result.model_dump(mode="json") for result in islice(results, PAGE_ROWS)]:
            writer.write_table(arrow.Table.from_pylist(page, schema))


Writer = Callable[[Path, Iterator[BatchResult]], None]

_WRITERS: dict[str, Writer] = {
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def _result(row: _ResultRow) -> BatchResult:
    error = None
    if row.error_code:
        error = ResultError(code=row.error_code, message=row.error_message or "")
    return BatchResult(
        id=row_id_of(row.idempotency_key),
        row=row.batch_row,
        turn_id=show_id(Prefix.TURN, row.id),
        conversation_id=show_id(Prefix.CONVERSATION, row.conversation_id),
        seq=row.seq,
        state=TurnState(row.state),
        reply=row.content,
        finish_reason=row.finish_reason,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        attempts=row.attempt,
        latency_s=(row.settled_at - row.accepted_at).total_seconds() if row.settled_at else None,
        error=error,
        question=row.question or "",
    )
