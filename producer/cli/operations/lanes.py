"""`turnmill lanes`: which there are, and pausing them."""

import json
from typing import Annotated

import typer

from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.lists.printing import JsonOption
from turnmill.producer.cli.operations.person import who
from turnmill.producer.cli.views import status_view
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.operations import lanes
from turnmill.producer.operations.remedies import model_option
from turnmill.schemas.turns import Lane

app = typer.Typer(help="Lanes: what waits in them, and pausing them.", no_args_is_help=True)
console = make_console()

LaneName = Annotated[Lane, typer.Argument(help="The lane.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Only for this model; for all when left out.")
]


@app.command("list")
def list_lanes(
    as_json: JsonOption = False,
) -> None:
    """List the lanes of each model with their open turns, and the pauses.

    Example: turnmill lanes list
    """
    from turnmill.producer.operations.status import read_status

    with open_system() as system:
        status = read_status(system.database, system.settings)
    if as_json:
        shown = status.model_dump(mode="json", include={"lanes", "pauses"})
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        console.print(status_view.lanes(status), soft_wrap=True)


@app.command()
def pause(
    lane: LaneName,
    model: ModelOption = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever asks later.")] = "",
) -> None:
    """Let no worker claim turns of a lane; running turns finish, and new ones are accepted.

    Example: turnmill lanes pause batch --reason "the GPUs are needed until six"
    """
    with open_system() as system:
        lanes.pause(system.database, lane, model, by=who(), reason=reason)
    resume_it = f"turnmill lanes resume {lane}{model_option(model or '')}"
    console.print(
        plain(
            f"Paused: lane {lane} of {_models(model)}. Running turns finish. Resume: {resume_it}"
        ),
        soft_wrap=True,
    )


@app.command()
def resume(lane: LaneName, model: ModelOption = None) -> None:
    """Let workers claim turns of a paused lane again.

    Example: turnmill lanes resume batch
    """
    with open_system() as system:
        ended = lanes.resume(system.database, lane, model)
    since = ended.paused_at.isoformat(timespec="seconds")
    console.print(
        plain(f"Resumed: lane {lane} of {_models(model)}. {ended.paused_by} paused it at {since}."),
        soft_wrap=True,
    )


def _models(model: str | None) -> str:
    return f"model {model}" if model else "all models"
