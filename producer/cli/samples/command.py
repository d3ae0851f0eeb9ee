"""`turnmill bots sample`: install a bot that comes with Turnmill."""

from itertools import islice
from typing import Annotated

import typer
from rich.table import Table

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.samples.install import Sample, find_sample, install, list_samples
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain

#: Questions that are suggested.
SHOWN = 3

console = make_console()


def sample(
    name: Annotated[str | None, typer.Argument(help="Which; all are listed without.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Install a sample bot with its documents, or list the samples.

    Example: turnmill bots sample service
    """
    if name is None:
        console.print(_table(list_samples()))
        return
    found = find_sample(name)
    with open_system(tenant=tenant) as system:
        install(system, found)
        suffix = system.suffix
    console.print(plain(f"Installed the bot '{found.name}' from {found.folder}."), soft_wrap=True)
    for question in _suggested(found):
        console.print(
            plain(f'  turnmill ask "{question}" --bot {found.name}{suffix}'), soft_wrap=True
        )


def _suggested(sample: Sample) -> list[str]:
    """The first questions, and then one that no document answers."""
    questions = list(sample.questions())
    texts = [question.text for question in islice(questions, SHOWN)]
    unanswered = [each.text for each in questions if sample.documents and each.source is None]
    return [*texts, *unanswered[:1]]


def _table(samples: list[Sample]) -> Table:
    table = Listing("sample", "what it is", "documents")
    for each in samples:
        count = len(list(each.documents.iterdir())) if each.documents else 0
        table.add_row(each.name, plain(each.title), str(count) if count else "-")
    return table
