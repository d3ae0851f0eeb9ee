"""`turnmill status`: how the system is, at one look."""

from time import sleep
from typing import Annotated

import typer

from turnmill.producer.cli.context import open_system


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again.")] = False,
    every_s: Annotated[
        float, typer.Option("--every", min=0.5, help="Seconds between two looks of --watch.")
    ] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for programs; with --watch one a line.")
    ] = False,
) -> None:
    """Show lanes, workers, the rate, and the oldest turn of each lane with the reason it waits.

    Example: turnmill status --watch
    """
    from turnmill.producer.cli.views.console import make_console
    from turnmill.producer.cli.views.status_view import whole
    from turnmill.producer.operations.status import read_status

    console = make_console()
    with open_system() as system:
        while True:
            now = read_status(system.database, system.settings)
            if as_json:
                typer.echo(now.model_dump_json(indent=None if watch else 2))
            else:
                if watch and console.is_terminal:
                    console.clear()
                console.print(whole(now), soft_wrap=True)
            if not watch:
                return
            try:
                sleep(every_s)
            except KeyboardInterrupt:
                return
