"""The last part of the demo: some of its tickets once more, as typed columns."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from turnmill.producer.batches.backlog import Backlog, NumberedRow
from turnmill.producer.batches.progress import progress
from turnmill.producer.batches.results import results
from turnmill.producer.batches.shapes import Shape
from turnmill.producer.batches.submission import submit
from turnmill.producer.cli.context import System
from turnmill.producer.cli.views import batch_view
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import GenerationParams

#: Seconds between two looks at how far it is.
REFRESH_S = 0.2
#: Tickets that are shown.
SHOWN = 4

_PARAMS = GenerationParams(temperature=0, max_tokens=120)


@dataclass(frozen=True, slots=True)
class _First:
    """The first rows of a backlog that continue no conversation."""

    backlog: Backlog

    @property
    def path(self) -> Path:
        return self.backlog.path

    @property
    def fingerprint(self) -> bytes:
        return self.backlog.fingerprint

    @property
    def total(self) -> int:
        return len([*self.rows()])

    def rows(self) -> Iterator[NumberedRow]:
        alone = (each for each in self.backlog.rows() if each[1].conversation is None)
        return islice(alone, SHOWN)


def show_triage(
    system: System, backlog: Backlog, shape: Shape, name: str, console: Console
) -> None:
    """Have the first tickets answered as columns, and show them.

    Nothing is shown where the engine holds no reply to a schema. Ctrl-C shows what there is.
    """
    overrides = _PARAMS.model_copy(update={"response_format": shape.format})
    bot = system.settings.engine.model_name
    try:
        batch = submit(
            system.database, system.tenant_id, bot, _First(backlog), overrides, name=name
        )
    except InvalidInput:
        return
    with console.status("Columns"), suppress(KeyboardInterrupt):
        while not progress(system.database, system.tenant_id, batch.batch_id).is_done:
            time.sleep(REFRESH_S)
    console.print(f"{SHOWN} of them as typed columns (--schema triage.json):")
    table = Table(Column("id", no_wrap=True), *shape.columns, expand=True)
    for result in results(system.database, system.tenant_id, batch.batch_id):
        values = shape.read(result)[1].values()
        cells = ("" if value is None else str(value) for value in values)
        table.add_row(
            batch_view.shorten(result.id, 20), *(batch_view.shorten(cell, 60) for cell in cells)
        )
    console.print(table)
