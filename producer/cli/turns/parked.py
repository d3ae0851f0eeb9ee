"""`turnmill parked`: turns that ran out of attempts; looking at them, replaying, dropping."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.turns.times import parse_past
from turnmill.producer.cli.views import parked_view
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.parked.listing import find_parked, list_parked, read_parked
from turnmill.producer.parked.replay import Change, drop, foresee, replay
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.parked import ParkedFilter
from turnmill.schemas.turns import Lane

app = typer.Typer(help="Turns that ran out of attempts.", no_args_is_help=True)
console = make_console()

TurnId = Annotated[str, typer.Argument(help="turn_… as `parked list` shows it.")]
TurnIds = Annotated[list[str] | None, typer.Argument(help="turn_…, one or more.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that the filters let through.")]
BotOption = Annotated[str | None, typer.Option(help="Only turns of this bot.")]
ModelOption = Annotated[str | None, typer.Option(help="Only turns for this model.")]
LaneOption = Annotated[Lane | None, typer.Option(help="Only turns of this lane.")]
ErrorOption = Annotated[str | None, typer.Option(help="Only turns with this error.")]
SinceOption = Annotated[
    str | None, typer.Option(help="Only turns parked since: 30m, 6h, 2d ago, or a time with zone.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many, the oldest.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; no more.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")]


@app.command("list")
def show_list(
    bot: BotOption = None,
    model: ModelOption = None,
    lane: LaneOption = None,
    error_code: ErrorOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Turns shown.")] = 50,
    after: Annotated[str | None, typer.Option(help="The next page: the last turn shown.")] = None,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """List parked turns, the latest first, and how many there are of each error.

    Example: turnmill parked list --since 6h --error-code attempts_used_up
    """
    wanted = _filter(bot, model, lane, error_code, since)
    start = None if after is None else parse_id(Prefix.TURN, after)
    with open_system(tenant=tenant) as system:
        page = list_parked(system.database, system.tenant_id, wanted, limit=limit, after=start)
    if as_json:
        print_json(page)
    else:
        console.print(parked_view.page(page, datetime.now(UTC)), soft_wrap=True)


@app.command()
def show(
    turn_id: TurnId,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """Show everything about a parked turn, what was asked included.

    Example: turnmill parked show turn_01a20a667dde743da35d0f8a02aa55e1
    """
    with open_system(tenant=tenant) as system:
        turn = read_parked(system.database, system.tenant_id, parse_id(Prefix.TURN, turn_id))
    if as_json:
        print_json(turn)
    else:
        console.print(parked_view.details(turn, datetime.now(UTC)))


@app.command("replay")
def replay_turns(
    turn_ids: TurnIds = None,
    is_all: AllOption = False,
    bot: BotOption = None,
    model: ModelOption = None,
    lane: LaneOption = None,
    error_code: ErrorOption = None,
    since: SinceOption = None,
    limit: LimitOption = None,
    into: Annotated[
        Lane | None, typer.Option(help="Through this lane: quarantine runs them alone.")
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    tenant: TenantOption = None,
) -> None:
    """Put parked turns back into their places in their conversations, to be answered.

    A turn whose conversation has been answered since is left as it is. Exit status 1 if there
    was any such.

    Example: turnmill parked replay --all --error-code worker_lost --into quarantine --limit 10
    """
    wanted = _filter(bot, model, lane, error_code, since)
    with open_system(tenant=tenant) as system:
        chosen = _choose(system, turn_ids, is_all, wanted, limit)
        if dry_run:
            changes = foresee(system.database, system.tenant_id, chosen)
        else:
            _confirm("Replay", chosen, is_all and not yes)
            with _progress("Replaying", len(chosen)) as on_done:
                changes = replay(
                    system.database, system.tenant_id, chosen, into=into, on_done=on_done
                )
    _report(changes, "would be replayed" if dry_run else "replayed")


@app.command("drop")
def drop_turns(
    turn_ids: TurnIds = None,
    is_all: AllOption = False,
    bot: BotOption = None,
    model: ModelOption = None,
    lane: LaneOption = None,
    error_code: ErrorOption = None,
    since: SinceOption = None,
    limit: LimitOption = None,
    yes: YesOption = False,
    tenant: TenantOption = None,
) -> None:
    """Give parked turns up for good: they have failed, with the error that they had.

    Example: turnmill parked drop --all --error-code worker_lost
    """
    wanted = _filter(bot, model, lane, error_code, since)
    with open_system(tenant=tenant) as system:
        chosen = _choose(system, turn_ids, is_all, wanted, limit)
        _confirm("Drop", chosen, is_all and not yes)
        with _progress("Dropping", len(chosen)) as on_done:
            changes = drop(system.database, system.tenant_id, chosen, on_done=on_done)
    _report(changes, "dropped")


def _filter(
    bot: str | None, model: str | None, lane: Lane | None, error_code: str | None, since: str | None
) -> ParkedFilter:
    return ParkedFilter(
        bot=bot,
        model=model,
        lane=lane,
        error_code=error_code,
        since=parse_past(since, "since") if since is not None else None,
    )


def _choose(
    system: System,
    turn_ids: list[str] | None,
    is_all: bool,
    wanted: ParkedFilter,
    limit: int | None,
) -> list[UUID]:
    is_filtered = limit is not None or wanted != ParkedFilter()
    if is_all == bool(turn_ids) or (turn_ids and is_filtered):
        raise InvalidInput("Name the turns, or say --all with the filters you want.")
    if turn_ids:
        return list(dict.fromkeys(parse_id(Prefix.TURN, text) for text in turn_ids))
    return find_parked(system.database, system.tenant_id, wanted, limit=limit)


def _confirm(verb: str, chosen: list[UUID], must_ask: bool) -> None:
    if must_ask and chosen:
        typer.confirm(f"{verb} {parked_view.count(len(chosen))}?", abort=True)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; what it gives is told how many turns are done."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def _report(changes: list[Change], verb: str) -> None:
    console.print(parked_view.outcome(changes, verb), soft_wrap=True)
    if any(change.refusal for change in changes):
        raise typer.Exit(1)
