"""The results of a batch: one line per row of its backlog, beside the backlog's own columns.

The file appears as a whole or not at all, and can be written again at any time: rows that
are not answered yet stand in it with their state.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from turnmill.producer.batches.backlog import Backlog
from turnmill.producer.batches.outputs.parquet import write_parquet
from turnmill.producer.batches.outputs.place import replaced
from turnmill.producer.batches.outputs.spreadsheet import check_rows, write_xlsx
from turnmill.producer.batches.outputs.table import BRIEF, FULL, Row, Table
from turnmill.producer.batches.outputs.text import write_csv, write_json_lines
from turnmill.producer.batches.shapes import Shape
from turnmill.schemas.batches import BatchResult, ResultError, row_id_of
from turnmill.schemas.citations.sources import read_sources
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.records.parquet import import_pyarrow
from turnmill.schemas.records.registry import TEXTS, format_of
from turnmill.schemas.records.text import is_gzipped
from turnmill.schemas.store.knowledge.tables import turn_sources
from turnmill.schemas.store.tables import replies, turns
from turnmill.schemas.turns import FinishReason, TurnState

#: Results in memory at a time.
PAGE_ROWS = 1000

_RESULT = sa.select(
    turns.c.id, turns.c.idempotency_key, turns.c.batch_row, turns.c.conversation_id, turns.c.seq,
    turns.c.state, turns.c.attempt, turns.c.error_code, turns.c.error_message,
    turns.c.accepted_at, turns.c.settled_at, turns.c.input[-1]["content"].astext.label("question"),
    replies.c.content, replies.c.finish_reason,
    replies.c.prompt_tokens, replies.c.completion_tokens,
    turn_sources.c.sources, turn_sources.c.shown, turn_sources.c.first_number,
).outerjoin(replies, replies.c.turn_id == turns.c.id).outerjoin(
    turn_sources, turn_sources.c.turn_id == turns.c.id
)  # fmt: skip


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
    #: As `read_sources` takes them.
    sources: list[object] | None
    shown: int | None
    first_number: int | None


def results(
    database: Database, tenant_id: UUID, batch_id: UUID, limit: int | None = None
) -> Iterator[BatchResult]:
    """The accepted rows in the order of the file, with what has become of them so far.

    Another tenant's batch has no rows.

    Read page by page, so that no transaction stays open while a slow reader writes them away.
    """
    own = (turns.c.batch_id == batch_id, turns.c.tenant_id == tenant_id)
    with database.begin() as connection:
        last = connection.execute(sa.select(sa.func.max(turns.c.batch_row)).where(*own)).scalar()
    left = (last or 0) if limit is None else limit
    # By the rows' numbers: a LIMIT would have the whole batch sorted for each page, by a
    # PostgreSQL whose statistics are of before the batch.
    for after in range(0, last or 0, PAGE_ROWS):
        page_rows = turns.c.batch_row.between(after + 1, after + PAGE_ROWS)
        query = _RESULT.where(*own, page_rows).order_by(turns.c.batch_row).limit(left)
        with database.begin() as connection:
            page = typed(_ResultRow, connection.execute(query))
        yield from map(_result, page)
        left -= len(page)
        if left <= 0:
            return


def write_results(
    path: Path,
    results: Iterable[BatchResult],
    backlog: Backlog | None = None,
    *,
    shape: Shape | None = None,
    with_details: bool = False,
    is_raw: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the results, in the format that the path's suffix names; returns their number.

    With its backlog, each row has the file's own columns first. Tables then have few of ours,
    unless all details are asked for. A shape makes columns of the replies.

    Raises:
        InvalidInput: the suffix is unknown, the file cannot be written or exists already, or the
            backlog has changed.
    """
    write = check_results_path(path, backlog)
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in _joined(results, backlog):
            count += 1
            yield row

    brief = backlog is not None and not with_details and write in _FOR_PEOPLE
    few = tuple(name for name in BRIEF if name != "reply" or shape is None)
    table = Table(
        counted(),
        backlog.titles if backlog else {},
        _added(backlog, few if brief else FULL),
        _delimiter(path, backlog),
        is_raw,
        is_gzipped(path),
        backlog.arrow_schema() if backlog and write is write_parquet else None,
        shape,
    )
    with replaced(path, overwrite=overwrite) as part:
        write(part, table)
    return count


def check_results_path(path: Path, backlog: Backlog | None = None) -> "Writer":
    """The writer of a results file, so that a wrong name is refused before the work is done."""
    if path.is_dir():
        raise InvalidInput(f"'{path}' is a folder. Name a file in it.")
    kind = format_of(path)
    writer = _WRITERS.get(kind)
    if writer is None or (is_gzipped(path) and kind not in TEXTS):
        known = ", ".join(_WRITERS)
        raise InvalidInput(
            f"'{path.name}' is no format for results. Known are {known}; text may be gzipped (.gz)."
        )
    if writer is write_parquet:
        import_pyarrow()
    if writer is write_xlsx and backlog:
        check_rows(backlog.total, path)
    return writer


def _added(backlog: Backlog | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that the file does not have itself: its id, and a prompt in a column."""
    if backlog is None:
        return names
    has = backlog.own_fields
    wanted = names if "question" in names or "question" in has else ("question", *names)
    return tuple(name for name in wanted if name not in has)


def _joined(results: Iterable[BatchResult], backlog: Backlog | None) -> Iterator[Row]:
    """Each result beside its row. Both come in the order of the file."""
    if backlog is None:
        yield from (({}, result) for result in results)
        return
    records = backlog.records()
    for result in results:
        cells = next((cells for number, cells in records if number == result.row), None)
        if cells is None or backlog.id_of(result.row, cells) != result.id:
            raise InvalidInput(
                f"'{backlog.path.name}' is not the backlog of this batch, or it was submitted with "
                "other options: give the same --id, --header, --delimiter."
            )
        yield cells, result
    # The rest is read too: the file must not have changed up to its end.
    deque(records, maxlen=0)


def _delimiter(path: Path, backlog: Backlog | None) -> str:
    if format_of(path) == ".tsv":
        return "\t"
    return (backlog.layout.delimiter if backlog else None) or ","


Writer = Callable[[Path, Table], None]

_WRITERS: dict[str, Writer] = {
    ".jsonl": write_json_lines,
    ".ndjson": write_json_lines,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".xlsx": write_xlsx,
    ".parquet": write_parquet,
}

#: Formats that people open. Programs take what they need of the others.
_FOR_PEOPLE = (write_csv, write_xlsx)


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
        sources=_sources(row),
        question=row.question or "",
    )


def _sources(row: _ResultRow) -> str | None:
    """What the reply cites, in one cell."""
    found, _ = read_sources(row.content or "", row.sources, row.shown, row.first_number)
    return "; ".join(source.line for source in found if source.cited) or None
