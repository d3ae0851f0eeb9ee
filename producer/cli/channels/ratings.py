"""`turnmill ratings`: what people say of replies."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.ratings import read_ratings, tally_ratings, write_csv, write_jsonl
from turnmill.schemas.errors import InvalidInput

app = typer.Typer(help="What people say of replies.", no_args_is_help=True)

_FORMATS = {".jsonl": write_jsonl, ".csv": write_csv}

DaysOption = Annotated[
    int | None, typer.Option(min=1, help="Only ratings of so many days until now.")
]


@app.command()
def summary(days: DaysOption = None, tenant: TenantOption = None) -> None:
    """Count good and bad ratings by bot, version and model.

    Example: turnmill ratings summary --days 7
    """
    table = Listing("bot", "version", "model", "good", "bad", "good, %")
    with open_system(tenant=tenant) as system:
        for each in tally_ratings(system.database, system.tenant_id, _since(days)):
            share = f"{100 * each.good / (each.good + each.bad):.0f}"
            version = "" if each.bot_version is None else str(each.bot_version)
            cells = (each.bot, version, each.model, str(each.good), str(each.bad), share)
            table.add_row(*map(plain, cells))
    make_console().print(table if table.rows else "Nothing is rated yet.")


@app.command()
def export(
    file: Annotated[
        Path | None,
        typer.Argument(help="A .jsonl or .csv file that is not there yet. Default: JSONL, shown."),
    ] = None,
    days: DaysOption = None,
    tenant: TenantOption = None,
) -> None:
    """Write the ratings, each with its turn, bot, version and model.

    Example: turnmill ratings export ratings.csv --days 30
    """
    with open_system(tenant=tenant) as system:
        ratings = read_ratings(system.database, system.tenant_id, _since(days))
        if file is None:
            write_jsonl(ratings, sys.stdout)
            return
        write = _FORMATS.get(file.suffix.lower())
        if write is None:
            raise InvalidInput(f"'{file.name}' is neither .jsonl nor .csv.", param="file")
        try:
            with file.open("x", encoding="utf-8", newline="") as out:
                write(ratings, out)
        except FileExistsError:
            raise InvalidInput(f"{file} is there already; name another file.") from None
        except OSError as error:
            raise InvalidInput(f"{file} cannot be written: {error.strerror}.") from None
    make_console().print(plain(f"Written: {file}"), soft_wrap=True)


def _since(days: int | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) - timedelta(days=days)
