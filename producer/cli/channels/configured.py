"""`turnmill channels`: what `turnmill.toml` configures, checked and tried."""

from typing import Annotated

import typer

from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.extras import needing
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.lists.shapes import ChannelList
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.channels.configuration import Configuration, find_channel, load_configuration
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import CONFIG_FILE, Settings, load_settings
from turnmill.schemas.urls import address, reachable

app = typer.Typer(help="Channels: where people write from and are answered.", no_args_is_help=True)
console = make_console()

NameArgument = Annotated[str, typer.Argument(help="The channel's name in turnmill.toml.")]
URLOption = Annotated[
    str | None,
    typer.Option("--url", help="The API's address, https://bots.example.com; the local one's."),
]


@app.command("list")
def list_channels(as_json: JsonOption = False) -> None:
    """List the configured channels.

    Example: turnmill channels list
    """
    channels = _configuration(load_settings()).channels
    if as_json:
        print_json(ChannelList.of(channels, {name: _path(name) for name in channels}))
        return
    table = Listing("name", "kind", "bot", "tenant", "address")
    for name, section in channels.items():
        table.add_row(name, section.kind, plain(section.bot), plain(section.tenant), _path(name))
    console.print(table)


@app.command()
def apply() -> None:
    """Save the bots of turnmill.toml now; the API does it when it starts. None is deleted.

    Example: turnmill channels apply
    """
    from turnmill.producer.channels.bots import save_bots

    with open_system() as system:
        saved = save_bots(system.database, system.settings, _configuration(system.settings))
    for tenant, name in saved:
        console.print(plain(f"{name}, of the tenant {tenant}: saved."), soft_wrap=True)
    if not saved:
        console.print("The file names no bots.")


@app.command()
def check(
    name: NameArgument,
    url: URLOption = None,
    register: Annotated[
        bool, typer.Option("--register", help="Tell the platform the address, where it lets us.")
    ] = False,
) -> None:
    """Check a channel's secrets, bot, tokens and scopes, and print the address to paste.

    Example: turnmill channels check acme-slack --url https://bots.example.com
    """
    from turnmill.producer.channels.checks import check_channel, register_channel
    from turnmill.producer.cli.views.doctor_view import show_findings
    from turnmill.producer.doctor import Level

    settings = load_settings()
    section = _section(settings, name)
    if register and url is None:
        raise SettingsError("Name the API's address: --url https://bots.example.com --register")
    shown = (url or "https://YOUR-HOST").rstrip("/") + _path(name)
    with open_system(settings) as system, needing(section.kind):
        findings = list(register_channel(section, shown)) if register else []
        findings += check_channel(system.database, section)
    show_findings(findings)
    console.print(f"Address to paste: {shown}", soft_wrap=True)
    if any(finding.level is Level.BROKEN for finding in findings):
        raise typer.Exit(1)


@app.command()
def simulate(
    name: NameArgument,
    text: Annotated[str, typer.Argument(help="What somebody writes to the bot.")],
    thread: Annotated[str | None, typer.Option(help="Go on in this thread.")] = None,
    url: URLOption = None,
) -> None:
    """Send a signed event to the running API, as the platform would, and print the answer.

    It needs no account: the place is made up, and what the real platform would get is dropped.

    Example: turnmill channels simulate acme-slack "Where is my parcel?"
    """
    from turnmill.producer.cli.channels.simulate import simulate_event

    settings = load_settings()
    section = _section(settings, name)
    target = (url or _local(settings)).rstrip("/") + _path(name)
    with open_system(settings, tenant=section.tenant) as system:
        if not simulate_event(system, target, name, section, text, thread):
            raise typer.Exit(1)


def _configuration(settings: Settings) -> Configuration:
    _refuse_without_file(settings)
    return load_configuration(settings.config_path)


def _refuse_without_file(settings: Settings) -> None:
    if settings.config_path is None:
        raise SettingsError(
            f"There is no {CONFIG_FILE} in {settings.data}. "
            "Write one there, or name another file with TURNMILL_CONFIG."
        )


def _section(settings: Settings, name: str) -> ChannelSection:
    _refuse_without_file(settings)
    return find_channel(settings.config_path, name)


def _path(name: str) -> str:
    return f"/channels/{name}"


def _local(settings: Settings) -> str:
    return f"http://{address(reachable(settings.api.host), settings.api.port)}"
