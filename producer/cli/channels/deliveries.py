"""`turnmill deliveries`: replies and notices on their way to channels."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer

from turnmill.producer.channels.deliveries import (
    drop_deliveries,
    find_failed,
    list_deliveries,
    read_delivery,
    retry_deliveries,
)
from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.status_view import span
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, parse_id

app = typer.Typer(help="Replies on their way to channels.", no_args_is_help=True)
console = make_console()

ChannelOption = Annotated[str | None, typer.Option(help="Only those of this channel.")]
IdsArgument = Annotated[list[str] | None, typer.Argument(help="dlv_…, one or more.")]
FailedOption = Annotated[bool, typer.Option("--failed", help="All that have failed.")]


@app.command("list")
def show_list(
    channel: ChannelOption = None,
    state: Annotated[DeliveryState | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Deliveries shown.")] = 50,
    after: Annotated[str | None, typer.Option(help="The next page: the last one shown.")] = None,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """List deliveries, the latest first.

    Example: turnmill deliveries list --state failed
    """
    start = None if after is None else parse_id(Prefix.DELIVERY, after)
    with open_system(tenant=tenant) as system:
        page = list_deliveries(
            system.database,
            system.tenant_id,
            channel=channel,
            state=state,
            limit=limit,
            after=start,
        )
    if as_json:
        print_json(page)
        return
    # Attempts count looks at an unfinished turn, too: no news for whoever looks for trouble.
    table = Listing("delivery", "age", "channel", "kind", "state", "failures", "error")
    for each in page.deliveries:
        age = span(max((datetime.now(UTC) - each.created_at).total_seconds(), 0.0))
        cells = (each.id, age, each.channel, each.kind, each.state, each.failures)
        table.add_row(*(plain(str(cell)) for cell in cells), plain(each.error_code or ""))
    console.print(table if table.rows else "There are none.", soft_wrap=True)
    if page.next:
        console.print(f"More: --after {page.next}", soft_wrap=True)


@app.command()
def show(
    delivery_id: Annotated[str, typer.Argument(help="dlv_… as `deliveries list` shows it.")],
    tenant: TenantOption = None,
) -> None:
    """Show a delivery, with its last error, and without what it says.

    Example: turnmill deliveries show dlv_01a20a667dde743da35d0f8a02aa55e1
    """
    with open_system(tenant=tenant) as system:
        wanted = parse_id(Prefix.DELIVERY, delivery_id)
        view = read_delivery(system.database, system.tenant_id, wanted)
    print_json(view)


@app.command()
def retry(
    delivery_ids: IdsArgument = None,
    is_failed: FailedOption = False,
    channel: ChannelOption = None,
    tenant: TenantOption = None,
) -> None:
    """Queue failed deliveries again, with all their attempts.

    Example: turnmill deliveries retry --failed --channel acme-slack
    """
    with open_system(tenant=tenant) as system:
        ids = _chosen(system, delivery_ids, is_failed, channel)
        changed = retry_deliveries(system.database, system.tenant_id, ids)
        _report(system, "queued again", ids, changed)


@app.command()
def drop(
    delivery_ids: IdsArgument = None,
    is_failed: FailedOption = False,
    channel: ChannelOption = None,
    tenant: TenantOption = None,
) -> None:
    """Give queued or failed deliveries up.

    Example: turnmill deliveries drop dlv_01a20a667dde743da35d0f8a02aa55e1
    """
    with open_system(tenant=tenant) as system:
        ids = _chosen(system, delivery_ids, is_failed, channel)
        changed = drop_deliveries(system.database, system.tenant_id, ids)
        _report(system, "dropped", ids, changed)


def _chosen(
    system: System, delivery_ids: Sequence[str] | None, is_failed: bool, channel: str | None
) -> list[UUID]:
    if is_failed == bool(delivery_ids):
        raise InvalidInput("Name deliveries, or say --failed.")
    if delivery_ids:
        return [parse_id(Prefix.DELIVERY, text) for text in delivery_ids]
    return find_failed(system.database, system.tenant_id, channel)


def _report(system: System, what: str, wanted: Sequence[UUID], changed: Sequence[UUID]) -> None:
    """Exit status 1 if some stayed as they were."""
    console.print(f"{len(changed)} {what}.")
    if left := len(wanted) - len(changed):
        see = f"turnmill deliveries list{system.suffix}"
        console.print(plain(f"{left} left as they were. See: {see}"), soft_wrap=True)
        raise typer.Exit(1)
