"""`turnmill up` and `turnmill demo`: the whole system on this machine, with one command."""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turnmill.producer.cli.context import System, open_system
from turnmill.producer.cli.views.checked import check_engine
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.steps import Steps
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import StackError
from turnmill.schemas.observability.targets import FOLDER as TARGETS_FOLDER
from turnmill.schemas.process.surroundings import PREFIX
from turnmill.schemas.settings import DEFAULT_MODEL, Settings, load_settings
from turnmill.schemas.settings.load import default_data_dir
from turnmill.schemas.tenants import Scope
from turnmill.schemas.turns import MAX_TOKENS
from turnmill.schemas.urls import address, reachable

if TYPE_CHECKING:
    from turnmill.infra.embedded.stack import Stack
    from turnmill.infra.embedded.supervisor import ChildEvent

console = make_console()

SAMPLE = "tickets.jsonl"
#: Beside it: the columns that some of its replies become.
TRIAGE = "triage.json"

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Data folder; TURNMILL_DATA or the account's own when left out."),
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The default model, a pulled one (`models available`), a folder, a .gguf file, …; "
        "TURNMILL_ENGINE__MODEL when left out.",
    ),
]


def up(data: DataOption = None, model: ModelOption = None) -> None:
    """Start the embedded stack and keep it up until Ctrl-C; a second Ctrl-C hurries.

    Example: turnmill up --data /srv/turnmill
    """
    choose_model(model)
    folder = _data_folder(data)
    _show_folder(folder)
    check_engine(load_settings(data=folder), console)
    steps = Steps(console)
    stack = _stack(folder, steps)
    try:
        with steps:
            stack.start()
        _introduce(stack)
        stack.wait()
    finally:
        stack.stop()
    console.print("Stopped. Everything durable is kept in", str(stack.folder.path))


def demo(
    file: Annotated[
        Path | None, typer.Argument(help="A backlog of your own (JSONL, CSV, XLSX, Parquet).")
    ] = None,
    data: DataOption = None,
    model: ModelOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS, help="Length of the replies.")
    ] = None,
    slack: Annotated[
        bool, typer.Option("--slack", help="Show a thread in a mock of Slack instead.")
    ] = False,
) -> None:
    """Answer a backlog of customer-service tickets with the real default model, start to end.

    Example: turnmill demo tickets.csv --max-tokens 40

    Example of a thread that is answered, streamed and handed to a person: turnmill demo --slack
    """
    from turnmill.producer.batches.shapes import read_shape
    from turnmill.producer.cli.backlogs.answering import (
        INTERRUPTED,
        Output,
        answer_backlog,
        check_backlog,
    )
    from turnmill.producer.cli.backlogs.triage import show_triage
    from turnmill.producer.cli.samples.origins import show_origins

    choose_model(model)
    folder = _data_folder(data)
    if slack:
        _demo_slack(folder)
        return
    backlog = check_backlog(file or sample_backlog())
    with running_stack(folder) as settings, open_system(settings) as system:
        bot = _install_bot(system) if file is None else None
        results = folder / "results" / f"demo-{datetime.now():%Y%m%d-%H%M%S}.jsonl"  # noqa: DTZ005
        results.parent.mkdir(parents=True, exist_ok=True)
        status = answer_backlog(
            system, backlog, Output(results), bot=bot, name=results.stem, max_tokens=max_tokens
        )
        if file is None and status != INTERRUPTED:
            show_origins(system, results.stem, console)
            shape = read_shape(backlog.path.with_name(TRIAGE))
            show_triage(system, backlog, shape, f"{results.stem}-triage", console)
    if status == INTERRUPTED:
        console.print("If the stack has stopped, the turns go on with the next 'turnmill up'.")
    elif status == 0:
        _suggest_model(settings)
    raise typer.Exit(status)


def _install_bot(system: System) -> str:
    """The sample bot that the tickets are for, with its documents; its name."""
    from turnmill.producer.cli.samples.install import find_sample, install

    sample = find_sample("service")
    with console.status("Reading the documents"):
        install(system, sample)
    return sample.name


def _demo_slack(folder: Path) -> None:
    from turnmill.producer.cli.channels.slack_demo import SECRET_VARIABLE, demo_environment, play

    if _is_running(folder):
        raise StackError(
            f"A stack runs from {folder} already, without the mock of Slack. Stop it first, or "
            "name another folder: turnmill demo --slack --data /tmp/turnmill-slack"
        )
    with (
        demo_environment(folder) as (api, environment),
        running_stack(folder, environment) as settings,
    ):
        url = f"http://{address(reachable(settings.api.host), settings.api.port)}"
        play(api, url, environment[SECRET_VARIABLE])


def choose_model(model: str | None) -> None:
    """Have this process, and those that it starts, serve a model."""
    if model is not None:
        os.environ[f"{PREFIX}ENGINE__MODEL"] = model


def _suggest_model(settings: Settings) -> None:
    from turnmill.producer.cli.compression.catalogue import suggestion

    if settings.engine.model == DEFAULT_MODEL and (command := suggestion()):
        console.print("\nFor replies worth reading, serve a larger model that fits this machine:")
        console.print(f"  {command}", markup=False, soft_wrap=True)


def sample_backlog() -> Path:
    """The tickets that come with Turnmill."""
    from turnmill.producer.cli.samples.install import samples_folder

    return samples_folder() / SAMPLE


@contextmanager
def running_stack(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Settings]:
    """A stack of our own, stopped at the end, or the one that runs from this folder already."""
    if _is_running(folder):
        console.print(f"[dim]Using the stack that runs from {folder}.[/]")
        yield load_settings(data=folder)
        return
    _show_folder(folder)
    check_engine(load_settings(data=folder), console)
    steps = Steps(console)
    with steps:
        stack = _stack(folder, steps, environment)
        stack.start()
    try:
        yield load_settings(data=folder)
    finally:
        with steps:
            stack.stop()


def _show_folder(folder: Path) -> None:
    """Say where the data lies before anything is written there."""
    text = f"Data folder: {folder} (another one: --data or TURNMILL_DATA)"
    console.print(plain(text), soft_wrap=True)
    if os.geteuid() == 0 and folder == default_data_dir():
        console.print("Every checkout that root runs on this machine shares this folder.")


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
    text = "Try: turnmill ask 'Where is my parcel?'    Ctrl-C stops everything.\n"
    if (folder := stack.folder.path) != default_data_dir():
        # `--data` is known to this process alone, and perhaps the variable is too.
        chosen = shlex.quote(str(folder))
        text = f"In other terminals, first: export TURNMILL_DATA={chosen}\n{text}"
    console.print()
    console.print(plain(text), soft_wrap=True)
