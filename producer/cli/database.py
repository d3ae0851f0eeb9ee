"""`turnmill db`: the schema, what is old, and what is large."""

from collections import Counter
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Annotated

import typer
from rich.filesize import decimal

from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.observability.logs import configure_logging
from turnmill.schemas.settings import load_settings

console = make_console()


app = typer.Typer(help="The database: its schema, and what is in it.", no_args_is_help=True)


@app.command()
def upgrade() -> None:
    """Create the tables, or bring them up to date. Safe to run twice, or on many machines.

    A database that cannot carry Turnmill is refused.

    Example: TURNMILL_DATABASE__URL=postgresql://turnmill@db1/turnmill turnmill db upgrade
    """
    from turnmill.infra.migrations import upgrade as upgrade_database
    from turnmill.producer.tenants import ensure_defaults
    from turnmill.schemas.postgres.database import Database
    from turnmill.schemas.postgres.suitability import refuse_unsuitable

    settings = load_settings()
    configure_logging(settings.log)
    with closing(Database(settings.database)) as database:
        refuse_unsuitable(database)
        upgrade_database(settings.database.session_url.get_secret_value())
        ensure_defaults(database, settings)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
) -> None:
    """Delete now what is older than TURNMILL_RETENTION__… says, as workers do every hour.

    Files whose deletion failed are tried again at once.

    Example: TURNMILL_RETENTION__TURNS_DAYS=90 turnmill db prune --dry-run
    """
    from turnmill.schemas.files.opening import open_storage
    from turnmill.schemas.store.files.undeleted import retry_now
    from turnmill.workers.upkeep.pruner import prune as prune_database

    with open_system() as system, console.status("pruning …") as status:

        def show(counts: Counter[str]) -> None:
            status.update(f"pruning … {counts['turns']:,} turns")

        if not dry_run:
            retry_now(system.database)
        gone = prune_database(
            system.database,
            system.settings.retention,
            Event().wait,
            show,
            is_dry=dry_run,
            storage=open_storage(system.settings),
        )
    if gone is None:
        console.print("Another process is pruning right now.")
        raise typer.Exit(1)
    if not gone:
        console.print("Nothing is old enough.")
        return
    table = Listing("what", "would go" if dry_run else "rows or months")
    table.columns[1].justify = "right"
    for name, count in gone.items():
        table.add_row(name, f"{count:,}")
    console.print(table)


@app.command()
def size() -> None:
    """Show how large the tables are: rows (about), bytes with indexes, the oldest turn in them.

    Example: turnmill db size
    """
    from turnmill.producer.size import table_sizes

    table = Listing("table", "partitions", "rows", "size", "oldest")
    for column in table.columns[1:4]:
        column.justify = "right"
    with open_system() as system:
        for part in table_sizes(system.database):
            oldest = f"{part.oldest_at:%Y-%m-%d %H:%M}" if part.oldest_at else ""
            table.add_row(part.name, str(part.parts), f"{part.rows:,}", decimal(part.bytes), oldest)
    console.print(table)


@app.command("copy-files")
def copy_files(
    folder: Annotated[Path, typer.Argument(help="The folder that has had the files until now.")],
) -> None:
    """Copy the files of a folder into the storage that TURNMILL_FILES__STORAGE names.

    It may run while turns are answered, and again until nothing is left to copy.

    Example: TURNMILL_FILES__STORAGE=s3 turnmill db copy-files /var/lib/turnmill/files
    """
    from turnmill.schemas.files.copying import copy_files as copy_all
    from turnmill.schemas.files.local import LocalStorage
    from turnmill.schemas.files.opening import open_storage

    if not folder.is_dir():
        raise InvalidInput(f"There is no folder '{folder}'.", param="folder")
    with open_system() as system, console.status("copying …") as status:
        target = open_storage(system.settings)
        counts: Counter[str] = Counter()
        for counts in copy_all(system.database, LocalStorage(folder), target):
            status.update(f"copying … {counts['copied']:,} files")
    console.print(
        plain(
            f"{target.place}: {counts['copied']:,} files copied, {counts['there']:,} were there, "
            f"{counts['lost']:,} are in neither."
        )
    )
    if counts["failed"]:
        console.print(
            f"{counts['failed']:,} files could not be copied; the log has each with the reason "
            "(file.not_copied). Run the command again when that is mended.",
            soft_wrap=True,
        )
        raise typer.Exit(1)
