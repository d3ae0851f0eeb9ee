"""Where the demo's replies come from: the documents of each, or what the bot said without any."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from rich.console import Console
from rich.table import Column, Table

from turnmill.producer.cli.context import System
from turnmill.producer.cli.views import batch_view
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.batches import row_id_of
from turnmill.schemas.citations.sources import Source
from turnmill.schemas.store.knowledge.verdicts import Verdict

#: Tickets shown of each kind.
SHOWN = {Verdict.ANSWERED: 3, Verdict.CLARIFY: 1, Verdict.UNCERTAIN: 3}

_ORIGINS = """
SELECT t.idempotency_key AS key, s.verdict, s.sources, coalesce(s.shown, 0) AS shown,
    r.content AS reply
FROM batches b JOIN turns t ON t.batch_id = b.id JOIN turn_sources s ON s.turn_id = t.id
JOIN replies r ON r.turn_id = t.id
WHERE b.tenant_id = %s AND b.name = %s AND s.verdict IS NOT NULL ORDER BY t.batch_row
"""


class _Origin(NamedTuple):
    key: str
    verdict: str
    #: `Source`s as JSON.
    sources: list[object]
    #: How many of them the model was shown.
    shown: int
    reply: str

    @property
    def place(self) -> str:
        """The best passage that the model was shown, or what the bot said instead."""
        if self.verdict != Verdict.ANSWERED or not self.sources:
            return self.reply
        best = Source.model_validate(self.sources[0])
        others = f" (and {self.shown - 1} more)" if self.shown > 1 else ""
        return f"{best.uri}: {best.title}{others}"


def show_origins(system: System, batch_name: str, console: Console) -> None:
    """Show some tickets of each kind with their documents, and count all."""
    origins = system.database.fetch(_Origin, _ORIGINS, (system.tenant_id, batch_name))
    if not origins:
        return
    console.print("Where the replies come from:")
    table = Table(Column("id", no_wrap=True), "by", Column("source", ratio=1), expand=True)
    for origin in _examples(origins):
        by = "documents" if origin.verdict == Verdict.ANSWERED else "the bot"
        cells = batch_view.shorten(origin.place, 120)
        table.add_row(batch_view.shorten(row_id_of(origin.key), 20), by, cells)
    console.print(table)
    counts = Counter(origin.verdict for origin in origins)
    console.print(
        plain(
            f"{counts[Verdict.ANSWERED]} of {len(origins)} were answered from documents, "
            f"{counts[Verdict.CLARIFY]} asked back, {counts[Verdict.UNCERTAIN]} said 'I am not "
            "sure': no document answers them."
        ),
        soft_wrap=True,
    )


def _examples(origins: list[_Origin]) -> Iterator[_Origin]:
    for verdict, most in SHOWN.items():
        yield from islice((each for each in origins if each.verdict == verdict), most)
