"""`turnmill turns`: listed by what they have in common, found by any name, shown, cancelled."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from turnmill.producer.channels.deliveries import deliveries_of
from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.turns.times import parse_past
from turnmill.producer.cli.turns.turn import cancel, show
from turnmill.producer.cli.views import turns_view
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.operations.turns import TurnFilter, find_turns, list_turns
from turnmill.producer.operations.why import Explainer
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.turns import Lane, TurnState

app = typer.Typer(help="Turns: list, find, show and cancel them.", no_args_is_help=True)
console = make_console()

TenantFilter = Annotated[
    str | None, typer.Option("--tenant", help="Only this tenant's; of all when left out.")
]


@app.command("list")
def show_list(
    state: Annotated[TurnState | None, typer.Option(help="Only turns in this state.")] = None,
    lane: Annotated[Lane | None, typer.Option(help="Only turns of this lane.")] = None,
    model: Annotated[str | None, typer.Option(help="Only turns for this model.")] = None,
    tenant: TenantFilter = None,
    bot: Annotated[str | None, typer.Option(help="Only turns of this bot.")] = None,
    error_code: Annotated[str | None, typer.Option(help="Only turns with this error code.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Only turns accepted so long ago or longer (30m, 6h, 2d), or before a "
            "time with its zone."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Turns shown.")] = 50,
    after: Annotated[str | None, typer.Option(help="The next page: the last turn shown.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List turns, the latest accepted first, without what was asked and answered.

    Example: turnmill turns list --state failed --error-code deadline_exceeded

    Example: turnmill turns list --state queued --older-than 10m
    """  # fmt: skip
    before = None if older_than is None else parse_past(older_than, "older_than")
    wanted = TurnFilter(
        tenant=tenant, state=state, lane=lane, model=model, bot=bot, error_code=error_code,
        before=before,
    )  # fmt: skip
    start = None if after is None else parse_id(Prefix.TURN, after)
    with open_system(tenant=tenant) as system:  # refuses an unknown one
        page = list_turns(system.database, wanted, limit=limit, after=start)
    if as_json:
        print_json(page)
    else:
        console.print(turns_view.page(page, datetime.now(UTC)), soft_wrap=True)


@app.command()
def find(
    name: Annotated[
        str,
        typer.Argument(
            help="turn_… or conv_… or the start of one, dlv_…, an idempotency key, the id that "
            "a platform gives to a thread or an event, or the link of a message in Slack."
        ),
    ],
    tenant: TenantFilter = None,
    as_json: JsonOption = False,
) -> None:
    """Find turns by any name that somebody knows, and say what keeps a turn or its reply back.

    Example: turnmill turns find order-4711

    Example: turnmill turns find https://acme.slack.com/archives/C024BE91L/p1796050895000046
    """  # fmt: skip
    with open_system(tenant=tenant) as system:  # refuses an unknown one
        found = find_turns(system.database, name, tenant=tenant)
        if not found:
            raise NotFound(f"No turn has the name '{name[:200]}', nor does a conversation.")
        why = None
        ids = [parse_id(Prefix.TURN, turn.turn_id) for turn in found]
        deliveries = deliveries_of(system.database, ids)
        if len(ids) == 1:
            why = Explainer(system.database, system.settings).explain(ids[0])
    if as_json:
        shown = {
            "turns": [turn.model_dump(mode="json") for turn in found],
            "why": why.model_dump(mode="json") if why else None,
            "deliveries": [each.model_dump(mode="json") for each in deliveries],
        }
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        console.print(turns_view.found(found, why, deliveries, datetime.now(UTC)), soft_wrap=True)


app.command()(show)
app.command()(cancel)
