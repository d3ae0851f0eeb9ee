"""The submitter of `turnmill bench batch`: rows that no file holds, and the memory that it takes.

Run as a program with the number of rows. It prints `submitting`, then a line of JSON now and then,
then `submitted`.
"""

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import typer

from turnmill.producer.batches.backlog import NumberedRow
from turnmill.producer.batches.submission import CHUNK_ROWS, submit
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings

#: Lines printed on the way.
_LINES = 10


@dataclass(frozen=True, slots=True)
class MadeRows:
    """Tickets made when they are asked for."""

    total: int
    path: Path = Path("made.jsonl")
    fingerprint: bytes = b"made"

    def rows(self) -> Iterator[NumberedRow]:
        for number in range(1, self.total + 1):
            prompt = f"Ticket {number}: the parcel has not arrived yet. What can I do?"
            yield number, BacklogRow(id=f"made-{number}", prompt=prompt)


def peak_mib() -> float:
    """The most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(total: int) -> None:
    settings = load_settings()
    step = max(1, total // _LINES)

    def report(count: int) -> None:
        if count % step < CHUNK_ROWS:
            typer.echo(json.dumps({"rows": count, "peak_mib": round(peak_mib(), 1)}))

    with closing(Database(settings.database)) as database:
        tenant_id = ensure_defaults(database, settings)
        typer.echo("submitting")
        made = MadeRows(total)
        submit(database, tenant_id, settings.engine.model_name, made, on_accepted=report)
    typer.echo("submitted")


if __name__ == "__main__":
    main(int(sys.argv[1]))
