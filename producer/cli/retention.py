"""`turnmill db prune` and `turnmill db size`."""

from collections import Counter
from threading import Event
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.processes import db
from turnmill.producer.cli.views.console import make_console

console = make_console()


def add_commands(app: typer.Typer) -> None:
    db.command()(prune)
    db.command()(size)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
) -> None:
    """Delete now what is older than TURNMILL_RETENTION__… says, as workers do every hour.

    Example: TURNMILL_RETENTION__TURNS_DAYS=90 turnmill db prune --dry-run
    """
    from turnmill.workers.upkeep.pruner import prune as prune_database

    with open_system() as system, console.status("pruning …") as status:

        def show(counts: Counter[str]) -> None:
            status.update(f"pruning … {counts['turns']:,} turns")

        gone = prune_database(
            system.database, system.settings.retention, Event().wait, show, is_dry=dry_run
        )
    if gone is None:
        console.print("Another process is pruning right now.")
        raise typer.Exit(1)
    if not gone:
        console.print("Nothing is old enough.")
        return
    table = Table("what", "would go" if dry_run else "rows or months", box=None)
    table.columns[1].justify = "right"
    for name, count in gone.items():
        table.add_row(name, f"{count:,}")
    console.print(table)


def size() -> None:
    """Show how large the tables are: rows (about), bytes with indexes, the oldest turn in them.

    Example: turnmill db size
    """
    from turnmill.producer.size import table_sizes

    table = Table("table", "partitions", "rows", "size", "oldest", box=None)
    for column in table.columns[1:4]:
        column.justify = "right"
    with open_system() as system:
        for part in table_sizes(system.database):
            oldest = f"{part.oldest_at:%Y-%m-%d %H:%M}" if part.oldest_at else ""
            table.add_row(part.name, str(part.parts), f"{part.rows:,}", decimal(part.bytes), oldest)
    console.print(table)
