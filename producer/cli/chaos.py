"""`turnmill chaos`: break everything, and count what was lost."""

import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from turnmill.schemas.errors import SettingsError

console = Console(highlight=False)

#: Each poison turn kills four workers: enough to see quarantine work.
_POISON = ("[[wait=0.1]] [[crash]]", "[[memory]]", "[[memory]]")


def add_commands(app: typer.Typer) -> None:
    app.command()(chaos)


def chaos(
    broker: Annotated[
        list[str] | None,
        typer.Option(help="rabbitmq, valkey, or a broker's URL (repeatable). Default: both."),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="A PostgreSQL to use; one is started when left out.")
    ] = None,
    turns: Annotated[int, typer.Option(min=10, help="Turns per broker.")] = 2_000,
    conversations: Annotated[int, typer.Option(min=1, help="Conversations they belong to.")] = 150,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 3,
    rate: Annotated[float, typer.Option(min=0.1, help="Turns per second to offer.")] = 60.0,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between faults.")] = 4.0,
    fault: Annotated[
        list[str] | None, typer.Option(help="Only this fault (repeatable). Default: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat the run of this seed.")] = None,
    out: Annotated[Path, typer.Option(help="Where reports go.")] = Path("chaos-runs"),
    list_faults: Annotated[bool, typer.Option("--list", help="List the faults, and end.")] = False,
) -> None:
    """Break everything while dialogue runs; exit status 1 if anything was lost, doubled,
    reordered, made up, or answered with a wrong history.

    The run brings its own API, relays and workers (with an engine that echoes). Servers that it
    was given by URL are used under a model name of the run's own, and not killed.

    Example: turnmill chaos --broker rabbitmq --turns 5000 --fault kill-worker --fault pause-worker
    """
    try:
        from turnmill.chaos.actions import ACTIONS
        from turnmill.chaos.client import Load
        from turnmill.chaos.run import run_storms
        from turnmill.chaos.site import Size
        from turnmill.chaos.storm import Storm
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: pip install 'turnmill[chaos,embedded]'"
        ) from None
    if list_faults:
        console.print("\n".join(ACTIONS))
        return
    if unknown := set(fault or ()) - set(ACTIONS):
        raise SettingsError(f"No such fault: {', '.join(sorted(unknown))}. See --list.")
    chosen = seed if seed is not None else secrets.randbelow(1_000_000)
    storms = [
        (
            Storm(
                name="broker" if "://" in kind else kind,
                load=Load(turns, conversations, chosen, rate, poison=_POISON),
                size=Size(workers=workers),
                fault_every_s=every,
                faults=tuple(fault or ()),
            ),
            kind,
        )
        for kind in broker or ("rabbitmq", "valkey")
    ]
    if not run_storms(storms, out, database_url, console):
        raise typer.Exit(1)
