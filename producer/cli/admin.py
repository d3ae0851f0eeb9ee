"""Commands of whoever runs the system: `doctor`, `tenants`, `keys`."""

import shlex
from typing import Annotated

import typer

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.tenants import DEFAULT_SCOPES, Scope

tenants = typer.Typer(
    help="Tenants: each has bots, keys and turns of its own.", no_args_is_help=True
)
keys = typer.Typer(help="API keys.", no_args_is_help=True)
console = make_console()


def doctor(
    strict: Annotated[
        bool, typer.Option("--strict", help="Warnings fail too: for deploy pipelines.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check this installation and the configured servers; exit status 1 if anything is broken.

    Example: turnmill doctor --strict
    """
    from turnmill.infra.migrations import head_revision
    from turnmill.producer.cli.views.doctor_view import show_findings, to_json
    from turnmill.producer.doctor import Level, diagnose
    from turnmill.workers.search.registry import try_search

    findings = diagnose(head_revision(), try_search)
    if as_json:
        typer.echo(to_json(findings))
    else:
        show_findings(findings)
    failing = {Level.BROKEN, Level.WARNING} if strict else {Level.BROKEN}
    if any(finding.level in failing for finding in findings):
        raise typer.Exit(1)


@tenants.command("create")
def create_tenant(name: Annotated[str, typer.Argument(help="1 to 100 characters.")]) -> None:
    """Create a tenant, with a bot named like the workers' model.

    Example: turnmill tenants create acme && turnmill keys create web --tenant acme
    """
    from turnmill.producer.tenants import create_tenant

    with open_system() as system:
        create_tenant(system.database, name, system.settings)
    suggested = f"turnmill keys create NAME --tenant {shlex.quote(name)}"
    console.print(plain(f"Created. An API key for it: {suggested}"), soft_wrap=True)


@tenants.command("list")
def list_tenants(as_json: JsonOption = False) -> None:
    """List the tenants.

    Example: turnmill tenants list
    """
    from turnmill.producer.cli.lists.shapes import TenantList
    from turnmill.producer.tenants import list_tenants

    with open_system() as system:
        found = list_tenants(system.database)
    if as_json:
        print_json(TenantList.of(found))
        return
    table = Listing("tenant", "bots", "keys in force", "training", "created")
    for tenant in found:
        created = f"{tenant.created_at:%Y-%m-%d %H:%M}"
        training = "allowed" if tenant.allows_training else "no"
        counts = str(tenant.bot_count), str(tenant.key_count)
        table.add_row(plain(tenant.name), *counts, training, created)
    console.print(table)


@tenants.command("training")
def set_training(
    name: Annotated[str, typer.Argument(help="The tenant.")],
    allow: Annotated[
        bool, typer.Option("--allow/--forbid", help="Whether its conversations may train models.")
    ],
    conversation: Annotated[
        str | None, typer.Option(help="conv_…: only this one; forbidding it overrules the tenant.")
    ] = None,
) -> None:
    """Record whether a tenant agreed that its conversations train models.

    `turnmill compress --tenant-data` refuses a tenant that has not, and leaves out conversations
    that are forbidden.

    Example: turnmill tenants training acme --allow

    Example: turnmill tenants training acme --forbid
    --conversation conv_01a20a667dde743da35d0f8a02aa55e1
    """
    from turnmill.producer.tenants import find_tenant, set_conversation_training, set_training

    with open_system() as system:
        if conversation is None:
            set_training(system.database, name, is_allowed=allow)
        else:
            conversation_id = parse_id(Prefix.CONVERSATION, conversation)
            tenant_id = find_tenant(system.database, name)
            set_conversation_training(system.database, tenant_id, conversation_id, is_allowed=allow)
    what = f"{name}, {conversation}" if conversation else name
    console.print(plain(f"{what}: training {'allowed' if allow else 'forbidden'}."), soft_wrap=True)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Who will use it.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may be used for (repeatable). Default: turns and batches."),
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Create an API key. It is printed once, alone on its line: only its hash is kept.

    Example: turnmill keys create slack-bot

    Example of one for Prometheus: turnmill keys create prometheus --scope metrics
    """
    from turnmill.producer.tenants import create_key

    with open_system(tenant=tenant) as system:
        scopes = scope or DEFAULT_SCOPES
        typer.echo(create_key(system.database, system.tenant_id, name, scopes))


@keys.command("list")
def list_keys(as_json: JsonOption = False, tenant: TenantOption = None) -> None:
    """List the API keys.

    Example: turnmill keys list --tenant acme
    """
    from turnmill.producer.cli.lists.shapes import KeyList
    from turnmill.producer.tenants import list_keys

    with open_system(tenant=tenant) as system:
        found = list_keys(system.database, system.tenant_id)
    if as_json:
        print_json(KeyList.of(found))
        return
    table = Listing("id", "name", "starts with", "scopes", "created", "revoked")
    for key in found:
        created = f"{key.created_at:%Y-%m-%d %H:%M}"
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
        scopes = ", ".join(key.scopes)
        table.add_row(key.shown_id, plain(key.name), key.hint, scopes, created, revoked)
    console.print(table)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="key_… from `keys list`.")],
    tenant: TenantOption = None,
) -> None:
    """Refuse an API key from now on (API processes notice within 5 seconds).

    Example: turnmill keys revoke key_01a20ab599f77372a3962160f383535f
    """
    from turnmill.producer.tenants import revoke_key

    with open_system(tenant=tenant) as system:
        revoke_key(system.database, system.tenant_id, parse_id(Prefix.KEY, key_id))
    console.print("Revoked.")
