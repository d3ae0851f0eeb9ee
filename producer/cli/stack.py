"""`turnmill up` and `turnmill demo`: the whole system on this machine, with one command."""

import itertools
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.extras import needing
from turnmill.producer.cli.views.console import make_console
from turnmill.schemas.errors import StackError
from turnmill.schemas.observability.targets import FOLDER as TARGETS_FOLDER
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.tenants import Scope
from turnmill.schemas.urls import address, reachable

if TYPE_CHECKING:
    from turnmill.infra.embedded.stack import Stack
    from turnmill.infra.embedded.supervisor import ChildEvent

console = make_console()

SAMPLE = Path("samples") / "tickets.jsonl"

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Data folder; TURNMILL_DATA or the account's own when left out."),
]


def add_commands(app: typer.Typer) -> None:
    app.command()(demo)
    app.command()(up)


def up(data: DataOption = None) -> None:
    """Start the embedded stack and keep it up until Ctrl-C; a second Ctrl-C hurries.

    Example: turnmill up --data /srv/turnmill
    """
    stack = _stack(_data_folder(data), lambda text: console.print(f"[dim]{text}[/]"))
    stops = itertools.count()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stack.request_stop(hurry=next(stops) > 0))
    if stack.start():
        _introduce(stack)
        stack.wait()
    console.print("Stopped. Everything durable is kept in", str(stack.folder.path))


def demo(
    file: Annotated[
        Path | None, typer.Argument(help="A backlog of your own (JSONL, CSV, Parquet).")
    ] = None,
    data: DataOption = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the replies.")] = None,
    slack: Annotated[
        bool, typer.Option("--slack", help="Show a thread in a mock of Slack instead.")
    ] = False,
) -> None:
    """Answer a backlog of customer-service tickets with the real default model, start to end.

    Example: turnmill demo tickets.csv --max-tokens 40

    Example of a thread that is answered, streamed and handed to a person: turnmill demo --slack
    """
    from turnmill.producer.cli.batch import INTERRUPTED, answer_backlog

    folder = _data_folder(data)
    if slack:
        _demo_slack(folder)
        return
    with _running_stack(folder) as settings, open_system(settings) as system:
        results = folder / "results" / f"demo-{datetime.now():%Y%m%d-%H%M%S}.jsonl"  # noqa: DTZ005
        results.parent.mkdir(parents=True, exist_ok=True)
        status = answer_backlog(
            system, file or sample_backlog(), results, name=results.stem, max_tokens=max_tokens
        )
    if status == INTERRUPTED:
        console.print("If the stack has stopped, the turns go on with the next 'turnmill up'.")
    raise typer.Exit(status)


def _demo_slack(folder: Path) -> None:
    from turnmill.producer.cli.channels.slack_demo import SECRET_VARIABLE, demo_environment, play

    if _is_running(folder):
        raise StackError(
            f"A stack runs from {folder} already, without the mock of Slack. Stop it first, or "
            "name another folder: turnmill demo --slack --data /tmp/turnmill-slack"
        )
    with needing("slack"):
        import slack_sdk  # noqa: F401 - the delivery worker's
    with (
        demo_environment(folder) as (api, environment),
        _running_stack(folder, environment) as settings,
    ):
        url = f"http://{address(reachable(settings.api.host), settings.api.port)}"
        play(api, url, environment[SECRET_VARIABLE])


def sample_backlog() -> Path:
    """The tickets that come with Turnmill."""
    from turnmill.infra import embedded

    return Path(embedded.__path__[0]).parent.resolve() / SAMPLE


@contextmanager
def _running_stack(
    folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Settings]:
    """A stack of our own, stopped at the end, or the one that runs from this folder already."""
    if _is_running(folder):
        console.print(f"[dim]Using the stack that runs from {folder}.[/]")
        yield load_settings(data=folder)
        return
    with console.status("Starting") as status:
        stack = _stack(folder, lambda text: status.update(f"{text}…"), environment)
        # The supervisor stops its children; Ctrl-C is left to Python, to end what we watch.
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            stack.start()
        except KeyboardInterrupt:
            stack.stop()
            raise
    try:
        yield load_settings(data=folder)
    finally:
        with console.status("Stopping"):
            stack.stop()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _stack(
    folder: Path,
    progress: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> "Stack":
    try:
        from turnmill.infra.embedded.stack import Stack
    except ModuleNotFoundError as error:
        raise StackError(
            f"The embedded stack is not installed ({error.name} is missing): "
            "pip install 'turnmill[embedded,openvino]'"
        ) from None
    return Stack(folder, environment=environment, progress=progress, notify=_show_death)


def _show_death(event: "ChildEvent") -> None:
    if event.restart_in_s is not None:
        console.print(
            f"[yellow]{event.child.title} ended with status {event.exit_code}; "
            f"it starts again in {event.restart_in_s:.1f} s. Its last lines:[/]"
        )
        for line in event.last_lines:
            console.print(f"  {line}", markup=False)


def _data_folder(data: Path | None) -> Path:
    """Settings that are wrong are told before anything starts."""
    return load_settings(**({} if data is None else {"data": data})).data.absolute()


def _is_running(folder: Path) -> bool:
    """Ask the lock: the process id of a stack that was killed may be somebody else's by now."""
    from turnmill.infra.embedded.folder import DataFolder

    return DataFolder(folder).is_locked("stack")


def _introduce(stack: "Stack") -> None:
    """Where everything is. The first start makes an API key, and this is its only showing."""
    from turnmill.producer import tenants

    with open_system(load_settings(data=stack.folder.path)) as system:
        secret = None
        if not tenants.list_keys(system.database, system.tenant_id):
            # Whoever starts the stack is its operator.
            secret = tenants.create_key(system.database, system.tenant_id, "first", Scope)
        model = system.settings.engine.model_name
        user = system.settings.flower.user
    console.print(f"\n[bold green]Turnmill is up[/] with the model {model}.\n")
    rows = {
        "API": f"{stack.api_url}/v1",
        "API docs": f"{stack.api_url}/docs",
        "Flower": f"{stack.flower_url}  (user {user}, password {stack.flower_password})",
        "Metrics": f"{stack.folder.path / TARGETS_FOLDER}/*.json  (Prometheus' file_sd_configs)",
        "Logs": str(stack.folder.path / "logs"),
    }
    if secret:
        rows["API key"] = f"{secret}  (shown once; more: turnmill keys create NAME)"
    for name, value in rows.items():
        console.print(f"  {name:<9} {value}", soft_wrap=True)
    console.print("\nTry: turnmill ask 'Where is my parcel?'    Ctrl-C stops everything.\n")
