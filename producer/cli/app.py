"""Puts the command line together, and turns our errors into sentences."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from turnmill.producer.cli import (
    admin,
    batch,
    bench,
    bots,
    chaos,
    parked,
    processes,
    retention,
    stack,
    talk,
    turn,
)
from turnmill.producer.cli.channels import configured, conversations, deliveries, ratings
from turnmill.producer.cli.compression import auto as compress_auto
from turnmill.producer.cli.compression import compress, distill, evaluate, models
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    SettingsError,
    TurnmillError,
    UnknownBot,
)
from turnmill.schemas.process.surroundings import refuse_undecodable, settle_in

app = typer.Typer(
    name="turnmill",
    help="LLM dialogue on message queues: every accepted turn is answered once and in order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

compress_auto.add_commands(compress.app)
for part in (stack, talk, processes, admin, chaos, retention, evaluate):
    part.add_commands(app)
app.add_typer(turn.app, name="turn")
app.add_typer(parked.app, name="parked")
app.add_typer(conversations.app, name="conversations")
app.add_typer(ratings.app, name="ratings")
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(batch.app, name="batch")
app.add_typer(bench.app, name="bench")
distill.add_commands(compress.app)
app.add_typer(compress.app, name="compress")
app.add_typer(models.app, name="models")
app.add_typer(admin.tenants, name="tenants")
app.add_typer(admin.keys, name="keys")
app.add_typer(bots.app, name="bots")
app.add_typer(configured.app, name="channels")
app.add_typer(processes.db, name="db")

#: sysexits.h: usage, unavailable, software error.
USAGE, UNAVAILABLE, FAILED = 64, 69, 70


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"turnmill {version('turnmill')}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; ends the process."""
    settle_in()
    try:
        refuse_undecodable(sys.argv[1:])
        app()
    except TurnmillError as error:
        Console(stderr=True).print(
            f"[red]error[/] [dim]({error.code})[/]",
            plain(error.message),
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(_status(error))


def _status(error: TurnmillError) -> int:
    if isinstance(error, Conflict | InvalidInput | NotFound | SettingsError | UnknownBot):
        return USAGE
    return UNAVAILABLE if error.code.endswith("unavailable") else FAILED
