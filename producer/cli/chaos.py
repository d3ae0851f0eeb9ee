"""`turnmill chaos`: break everything, and count what was lost."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from turnmill.producer.cli.extras import needing
from turnmill.producer.cli.views.console import make_console

console = make_console()


def chaos(
    scenario: Annotated[
        list[str] | None, typer.Option(help="What to do (repeatable). Default: storm.")
    ] = None,
    broker: Annotated[
        list[str] | None,
        typer.Option(
            help="A kind from --list, or a broker's URL (repeatable). Default: rabbitmq and valkey."
        ),
    ] = None,
    database: Annotated[
        str, typer.Option(help="A kind from --list, or the URL of a database.")
    ] = "postgres",
    turns: Annotated[int | None, typer.Option(min=10, help="Turns per broker.")] = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="That they belong to.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 3,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Turns per second to offer.")] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between faults.")] = 4.0,
    fault: Annotated[
        list[str] | None, typer.Option(help="Draw from these faults only (repeatable).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat the plan of this seed.")] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="Where reports go.")] = Path(
        "chaos-runs"
    ),
    shows_list: Annotated[
        bool, typer.Option("--list", help="List scenarios, faults and servers, and end.")
    ] = False,
) -> None:
    """Break everything while dialogue runs; exit status 1 if anything was lost, doubled,
    reordered, made up, or answered with a wrong history.

    The run brings its own API, relays and workers (with an engine that echoes). Servers that it
    was given by URL are used under a model name of the run's own, and not killed.

    Example: turnmill chaos --broker rabbitmq --turns 5000 --fault kill-worker --fault pause-worker
    """
    with needing("chaos,embedded"):
        from turnmill.infra.chaos.run import check_names, list_names, run_storms
        from turnmill.infra.chaos.scenarios import Options, make_storm
    if shows_list:
        list_names(console)
        return
    scenarios, brokers = scenario or ["storm"], broker or ["rabbitmq", "valkey"]
    check_names(scenarios=scenarios, brokers=brokers, databases=[database], faults=fault or [])
    options = Options(
        seed=seed if seed is not None else secrets.randbelow(1_000_000),
        turns=turns,
        conversations=conversations,
        rate=rate,
        workers=workers,
        fault_every_s=every,
        faults=tuple(fault or ()),
    )
    storms = [(make_storm(name, kind, options), kind) for name in scenarios for kind in brokers]
    if not run_storms(storms, out, database, console):
        raise typer.Exit(1)
