"""Waiting until workers have read documents, with progress for whoever watches."""

import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from turnmill.producer.cli.views.texts import plain
from turnmill.producer.knowledge.lookup import has_worker
from turnmill.producer.knowledge.sync import Change, Synced, follow
from turnmill.schemas.postgres.database import Database

#: Without progress for so long, somebody may have forgotten to start a worker, seconds.
_QUIET_S = 5.0


def waited(console: Console, database: Database, synced: Sequence[Synced]) -> Iterator[Synced]:
    """Print and yield what became of each document, once it is read."""
    pending = sum(each.document_id is not None for each in synced)
    for each in synced:
        if each.document_id is None:
            _say(console, each)
            yield each
    moved_at: float | None = time.monotonic()
    with console.status(f"{pending} documents to read") as status:
        for ended in follow(database, synced):
            if ended is not None:
                pending, moved_at = pending - 1, time.monotonic()
                status.update(f"{pending} documents to read")
                _say(console, ended)
                yield ended
            elif moved_at and time.monotonic() - moved_at > _QUIET_S:
                moved_at = None
                if not has_worker(database):
                    console.print(_NO_WORKER, soft_wrap=True)


_NO_WORKER = (
    "No worker runs, and workers read documents. Start one (turnmill up, or turnmill worker), or "
    "press Ctrl-C: the documents wait."
)


def _say(console: Console, each: Synced) -> None:
    if each.change is Change.UNCHANGED:
        return
    said = each.reason or f"{each.passage_count} passages"
    note = "" if each.change is Change.DELETED else f"  {said}"
    console.print(plain(f"{each.change:<10} {each.uri}{note}"), soft_wrap=True)
