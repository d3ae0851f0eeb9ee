"""`turnmill workers`: which live, and draining one from afar."""

import json
import time
from typing import Annotated

import typer

from turnmill.producer.cli.context import System, open_system
from turnmill.producer.cli.lists.printing import JsonOption
from turnmill.producer.cli.operations.person import who
from turnmill.producer.cli.views import status_view
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.operations import workers
from turnmill.producer.operations.status import show_worker
from turnmill.producer.operations.workers import WorkerRow, WorkerState

app = typer.Typer(help="Workers: what they do, and draining one.", no_args_is_help=True)
console = make_console()

#: A worker looks twice a second whether it is asked to drain.
_NOTICED_S = 10.0
_POLL_S = 0.25


@app.command("list")
def list_workers(
    as_json: JsonOption = False,
) -> None:
    """List the workers, and those that ended within the last hour.

    Example: turnmill workers list
    """
    with open_system() as system:
        rows = workers.list_workers(system.database, system.settings.worker.lease_s)
    shown = [show_worker(row) for row in rows]
    if as_json:
        found = [worker.model_dump(mode="json") for worker in shown]
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console.print(status_view.workers(shown, with_ended=True), soft_wrap=True)


@app.command()
def drain(
    worker: Annotated[str, typer.Argument(help="worker_…, or the start of it.")],
    wait: Annotated[bool, typer.Option(help="Wait until it has ended.")] = True,
) -> None:
    """Let a worker finish what it runs, hand back the rest after its drain time, and exit.

    Exit status 1 if it does not begin to drain: it runs an older release, or is cut off.

    Example: turnmill workers drain worker_01a20a667dde
    """
    with open_system() as system:
        lease_s = system.settings.worker.lease_s
        found = workers.find_worker(system.database, worker, lease_s)
        workers.ask_to_drain(system.database, found, by=who())
        _say(f"Asked {found.shown_id} (process {found.pid} on {found.host}) to drain.")
        if wait:
            _wait(system, found)


def _wait(system: System, asked: WorkerRow) -> None:
    started_at, busy = time.monotonic(), -1
    while True:
        row = workers.find_worker(system.database, asked.shown_id, system.settings.worker.lease_s)
        if not row.is_alive:
            _say("It has ended.")
            return
        if row.draining_since is None and time.monotonic() - started_at > _NOTICED_S:
            # A process that is paused takes no SIGTERM, and its turns are others' by now.
            name = "KILL" if row.state is WorkerState.SILENT else "TERM"
            _say(
                f"It has not begun to drain: it runs release {row.version or 'unknown'}, and was "
                f"last seen {row.beat_age_s:.0f} s ago. On {row.host}: kill -{name} {row.pid}"
            )
            raise typer.Exit(1)
        if row.draining_since is not None and row.busy != busy:
            busy = row.busy
            _say(f"It drains; {busy} turns run.")
        time.sleep(_POLL_S)


def _say(text: str) -> None:
    console.print(plain(text), soft_wrap=True)
