"""`turnmill knowledge evaluate`: how often a search finds the answer."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from turnmill.compression.evaluate.intervals import Figure
from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.knowledge.asking import asking
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.knowledge.calibration.questions import read_labelled
from turnmill.producer.knowledge.evaluation import evaluate as evaluate_search
from turnmill.producer.knowledge.lookup import find_collection

console = make_console()


def evaluate(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Its name.")],
    questions: Annotated[
        Path,
        typer.Option(
            help="A table with the columns question and answered_by (the document that answers "
            "it, or the heading in it)."
        ),
    ],
    tenant: TenantOption = None,
) -> None:
    """Measure how often the search finds the answers to your own questions.

    One row a method: by words (BM25), by vectors, and by both, with 95 % intervals. The latter two
    where the collection has vectors and their embedder is installed. p50 is the median time of a
    search on this machine, the vector of the question included.

    Example: turnmill knowledge evaluate shop --questions asked.csv
    """
    labelled = read_labelled(questions)
    table = Table("search", "recall@1", "recall@5", "MRR@10", "p50", box=None)
    with open_system(tenant=tenant) as system:
        find_collection(system.database, system.tenant_id, collection)
        place = (system.database, system.tenant_id, collection)
        with asking(system, collection) as ask:
            for each in evaluate_search(*place, labelled, ask):
                table.add_row(each.method, *map(_cell, each[1:4]), f"{each.p50_ms:.0f} ms")
    console.print(table)
    count = sum(bool(each.answer) for each in labelled)
    console.print(plain(f"{count} questions; in brackets, 95 % of the bootstrap."))
    if table.row_count == 1:
        console.print("It has no vectors, or their embedder does not work here.")


def _cell(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
