"""Commands of whoever runs the system: `doctor`, `keys`, `bots`."""

from typing import Annotated

import typer
from rich.table import Table

from turnmill.producer.cli.console import make_console
from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.texts import plain
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.turns import GenerationParams

keys = typer.Typer(help="API keys.", no_args_is_help=True)
bots = typer.Typer(help="Bots: a model with instructions and defaults.", no_args_is_help=True)
console = make_console()


def add_commands(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    strict: Annotated[
        bool, typer.Option("--strict", help="Warnings fail too: for deploy pipelines.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Check this installation and the configured servers; exit status 1 if anything is broken.

    Example: turnmill doctor --strict
    """
    from turnmill.infra.migrations import head_revision
    from turnmill.producer.cli.doctor_view import show_findings, to_json
    from turnmill.producer.doctor import Level, diagnose

    findings = diagnose(head_revision())
    if as_json:
        typer.echo(to_json(findings))
    else:
        show_findings(findings)
    failing = {Level.BROKEN, Level.WARNING} if strict else {Level.BROKEN}
    if any(finding.level in failing for finding in findings):
        raise typer.Exit(1)


@keys.command("create")
def create_key(name: Annotated[str, typer.Argument(help="Who will use it.")]) -> None:
    """Create an API key. It is printed once, alone on its line: only its hash is kept.

    Example: turnmill keys create slack-bot
    """
    from turnmill.producer import tenants

    with open_system() as system:
        typer.echo(tenants.create_key(system.database, system.tenant_id, name))


@keys.command("list")
def list_keys() -> None:
    """List the API keys."""
    from turnmill.producer import tenants

    table = Table("id", "name", "starts with", "created", "revoked", box=None)
    table.columns[0].no_wrap = True
    with open_system() as system:
        for key in tenants.list_keys(system.database, system.tenant_id):
            revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
            table.add_row(
                key.shown_id, plain(key.name), key.hint, f"{key.created_at:%Y-%m-%d %H:%M}", revoked
            )
    console.print(table)


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="key_… from `keys list`.")]) -> None:
    """Refuse an API key from now on (API processes notice within 5 seconds).

    Example: turnmill keys revoke key_01a20ab599f77372a3962160f383535f
    """
    from turnmill.producer import tenants

    with open_system() as system:
        tenants.revoke_key(system.database, system.tenant_id, parse_id(Prefix.KEY, key_id))
    console.print("Revoked.")


@bots.command("list")
def list_bots() -> None:
    """List the bots."""
    from turnmill.producer import tenants

    table = Table("name", "model", "parameters", "instructions")
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    with open_system() as system:
        for bot in tenants.list_bots(system.database, system.tenant_id):
            params = bot.params.model_dump_json(exclude_defaults=True)
            table.add_row(*map(plain, (bot.name, bot.model, params, bot.instructions)))
    console.print(table)


@bots.command("save")
def save_bot(
    name: Annotated[str, typer.Argument(help="What API clients send as `model`.")],
    model: Annotated[str | None, typer.Option(help="The workers' model.")] = None,
    instructions: Annotated[str, typer.Option(help="The system message.")] = "",
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0001, max=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Create a bot, or change it from its next turn on.

    Example: turnmill bots save support --instructions "You answer for ACME Parcels."
    """
    from turnmill.producer import tenants

    params = GenerationParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
    with open_system() as system:
        tenants.save_bot(
            system.database,
            system.tenant_id,
            name,
            model or system.settings.engine.model_name,
            instructions,
            params,
        )
    console.print(plain(f"Saved. Clients use it as model='{name}'."))
