"""The command line: `turnmill`, its version, and our errors as sentences."""

import signal
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from turnmill.producer.cli.commands import LazyGroup, todays_name
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    SettingsError,
    TurnmillError,
    UnknownBot,
)
from turnmill.schemas.process.ending import (
    describe_end,
    ended_by,
    exit_status,
    is_terminal_closed,
    leave_at_once,
)
from turnmill.schemas.process.surroundings import refuse_undecodable, settle_in

app = typer.Typer(
    name="turnmill",
    cls=LazyGroup,
    help="LLM dialogue on message queues: every accepted turn is answered once and in order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"token_normalize_func": todays_name},
)

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
    try:
        _run()
    except BaseException as error:
        if ended_by() is None and is_terminal_closed():
            # It refuses what is printed, some moments before it sends SIGHUP.
            leave_at_once(exit_status(signal.SIGHUP))
        if (number := ended_by()) is None:
            raise
        if not isinstance(error, SystemExit):
            Console(stderr=True).print(describe_end(), highlight=False)
        # A command that handled the signal itself took it for Ctrl-C.
        leave_at_once(exit_status(number))


def _run() -> None:
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
